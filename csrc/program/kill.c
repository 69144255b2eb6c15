/* Kills sandboxes. Runs in a template's server.
 *
 * The first process of a pid namespace does not end while a process inside traces it with PTRACE_O_TRACEEXIT.
 * So a sandbox that is still there after FNS_KILL_MS is killed from inside its namespace.
 */
#include "server.h"

#define STACK_SIZE 4096
#define KILL_NS (1000000ull * FNS_KILL_MS)

static int n_killed; /* some of them may have ended since */
static uint64_t next_check;

/* Returns an fd of a process's pid namespace. Before Linux 6.11 this is its pidfd, which serves until its first
 * thread ends. */
static int open_pid_namespace(int pid)
{
    int pidfd = (int)fns_sys2(__NR_pidfd_open, pid, 0);
    int namespace = (int)fns_sys3(__NR_ioctl, pidfd, FNS_PIDFD_GET_PID_NAMESPACE, 0);
    if (namespace < 0)
        return pidfd;
    fns_close(pidfd);
    return namespace;
}

void fns_kill(struct fns_sandbox *sandbox)
{
    if (fns_is_container()) {
        fns_kill_command(sandbox);
        return;
    }
    if (sandbox->pid <= 0) /* reaped: its pid may belong to another process by now */
        return;
    if (sandbox->pid_namespace < 0)
        sandbox->pid_namespace = open_pid_namespace(sandbox->pid);
    FNS_IGNORE(fns_sys2(__NR_kill, sandbox->pid, FNS_SIGKILL), "a child exists until it is reaped");
    if (n_killed++ == 0)
        next_check = fns_clock() + KILL_NS;
}

static int kill_others(void *none)
{
    return (int)fns_sys2(__NR_kill, -1, FNS_SIGKILL);
}

/* Kills everything in a pid namespace except its first process, by a process that it starts inside. */
static void kill_namespace(int namespace)
{
    static char stack[STACK_SIZE] __attribute__((aligned(16)));
    int own = (int)fns_sys2(__NR_pidfd_open, fns_sys0(__NR_getpid), 0);
    if (own >= 0 && fns_sys2(__NR_setns, namespace, FNS_CLONE_NEWPID) == 0) {
        /* The new process has its own memory and is reaped as a stray, so nothing waits for it. */
        FNS_IGNORE(fns_sys_clone_call(__NR_clone, FNS_SIGCHLD, (long)(stack + sizeof stack), 0, 0,
                                      0, kill_others, 0),
                   "it is tried again");
        if (fns_sys2(__NR_setns, own, FNS_CLONE_NEWPID) < 0)
            fns_quit(0); /* the next sandbox would be in that namespace */
    }
    fns_close_if_open(own);
}

int fns_check_killed(void)
{
    if (!n_killed || fns_clock() < next_check)
        return n_killed != 0;
    n_killed = 0;
    next_check = fns_clock() + KILL_NS;
    for (struct fns_sandbox *at = fns_newest_watched(); at; at = at->older) {
        if (at->pid_namespace < 0)
            continue;
        n_killed++;
        kill_namespace(at->pid_namespace);
    }
    return n_killed != 0;
}
