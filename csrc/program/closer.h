/* The process beside a template's server that takes mount namespaces down (closer.c). */
#ifndef FNS_CLOSER_H
#define FNS_CLOSER_H

#include "shared/error.h"

/* Starts it; again, should it end. 0 or -errno. */
FNS_CHECKED int fns_closer_start(void);

int fns_closer_pid(void);

/* Hands over a mount namespace, whose fd stays the server's to close: an entry, or -1. */
int fns_closer_hold(int fd);

/* Lets an entry go: its namespace may be taken down when the closer is woken. */
void fns_closer_release(int entry);

/* How many were released since it was woken. */
unsigned fns_closer_pending(void);

void fns_closer_wake(void);

#endif
