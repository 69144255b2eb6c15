/* The start of a sandbox, in its own process (start.c). */
#ifndef FNS_START_H
#define FNS_START_H

#include "program.h"

/* Runs the plan from op `next` on, then becomes what the plan says: the command, a reaper or a server. */
_Noreturn void fns_start_sandbox(struct fns_start *start, uint32_t next);

/* Runs the ops that write this process' own files in /proc, and those next to them: from `first` to before
 * `end` at most. The first op that is left. */
FNS_CHECKED uint32_t fns_write_own_files(struct fns_start *start, uint32_t first, uint32_t end);

/* Runs ops; a failure ends the start. */
void fns_start_ops(struct fns_start *start, uint32_t first, uint32_t end);

/* While this process is undumpable nobody may look into it: not from a namespace it joins, not from the
 * sandbox whose pid 1 it becomes (CVE-2016-9962). Its files in /proc are root's then (proc(5)). */
void fns_set_dumpable(struct fns_start *start, int dumpable);

#endif
