/* Feeding and draining a sandbox's pipes. Runs in the parent, without the GIL.
 *
 * One poll loop over the caller's three pipe ends, the sandbox's end and a deadline, so that no order
 * of reads and writes by the child can block it (subprocess' communicate(), in C). A batch has a loop
 * of its own, with the same steps (batch.c).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "spawn.h"

#define CHUNK 65536

/* An epoll goes on watching a closed fd's file while a forked process has it open. */
static void close_end(struct fns_io *io, int which)
{
    if (io->fds[which] < 0)
        return;
    if (io->epoll > 0)
        epoll_ctl(io->epoll, EPOLL_CTL_DEL, io->fds[which], NULL);
    close(io->fds[which]);
    io->fds[which] = -1;
}

void fns_io_close(struct fns_io *io)
{
    for (int i = 0; i < 3; i++)
        close_end(io, i);
}

void fns_buffer_free(struct fns_buffer *buffer)
{
    free(buffer->data);
    *buffer = (struct fns_buffer){NULL, 0, 0, 0};
}

static int grow(struct fns_buffer *buffer)
{
    if (buffer->capacity - buffer->size >= CHUNK / 4)
        return 0;
    size_t capacity = buffer->capacity ? buffer->capacity * 2 : CHUNK / 4;
    char *data = realloc(buffer->data, capacity);
    if (!data)
        return -ENOMEM;
    buffer->data = data;
    buffer->capacity = capacity;
    return 0;
}

/* Reads once; at the end of the stream closes the fd. What is beyond the limit is read all the same:
 * a full pipe would stop the sandbox. */
static int drain(struct fns_io *io, int which)
{
    char nowhere[CHUNK / 4];
    struct fns_buffer *buffer = &io->output[which - 1];
    int full = io->limit && buffer->size >= io->limit, ret = full ? 0 : grow(buffer);
    if (ret < 0)
        return ret;
    size_t space = full ? sizeof nowhere : buffer->capacity - buffer->size;
    if (io->limit && !full && space > io->limit - buffer->size)
        space = io->limit - buffer->size;
    ssize_t n = read(io->fds[which], full ? nowhere : buffer->data + buffer->size, space);
    if (n > 0 && full) {
        buffer->dropped += (uint64_t)n;
        io->over = io->capped;
    } else if (n > 0) {
        buffer->size += (size_t)n;
    } else if (n == 0) {
        close_end(io, which);
    } else if (errno != EAGAIN && errno != EINTR) {
        return -errno;
    }
    return 0;
}

/* write(2) without a SIGPIPE, whatever the caller's program does with that signal: it is blocked in
 * this thread, and taken back unless one was pending before. -errno on failure. */
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
    if (n > 0)
        io->input_done += (size_t)n;
    else if (n == -EPIPE) /* the child does not want the rest: not an error of ours */
        io->input_done = io->input_size;
    else if (n < 0 && n != -EAGAIN && n != -EINTR)
        return (int)n;
    if (io->input_done == io->input_size)
        close_end(io, 0);
    return 0;
}

void fns_io_prepare(struct fns_io *io)
{
    for (int i = 0; i < 3; i++) {
        int flags = io->fds[i] >= 0 ? fcntl(io->fds[i], F_GETFL) : -1;
        if (flags >= 0 && !(flags & O_NONBLOCK))
            fcntl(io->fds[i], F_SETFL, flags | O_NONBLOCK);
    }
    if (io->input_done == io->input_size)
        close_end(io, 0);
}

int fns_io_move(struct fns_io *io, int which)
{
    if (io->fds[which] < 0)
        return 0;
    return which == 0 ? feed(io) : drain(io, which);
}

int fns_io_run(struct fns_io *io)
{
    int ended = fns_end_fd(&io->process) < 0; /* reaped already: only the pipes are left */
    fns_io_prepare(io);
    while (!ended || io->fds[1] >= 0 || io->fds[2] >= 0) {
        struct pollfd polled[4] = {
            {.fd = io->fds[0], .events = POLLOUT},
            {.fd = io->fds[1], .events = POLLIN},
            {.fd = io->fds[2], .events = POLLIN},
            {.fd = ended ? -1 : fns_end_fd(&io->process), .events = POLLIN},
        };
        uint64_t now = fns_now(), left = FNS_LOOK_NS;
        if (io->over)
            return FNS_IO_OVER;
        if (io->deadline && now >= io->deadline)
            return FNS_IO_TIMEOUT;
        if (io->deadline && io->deadline - now < left)
            left = io->deadline - now;
        const struct timespec time = {(time_t)(left / 1000000000u), (long)(left % 1000000000u)};
        int n = ppoll(polled, 4, &time, NULL);
        if (n == 0 && left == FNS_LOOK_NS) {
            fns_attend(&io->process, 0);
            return -EINTR;
        }
        if (n < 0)
            return -errno;
        for (int i = 0; i < 3; i++) {
            int ret = polled[i].revents ? fns_io_move(io, i) : 0;
            if (ret < 0)
                return ret;
        }
        if (polled[3].revents) {
            ended = 1;
            close_end(io, 0);
            if (!fns_reapable(&io->process)) {
                fns_wait(&io->process, -1); /* a little */
                return -EINTR;
            }
        }
    }
    return FNS_IO_DONE;
}

/* Takes what is in the pipe now, no more: a process that left the sandbox may write for ever. */
static int drain_rest(struct fns_io *io, int which)
{
    struct fns_buffer *buffer = &io->output[which - 1];
    int left = 0, ret = 0;
    if (io->fds[which] >= 0 && ioctl(io->fds[which], FIONREAD, &left) < 0)
        return -errno;
    uint64_t taken = buffer->size + buffer->dropped, end = taken + (uint64_t)left;
    while (ret == 0 && io->fds[which] >= 0 && taken < end) {
        uint64_t before = taken;
        ret = drain(io, which);
        taken = buffer->size + buffer->dropped;
        if (taken == before)
            break;
    }
    return ret;
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
