/* One sandbox of a template, and the memory it starts in (sandbox.c). */
#ifndef FNS_SANDBOX_H
#define FNS_SANDBOX_H

#include "child.h"
#include "tell.h"

#define FNS_SLOT_STACK 65536

/* A sandbox, from its clone until its end was reported. It writes the first part itself, in the server's
 * memory, until its exec. */
struct fns_sandbox {
    struct fns_child child;
    struct fns_args args;
    volatile uint32_t requested; /* of a parked one: it takes its request, or has taken it */
    volatile uint32_t
        reported;         /* RUNNING is sent, or about to be: the caller may know the sandbox */
    volatile int request; /* number of the request to reply to */

    int number;            /* its index in the table, and how often that was used before */
    int pid;               /* 0: not cloned, or reaped */
    int connection;        /* where replies about it go; -1 */
    int mounts;            /* the closer's entry of its mount namespace; -1 */
    int pid_namespace;     /* an fd, from when it was killed; -1 */
    int batch;             /* 0: none */
    struct fns_slot *slot; /* in which it started */
    int is_parked;         /* it is made ahead, and waits for its request */
    int is_awaited;        /* by a REAP, at `connection` */
    int has_ended;         /* `end` waits for a REAP */
    int is_watched;        /* it is in the list of those */
    int newer, older;      /* its neighbours there */
    int next;              /* in the list of free ones */
    struct fns_ended end;
};

/* What a sandbox needs until its exec: one slot for each that has not executed. */
struct fns_slot {
    volatile int taken; /* the kernel clears it when the sandbox has left (CLONE_CHILD_CLEARTID) */
    struct fns_sandbox *sandbox;
    int connection;        /* whose request waits here */
    uint64_t since;        /* when it began to wait: CLOCK_MONOTONIC, ns */
    uint64_t queued;       /* ns that it waited for its turn in a batch */
    struct fns_slot *next; /* in the queue */
    const uint64_t *files; /* struct rlimit of RLIMIT_NOFILE for it; 0: the server's */
    void *mapped;          /* a request from a memory file; 0: none */
    uint64_t mapped_size;
    int keep[FNS_REQUEST_FDS + 3];
    struct fns_received received;
    char stack[FNS_SLOT_STACK] __attribute__((aligned(4096))); /* the first page is a guard */
};

FNS_INLINE const struct fns_request *fns_request_of(const struct fns_received *received)
{
    return (const struct fns_request *)(const void *)received->bytes;
}

/* The function of a sandbox's clone. Its request is in the slot; a parked one waits for it.
 * Returns only on failure, which is then in its `child`. */
int fns_sandbox_main(void *slot);

#endif
