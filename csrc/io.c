/* Feeding and draining a sandbox's pipes. Runs in the parent, without the GIL.
 *
 * One poll loop over the caller's three pipe ends, the pidfd, a deadline and a stop fd, so that no
 * order of reads and writes by the child can block it (subprocess' communicate(), in C).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
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

static int feed(struct fns_io *io)
{
    size_t left = io->input_size - io->input_done;
    ssize_t n = left ? write(io->fds[0], io->input + io->input_done, left) : 0;
    if (n > 0)
        io->input_done += (size_t)n;
    else if (n < 0 && errno == EPIPE) /* the child does not want the rest: not an error of ours */
        io->input_done = io->input_size;
    else if (n < 0 && errno != EAGAIN && errno != EINTR)
        return -errno;
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
    int ended = 0;
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

int fns_io_finish(struct fns_io *io)
{
    int ret = 0;
    make_nonblocking(io);
    /* Killed processes end within moments, but one deep in the kernel may take longer: drain first
     * what is there, then wait, then take what came in between. */
    while (fns_wait(&io->process, -1) == -EINTR)
        ;
    for (int i = 1; i < 3; i++) {
        size_t before;
        do {
            before = io->output[i - 1].size;
            if (io->fds[i] >= 0)
                ret = drain(&io->fds[i], &io->output[i - 1]);
        } while (ret == 0 && io->output[i - 1].size > before);
    }
    fns_io_close(io);
    return ret;
}
