/* Feeding and draining a sandbox's pipes. Runs in the parent, without the GIL.
 *
 * One poll loop over the caller's three pipe ends, the pidfd, a deadline and a stop fd, so that no
 * order of reads and writes by the child can block it (subprocess' communicate(), in C).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "fastns.h"

#define CHUNK 65536

static void close_end(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

void fns_io_close(struct fns_io *io)
{
    for (int i = 0; i < 3; i++)
        close_end(&io->fds[i]);
}

void fns_buffer_free(struct fns_buffer *buffer)
{
    free(buffer->data);
    *buffer = (struct fns_buffer){NULL, 0, 0};
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

/* Reads once; at the end of the stream closes the fd. */
static int drain(int *fd, struct fns_buffer *buffer)
{
    int ret = grow(buffer);
    if (ret < 0)
        return ret;
    ssize_t n = read(*fd, buffer->data + buffer->size, buffer->capacity - buffer->size);
    if (n > 0)
        buffer->size += (size_t)n;
    else if (n == 0)
        close_end(fd);
    else if (errno != EAGAIN && errno != EINTR)
        return -errno;
    return 0;
}

/* write(2) without a SIGPIPE, whatever the caller's program does with that signal: it is blocked in
 * this thread, and taken back unless one was pending before. -errno on failure. */
static ssize_t write_quietly(int fd, const char *data, size_t size)
{
    const struct timespec at_once = {0, 0};
    sigset_t pipe, before, pending;
    sigemptyset(&pipe);
    sigaddset(&pipe, SIGPIPE);
    sigpending(&pending);
    pthread_sigmask(SIG_BLOCK, &pipe, &before);
    ssize_t n = write(fd, data, size);
    int err = errno;
    if (n < 0 && err == EPIPE && !sigismember(&pending, SIGPIPE))
        while (sigtimedwait(&pipe, NULL, &at_once) < 0 && errno == EINTR)
            ;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
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
        close_end(&io->fds[0]);
    return 0;
}

static void make_nonblocking(const struct fns_io *io)
{
    for (int i = 0; i < 3; i++) {
        int flags = io->fds[i] >= 0 ? fcntl(io->fds[i], F_GETFL) : -1;
        if (flags >= 0 && !(flags & O_NONBLOCK))
            fcntl(io->fds[i], F_SETFL, flags | O_NONBLOCK);
    }
}

/* Moves what the polled fds are ready for. */
static int move(struct fns_io *io, const struct pollfd *polled)
{
    int ret = 0;
    if (polled[0].revents)
        ret = feed(io);
    for (int i = 1; ret == 0 && i < 3; i++)
        if (polled[i].revents)
            ret = drain(&io->fds[i], &io->output[i - 1]);
    return ret;
}

int fns_io_run(struct fns_io *io)
{
    int ended = io->process.pidfd < 0; /* reaped already: only the pipes are left */
    make_nonblocking(io);
    if (io->fds[0] >= 0 && io->input_done == io->input_size)
        close_end(&io->fds[0]);
    while (!ended || io->fds[1] >= 0 || io->fds[2] >= 0) {
        struct pollfd polled[5] = {
            {.fd = io->fds[0], .events = POLLOUT},
            {.fd = io->fds[1], .events = POLLIN},
            {.fd = io->fds[2], .events = POLLIN},
            {.fd = ended ? -1 : io->process.pidfd, .events = POLLIN},
            {.fd = io->stop, .events = POLLIN},
        };
        struct timespec left = {0, 0};
        if (io->deadline) {
            uint64_t now = fns_now();
            if (now >= io->deadline)
                return FNS_IO_TIMEOUT;
            left.tv_sec = (time_t)((io->deadline - now) / 1000000000u);
            left.tv_nsec = (long)((io->deadline - now) % 1000000000u);
        }
        if (ppoll(polled, 5, io->deadline ? &left : NULL, NULL) < 0)
            return -errno;
        if (polled[4].revents)
            return FNS_IO_STOPPED;
        int ret = move(io, polled);
        if (ret < 0)
            return ret;
        if (polled[3].revents) {
            ended = 1;
            close_end(&io->fds[0]);
        }
    }
    return FNS_IO_DONE;
}

/* Takes what is in the pipe now, no more: a process that left the sandbox may write for ever. */
static int drain_rest(int *fd, struct fns_buffer *buffer)
{
    int left = 0, ret = 0;
    if (*fd >= 0 && ioctl(*fd, FIONREAD, &left) < 0)
        return -errno;
    for (size_t end = buffer->size + (size_t)left; ret == 0 && *fd >= 0 && buffer->size < end;) {
        size_t before = buffer->size;
        ret = drain(fd, buffer);
        if (buffer->size == before)
            break;
    }
    return ret;
}

int fns_io_finish(struct fns_io *io)
{
    make_nonblocking(io);
    while (fns_wait(&io->process, -1) == -EINTR)
        ;
    int ret = drain_rest(&io->fds[1], &io->output[0]);
    if (ret == 0)
        ret = drain_rest(&io->fds[2], &io->output[1]);
    fns_io_close(io);
    return ret;
}
