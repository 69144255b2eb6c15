/* Feeding and draining the pipes of one sandbox, a step at a time. Runs in the caller, without the GIL.
 *
 * When to take a step is decided by the loop (loop.c).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "loop.h"
#include "spawn.h"

enum { CHUNK = 16384 };

void fns_io_close_end(struct fns_io *io, int which)
{
    if (io->fds[which] >= 0)
        close(io->fds[which]);
    io->fds[which] = -1;
}

void fns_io_close(struct fns_io *io)
{
    for (int i = 0; i < 3; i++)
        fns_io_close_end(io, i);
}

void fns_buffer_free(struct fns_buffer *buffer)
{
    free(buffer->data);
    *buffer = (struct fns_buffer){NULL, 0, 0, 0};
}

/* Makes room for `more` bytes: no more than that at first, as most outputs are short. */
static int reserve(struct fns_buffer *buffer, size_t more)
{
    size_t needed = buffer->size + more;
    size_t capacity = needed > buffer->capacity * 2 ? needed : buffer->capacity * 2;
    if (needed <= buffer->capacity)
        return 0;
    char *data = realloc(buffer->data, capacity);
    if (!data)
        return -ENOMEM;
    buffer->data = data;
    buffer->capacity = capacity;
    return 0;
}

/* Reads once. What is over the limit is read too, and dropped: a full pipe would block the sandbox. */
static int drain(struct fns_io *io, int which)
{
    char chunk[CHUNK];
    struct fns_buffer *buffer = &io->output[which - 1];
    size_t room = buffer->capacity - buffer->size;
    int has_room = room >= CHUNK;
    ssize_t n = read(io->fds[which], has_room ? buffer->data + buffer->size : chunk,
                     has_room ? room : CHUNK);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    size_t kept = (size_t)n, left = io->limit - buffer->size;
    if (io->limit && kept > left)
        kept = left;
    if (kept > 0 && !has_room) {
        int ret = reserve(buffer, kept);
        if (ret < 0)
            return ret;
        memcpy(buffer->data + buffer->size, chunk, kept);
    }
    buffer->size += kept;
    buffer->dropped += (size_t)n - kept;
    io->over |= io->capped && buffer->dropped > 0;
    return n == 0;
}

/* write(2) that raises no SIGPIPE, whatever the caller does with that signal: blocks it in this thread, and
 * consumes it unless one was pending before. -errno on failure. */
static ssize_t write_quietly(int fd, const char *data, size_t size)
{
    const struct timespec at_once = {0, 0};
    uint64_t before;
    sigset_t pipe, pending;
    sigemptyset(&pipe);
    sigaddset(&pipe, SIGPIPE);
    if (sigpending(&pending) < 0)
        return -errno;
    long ret = fns_block_signal(SIGPIPE, &before);
    if (ret < 0)
        return ret;
    ssize_t n = write(fd, data, size);
    int err = errno;
    if (n < 0 && err == EPIPE && !sigismember(&pending, SIGPIPE))
        while (sigtimedwait(&pipe, NULL, &at_once) < 0 && errno == EINTR)
            ;
    fns_restore_signals(before);
    return n < 0 ? -err : n;
}

static int feed(struct fns_io *io)
{
    size_t left = io->input_size - io->input_done;
    ssize_t n = left ? write_quietly(io->fds[0], io->input + io->input_done, left) : 0;
    if (n == -EPIPE) /* the sandbox does not want the rest: no error */
        return 1;
    if (n < 0)
        return n == -EAGAIN || n == -EINTR ? 0 : (int)n;
    io->input_done += (size_t)n;
    return io->input_done == io->input_size;
}

int fns_io_move(struct fns_io *io, int which)
{
    return which == 0 ? feed(io) : drain(io, which);
}

void fns_io_prepare(struct fns_io *io)
{
    for (int i = 0; i < 3; i++) {
        int flags = io->fds[i] >= 0 ? fcntl(io->fds[i], F_GETFL) : -1;
        if (flags >= 0 && !(flags & O_NONBLOCK))
            fcntl(io->fds[i], F_SETFL, flags | O_NONBLOCK);
    }
}

static uint64_t taken(const struct fns_buffer *buffer)
{
    return buffer->size + buffer->dropped;
}

/* Takes what is in the pipe now, and no more: a process that left the sandbox may go on writing. */
static int drain_rest(struct fns_io *io, int which)
{
    const struct fns_buffer *buffer = &io->output[which - 1];
    int left, ret = 0;
    if (io->fds[which] < 0)
        return 0;
    if (ioctl(io->fds[which], FIONREAD, &left) < 0)
        return -errno;
    uint64_t end = taken(buffer) + (uint64_t)left, before = end;
    while (ret == 0 && taken(buffer) < end && taken(buffer) != before) {
        before = taken(buffer);
        ret = drain(io, which);
    }
    return ret < 0 ? ret : 0;
}

int fns_io_finish(struct fns_io *io)
{
    fns_io_prepare(io);
    while (fns_wait(&io->process, -1) == -EINTR)
        fns_attend(&io->process, 1);
    int ret = drain_rest(io, 1);
    if (ret == 0)
        ret = drain_rest(io, 2);
    fns_io_close(io);
    return ret;
}
