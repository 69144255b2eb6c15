/* The ops for host names, the network, the keyring, cgroups, limits, the umask and ids. Runs in the program and in a
 * template's sandboxes (child.h). */
#include "child.h"

int fns_op_hostname(struct fns_child *child, const struct fns_op *op)
{
    const char *name = fns_text(child, op->data);
    return (int)fns_sys2(__NR_sethostname, name, fns_length(name));
}

int fns_op_domainname(struct fns_child *child, const struct fns_op *op)
{
    const char *name = fns_text(child, op->data);
    return (int)fns_sys2(__NR_setdomainname, name, fns_length(name));
}

int fns_loopback_up(void)
{
    struct { /* struct ifreq */
        char name[16];
        short flags;
        char rest[22];
    } request = {.name = "lo"};
    int socket = (int)fns_sys3(__NR_socket, FNS_AF_INET, FNS_SOCK_DGRAM | O_CLOEXEC, 0);
    if (socket < 0)
        return socket;
    int result = (int)fns_sys3(__NR_ioctl, socket, SIOCGIFFLAGS, &request);
    request.flags |= FNS_IFF_UP;
    if (result >= 0)
        result = (int)fns_sys3(__NR_ioctl, socket, SIOCSIFFLAGS, &request);
    return result < 0 ? fns_done_with(socket, result) : socket;
}

int fns_op_loopback(struct fns_child *child, const struct fns_op *op)
{
    int socket = fns_loopback_up();
    return fns_done_with(socket, socket);
}

int fns_op_keyring(struct fns_child *child, const struct fns_op *op)
{
    int result = (int)fns_sys2(__NR_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0);
    /* ENOSYS: the kernel has no keyrings. EPERM: a filter refuses the call to this process, and so to the
     * command. EDQUOT: the user's quota of keys is used up. */
    if (result == -ENOSYS || result == -EPERM || (result == -EDQUOT && op->how & FNS_HOW_OPTIONAL))
        return 0;
    if (result >= 0 && op->how & FNS_HOW_SEALED)
        result = (int)fns_sys3(__NR_keyctl, KEYCTL_SETPERM, result, 0);
    return result;
}

int fns_op_cgroup(struct fns_child *child, const struct fns_op *op)
{
    const struct fns_args *args = child->args;
    uint32_t n = args->n_groups - args->clone_into;
    long result = args->n_groups ? 0 : -EINVAL; /* never start without the requested limits */
    for (uint32_t i = (uint32_t)child->entered; result >= 0 && i < n; i++)
        result = fns_sys3(__NR_write, args->groups[i], "0", 1);
    for (uint32_t i = 0; i < args->n_groups; i++)
        fns_close_if_open(args->groups[i]);
    /* Not by the clone: the namespace's root would then be the cgroup of the process that cloned. */
    if (result >= 0 && op->flags)
        result = fns_sys1(__NR_unshare, op->flags);
    return (int)result;
}

static uint64_t min(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

int fns_op_rlimit(struct fns_child *child, const struct fns_op *op)
{
    struct {
        uint64_t soft, hard;
    } limit, now = {0, 0};
    int result = 0;
    memcpy(&limit, child->plan->strings + op->data, sizeof limit);
    if (op->how & FNS_HOW_HALF) {
        /* The kernel counts these resources per user. A sandbox that may use half of the caller's limit leaves
         * the other half. */
        result = (int)fns_sys4(__NR_prlimit64, 0, op->flags, 0, &now);
        uint64_t half = now.soft / 2 >= op->arg ? now.soft / 2 : min(now.soft, op->arg);
        limit.soft = min(limit.soft, half);
        limit.hard = min(limit.hard, half);
    }
    if (op->how & FNS_HOW_RAISE) {
        result = (int)fns_sys4(__NR_prlimit64, 0, op->flags, 0, &now);
        /* The kernel may refuse a value that it has accepted before (/proc/sys/fs/nr_open). */
        if (result >= 0 && limit.soft <= now.soft && limit.hard <= now.hard)
            return 0;
        limit.soft = limit.soft > now.soft ? limit.soft : now.soft;
        limit.hard = limit.hard > now.hard ? limit.hard : now.hard;
    }
    if (result >= 0)
        result = (int)fns_sys4(__NR_prlimit64, 0, op->flags, &limit, 0);
    /* OPTIONAL is for one case: the hard limit is already lower, and this process cannot raise it. */
    if (result == -EPERM && op->how & FNS_HOW_OPTIONAL &&
        fns_sys4(__NR_prlimit64, 0, op->flags, 0, &now) >= 0 && now.hard < limit.hard)
        result = 0;
    return result;
}

int fns_op_umask(struct fns_child *child, const struct fns_op *op)
{
    return (int)fns_sys1(__NR_umask, op->arg);
}

int fns_op_setgroups(struct fns_child *child, const struct fns_op *op)
{
    uint32_t groups[FNS_MAX_GIDS]; /* aligned, unlike the strings */
    if (child->args->has_ids)
        return (int)fns_sys2(__NR_setgroups, 0, 0);
    if (op->arg > FNS_MAX_GIDS)
        return -EINVAL;
    memcpy(groups, child->plan->strings + op->data, op->arg * sizeof *groups);
    return (int)fns_sys2(__NR_setgroups, op->arg, groups);
}

int fns_op_setgid(struct fns_child *child, const struct fns_op *op)
{
    uint64_t gid = child->args->has_ids ? child->args->gid : op->arg;
    return (int)fns_sys3(__NR_setresgid, gid, gid, gid);
}

int fns_op_setuid(struct fns_child *child, const struct fns_op *op)
{
    uint64_t uid = child->args->has_ids ? child->args->uid : op->arg;
    return (int)fns_sys3(__NR_setresuid, uid, uid, uid);
}

/* Set after the change of ids, which would clear it (commit_creds()). If the caller has already ended, its end
 * of the status pipe is closed. */
int fns_op_parent_death(struct fns_child *child, const struct fns_op *op)
{
    struct { /* struct pollfd */
        int fd;
        short events, revents;
    } status = {.fd = child->status};
    const int64_t no_wait[2] = {0, 0};
    int result = (int)fns_prctl(PR_SET_PDEATHSIG, FNS_SIGKILL, 0);
    if (result == 0)
        result = (int)fns_sys5(__NR_ppoll, &status, 1, no_wait, 0, FNS_SIGSET_SIZE);
    return result > 0 ? -ECANCELED /* POLLERR, POLLHUP: the reading end is closed */ : result;
}
