/* The slots that sandboxes start in (slots.c). */
#ifndef FNS_SLOTS_H
#define FNS_SLOTS_H

#include "sandbox.h"

enum { FNS_MAX_SLOTS = 1 << 13 };

/* A slot that no sandbox is in, and no request waits in. 0: none, and `error` is -errno. */
struct fns_slot *fns_take_slot(long *error);

#endif
