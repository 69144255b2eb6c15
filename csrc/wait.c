/* Waiting for, ending and reaping a sandbox, by its pidfd alone. Runs in the parent.
 *
 * No SIGCHLD handler and no wait for "any child": those belong to whoever else lives in the process.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

#include "message.h"
#include "spawn.h"
#include "sys.h"

uint64_t fns_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int fns_wait(const struct fns_process *process, int64_t timeout_ns)
{
    struct pollfd fd = {.fd = process->pidfd, .events = POLLIN};
    struct timespec time = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    int n = ppoll(&fd, 1, timeout_ns < 0 ? NULL : &time, NULL);
    return n < 0 ? -errno : n;
}

int fns_reap(const struct fns_process *process, struct fns_result *result)
{
    siginfo_t info = {.si_pid = 0};
    long ret = fns_sys5(__NR_waitid, P_PIDFD, process->pidfd, &info, WEXITED | WNOHANG | __WALL,
                        &result->usage);
    if (ret < 0)
        return (int)ret;
    if (info.si_pid == 0)
        return -EAGAIN;
    result->code = info.si_code;
    result->status = info.si_status;
    result->end = fns_now();
    /* With a reaper the command's own end is in its last message; if the reaper was killed before
     * it could send one, its own end is the sandbox's. */
    struct fns_message message;
    if (process->control >= 0 &&
        recv(process->control, &message, sizeof message, MSG_DONTWAIT) == sizeof message &&
        message.kind == FNS_MESSAGE_EXITED) {
        result->code = message.value;
        result->status = message.status;
    }
    return 0;
}

int fns_kill(const struct fns_process *process, int signal)
{
    return (int)fns_sys4(__NR_pidfd_send_signal, process->pidfd, signal, 0, 0);
}

uint64_t fns_capabilities(void)
{
    struct {
        uint32_t version;
        int pid;
    } header = {0x20080522 /* _LINUX_CAPABILITY_VERSION_3 */, 0};
    struct {
        uint32_t effective, permitted, inheritable;
    } data[2] = {{0, 0, 0}, {0, 0, 0}};
    fns_sys2(__NR_capget, &header, data);
    return data[0].effective | (uint64_t)data[1].effective << 32;
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
