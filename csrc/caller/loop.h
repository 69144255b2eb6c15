/* The loop with which the caller waits for its sandboxes: for their pipes, ends and deadlines (loop.c). */
#ifndef FNS_LOOP_H
#define FNS_LOOP_H

#include "fastns.h"

/* What a loop waits for in one of its slots: its pipes 0, 1 and 2, and the end of its sandbox. */
enum { FNS_END = 3, FNS_WATCHED = 4 };
struct fns_watch {
    struct fns_io *io;        /* NULL: the slot is free */
    int watched[FNS_WATCHED]; /* fds; 0: none */
    int touched;              /* the last turn may have changed its state */
};

struct epoll_event;
struct fns_loop {
    struct fns_watch *watches; /* one for each slot */
    unsigned n_slots;
    int epoll; /* 0: there are few slots, and ppoll() is used */
    struct epoll_event *events;
    unsigned attended; /* the slot that fns_loop_attend() begins with */
    uint64_t now;      /* when the last turn began to wait */
    uint64_t next;     /* when to check all slots; 0: not known */
};

/* Makes a loop of free slots. 0 or -errno. */
int fns_loop_open(struct fns_loop *loop, unsigned n_slots);
void fns_loop_close(struct fns_loop *loop);

/* Puts `io` into a free slot, for the next turns to wait for. 0 or -errno. */
int fns_loop_add(struct fns_loop *loop, unsigned slot, struct fns_io *io);

/* Stops waiting for the slot's sandbox. Call it before its fds are closed. `keep_end`: the slot's next sandbox reports
 * its end on the same fd. */
void fns_loop_remove(struct fns_loop *loop, unsigned slot, int keep_end);

/* Waits until an fd is ready or a deadline has passed, but not beyond `until`, and moves bytes. Afterwards
 * fns_io_state() returns the new state of each sandbox. 0; -EINTR; -errno. */
int fns_loop_turn(struct fns_loop *loop, uint64_t until);

/* Calls fns_attend() for a few of the slots, and for the next ones at the next call: fns_attend() is slow, as it checks
 * all threads of a sandbox. */
void fns_loop_attend(struct fns_loop *loop);

/* One of enum fns_io_state, or the -errno that a pipe failed with. `now`: fns_loop.now. */
int fns_io_state(const struct fns_io *io, uint64_t now);

/* Whether a sandbox whose end was reported can be reaped: not while another process traces it. (wait.c) */
int fns_reapable(const struct fns_process *process);

#endif
