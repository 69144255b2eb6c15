/* The reaper (init.c). */
#ifndef FNS_INIT_H
#define FNS_INIT_H

#include "program.h"

/* Starts the command as a child, passes signals on, reaps, and ends with the command. */
_Noreturn void fns_run_init(struct fns_start *start);

#endif
