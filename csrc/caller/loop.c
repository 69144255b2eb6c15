/* One loop for the pipes, ends and deadlines of sandboxes. Runs in the caller, without the GIL.
 *
 * Whoever waits for a sandbox waits here: for one (wait(), communicate()), or for those of a batch (batch.c).
 * The loop moves bytes and notes what has happened; its user decides what to do about it. It returns now and
 * then, and after a signal, so that the caller can run its signal handlers.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "loop.h"
#include "shared/sys.h"
#include "spawn.h"

enum {
    MAX_POLLED = 8, /* slots: with more, an epoll is cheaper than a ppoll() of all fds */
    MAX_ATTENDED = 16,
    HELD_NS =
        10000000, /* between looks at a sandbox that a tracer holds: its pidfd tells no more */
};

int fns_loop_open(struct fns_loop *loop, struct fns_watch *watches, unsigned n_slots)
{
    *loop = (struct fns_loop){.watches = watches, .n_slots = n_slots};
    if (n_slots <= MAX_POLLED)
        return 0;
    /* Room for every event there can be: a deadline is judged only after all that has happened was seen. */
    loop->events = calloc(n_slots, FNS_WATCHED * sizeof *loop->events);
    if (!loop->events)
        return -ENOMEM;
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    epoll = fns_above_stdio(epoll);
    if (epoll < 0)
        free(loop->events);
    else
        loop->epoll = epoll;
    return epoll < 0 ? epoll : 0;
}

void fns_loop_close(struct fns_loop *loop)
{
    if (loop->epoll)
        close(loop->epoll);
    free(loop->events);
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

/* Before the fd is closed: an epoll goes on watching its file while a forked process has it open. */
static void unwatch(struct fns_loop *loop, unsigned slot, unsigned what)
{
    int *watched = &loop->watches[slot].watched[what];
    if (loop->epoll && *watched)
        epoll_ctl(loop->epoll, EPOLL_CTL_DEL, *watched, NULL);
    *watched = 0;
}

/* `when`: 0: not at all. */
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
    fns_io_close_end(loop->watches[slot].io, (int)which);
}

static int is_drained(const struct fns_io *io)
{
    return io->fds[1] < 0 && io->fds[2] < 0;
}

/* The sandbox has ended, unless a tracer still holds it. */
static void note_end(struct fns_loop *loop, unsigned slot)
{
    struct fns_io *io = loop->watches[slot].io;
    io->ended = fns_reapable(&io->process);
    io->held = io->ended ? 0 : loop->now + HELD_NS;
    look_by(loop, io->held);
    if (io->held || !is_drained(io)) /* or every turn would be told */
        unwatch(loop, slot, FNS_END);
    if (io->held)
        return;
    close_stream(loop, slot, 0);
    /* It may have ended in time, though this loop was late: what it has written is still to be read. */
    if (io->deadline && loop->now >= io->deadline)
        io->deadline = loop->now + FNS_LOOK_NS;
}

static void act(struct fns_loop *loop, unsigned slot, unsigned what)
{
    struct fns_io *io = loop->watches[slot].io;
    if (!loop->watches[slot].watched[what])
        return; /* no more, since another event of this turn */
    loop->watches[slot].touched = 1;
    if (!io) {
        unwatch(loop, slot, what); /* an unused connection that was closed */
        return;
    }
    if (what == FNS_END) {
        note_end(loop, slot);
        return;
    }
    int ret = fns_io_move(io, (int)what);
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
    /* EPERM: from the filter of an old container, its answer to any call that it does not know. */
    if (n == -ENOSYS || n == -EPERM)
        n = fns_sys6(__NR_epoll_pwait, loop->epoll, events, most,
                     time->tv_sec * 1000 + time->tv_nsec / 1000000 + 1, 0, 0);
    for (long i = 0; i < n; i++)
        act(loop, loop->events[i].data.u32 / FNS_WATCHED, loop->events[i].data.u32 % FNS_WATCHED);
    return n < 0 ? (int)n : 0;
}

/* Looks at the slots that no fd may tell of: where a deadline is over, or a tracer holds the sandbox. */
static void look(struct fns_loop *loop)
{
    loop->next = UINT64_MAX;
    for (unsigned i = 0; i < loop->n_slots; i++) {
        const struct fns_io *io = loop->watches[i].io;
        if (!io)
            continue;
        if (io->held && io->held <= loop->now) {
            if (io->killed)
                fns_attend(&io->process, 1);
            note_end(loop, i);
            look_by(loop, io->ended ? loop->now : 0);
        }
        look_by(loop, io->held);
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
    const struct timespec time = {(time_t)(left / 1000000000u), (long)(left % 1000000000u)};
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

/* Looks at least once. -EINTR: after FNS_LOOK_NS, or sooner where a tracer holds the sandbox, which the
 * caller then attends to. */
static int run(struct fns_loop *loop, struct fns_io *io)
{
    const uint64_t start = fns_now();
    io->ended |= fns_end_fd(&io->process) < 0; /* reaped already: only the pipes are left */
    int ret = fns_loop_add(loop, 0, io), state, turns = 0;
    while ((state = fns_io_state(io, loop->now)) == FNS_IO_RUNS && ret == 0)
        ret = turns++ == 0 || fns_now() - start < (io->held ? HELD_NS : FNS_LOOK_NS)
                  ? fns_loop_turn(loop, start + FNS_LOOK_NS)
                  : -EINTR;
    return state == FNS_IO_RUNS ? ret : state;
}

int fns_io_run(struct fns_io *io)
{
    struct fns_watch watch = {.io = NULL};
    struct fns_loop loop = {.watches = &watch, .n_slots = 1};
    fns_io_prepare(io);
    if (io->input_done == io->input_size)
        fns_io_close_end(io, 0);
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
