/* The clone of a sandbox. Runs in a template's server. */
#include "launch.h"

#include "closer.h"
#include "connections.h"
#include "netns.h"
#include "shared/clone.h"
#include "tables.h"

/* The directory of the cgroup to clone into; FNS_NONE: the sandbox enters its cgroups itself. */
static int group_of(const struct fns_received *received)
{
    const struct fns_args *args = &fns_request_of(received)->args;
    uint32_t last = 3 + args->n_keep + args->n_groups - 1;
    if (received->size < (long)sizeof(struct fns_request) || !args->clone_into || !args->n_groups ||
        last >= (uint32_t)received->n_fds)
        return FNS_NONE;
    return received->fds[last];
}

static long clone_sandbox(const struct fns_plan *plan, struct fns_slot *slot, int *pidfd)
{
    struct fns_sandbox *sandbox = slot->sandbox;
    int group = sandbox->is_parked ? FNS_NONE : group_of(&slot->received);
    struct fns_clone_args args = {
        .flags = plan->clone_flags | FNS_CLONE_VM | FNS_CLONE_CHILD_CLEARTID | FNS_CLONE_PIDFD,
        .pidfd = (uintptr_t)pidfd,
        .child_tid = (uintptr_t)&slot->taken,
        .exit_signal = FNS_SIGCHLD,
        .stack = (uintptr_t)slot->stack,
        .stack_size = sizeof slot->stack,
    };
    if (group >= 0) {
        args.flags |= FNS_CLONE_INTO_CGROUP;
        args.cgroup = (uint64_t)group;
    }
    sandbox->child.entered = group >= 0;
    slot->taken = 1;
    long pid = fns_clone_call(&args, fns_sandbox_main, slot);
    if (pid == -ENOSYS && group >= 0) { /* without clone3(2) it enters its cgroups itself */
        sandbox->child.entered = 0;
        args.flags &= ~FNS_CLONE_INTO_CGROUP;
        pid = fns_clone_call(&args, fns_sandbox_main, slot);
    }
    if (pid < 0)
        slot->taken = 0;
    return pid;
}

/* Has the closer hold the sandbox's mount namespace until its end was reported. Closes `pidfd`. */
static int hold_mounts(int pidfd)
{
    int mounts = (int)fns_sys3(__NR_ioctl, pidfd, FNS_PIDFD_GET_MNT_NAMESPACE, 0);
    fns_close(pidfd);
    if (mounts < 0)
        return FNS_NONE;
    int entry = fns_closer_hold(mounts);
    fns_close(mounts);
    return entry;
}

/* Enters a network namespace, which the next clone inherits. */
static int enter_network(void)
{
    int netns = fns_netns_take();
    if (netns < 0)
        return netns;
    int result = (int)fns_sys2(__NR_setns, netns, FNS_CLONE_NEWNET);
    fns_close(netns);
    if (result < 0)
        fns_netns_ended();
    return result;
}

/* Clones a sandbox that is in the table. */
static long launch(const struct fns_plan *plan, struct fns_slot *slot, enum fns_stage *stage)
{
    struct fns_sandbox *sandbox = slot->sandbox;
    int pidfd = FNS_NONE;
    long pid = clone_sandbox(plan, slot, &pidfd);
    *stage = FNS_STAGE_CLONE;
    if (pid < 0 || pid >= FNS_MAX_PID) {
        fns_free_sandbox(sandbox);
        return pid < 0 ? pid : -ENOMEM;
    }
    fns_set_pid(sandbox, (int)pid);
    fns_connection(sandbox->connection)->sandbox = fns_index_of(sandbox);
    fns_watch_sandbox(sandbox);
    if (pidfd >= 0)
        sandbox->mounts = hold_mounts(pidfd);
    return 0;
}

long fns_launch(const struct fns_heritage *heritage, struct fns_slot *slot, int connection,
                int parked, int number, enum fns_stage *stage)
{
    int pooled = heritage->plan->netns_pool != 0;
    *stage = FNS_STAGE_NETWORK;
    long result = pooled ? enter_network() : 0;
    if (result < 0)
        return result;
    struct fns_sandbox *sandbox = fns_new_sandbox(heritage->plan, heritage->userns);
    *stage = FNS_STAGE_HELPER;
    if (sandbox) {
        slot->sandbox = sandbox;
        slot->files = heritage->files;
        sandbox->slot = slot;
        sandbox->connection = connection;
        sandbox->is_parked = parked;
        sandbox->request = number;
        result = launch(heritage->plan, slot, stage);
    }
    if (pooled && (!sandbox || result < 0))
        fns_netns_ended();
    return sandbox ? result : -ENOMEM;
}
