/* Starting a sandbox through the helper program. Runs in the parent, without the GIL.
 *
 * The helper is executed from a sealed memory file (memory.c). The plan travels in another one
 * (request.c); a socket pair carries the news back (message.h).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "message.h"
#include "spawn.h"
#include "sys.h"

/* ---- the conversation ----------------------------------------------------------------------- */

/* The next message. 0; -EAGAIN: none is here; -errno. `*fd`: one that came along, or -1. */
static int receive(int control, struct fns_message *message, int *fd)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } rights;
    struct iovec vector = {message, sizeof *message};
    struct msghdr header = {.msg_iov = &vector,
                            .msg_iovlen = 1,
                            .msg_control = &rights,
                            .msg_controllen = sizeof rights};
    *fd = -1;
    ssize_t n = recvmsg(control, &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (n < 0)
        return -errno;
    struct cmsghdr *first = CMSG_FIRSTHDR(&header);
    if (first && first->cmsg_type == SCM_RIGHTS)
        memcpy(fd, CMSG_DATA(first), sizeof *fd);
    if (*fd >= 0)
        *fd = fns_above_stdio(*fd);
    return n == sizeof *message ? 0 : -EPROTO;
}

/* Both ends of the socket, and who is at the other one. */
struct line {
    int near, far;
    int helper; /* its pidfd */
};

static int answer(const struct fns_plan *plan, const struct line *line, int pid, uint64_t end,
                  struct fns_error *error)
{
    struct fns_message go = {.kind = FNS_MESSAGE_GO};
    int ret = 0;
    if (plan->id_map == FNS_ID_MAP_PARENT || plan->id_map == FNS_ID_MAP_NEWUIDMAP)
        ret = fns_write_id_maps(plan, pid, end, error);
    if (ret == 0 && send(line->near, &go, sizeof go, MSG_NOSIGNAL) < 0)
        ret = fns_set_error(error, FNS_STAGE_HELPER, -1, errno);
    return ret;
}

enum taken { TAKEN_ONE, TAKEN_NONE, TAKEN_RUNNING };

/* Acts on the next message. One of enum taken, or -errno and `error`. */
static int take(const struct fns_plan *plan, const struct line *line, uint64_t time_ns,
                struct fns_process *process, struct fns_error *error)
{
    struct fns_message message;
    int fd, ret = receive(line->near, &message, &fd);
    if (ret < 0)
        return ret == -EAGAIN ? (int)TAKEN_NONE : fns_set_error(error, FNS_STAGE_HELPER, -1, ret);
    switch ((enum fns_message_kind)message.kind) {
    case FNS_MESSAGE_CHILD:
        process->pid = message.value;
        process->pidfd = fd;
        if (fd < 0) /* the kernel drops an fd that finds no place */
            return fns_set_error(error, FNS_STAGE_HELPER, -1, EMFILE);
        ret = answer(plan, line, process->pid, fns_end_of(process, time_ns), error);
        process->late = ret == -ETIME;
        return ret;
    case FNS_MESSAGE_RUNNING: return TAKEN_RUNNING;
    case FNS_MESSAGE_FAILED: fns_believe_error(plan, &message.error, error); return TAKEN_ONE;
    case FNS_MESSAGE_EXITED: /* a short command may end before its RUNNING is read */
        process->ended = message.value;
        process->status = message.status;
        return TAKEN_ONE;
    default: return fns_set_error(error, FNS_STAGE_HELPER, -1, EPROTO);
    }
}

/* Waits for a message, at most `left` ns and at most until `next` (fns_interrupted()). 1: its sender has
 * ended; 0: look for a message; -EINTR: the caller gives up; -errno. */
static int await_news(const struct line *line, const struct fns_process *process, int left,
                      uint64_t *next)
{
    struct pollfd fds[2] = {
        {.fd = line->near, .events = POLLIN},
        {.fd = process->pidfd >= 0 ? process->pidfd : line->helper, .events = POLLIN},
    };
    int most = FNS_LOOK_NS / 1000000, ms = left / 1000000 + 1;
    int ready = poll(fds, 2, left < 0 || ms > most ? most : ms);
    if (ready < 0 && errno != EINTR)
        return -errno;
    if (fns_interrupted(next, ready < 0))
        return -EINTR;
    return ready > 0 && !fds[0].revents;
}

/* How much time is left, as from fns_keep_time(); the helper's time counts too. -ETIME: none is left, and
 * there is no sandbox. */
static int keep_time(struct fns_process *process, uint64_t time_ns)
{
    if (process->pidfd >= 0 || time_ns == 0)
        return fns_keep_time(process, time_ns);
    int left = fns_time_left(process, time_ns);
    return left > 0 ? left : -ETIME;
}

/* Follows the start to its end; fills process->pid and pidfd as soon as there is a sandbox. One that
 * has not come to its command in `time_ns` (0: for ever) is killed, and its start is as good as done. */
