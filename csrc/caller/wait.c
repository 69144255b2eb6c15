/* Waiting for, ending and reaping a sandbox, by its pidfd alone. Runs in the parent.
 *
 * No SIGCHLD handler and no wait for "any child": those belong to whoever else lives in the process.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "shared/sys.h"
#include "shared/wire.h"
#include "spawn.h"

uint64_t fns_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int fns_end_fd(const struct fns_process *process)
{
    return process->quiet ? process->control : process->pidfd;
}

/* ---- what tracing does to an end (ptrace(2)) ------------------------------------------------- */

int fns_reapable(const struct fns_process *process)
{
    siginfo_t info = {.si_pid = 0};
    if (process->quiet || process->served)
        return 1;
    long ret = fns_sys5(__NR_waitid, P_PIDFD, process->pidfd, &info,
                        WEXITED | WNOHANG | WNOWAIT | __WALL, 0);
    return ret < 0 || info.si_pid != 0;
}

/* Who traces may be traced: how many are looked at in one go. */
enum { MAX_TRACERS = 256 };

/* Who holds a thread that has ended, or that is killed and stops once more before its end, which no
 * second signal brings about (PTRACE_O_TRACEEXIT); 0: nobody, or who cannot be seen from here. */
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

/* Ends who holds a thread, but not this process: who that was, or 0. It is held by a directory of /proc,
 * and asked for again: a number may be another process' by now. */
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

static int has(const int *pids, int n, int pid)
{
    int i = 0;
    while (i < n && pids[i] != pid)
        i++;
    return i < n;
}

/* Ends who holds a thread of a killed process, and who holds one of theirs. */
static void kill_tracers(int pid)
{
    int found[MAX_TRACERS] = {pid}, n = 1;
    char path[64];
    for (int i = 0; i < n; i++) {
        snprintf(path, sizeof path, "/proc/%d/task", found[i]);
        DIR *threads = opendir(path);
        for (struct dirent *entry; threads && (entry = readdir(threads));) {
            int thread = atoi(entry->d_name);
            int tracer = thread > 0 ? kill_tracer(found[i], thread) : 0;
            if (tracer > 0 && n < MAX_TRACERS && !has(found, n, tracer))
                found[n++] = tracer;
        }
        if (threads)
            closedir(threads);
    }
}

/* A thread of this process' child that asked to be traced is this process' to reap. */
static void reap_threads(int pid)
{
    siginfo_t info;
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *threads = opendir(path);
    for (struct dirent *entry; threads && (entry = readdir(threads));) {
        int thread = atoi(entry->d_name);
        if (thread > 0 && thread != pid)
            FNS_IGNORE(fns_sys5(__NR_waitid, P_PID, thread, &info, WEXITED | WNOHANG | __WALL, 0),
                       "it need not be a child, nor have ended");
    }
    if (threads)
        closedir(threads);
}

void fns_attend(const struct fns_process *process, int killed)
{
    siginfo_t info = {.si_pid = 0};
    if (process->quiet || process->served)
        fns_server_rouse(process->server, killed);
    if (process->pidfd < 0 || process->quiet || fns_kill(process, 0) < 0)
        return;
    /* Only looked at, and left to whose child it is. */
    if (!process->served)
        FNS_IGNORE(fns_sys5(__NR_waitid, P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT | __WALL, 0),
                   "si_pid is 0 then");
    if (!process->served && (info.si_pid != 0 || killed))
        reap_threads(process->pid);
    if (killed)
        kill_tracers(process->pid);
}

/* ---- waiting and reaping --------------------------------------------------------------------- */

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
    /* With a reaper the command's own end is in its last message; if the reaper was killed before
     * it could send one, its own end is the sandbox's. If it exited without one, sending has failed. */
    struct fns_message message;
    /* ECONNRESET: told once, before what was sent until then. */
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
    int pid, pidfd; /* pidfd -1: none could be had, the pid must do */
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

