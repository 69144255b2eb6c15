/* One loop for the pipes, ends and deadlines of sandboxes. Runs in the caller, without the GIL.
 *
 * All waits for a sandbox go through this loop: for one (wait(), communicate()), or for those of a batch (batch.c).
 * The loop moves bytes and notes what has happened; its user decides what to do about it. It returns now and
 * then, and after a signal, so that the caller can run its signal handlers.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "loop.h"
#include "shared/sys.h"
#include "spawn.h"

enum {
    CHUNK = 16384,
    MAX_POLLED = 8, /* slots: with more, an epoll is cheaper than a ppoll() of all fds */
    MAX_ATTENDED = 16,
    /* Between checks of a sandbox that a tracer keeps from ending. Polling is no use: its pidfd stays readable. */
    RECHECK_NS = 10000000,
};

/* ---- pipes -------------------------------------------------------------------------------------- */

void fns_io_close(struct fns_io *io)
{
    for (int i = 0; i < 3; i++)
        fns_close_fd(&io->fds[i]);
}

void fns_buffer_free(struct fns_buffer *buffer)
{
    free(buffer->data);
    *buffer = (struct fns_buffer){NULL, 0, 0, 0};
}

/* Makes room for `more` bytes. The first allocation is no larger than needed, as most outputs are short. */
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

/* Reads once. Bytes over the limit are read too, and dropped: a full pipe would block the sandbox. */
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

/* write(2) without SIGPIPE, whatever the application does with that signal: blocks it in this thread, and
 * consumes it unless one was pending before. -errno on failure. */
static ssize_t write_without_sigpipe(int fd, const char *data, size_t size)
{
    const struct timespec at_once = {0, 0};
    uint64_t before;
    sigset_t pipe, pending;
    sigemptyset(&pipe);
    sigaddset(&pipe, SIGPIPE);
    if (sigpending(&pending) < 0)
        return -errno;
    long ret = fns_block_signals(1ull << (SIGPIPE - 1), &before);
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
    ssize_t n = left ? write_without_sigpipe(io->fds[0], io->input + io->input_done, left) : 0;
    if (n == -EPIPE) /* the sandbox does not read the rest: no error */
        return 1;
    if (n < 0)
        return n == -EAGAIN || n == -EINTR ? 0 : (int)n;
    io->input_done += (size_t)n;
    return io->input_done == io->input_size;
}

static int move(struct fns_io *io, int which)
{
    return which == 0 ? feed(io) : drain(io, which);
}

/* ---- the loop ----------------------------------------------------------------------------------- */

int fns_loop_open(struct fns_loop *loop, unsigned n_slots)
{
    int ret = 0;
    *loop =
        (struct fns_loop){.watches = calloc(n_slots, sizeof *loop->watches), .n_slots = n_slots};
    if (!loop->watches)
        return -ENOMEM;
    if (n_slots <= MAX_POLLED)
        return 0;
    /* Room for every possible event: a turn must see all that has happened before deadlines are checked. */
    loop->events = calloc(n_slots, FNS_WATCHED * sizeof *loop->events);
    ret = loop->events ? fns_above_stdio(epoll_create1(EPOLL_CLOEXEC)) : -ENOMEM;
    if (ret < 0)
        fns_loop_close(loop);
    else
        loop->epoll = ret;
    return ret < 0 ? ret : 0;
}

void fns_loop_close(struct fns_loop *loop)
{
    if (loop->epoll)
        close(loop->epoll);
    free(loop->events);
    free(loop->watches);
}

static int watch(struct fns_loop *loop, unsigned slot, unsigned what, int fd)
{
    struct epoll_event event = {.events = what == 0 ? EPOLLOUT : EPOLLIN,
                                .data.u32 = slot * FNS_WATCHED + what};
    int *watched = &loop->watches[slot].watched[what];
    if (fd < 0 || fd == *watched)
        return 0;
    if (loop->epoll && epoll_ctl(loop->epoll, EPOLL_CTL_ADD, fd, &event) < 0)
        return -errno;
    *watched = fd;
    return 0;
}

/* Call it before the fd is closed: otherwise the epoll goes on watching the file while a forked process has it open. */
static void unwatch(struct fns_loop *loop, unsigned slot, unsigned what)
{
    int *watched = &loop->watches[slot].watched[what];
    if (loop->epoll && *watched)
        epoll_ctl(loop->epoll, EPOLL_CTL_DEL, *watched, NULL);
    *watched = 0;
}

/* Makes the loop check all slots at `when`, or earlier; 0: no need. */
static void look_by(struct fns_loop *loop, uint64_t when)
{
    if (when && when < loop->next)
        loop->next = when;
}

