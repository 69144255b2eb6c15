/* How many sandboxes of each batch are alive. Runs in a template's server. */
#include "batches.h"

#include "linux.h"
#include "slots.h"

#define MAX_BATCHES FNS_MAX_SLOTS

static struct batch {
    int number, alive;
} * batches;
static int n_batches;

int fns_open_batches(void)
{
    long error = 0;
    batches = fns_map(MAX_BATCHES * sizeof *batches, &error);
    return batches ? 0 : (int)error;
}

/* Its index, or n_batches. */
static int find(int number)
{
    int i = 0;
    while (i < n_batches && batches[i].number != number)
        i++;
    return i;
}

int fns_is_full(struct fns_share share)
{
    int i = share.batch ? find(share.batch) : n_batches;
    return i < n_batches && (uint32_t)batches[i].alive >= share.most;
}

int fns_count_alive(int batch, int step)
{
    int i = find(batch);
    if (i == MAX_BATCHES)
        return -EAGAIN;
    if (i == n_batches)
        batches[n_batches++] = (struct batch){batch, 0};
    batches[i].alive += step;
    if (batches[i].alive <= 0)
        batches[i] = batches[--n_batches];
    return 0;
}
