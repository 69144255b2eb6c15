/* A sandbox that the program clones (hop.c). */
#ifndef FNS_HOP_H
#define FNS_HOP_H

#include "program.h"

/* Runs the early ops and clones the sandbox, which goes on with fns_start_sandbox(). */
_Noreturn void fns_hop(struct fns_start *start);

#endif