int fns_loop_add(struct fns_loop *loop, unsigned slot, struct fns_io *io)
{
    int ret = 0;
    loop->watches[slot].io = io;
    look_by(loop, io->deadline);
    for (unsigned i = 0; ret == 0 && i < 3; i++)
        ret = watch(loop, slot, i, io->fds[i]);
    if (ret == 0 && !io->ended)
        ret = watch(loop, slot, FNS_END, fns_end_fd(&io->process));
    return ret;
}

void fns_loop_remove(struct fns_loop *loop, unsigned slot, int keep_end)
{
    loop->watches[slot].io = NULL;
    for (unsigned i = 0; i < FNS_WATCHED - (keep_end != 0); i++)
        unwatch(loop, slot, i);
}

static void close_stream(struct fns_loop *loop, unsigned slot, unsigned which)
{
    unwatch(loop, slot, which);
    fns_close_fd(&loop->watches[slot].io->fds[which]);
}

static int is_drained(const struct fns_io *io)
{
    return io->fds[1] < 0 && io->fds[2] < 0;
}

/* Notes that the slot's sandbox has ended, unless a tracer keeps it from ending. */
static void note_end(struct fns_loop *loop, unsigned slot)
{
    struct fns_io *io = loop->watches[slot].io;
    io->ended = fns_reapable(&io->process);
    io->recheck = io->ended ? 0 : loop->now + RECHECK_NS;
    look_by(loop, io->recheck);
    if (io->recheck || !is_drained(io)) /* otherwise every turn would return at once */
        unwatch(loop, slot, FNS_END);
    if (io->recheck)
        return;
    close_stream(loop, slot, 0);
    /* It may have ended in time even if this loop is late: leave time to read what it has written. */
    if (io->deadline && loop->now >= io->deadline)
        io->deadline = loop->now + FNS_LOOK_NS;
}

static void act(struct fns_loop *loop, unsigned slot, unsigned what)
{
    struct fns_io *io = loop->watches[slot].io;
    if (!loop->watches[slot].watched[what])
        return; /* removed by another event of this turn */
    loop->watches[slot].touched = 1;
    if (!io) {
        unwatch(loop, slot, what); /* an unused connection was closed */
        return;
    }
    if (what == FNS_END) {
        note_end(loop, slot);
        return;
    }
    int ret = move(io, (int)what);
    if (ret < 0)
        io->failed = ret;
    if (ret != 0)
        close_stream(loop, slot, what);
}

static int wait_by_poll(struct fns_loop *loop, const struct timespec *time)
{
    struct pollfd polled[MAX_POLLED * FNS_WATCHED];
    unsigned places[MAX_POLLED * FNS_WATCHED], n = 0;
    /* Not more entries than fds: poll(2) refuses more than RLIMIT_NOFILE. */
    for (unsigned i = 0; i < loop->n_slots * FNS_WATCHED; i++) {
        int fd = loop->watches[i / FNS_WATCHED].watched[i % FNS_WATCHED];
        if (!fd)
            continue;
        polled[n] = (struct pollfd){fd, i % FNS_WATCHED == 0 ? POLLOUT : POLLIN, 0};
        places[n++] = i;
    }
    if (ppoll(polled, n, time, NULL) < 0)
        return -errno;
    for (unsigned i = 0; i < n; i++)
        if (polled[i].revents)
            act(loop, places[i] / FNS_WATCHED, places[i] % FNS_WATCHED);
    return 0;
}

static int wait_by_epoll(struct fns_loop *loop, const struct timespec *time)
{
    long events = (long)loop->events, most = (long)loop->n_slots * FNS_WATCHED;
    long n = fns_sys6(__NR_epoll_pwait2, loop->epoll, events, most, (long)time, 0, 0);
    /* EPERM: the seccomp filter of an old container runtime may return this for calls that it does not know. */
    if (n == -ENOSYS || n == -EPERM)
        n = fns_sys6(__NR_epoll_pwait, loop->epoll, events, most,
                     time->tv_sec * 1000 + time->tv_nsec / 1000000 + 1, 0, 0);
    for (long i = 0; i < n; i++)
        act(loop, loop->events[i].data.u32 / FNS_WATCHED, loop->events[i].data.u32 % FNS_WATCHED);
    return n < 0 ? (int)n : 0;
}

