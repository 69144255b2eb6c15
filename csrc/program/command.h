/* What surrounds the ops: from the caller's settings to the exec of the command (command.c). Results with a
 * child are 0, or -errno with child->error set. */
#ifndef FNS_COMMAND_H
#define FNS_COMMAND_H

#include "child.h"

/* Resets what an exec leaves of the caller: ignored signals, the personality. */
FNS_CHECKED int fns_reset_process(struct fns_child *child);

/* Leaves the caller's session and process group: kill(0) would reach the group, and TIOCSTI types into the
 * session's terminal. Not with a terminal as stdin: a shell needs both for its jobs. */
FNS_CHECKED int fns_leave_session(struct fns_child *child);

/* Changes to the working directory, which has to lie inside the root. */
FNS_CHECKED int fns_change_directory(struct fns_child *child);

/* Runs the last ops, unblocks signals and executes the command. Returns only on failure. */
FNS_CHECKED int fns_execute(struct fns_child *child);

void fns_close_all(const int *fds, int n);

/* Closes all fds from 3 on but these; 0 in the list: none. 0 or -errno. */
FNS_CHECKED int fns_close_but(const int fds[3]);

#endif
