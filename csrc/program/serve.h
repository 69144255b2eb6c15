/* The server of a template (serve.c). */
#ifndef FNS_SERVE_H
#define FNS_SERVE_H

#include "shared/plan.h"

/* Sends RUNNING, and starts sandboxes on request, until the other end of `control` is closed. `userns`: for
 * them to join; 0: none. */
_Noreturn void fns_serve(const struct fns_plan *sandbox, int control, int status, int userns);

#endif
