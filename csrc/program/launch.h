/* The clone of a sandbox (launch.c). */
#ifndef FNS_LAUNCH_H
#define FNS_LAUNCH_H

#include "sandbox.h"

/* What the server hands on to its sandboxes. */
struct fns_heritage {
    const struct fns_plan *plan;
    int userns; /* for them to join; 0: none */
    const uint64_t
        *files; /* struct rlimit of RLIMIT_NOFILE as the caller had it; 0: the server's */
};

/* Clones a sandbox into a slot. `connection`: where replies about it go; `number`: of the request in the slot;
 * `parked`: it has no request yet. 0, or -errno and the stage; -EAGAIN in stage NETWORK: there is no network
 * namespace yet. */
FNS_CHECKED long fns_launch(const struct fns_heritage *heritage, struct fns_slot *slot,
                            int connection, int parked, int number, enum fns_stage *stage);

#endif
