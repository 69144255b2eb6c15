/* Helpers for the other files: fds, growing arrays, the clock, numbers. Runs in the caller.
 *
 * All fds are above 2, as a start replaces 0, 1 and 2.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "spawn.h"

int fns_above_stdio(int fd)
{
    if (fd < 0 || fd > 2)
        return fd < 0 ? -errno : fd;
    int high = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    int err = errno;
    close(fd);
    return high < 0 ? -err : high;
}

/* Moves both ends of a pair above 2. `made`: the result of the call that made the pair. */
static int raise_pair(int made, int ends[2])
{
    int ret = made < 0 ? -errno : 0;
    for (int i = 0; ret >= 0 && i < 2; i++) {
        ret = fns_above_stdio(ends[i]);
        if (ret >= 0)
            ends[i] = ret;
        else
            close(ends[1 - i]);
    }
    if (ret < 0)
        ends[0] = ends[1] = -1;
    return ret < 0 ? ret : 0;
}

int fns_pipe(int ends[2], int flags)
{
    return raise_pair(pipe2(ends, O_CLOEXEC | flags), ends);
}

int fns_socket_pair(int ends[2])
{
    return raise_pair(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), ends);
}

int fns_open_pipe(int ends[2])
{
    return fns_pipe(ends, 0);
}

int fns_open_null(void)
{
    return fns_above_stdio(open("/dev/null", O_RDWR | O_CLOEXEC));
}

int fns_open_pidfd(int pid)
{
    return fns_above_stdio((int)syscall(SYS_pidfd_open, pid, 0));
}

void fns_close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

void *fns_grow(void *items, size_t *capacity, size_t n, size_t item_size)
{
    if (n < *capacity)
        return items;
    size_t size = *capacity ? 2 * *capacity : 16;
    void *grown = realloc(items, size * item_size);
    if (grown)
        *capacity = size;
    return grown;
}

uint64_t fns_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

struct timespec fns_timespec(uint64_t ns)
{
    return (struct timespec){(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
}

int fns_next_number(void)
{
    static atomic_int last;
    return (atomic_fetch_add(&last, 1) & 0x3fffffff) + 1;
}
