/* Kills and reaps one sandbox, even if it is traced or has no pid namespace of its own. Runs in the caller.
 *
 * There is no SIGCHLD handler, and "any child" is never reaped: both belong to the application.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "loop.h"
#include "shared/sys.h"
#include "shared/wire.h"
#include "spawn.h"

int fns_end_fd(const struct fns_process *process)
{
    return process->remote ? process->control : process->pidfd;
}

/* Calls `each` for every thread of a process until a call fails. Returns the results ORed, or -errno. */
static int for_each_thread(int pid, int (*each)(int pid, int thread, void *context), void *context)
{
    char path[64];
    int ret = 0, result = 0;
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *threads = opendir(path);
    for (struct dirent *entry; threads && ret >= 0 && (entry = readdir(threads));)
        if (entry->d_name[0] != '.') {
            ret = each(pid, atoi(entry->d_name), context);
            result |= ret;
        }
    if (threads)
        closedir(threads);
    return ret < 0 ? ret : result;
}

/* ---- tracing (ptrace(2)) --------------------------------------------------------------------- */

int fns_reapable(const struct fns_process *process)
{
    siginfo_t info = {.si_pid = 0};
    if (process->remote || process->served)
        return 1;
    long ret = fns_sys5(__NR_waitid, P_PIDFD, process->pidfd, &info,
                        WEXITED | WNOHANG | WNOWAIT | __WALL, 0);
    return ret < 0 || info.si_pid != 0;
}

/* Returns the tracer that keeps a thread from ending: the thread is a zombie, or was killed and has stopped once more
 * before its end, where no second signal can wake it (PTRACE_O_TRACEEXIT). 0: no tracer, or none that is visible in
 * this pid namespace. */
static int tracer_of(int pid, int thread)
{
    char path[64], line[128], state = 0;
    int tracer = 0;
    snprintf(path, sizeof path, "/proc/%d/task/%d/status", pid, thread);
    FILE *file = fopen(path, "re");
    while (file && tracer == 0 && fgets(line, sizeof line, file))
        if (sscanf(line, "State: %c", &state) != 1)
            sscanf(line, "TracerPid: %d", &tracer);
    if (file)
        fclose(file);
    return state == 'Z' || state == 't' ? tracer : 0;
}

/* Kills the tracer that keeps a thread from ending, unless that is this process. Returns the tracer's pid, or 0. Looks
 * the tracer up again once its directory in /proc is open: before that, the pid may have been reused. */
