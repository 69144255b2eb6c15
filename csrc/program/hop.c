/* The hop process: joins namespaces that decide what a clone makes, clones the sandbox as the caller's child,
 * hands its pidfd over and exits. Runs in the program, with FNS_PLAN_HOP. */
#include "program.h"

/* The kernel also writes the pid to a shared file, before the sandbox runs: the caller finds it there if this
 * process is killed before it can tell. clone(2) has one place for both the pid and the pidfd. */
static long clone_sandbox(struct fns_start *start, int *pidfd)
{
    int file = (int)start->given.pid_file;
    long told =
        fns_sys6(__NR_mmap, 0, sizeof(int32_t), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (!fns_is_address(told))
        fns_start_fail(start, FNS_STAGE_HELPER, told);
    fns_close(file);
    uint64_t namespaces = start->plan.clone_flags;
    struct fns_clone_args args = {
        .flags = namespaces | FNS_CLONE_PARENT | FNS_CLONE_PIDFD | FNS_CLONE_PARENT_SETTID,
        .pidfd = (uintptr_t)pidfd,
        .parent_tid = (uint64_t)told,
    };
    long pid = fns_sys2(__NR_clone3, &args, sizeof args);
    if (pid == -ENOSYS && !(namespaces & FNS_CLONE_NEWTIME))
        pid = fns_sys5(__NR_clone, args.flags & ~FNS_CLONE_PARENT_SETTID, 0, pidfd, 0, 0);
    return pid;
}

_Noreturn void fns_hop(struct fns_start *start)
{
    int control = (int)start->given.control, status = (int)start->given.status, pidfd = -1;
    uint32_t n_early = start->plan.n_early;
    /* Ends this process with its caller, even while it is stopped. The caller's thread waits for this start,
     * so it ends only if the caller does. The clone does not inherit the setting. */
    fns_start_check(start, fns_prctl(PR_SET_PDEATHSIG, FNS_SIGKILL, 0));
    fns_start_ops(start, fns_write_own_files(start, 0, n_early), n_early);
    /* The sandbox takes the lock over. The caller does not know of it before CHILD. */
    fns_start_check(start, fns_lock(status, F_SETLK, F_UNLCK));
    long pid = clone_sandbox(start, &pidfd);
    if (pid < 0)
        fns_start_fail(start, FNS_STAGE_CLONE, pid);
    if (pid == 0) {
        fns_start_check(start, fns_lock(status, F_SETLK, F_WRLCK));
        fns_start_sandbox(start, n_early);
    }
    const struct fns_message message = {.kind = FNS_MESSAGE_CHILD, .value = (int)pid};
    /* If this fails (ETOOMANYREFS), the caller finds the pid in the file. */
    fns_start_check(start, fns_tell(control, &message, pidfd, 0));
    fns_quit(0);
}
