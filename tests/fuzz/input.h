/* The rest of a fuzzer's input. Zeros follow its end. */
#ifndef FNS_FUZZ_INPUT_H
#define FNS_FUZZ_INPUT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct input {
    const uint8_t *at, *end;
};

__attribute__((unused)) static void take_bytes(struct input *input, void *to, size_t size)
{
    size_t left = (size_t)(input->end - input->at), n = size < left ? size : left;
    memset(to, 0, size);
    if (n)
        memcpy(to, input->at, n);
    input->at += n;
}

/* Returns a number of `bytes` bytes, at most 8. */
__attribute__((unused)) static uint64_t take(struct input *input, uint64_t bytes)
{
    uint64_t value = 0;
    take_bytes(input, &value, bytes < 8 ? bytes : 8);
    return value;
}

#endif
