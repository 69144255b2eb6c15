/* Network namespaces made ahead for the sandboxes of a template's server (netns.c). */
#ifndef FNS_NETNS_H
#define FNS_NETNS_H

#include <stdint.h>

#include "shared/error.h"

/* Starts the process that keeps `size` of them ready, each with lo up. It writes to the eventfd `ready` when
 * one is there for whoever found none. 0 or -errno. */
FNS_CHECKED int fns_netns_start(uint32_t size, int ready);

/* Starts that process again, after its end. 0 or -errno. */
FNS_CHECKED int fns_netns_restart(void);

int fns_netns_maker(void); /* its pid */

/* An fd of one, for one sandbox. -EAGAIN: none is there, `ready` will tell; -errno: none could be made for a
 * long time, and that is why. */
FNS_CHECKED int fns_netns_take(void);

/* The sandbox that took one has ended: another may be made. */
void fns_netns_ended(void);

uint64_t fns_netns_made(void); /* how many, ever */

#endif