static int kill_tracer(int pid, int thread)
{
    char path[64];
    int tracer = tracer_of(pid, thread), killed = 0;
    snprintf(path, sizeof path, "/proc/self/task/%d", tracer);
    if (tracer <= 0 || access(path, F_OK) == 0)
        return 0;
    snprintf(path, sizeof path, "/proc/%d", tracer);
    int fd = (int)fns_sys4(__NR_openat, AT_FDCWD, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    if (fd >= 0 && tracer_of(pid, thread) == tracer)
        killed = fns_sys4(__NR_pidfd_send_signal, fd, FNS_SIGKILL, 0, 0) == 0;
    if (fd >= 0)
        close(fd);
    return killed ? tracer : 0;
}

/* The processes whose tracers must be killed. A tracer may itself be traced. */
struct traced {
    int pids[256], n;
};

static int add_tracer(int pid, int thread, void *context)
{
    struct traced *traced = context;
    int tracer = kill_tracer(pid, thread), i = 0;
    while (i < traced->n && traced->pids[i] != tracer)
        i++;
    if (tracer > 0 && i == traced->n && i < (int)(sizeof traced->pids / sizeof *traced->pids))
        traced->pids[traced->n++] = tracer;
    return 0;
}

/* Reaps a child's thread that made this process its tracer. */
static int reap_thread(int pid, int thread, void *context)
{
    siginfo_t info;
    (void)context;
    if (thread != pid)
        FNS_IGNORE(fns_sys5(__NR_waitid, P_PID, thread, &info, WEXITED | WNOHANG | __WALL, 0),
                   "it need not be a child, nor have ended");
    return 0;
}

void fns_attend(const struct fns_process *process, int killed)
{
    siginfo_t info = {.si_pid = 0};
    if (process->remote || process->served)
        fns_server_rouse(process->server, killed);
    if (process->pidfd < 0 || process->remote || fns_kill(process, 0) < 0)
        return;
    /* Checks whether any child has ended, and reaps none: other children belong to the application. */
    if (!process->served)
        FNS_IGNORE(fns_sys5(__NR_waitid, P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT | __WALL, 0),
                   "on failure si_pid stays 0");
    if (!process->served && (info.si_pid != 0 || killed))
        for_each_thread(process->pid, reap_thread, NULL);
    if (killed) {
        struct traced traced = {.pids = {process->pid}, .n = 1};
        for (int i = 0; i < traced.n; i++)
            for_each_thread(traced.pids[i], add_tracer, &traced);
    }
}

/* ---- reaping and killing --------------------------------------------------------------------- */

int fns_reap(const struct fns_process *process, struct fns_result *result)
{
    siginfo_t info = {.si_pid = 0};
    result->lost = 0;
    long ret = -EINTR;
    for (int tries = 0; ret < 0 && ret != -ECHILD && tries < FNS_TRIES; tries++)
        ret = fns_sys5(__NR_waitid, P_PIDFD, process->pidfd, &info, WEXITED | WNOHANG | __WALL,
                       &result->usage);
    if (ret < 0)
        return (int)ret;
    if (info.si_pid == 0 || info.si_code >= FNS_CLD_TRAPPED) {
        fns_attend(process, 0);
        return -EAGAIN;
    }
    result->code = info.si_code;
    result->status = info.si_status;
    result->end = fns_now();
    /* A reaper's last message says how the command ended. If the reaper was killed before it sent one, its own end
     * counts as the sandbox's. If it exited without sending one, the report is lost. */
    struct fns_message message;
    /* ECONNRESET is reported once, before messages that were sent earlier. */
    ssize_t n = process->control < 0 ? 0 : -1;
    for (int tries = 0; n < 0 && tries < FNS_TRIES; tries++)
        n = recv(process->control, &message, sizeof message, MSG_DONTWAIT);
    if (n < 0 && errno != EAGAIN && info.si_code == CLD_EXITED) {
        result->lost = errno;
    } else if (n == sizeof message && message.kind == FNS_MESSAGE_EXITED) {
        result->code = message.value;
        result->status = message.status;
    } else if (process->control >= 0 && info.si_code == CLD_EXITED) {
        result->lost = info.si_status > 0 ? info.si_status : EPROTO;
    }
    return 0;
}

int fns_kill(const struct fns_process *process, int signal)
{
    return (int)fns_sys4(__NR_pidfd_send_signal, process->pidfd, signal, 0, 0);
}

/* ---- a sandbox without a pid namespace of its own -------------------------------------------- */

struct member {
    int pid, pidfd; /* pidfd -1: none could be opened, so the pid is used */
};
struct tree {
    struct member *members;
    size_t n, capacity;
};

static void signal_member(const struct member *member, int signal)
{
    if (member->pidfd >= 0)
        FNS_IGNORE(fns_sys4(__NR_pidfd_send_signal, member->pidfd, signal, 0, 0),
                   "it may have ended, or be a set-user-ID program");
    else
        kill(member->pid, signal);
}

/* Stops a process, so that it starts no others, and adds it. 1: added; 0: known already, or gone; -ENOMEM. */
static int add_member(struct tree *tree, int pid)
{
    for (size_t i = 0; i < tree->n; i++)
        if (tree->members[i].pid == pid)
            return 0;
    struct member *members = fns_grow(tree->members, &tree->capacity, tree->n, sizeof *members);
    if (!members)
        return -ENOMEM;
    tree->members = members;
    struct member *member = &tree->members[tree->n];
    long pidfd = fns_sys2(__NR_pidfd_open, pid, 0);
    if (pidfd == -ESRCH)
        return 0;
    *member = (struct member){pid, pidfd < 0 ? -1 : (int)pidfd};
    tree->n++;
    signal_member(member, SIGSTOP);
    return 1;
}

/* Adds the children of one thread. 1: some were added; 0: none; -ENOMEM. */
static int add_children(int pid, int thread, void *tree)
{
    char path[64];
    int child, ret = 0, added = 0;
    snprintf(path, sizeof path, "/proc/%d/task/%d/children", pid, thread);
    FILE *file = fopen(path, "re");
    while (file && ret >= 0 && fscanf(file, "%d", &child) == 1) {
        ret = add_member(tree, child);
        added |= ret;
    }
    if (file)
        fclose(file);
    return ret < 0 ? ret : added;
}

static int kill_tree(const struct fns_process *process)
{
    struct tree tree = {NULL, 0, 0};
    /* If another part of this process has reaped the sandbox, its pid may have been reused. */
    int alive = fns_kill(process, 0);
    if (alive < 0)
        return alive;
    int ret = add_member(&tree, process->pid), added = ret;
    /* Repeat until none is new: a thread may have started a process before it was stopped. */
    while (ret >= 0 && added > 0) {
        added = 0;
        for (size_t i = 0; ret >= 0 && i < tree.n; i++) {
            ret = for_each_thread(tree.members[i].pid, add_children, &tree);
            added |= ret;
        }
    }
    for (size_t i = 0; i < tree.n; i++) {
        signal_member(&tree.members[i], SIGKILL);
        if (tree.members[i].pidfd >= 0)
            close(tree.members[i].pidfd);
    }
    free(tree.members);
    return ret < 0 ? ret : 0;
}

int fns_kill_all(const struct fns_plan *plan, const struct fns_process *process)
{
    if (process->remote) { /* the server sees the shutdown, and kills the sandbox */
        FNS_IGNORE(fns_sys4(__NR_pidfd_send_signal, process->server, SIGCONT, 0, 0),
                   "a server that has ended has closed the connection");
        return shutdown(process->control, SHUT_WR) < 0 ? -errno : 0;
    }
    int ret = plan->clone_flags & FNS_CLONE_NEWPID ? 0 : kill_tree(process);
    int killed = fns_kill(process, SIGKILL);
    return killed < 0 ? killed : ret;
}