static int converse(const struct fns_plan *plan, const struct line *line, uint64_t time_ns,
                    struct fns_process *process, struct fns_error *error)
{
    int ended = 0, ret;
    uint64_t next = 0;
    while ((ret = take(plan, line, time_ns, process, error)) != TAKEN_RUNNING) {
        if (ret < 0)
            return ret;
        /* A sandbox may fail before the helper has told of it: both are waited for. */
        if (error->stage && (process->pidfd >= 0 || ended))
            return -error->err;
        if (ret == TAKEN_ONE) {
            ended = 0; /* after CHILD it is the sandbox's end that counts */
            continue;
        }
        if (ended && process->late)
            return 0;
        if (ended) {
            fns_set_error(error, FNS_STAGE_HELPER, -1, ECANCELED);
            error->detail = FNS_DETAIL_KILLED;
            return -ECANCELED;
        }
        int left = keep_time(process, time_ns);
        if (left == -ETIME) {
            process->late = 1;
            return fns_set_error(error, FNS_STAGE_HELPER, -1, ETIME);
        }
        ended = await_news(line, process, left, &next);
        /* Then one more look: all it sent is here by now. */
        if (ended < 0)
            return fns_set_error(error, FNS_STAGE_HELPER, -1, ended);
    }
    if (plan->options & (FNS_PLAN_INIT | FNS_PLAN_SERVER))
        return 0;
    ret = fns_executed(line->far, process, time_ns);
    if (ret < 0)
        return fns_set_error(error, FNS_STAGE_HELPER, -1, ret);
    ret = take(plan, line, time_ns, process, error);
    return ret < 0 ? ret : -error->err;
}

/* The sandbox of a helper that was killed before it could tell of it: a pidfd, or -1. It has to be
 * this process' child still: with SIGCHLD ignored its pid may be another's by now. */
static int untold_sandbox(int request)
{
    siginfo_t info;
    int32_t pid;
    if (pread(request, &pid, sizeof pid, offsetof(struct fns_request, pid)) != sizeof pid ||
        pid <= 0)
        return -1;
    int pidfd = (int)fns_sys2(__NR_pidfd_open, pid, 0);
    if (pidfd < 0)
        return -1;
    if (fns_sys5(__NR_waitid, P_PIDFD, pidfd, &info, WEXITED | WNOHANG | WNOWAIT | __WALL, 0) == 0)
        return pidfd;
    close(pidfd);
    return -1;
}

/* Ends a sandbox whose start has failed, and whose helper has ended. */
static void discard_sandbox(int request, struct fns_process *process)
{
    if (process->pid < 0)
        process->pidfd = untold_sandbox(request);
    if (process->pidfd >= 0) {
        fns_discard(process->pidfd);
    } else if (process->pid > 0) { /* its pidfd found no place: the pid is ours until reaped */
        kill(process->pid, SIGKILL);
        while (waitpid(process->pid, NULL, __WALL) < 0 && errno == EINTR)
            ;
    }
    process->pidfd = process->pid = -1;
}

/* Clones the helper; `fds`: control socket's far end, request, program, user namespace (0: none). 0
 * and its pidfd, or -errno. */
static int start_helper(const struct fns_args *args, const int fds[4], uint64_t end, int *pidfd,
                        struct fns_error *error)
{
    char control[12], request[12];
    char *argv[] = {(char *)"fastns-helper", control, request, NULL}, *envp[] = {NULL};
    snprintf(control, sizeof control, "%d", fds[0]);
    snprintf(request, sizeof request, "%d", fds[1]);

    static const struct fns_plan nothing; /* no ops: the helper does them */
    struct fns_args helper_args = {.argv = argv, .envp = envp};
    memcpy(helper_args.stdio, args->stdio, sizeof helper_args.stdio);
    int ret = fns_keep_more(&helper_args, args, fds, fds[3] ? 4 : 3);
    if (ret < 0)
        return fns_set_error(error, FNS_STAGE_HELPER, -1, ret);
    struct fns_child child = FNS_CHILD(&nothing, &helper_args, fds[2], -1);
    ret = fns_run_child(&child, 0, end, pidfd, error) < 0 ? -error->err : 0;
    free((void *)helper_args.keep);
    return ret;
}

int fns_spawn_staged(const struct fns_plan *plan, const struct fns_args *args, uint64_t time_ns,
                     struct fns_process *process, struct fns_error *error)
{
    int pair[2] = {-1, -1}, fds[4] = {-1, -1, -1, args->userns}, helper = -1, ret;
    ret = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0
              ? -errno
              : fns_both_above_stdio(pair);
    if (ret < 0)
        return fns_set_error(error, FNS_STAGE_HELPER, -1, ret);
    fds[0] = pair[1];
    fds[1] = fns_request_file(plan, args);
    fds[2] = fds[1] < 0 ? fds[1] : fns_program_file(FNS_PROGRAM_HELPER);
    ret = fds[2] < 0 ? fns_set_error(error, FNS_STAGE_HELPER, -1, fds[2])
                     : start_helper(args, fds, fns_end_of(process, time_ns), &helper, error);
    process->late = ret == -ETIME;
    if (ret == 0) {
        const struct line line = {.near = pair[0], .far = fds[0], .helper = helper};
        ret = converse(plan, &line, time_ns, process, error);
        if (ret < 0)
            shutdown(pair[0], SHUT_RDWR); /* a sandbox that still waits for GO quits */
        fns_discard(helper);
        /* A server's sandboxes have its program as /proc/self/exe until they execute: one file for
         * all of them, to be left messages on. Without an x bit not even root can execute it. */
        if (ret == 0 && (plan->options & FNS_PLAN_SERVER))
            fchmod(fds[2], 0);
    }
    if (ret < 0) /* also when the helper was given up right after its clone */
        discard_sandbox(fds[1], process);
    for (int i = 0; i < 3; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    if (ret == 0 && (plan->options & (FNS_PLAN_INIT | FNS_PLAN_SERVER)))
        process->control = pair[0];
    else
        close(pair[0]);
    return ret;
}
