/* The killing of a server's sandboxes (kill.c). */
#ifndef FNS_KILL_H
#define FNS_KILL_H

#include "sandbox.h"

enum { FNS_KILL_MS = 100 }; /* how long a killed sandbox has to end */

void fns_kill(struct fns_sandbox *sandbox);

/* Whether killed sandboxes may not have ended yet. */
int fns_has_killed(void);

/* Kills whatever still keeps a killed sandbox from ending after FNS_KILL_MS. */
void fns_check_killed(void);

/* Forgets what the kill of a sandbox needs: it has ended. */
void fns_killed_ended(struct fns_sandbox *sandbox);

#endif
