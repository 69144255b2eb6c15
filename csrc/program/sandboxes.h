/* A server's sandboxes: whose turn it is, their start and their end (sandboxes.c). */
#ifndef FNS_SANDBOXES_H
#define FNS_SANDBOXES_H

#include "launch.h"

/* Says what sandboxes are started from. `heritage` stays valid. */
void fns_open_sandboxes(const struct fns_heritage *heritage);

/* Starts what a RUN or SPAWN in a slot requests, or queues it. */
void fns_run_request(struct fns_slot *slot, int connection);

/* Drops a request that waits, with a reply and its connection. 1: there was one. */
int fns_drop_queued(int connection);

/* Parks sandboxes for connections that want one: for this one, later; for all whose time it is. */
void fns_park_later(int connection);
void fns_park(void);
int fns_has_to_park(void); /* whether it is time for any */

/* A network namespace was made: starts what waits for one. */
void fns_network_is_ready(void);

/* Reaps what has ended, after SIGCHLD. One signal may stand for many ends; `pid` is the one it names, or 0. */
void fns_reap_ended(int pid);

/* Reaps a process, if it has ended, with all that follows from it. 1: it had. */
int fns_reap(int pid);

/* Children that no table knows: threads of a sandbox that asked to be traced (PTRACE_TRACEME). Unless this
 * process reaps them, their sandbox never ends. */
void fns_reap_strays(void);
int fns_has_strays(void); /* there may be some */

/* Whether a sandbox was started since this was last called. */
int fns_has_started(void);

/* How often requests have waited for a network namespace, and for how long. */
struct fns_pool_state fns_pool_waits(void);

#endif
