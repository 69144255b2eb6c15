/* Opening what request.c has packed (unpack.c). */
#ifndef FNS_UNPACK_H
#define FNS_UNPACK_H

#include "message.h"

/* Turns the offsets of packed arguments, or of a plan, into pointers (unpack.c). 0, or -EPROTO for bytes
 * that are not what request.c packs: nothing beyond `size` is read. */
int fns_open_args(char *base, uint64_t size, struct fns_args *args);
int fns_open_plan(char *base, uint64_t size, struct fns_plan *plan);

/* The same for RUN or SPAWN, which came with so many fds, a memory file not counted. */
int fns_open_ask(struct fns_ask *ask, uint64_t size, int n_fds, struct fns_args *args);

#endif
