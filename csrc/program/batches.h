/* How many sandboxes of each batch are alive (batches.c). */
#ifndef FNS_BATCHES_H
#define FNS_BATCHES_H

#include "shared/error.h"
#include "shared/plan.h"

/* Maps the table. 0 or -errno. */
FNS_CHECKED int fns_open_batches(void);

/* Whether a batch has as many alive as it may. */
int fns_is_full(struct fns_share share);

/* Counts one more (1) or one less (-1). 0; -EAGAIN: there are too many batches. */
int fns_count_alive(int batch, int step);

#endif
