/* Plans and requests as the program parses them: the parser never reads beyond the bytes, whatever
 * they are, and what it accepts can be used without further checks.
 */
#include <stdlib.h>
#include <string.h>

#include "input.h"
#include "shared/wire.h"

static volatile uint8_t sink;

static void read_text(const char *text)
{
    while (*text)
        sink ^= (uint8_t)*text++;
}

static void read_texts(char *const *texts)
{
    for (; *texts; texts++)
        read_text(*texts);
}

static void use(const struct fns_args *args)
{
    read_texts(args->argv);
    read_texts(args->envp);
    read_texts(args->paths);
    if (args->cwd)
        read_text(args->cwd);
    if (args->n_groups > FNS_MAX_GROUPS || args->clone_into > args->n_groups)
        abort();
    int last = 2;
    for (uint32_t i = 0; i < args->n_keep; last = args->keep[i++])
        if (args->keep[i] <= last)
            abort();
    for (uint32_t i = 0; i < args->n_groups; i++)
        sink ^= (uint8_t)args->groups[i];
}

static void open_plan(char *bytes, size_t size)
{
    struct fns_packed_plan *packed = (struct fns_packed_plan *)(void *)bytes;
    if (size < sizeof *packed || fns_open_plan(bytes, size, &packed->plan) < 0)
        return;
    for (uint32_t i = 0; i < packed->plan.n_ops; i++)
        sink ^= (uint8_t)packed->plan.ops[i].data;
    for (uint32_t i = 0; i < packed->plan.n_strings; i++)
        sink ^= (uint8_t)packed->plan.strings[i];
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, data + size};
    unsigned how = (unsigned)take(&input, 1);
    int n_fds = (int)take(&input, 1);
    size_t left = (size_t)(input.end - input.at);
    char *bytes = malloc(left + !left);
    struct fns_args args;
    if (!bytes)
        abort();
    take_bytes(&input, bytes, left);
    if (how & 1)
        open_plan(bytes, left);
    else if (fns_open_request((struct fns_request *)(void *)bytes, left, n_fds, &args) == 0)
        use(&args);
    free(bytes);
    return 0;
}
