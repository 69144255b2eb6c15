/* Runs the ops of a plan (ops.c). */
#ifndef FNS_OPS_H
#define FNS_OPS_H

#include "child.h"

/* Runs the ops from `first` to before `end`, but none of the last ones, and closes the fds of the root.
 * 0, or -errno with child->error set. */
FNS_CHECKED int fns_run_ops(struct fns_child *child, uint32_t first, uint32_t end);

/* Runs the last ops (FNS_OP_LAST). */
FNS_CHECKED int fns_run_last_ops(struct fns_child *child);

/* How many ops come before the first whose code is `code` or stands after it in ops.def. */
uint32_t fns_count_ops_before(const struct fns_plan *plan, enum fns_op_code code);

#endif
