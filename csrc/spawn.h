/* What the parent's files of a spawn share among themselves. */
#ifndef FNS_SPAWN_H
#define FNS_SPAWN_H

#include "child.h"
#include "fastns.h"

/* Starts fns_child_main(child) by a vfork-style clone on a stack of its own; returns when the child
 * has executed or ended: the pid, or -errno. `namespaces`: CLONE_NEW*. */
long fns_clone_child(struct fns_child *child, uint64_t namespaces, int *pidfd);

/* Ends a process that is of no use any more, reaps it and closes its pidfd. */
void fns_discard(int pidfd);

/* fns_spawn() for a plan with FNS_PLAN_STAGED (staged.c). */
int fns_spawn_staged(const struct fns_plan *plan, const struct fns_args *args,
                     struct fns_process *process, struct fns_error *error);

#endif
