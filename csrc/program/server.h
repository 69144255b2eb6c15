/* What the files of a template's server share: its sandboxes, and the memory they start in. */
#ifndef FNS_SERVER_H
#define FNS_SERVER_H

#include "shared/wire.h"
#include "tell.h"

#define FNS_ROOM_STACK 65536

/* One sandbox, from its clone until its end was told. The upper half is written by the sandbox, which
 * has this memory too until it executes. */
struct fns_sandbox {
    struct fns_child child;
    struct fns_args args;
    volatile uint32_t asked; /* it receives, or has received, what to run */
    volatile uint32_t told;  /* RUNNING is sent, or about to be: the caller may know it */
    volatile int ask;        /* number of the ask that is to be answered */

    int number;        /* its index here, and how often that was used before */
    int pid;           /* 0: none */
    int connection;    /* where its news go; -1 */
    int slot;          /* of its mount namespace, which the closer holds; -1 */
    int next;          /* of those that are free */
    int later, sooner; /* neighbours among those that are looked at, by who was last */
    int is_looked_at;
    int held;              /* its pid namespace, once it is killed; -1 */
    int batch;             /* it belongs to; 0: to none */
    struct fns_room *room; /* it started in */
    int parked;            /* made ahead */
    int awaited;           /* by a REAP, at `connection` */
    int ended;             /* `end` waits for a REAP */
    struct fns_ended end;
};

/* A message: its bytes and the fds that came along. */
struct fns_received {
    long size; /* 0: the other end is closed; -errno */
    int n_fds;
    int fds[FNS_REQUEST_FDS];
    char bytes[FNS_REQUEST_INLINE] __attribute__((aligned(8)));
};

/* The memory of a sandbox until it executes. */
struct fns_room {
    volatile int taken; /* the kernel clears it when the sandbox has left (CLONE_CHILD_CLEARTID) */
    struct fns_sandbox *sandbox;
    int connection;        /* whose ask waits here */
    uint64_t since;        /* when it began to: CLOCK_MONOTONIC, ns */
    uint64_t queued;       /* ns that it waited for its turn */
    struct fns_room *next; /* that waits as well */
    const uint64_t *files; /* struct rlimit of RLIMIT_NOFILE for it; 0: the server's */
    void *mapped;          /* a big ask; 0: none */
    uint64_t mapped_size;
    int keep[FNS_REQUEST_FDS + 3];
    struct fns_received received;
    char stack[FNS_ROOM_STACK] __attribute__((aligned(4096))); /* the first page is a guard */
};

/* A process beside the server that takes mount namespaces down (closer.c). */
#define FNS_MAX_HELD 128
FNS_CHECKED int fns_closer_start(void);
int fns_closer_pid(void);
int fns_closer_hold(int fd);    /* a namespace, which stays the server's to close; its slot, -1 */
void fns_closer_give(int slot); /* it may be taken down when the closer is woken */
unsigned fns_closer_unheard(void); /* how many it was given since */
void fns_closer_wake(void);

/* recvmsg(2), flags: MSG_*. The fds are close-on-exec; those of a truncated message are closed. */
enum { FNS_TRUNCATED = -4096 }; /* as a size: the bytes are there, but an fd had no place */
void fns_receive(int socket, int flags, struct fns_received *received);

void fns_close_all(const int *fds, int n);

/* Closes all from 3 on but these; 0: none. 0 or -errno. */
FNS_CHECKED int fns_close_but(const int fds[3]);

/* What a sandbox does in the server's memory, as the function of a clone: its ask is in the room, or,
 * parked, is yet to come. Returns only on failure, which is then in its `child`. */
int fns_sandbox_main(void *room);

/* Says RUNNING, and starts sandboxes for whoever asks over `control`, until its other end is closed
 * (server.c). `userns`: for them to join; 0: none. */
_Noreturn void fns_serve(const struct fns_plan *sandbox, int control, int status, int userns);

#endif