/* Stops a process, so that it starts no more of them, and adds it. 1: it is new; -ENOMEM. */
static int add_member(struct tree *tree, int pid)
{
    for (size_t i = 0; i < tree->n; i++)
        if (tree->members[i].pid == pid)
            return 0;
    if (tree->n == tree->capacity) {
        size_t capacity = tree->capacity * 2 + 16;
        struct member *members = realloc(tree->members, capacity * sizeof *members);
        if (!members)
            return -ENOMEM;
        tree->members = members;
        tree->capacity = capacity;
    }
    struct member *member = &tree->members[tree->n];
    long pidfd = fns_sys2(__NR_pidfd_open, pid, 0);
    if (pidfd == -ESRCH)
        return 0;
    *member = (struct member){pid, pidfd < 0 ? -1 : (int)pidfd};
    tree->n++;
    signal_member(member, SIGSTOP);
    return 1;
}

/* Adds the children of one thread: /proc/PID/task/TID/children. */
static int add_children(struct tree *tree, int pid, const char *thread)
{
    char path[64];
    int child, ret = 0, added = 0;
    snprintf(path, sizeof path, "/proc/%d/task/%.20s/children", pid, thread);
    FILE *file = fopen(path, "re");
    while (file && ret >= 0 && fscanf(file, "%d", &child) == 1) {
        ret = add_member(tree, child);
        added |= ret;
    }
    if (file)
        fclose(file);
    return ret < 0 ? ret : added;
}

static int add_descendants(struct tree *tree, size_t of)
{
    char path[64];
    int pid = tree->members[of].pid, ret = 0, added = 0;
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *threads = opendir(path);
    for (struct dirent *entry; threads && ret >= 0 && (entry = readdir(threads));)
        if (entry->d_name[0] != '.') {
            ret = add_children(tree, pid, entry->d_name);
            added |= ret;
        }
    if (threads)
        closedir(threads);
    return ret < 0 ? ret : added;
}

static int kill_tree(const struct fns_process *process)
{
    struct tree tree = {NULL, 0, 0};
    int alive = fns_kill(process, 0); /* reaped by somebody else, its pid may be another's by now */
    if (alive < 0)
        return alive;
    int ret = add_member(&tree, process->pid), added = ret;
    while (ret >= 0 && added > 0) { /* again, for what a thread started before it was stopped */
        added = 0;
        for (size_t i = 0; ret >= 0 && i < tree.n; i++) {
            ret = add_descendants(&tree, i);
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
    if (process->quiet) { /* the server sees it, and kills */
        FNS_IGNORE(fns_sys4(__NR_pidfd_send_signal, process->server, SIGCONT, 0, 0),
                   "one that has ended closes the connection");
        return shutdown(process->control, SHUT_WR) < 0 ? -errno : 0;
    }
    int ret = plan->clone_flags & FNS_CLONE_NEWPID ? 0 : kill_tree(process);
    int killed = fns_kill(process, SIGKILL);
    return killed < 0 ? killed : ret;
}

int fns_is_dumpable(void)
{
    long result = fns_sys5(__NR_prctl, 3 /* PR_GET_DUMPABLE */, 0, 0, 0, 0);
    return result < 0 ? (int)result : result == 1;
}

int fns_capabilities(uint64_t *effective)
{
    struct {
        uint32_t version;
        int pid;
    } header = {0x20080522 /* _LINUX_CAPABILITY_VERSION_3 */, 0};
    struct {
        uint32_t effective, permitted, inheritable;
    } data[2] = {{0, 0, 0}, {0, 0, 0}};
    int result = (int)fns_sys2(__NR_capget, &header, data);
    *effective = data[0].effective | (uint64_t)data[1].effective << 32;
    return result;
}

int fns_landlock_abi(void)
{
    return (int)fns_sys3(__NR_landlock_create_ruleset, 0, 0,
                         1 /* LANDLOCK_CREATE_RULESET_VERSION */);
}

int fns_has_tree_namespaces(void)
{
    int fd = (int)fns_sys3(__NR_open_tree, AT_FDCWD, "/", FNS_OPEN_TREE_NAMESPACE | O_CLOEXEC);
    if (fd >= 0)
        close(fd);
    return fd >= 0 || fd == -EPERM;
}

/* ---- the other two system calls of namespaces ------------------------------------------------ */

int fns_unshare(uint64_t flags)
{
    return (int)fns_sys1(__NR_unshare, flags);
}

int fns_setns(int fd, uint64_t flags)
{
    return (int)fns_sys2(__NR_setns, fd, flags);
}
