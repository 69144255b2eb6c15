/* The tables of a server: slots, sandboxes, batches. Runs in a template's server. */
#include "tables.h"

#include "closer.h"
#include "connections.h"

#define MAX_SLOTS (1 << 13)
#define MAX_SANDBOXES (1 << 20)
#define MAX_NUMBER 0x7fffffff

struct batch {
    int number, alive;
};

static struct fns_slot *slots[MAX_SLOTS];
static struct fns_sandbox *sandboxes;
static int *by_pid; /* index of the sandbox */
static struct batch *batches;
static int n_slots, n_sandboxes, n_batches, first_free, newest_watched;

int fns_open_tables(void)
{
    long error = 0;
    sandboxes = fns_map(MAX_SANDBOXES * sizeof *sandboxes, &error);
    by_pid = fns_map(FNS_MAX_PID * sizeof *by_pid, &error);
    batches = fns_map(MAX_SLOTS * sizeof *batches, &error);
    first_free = newest_watched = FNS_NONE;
    return (int)error;
}

/* ---- slots ---------------------------------------------------------------------------------- */

static struct fns_slot *make_slot(long *error)
{
    *error = -ENOMEM;
    if (n_slots == MAX_SLOTS)
        return 0;
    struct fns_slot *slot = fns_map(sizeof *slot, error);
    if (!slot)
        return 0;
    *error = fns_sys3(__NR_mprotect, slot->stack, FNS_PAGE, PROT_NONE);
    if (*error >= 0)
        return slots[n_slots++] = slot;
    FNS_IGNORE(fns_sys2(__NR_munmap, slot, sizeof *slot), "memory that nobody has touched");
    return 0; /* without a guard page it is not used */
}

struct fns_slot *fns_take_slot(long *error)
{
    struct fns_slot *slot = 0;
    for (int i = 0; i < n_slots && !slot; i++)
        if (!slots[i]->taken)
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

int fns_index_of(const struct fns_sandbox *sandbox)
{
    return (int)(sandbox - sandboxes);
}

struct fns_sandbox *fns_sandbox_at(int index)
{
    return index == FNS_NONE ? 0 : &sandboxes[index];
}

struct fns_sandbox *fns_new_sandbox(const struct fns_plan *plan, int userns)
{
    int index = first_free;
    if (index != FNS_NONE)
        first_free = sandboxes[index].next;
    else if (n_sandboxes < MAX_SANDBOXES)
        index = n_sandboxes++;
    else
        return 0;
    struct fns_sandbox *sandbox = &sandboxes[index];
    sandbox->child = (struct fns_child)FNS_CHILD(plan, &sandbox->args, -1);
    sandbox->child.userns = userns;
    sandbox->requested = sandbox->reported = 0;
    sandbox->number = (sandbox->number & ~(MAX_SANDBOXES - 1)) | index;
    sandbox->pid = sandbox->is_parked = sandbox->is_awaited = sandbox->has_ended = 0;
    sandbox->connection = sandbox->mounts = sandbox->pid_namespace = FNS_NONE;
    sandbox->is_watched = sandbox->batch = 0;
    sandbox->end.queued = 0;
    return sandbox;
}

void fns_free_sandbox(struct fns_sandbox *sandbox)
{
    int index = fns_index_of(sandbox);
    fns_unwatch_sandbox(sandbox);
    if (sandbox->mounts != FNS_NONE) {
        fns_closer_release(sandbox->mounts);
        if (sandbox->args.n_groups)
            fns_closer_wake(); /* until then its cgroup is not empty */
    }
    sandbox->mounts = FNS_NONE;
    if (sandbox->connection != FNS_NONE && fns_connection(sandbox->connection)->sandbox == index)
        fns_connection(sandbox->connection)->sandbox = FNS_NONE;
    sandbox->connection = FNS_NONE;
    sandbox->number = (sandbox->number + MAX_SANDBOXES) & MAX_NUMBER;
    sandbox->pid = sandbox->has_ended = 0;
    sandbox->next = first_free;
    first_free = index;
}

void fns_set_pid(struct fns_sandbox *sandbox, int pid)
{
    sandbox->pid = pid;
    by_pid[pid] = fns_index_of(sandbox);
}

struct fns_sandbox *fns_find_pid(int pid)
{
    struct fns_sandbox *sandbox = pid > 0 && pid < FNS_MAX_PID ? &sandboxes[by_pid[pid]] : 0;
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
    if (sandbox->is_watched)
        return;
    sandbox->is_watched = 1;
    sandbox->older = newest_watched;
    sandbox->newer = FNS_NONE;
    if (sandbox->older != FNS_NONE)
        sandboxes[sandbox->older].newer = fns_index_of(sandbox);
    newest_watched = fns_index_of(sandbox);
}

void fns_unwatch_sandbox(struct fns_sandbox *sandbox)
{
    if (!sandbox->is_watched)
        return;
    sandbox->is_watched = 0;
    *(sandbox->newer == FNS_NONE ? &newest_watched : &sandboxes[sandbox->newer].older) =
        sandbox->older;
    if (sandbox->older != FNS_NONE)
        sandboxes[sandbox->older].newer = sandbox->newer;
}

struct fns_sandbox *fns_newest_watched(void)
{
    return fns_sandbox_at(newest_watched);
}

struct fns_sandbox *fns_older_watched(const struct fns_sandbox *sandbox)
{
    return fns_sandbox_at(sandbox->older);
}

/* ---- batches -------------------------------------------------------------------------------- */

/* Its index, or n_batches. */
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
