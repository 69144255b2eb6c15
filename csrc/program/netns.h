/* Network namespaces made ahead for the sandboxes of a template's server. */
#ifndef FNS_NETNS_H
#define FNS_NETNS_H

#include <stdint.h>

#include "shared/error.h"

enum { FNS_MAX_POOL = 1024 };

/* Starts the process that keeps `size` of them, each with lo up. `ready`: an eventfd written when one is
 * there for who found none. 0 or -errno. */
FNS_CHECKED int fns_netns_start(uint32_t size, int ready);

/* The pid of that process; should it end, it is to be started again. */
int fns_netns_maker(void);

/* An fd of one that nobody else gets; -EAGAIN: none is there, `ready` will tell; -errno: none could be
 * made for a long time, and that is why. */
FNS_CHECKED int fns_netns_take(void);

/* What had taken one has ended: another may be made. */
void fns_netns_ended(void);

uint64_t fns_netns_made(void);

#endif
