/* Shared by the C tests: checks that print where they failed, and repeatable random numbers. */
#ifndef FNS_TESTS_CHECK_H
#define FNS_TESTS_CHECK_H

#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

extern ssize_t readlinkat(int, const char *, char *, size_t); /* unistd.h conflicts with sys.h */

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                        \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

#define CHECK_EQUAL(left, right)                                                                   \
    do {                                                                                           \
        long long left_value = (long long)(left), right_value = (long long)(right);                \
        if (left_value != right_value) {                                                           \
            fprintf(stderr, "%s:%d: %s is %lld, not %lld\n", __FILE__, __LINE__, #left,            \
                    left_value, right_value);                                                      \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

/* xorshift64*: the same numbers in every run. */
static uint64_t random_state = 0x9e3779b97f4a7c15ull;
__attribute__((unused)) static uint32_t random_below(uint32_t limit)
{
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (uint32_t)((random_state * 0x2545f4914f6cdd1dull) >> 33) % limit;
}

/* Returns the number of this process's open fds, except those that the engine keeps. */
__attribute__((unused)) static int open_fds(void)
{
    const char *kept = "/memfd:fastns-";
    int n = 0;
    DIR *dir = opendir("/proc/self/fd");
    CHECK(dir != NULL);
    for (struct dirent *entry; (entry = readdir(dir));) {
        char link[64] = "";
        ssize_t size = readlinkat(dirfd(dir), entry->d_name, link, sizeof link - 1);
        n += size < 0 || strncmp(link, kept, strlen(kept)) != 0;
    }
    closedir(dir);
    return n;
}

#endif