/* Checks all slots for what no fd reports: a deadline that has passed, or a tracer that keeps a sandbox from ending. */
static void look(struct fns_loop *loop)
{
    loop->next = UINT64_MAX;
    for (unsigned i = 0; i < loop->n_slots; i++) {
        const struct fns_io *io = loop->watches[i].io;
        if (!io)
            continue;
        if (io->recheck && io->recheck <= loop->now) {
            if (io->killed)
                fns_attend(&io->process, 1);
            note_end(loop, i);
            look_by(loop, io->ended ? loop->now : 0);
        }
        look_by(loop, io->recheck);
        look_by(loop, io->deadline);
        loop->watches[i].touched = 1;
    }
}

int fns_loop_turn(struct fns_loop *loop, uint64_t until)
{
    loop->now = fns_now();
    if (loop->now >= loop->next)
        look(loop);
    if (loop->next < until)
        until = loop->next;
    uint64_t left = until > loop->now ? until - loop->now : 0;
    const struct timespec time = fns_timespec(left);
    return loop->epoll ? wait_by_epoll(loop, &time) : wait_by_poll(loop, &time);
}

void fns_loop_attend(struct fns_loop *loop)
{
    unsigned n = loop->n_slots < MAX_ATTENDED ? loop->n_slots : MAX_ATTENDED;
    for (unsigned i = 0; i < n; i++) {
        const struct fns_io *io = loop->watches[(loop->attended + i) % loop->n_slots].io;
        if (io)
            fns_attend(&io->process, io->killed);
    }
    loop->attended = (loop->attended + n) % loop->n_slots;
}

int fns_io_state(const struct fns_io *io, uint64_t now)
{
    if (io->failed)
        return io->failed;
    if (io->over && !io->killed)
        return FNS_IO_OVER;
    if (io->ended && (io->killed || is_drained(io)))
        return FNS_IO_DONE;
    return io->deadline && now >= io->deadline ? FNS_IO_TIMEOUT : FNS_IO_RUNS;
}

/* ---- one sandbox ----------------------------------------------------------------------------- */

/* Waits for one sandbox, for at least one turn. -EINTR: after a signal or FNS_LOOK_NS, or sooner if a tracer keeps the
 * sandbox from ending, as fns_attend() may help. */
static int run(struct fns_loop *loop, struct fns_io *io)
{
    const uint64_t start = fns_now();
    io->ended |= fns_end_fd(&io->process) < 0; /* reaped already: only the pipes are left */
    int ret = fns_loop_add(loop, 0, io), state, turns = 0;
    while ((state = fns_io_state(io, loop->now)) == FNS_IO_RUNS && ret == 0)
        ret = turns++ == 0 || fns_now() - start < (io->recheck ? RECHECK_NS : FNS_LOOK_NS)
                  ? fns_loop_turn(loop, start + FNS_LOOK_NS)
                  : -EINTR;
    return state == FNS_IO_RUNS ? ret : state;
}

int fns_io_run(struct fns_io *io)
{
    struct fns_watch watch = {.io = NULL};
    struct fns_loop loop = {.watches = &watch, .n_slots = 1};
    if (io->input_done == io->input_size)
        fns_close_fd(&io->fds[0]);
    int ret = run(&loop, io);
    if (ret == -EINTR)
        fns_loop_attend(&loop);
    return ret;
}

int fns_wait(const struct fns_process *process, int64_t timeout_ns)
{
    struct fns_watch watch = {.io = NULL};
    struct fns_loop loop = {.watches = &watch, .n_slots = 1};
    struct fns_io io = {.process = *process,
                        .fds = {-1, -1, -1},
                        .deadline = timeout_ns < 0 ? 0 : fns_now() + (uint64_t)timeout_ns};
    int ret = run(&loop, &io);
    return ret == FNS_IO_DONE ? 1 : ret == FNS_IO_TIMEOUT ? 0 : ret;
}

void fns_io_prepare(struct fns_io *io)
{
    for (int i = 0; i < 3; i++) {
        long flags = fns_sys2(__NR_fcntl, io->fds[i], F_GETFL);
        if (flags >= 0)
            FNS_IGNORE(fns_sys3(__NR_fcntl, io->fds[i], F_SETFL, flags | O_NONBLOCK),
                       "a pipe can be made non-blocking");
    }
}

static uint64_t taken(const struct fns_buffer *buffer)
{
    return buffer->size + buffer->dropped;
}

/* Reads what is in the pipe now, and no more: a process that left the sandbox may go on writing. */
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
    while (fns_wait(&io->process, -1) == -EINTR)
        fns_attend(&io->process, 1);
    int ret = drain_rest(io, 1);
    if (ret == 0)
        ret = drain_rest(io, 2);
    fns_io_close(io);
    return ret;
}
