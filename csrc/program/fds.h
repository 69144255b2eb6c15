/* Closing fds by the dozen (fds.c). */
#ifndef FNS_FDS_H
#define FNS_FDS_H

#include "shared/error.h"

void fns_close_all(const int *fds, int n);

/* Closes all from 3 on but these; 0 in the list: none. 0 or -errno. */
FNS_CHECKED int fns_close_but(const int fds[3]);

#endif
