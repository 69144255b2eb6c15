/* The tables of a server: slots, sandboxes, batches. Runs in a template's server. */
#include "server.h"

#define MAX_SLOTS (1 << 13)
#define MAX_SANDBOXES (1 << 20)
#define MAX_PID (1 << 22) /* PID_MAX_LIMIT */
#define MAX_NUMBER 0x7fffffff

struct batch {
    int number, alive;
};

static struct fns_slot *slots[MAX_SLOTS];
static struct fns_sandbox *sandboxes, **by_pid;
static struct fns_sandbox *first_free, *newest_watched;
static struct batch *batches;
static struct fns_stats *stats;
static int n_slots, n_sandboxes, n_batches;

int fns_open_tables(int shared)
{
    long error = 0;
    int sharing = shared ? MAP_SHARED : MAP_PRIVATE;
    sandboxes = fns_map(MAX_SANDBOXES * sizeof *sandboxes, sharing, &error);
    stats = fns_map(sizeof *stats, sharing, &error);
    by_pid = fns_map(MAX_PID * sizeof *by_pid, MAP_PRIVATE, &error);
    batches = fns_map(MAX_SLOTS * sizeof *batches, MAP_PRIVATE, &error);
    return (int)error;
}

struct fns_stats *fns_get_stats(void)
{
    return stats;
}

/* ---- slots ---------------------------------------------------------------------------------- */

static struct fns_slot *make_slot(long *error)
{
    *error = -ENOMEM;
    struct fns_slot *slot = n_slots < MAX_SLOTS ? fns_map(sizeof *slot, MAP_PRIVATE, error) : 0;
    if (!slot)
        return 0;
    *error = fns_sys3(__NR_mprotect, slot->stack, FNS_PAGE, PROT_NONE);
    if (*error >= 0)
        return slots[n_slots++] = slot;
    FNS_IGNORE(fns_sys2(__NR_munmap, slot, sizeof *slot), "untouched, it takes no pages");
    return 0; /* no slot is used without a guard page */
}

struct fns_slot *fns_take_slot(long *error)
{
    struct fns_slot *slot = 0;
    for (int i = 0; i < n_slots && !slot; i++)
        if (!slots[i]->taken && !slots[i]->command)
            slot = slots[i];
    if (!slot)
        slot = make_slot(error);
    if (slot && slot->mapped) {
        FNS_IGNORE(fns_sys2(__NR_munmap, slot->mapped, slot->mapped_size), "it only costs memory");
        slot->mapped = 0;
    }
    return slot;
}

/* ---- sandboxes ------------------------------------------------------------------------------ */

struct fns_sandbox *fns_new_sandbox(const struct fns_plan *plan, int userns)
{
    struct fns_sandbox *sandbox = first_free;
    if (sandbox) {
        first_free = sandbox->next;
    } else if (n_sandboxes < MAX_SANDBOXES) {
        sandbox = &sandboxes[n_sandboxes];
        sandbox->number = n_sandboxes++;
    } else {
        return 0;
    }
    sandbox->child = (struct fns_child)FNS_CHILD(plan, &sandbox->args, -1);
    sandbox->child.userns = userns;
    sandbox->requested = sandbox->reported = sandbox->exposed = 0;
    sandbox->pid = sandbox->is_parked = sandbox->is_awaited = sandbox->has_ended = 0;
    sandbox->connection = sandbox->mounts = sandbox->pid_namespace = FNS_NONE;
    sandbox->network = FNS_NONE;
    sandbox->batch = sandbox->is_room = 0;
    sandbox->n_served = 0;
    sandbox->command = sandbox->code = 0;
    sandbox->replied = 0;
    sandbox->ending = FNS_ENDING_RUNS;
    sandbox->end.queued = sandbox->end.rss_floor = 0;
    return sandbox;
}

void fns_free_sandbox(struct fns_sandbox *sandbox)
{
    int connection = sandbox->connection;
    fns_unwatch_sandbox(sandbox);
    if (sandbox->mounts != FNS_NONE) {
        fns_closer_release(sandbox->mounts);
        if (sandbox->args.n_groups)
            fns_closer_wake(); /* its cgroup is not empty until the closer has run */
    }
    if (connection != FNS_NONE && fns_connection(connection)->sandbox == sandbox)
        fns_connection(connection)->sandbox = 0;
    sandbox->number = (sandbox->number + MAX_SANDBOXES) & MAX_NUMBER;
    sandbox->pid = sandbox->has_ended = 0;
    sandbox->next = first_free;
    first_free = sandbox;
}

void fns_set_pid(struct fns_sandbox *sandbox, int pid)
{
    sandbox->pid = pid;
    by_pid[pid] = sandbox;
}

struct fns_sandbox *fns_find_pid(int pid)
{
    struct fns_sandbox *sandbox = pid > 0 && pid < MAX_PID ? by_pid[pid] : 0;
    return sandbox && sandbox->pid == pid ? sandbox : 0;
}

struct fns_sandbox *fns_find_number(int number)
{
    int index = number & (MAX_SANDBOXES - 1);
    struct fns_sandbox *sandbox = index < n_sandboxes ? &sandboxes[index] : 0;
    if (!sandbox || sandbox->number != number || !sandbox->reported)
        return 0;
    return sandbox->pid || sandbox->has_ended ? sandbox : 0;
}

void fns_watch_sandbox(struct fns_sandbox *sandbox)
{
    if (sandbox->link)
        return;
    sandbox->older = newest_watched;
    if (sandbox->older)
        sandbox->older->link = &sandbox->older;
    sandbox->link = &newest_watched;
    newest_watched = sandbox;
}

void fns_unwatch_sandbox(struct fns_sandbox *sandbox)
{
    if (!sandbox->link)
        return;
    *sandbox->link = sandbox->older;
    if (sandbox->older)
        sandbox->older->link = sandbox->link;
    sandbox->link = 0;
}

struct fns_sandbox *fns_newest_watched(void)
{
    return newest_watched;
}

/* ---- batches -------------------------------------------------------------------------------- */

/* Returns a batch's index, or n_batches if it is not listed. */
static int find_batch(int number)
{
    int i = 0;
    while (i < n_batches && batches[i].number != number)
        i++;
    return i;
}

int fns_is_full(struct fns_share share)
{
    int i = share.batch ? find_batch(share.batch) : n_batches;
    return i < n_batches && (uint32_t)batches[i].alive >= share.most;
}

int fns_count_alive(int batch, int step)
{
    int i = find_batch(batch);
    if (i == MAX_SLOTS)
        return -EAGAIN;
    if (i == n_batches)
        batches[n_batches++] = (struct batch){batch, 0};
    batches[i].alive += step;
    if (batches[i].alive <= 0)
        batches[i] = batches[--n_batches];
    return 0;
}
