/* The loop that waits for sandboxes: for their pipes, their ends and their deadlines (loop.c). */
#ifndef FNS_LOOP_H
#define FNS_LOOP_H

#include "fastns.h"

/* What a loop waits for in one of its slots: its pipes 0, 1 and 2, and the end of its sandbox. */
enum { FNS_END = 3, FNS_WATCHED = 4 };
struct fns_watch {
    struct fns_io *io;        /* NULL: the slot is free */
    int watched[FNS_WATCHED]; /* fds; 0: none */
    int touched;              /* by the last turn: its state may be another */
};

struct epoll_event;
struct fns_loop {
    struct fns_watch *watches; /* of each slot; they stay the caller's */
    unsigned n_slots;
    int epoll; /* 0: the slots are few, ppoll() is enough */
    struct epoll_event *events;
    unsigned attended; /* the first slot to attend to */
    uint64_t now;      /* when the last turn began to wait */
    uint64_t next;     /* no slot has to be looked at before; 0: not known */
};

/* Makes a loop of free slots. 0 or -errno. */
int fns_loop_open(struct fns_loop *loop, struct fns_watch *watches, unsigned n_slots);
void fns_loop_close(struct fns_loop *loop);

/* Waits for `io` as well, in a free slot. 0 or -errno. */
int fns_loop_add(struct fns_loop *loop, unsigned slot, struct fns_io *io);

/* Stops waiting for the slot's sandbox. To be called before its fds are closed. `keep_end`: the end of the
 * slot's next sandbox is reported on the same fd. */
void fns_loop_remove(struct fns_loop *loop, unsigned slot, int keep_end);

/* Waits until an fd is ready, a deadline is over, or until `until`, and moves what can be moved. Then
 * fns_io_state() says where each sandbox is. 0; -EINTR; -errno. */
int fns_loop_turn(struct fns_loop *loop, uint64_t until);

/* fns_attend() for a few of the slots, as it looks at all threads of a sandbox. */
void fns_loop_attend(struct fns_loop *loop);

/* One of enum fns_io_state, or the -errno that a pipe failed with. `now`: fns_loop.now. */
int fns_io_state(const struct fns_io *io, uint64_t now);

/* ---- the steps of one sandbox ---- */

/* Moves some bytes when fds[which] is ready. 0; 1: that stream is at its end; -errno. (io.c) */
FNS_CHECKED int fns_io_move(struct fns_io *io, int which);
void fns_io_prepare(struct fns_io *io); /* makes the fds non-blocking */
void fns_io_close_end(struct fns_io *io, int which);

/* Whether a sandbox that is said to have ended can be reaped: not while another process traces it. (wait.c) */
int fns_reapable(const struct fns_process *process);

#endif
