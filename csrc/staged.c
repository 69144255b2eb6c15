/* Starting a sandbox through the helper program. Runs in the parent, without the GIL.
 *
 * The helper's bytes go into a sealed memory file and are executed from there: what the sandbox sees
 * as /proc/1/exe is that file, never one on disk (CVE-2019-5736). The plan travels in another one
 * (struct fns_request); a socket pair carries the news back (message.h).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "message.h"
#include "spawn.h"

#ifndef MFD_EXEC
#define MFD_EXEC 0x0010U
#endif

static void *helper_bytes;
static size_t helper_size;

int fns_set_helper(const void *bytes, size_t size)
{
    void *copy = malloc(size);
    if (!copy)
        return -ENOMEM;
    memcpy(copy, bytes, size);
    free(helper_bytes);
    helper_bytes = copy;
    helper_size = size;
    return 0;
}

/* ---- memory files --------------------------------------------------------------------------- */

/* An fd >= 3 of the same file: 0, 1 and 2 are about to be replaced in the child. */
static int above_stdio(int fd)
{
    if (fd < 0 || fd > 2)
        return fd < 0 ? -errno : fd;
    int high = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    int err = errno;
    close(fd);
    return high < 0 ? -err : high;
}

static int write_all(int fd, const char *data, size_t size)
{
    while (size) {
        ssize_t n = write(fd, data, size);
        if (n < 0 && errno != EINTR)
            return -errno;
        if (n > 0) {
            data += n;
            size -= (size_t)n;
        }
    }
    return 0;
}

static int memory_file(const void *data, size_t size, unsigned exec_flag)
{
    int fd = memfd_create("fastns", MFD_CLOEXEC | MFD_ALLOW_SEALING | exec_flag);
    if (fd < 0 && errno == EINVAL && exec_flag) /* before Linux 6.3 every memory file may be run */
        fd = memfd_create("fastns", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    fd = above_stdio(fd);
    if (fd < 0)
        return fd;
    int ret = write_all(fd, data, size);
    if (ret == 0 &&
        fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) < 0)
        ret = -errno;
    if (ret < 0) {
        close(fd);
        return ret;
    }
    return fd;
}

/* ---- the request ---------------------------------------------------------------------------- */

static size_t round_up(size_t size)
{
    return (size + 7) & ~(size_t)7;
}

struct packer {
    char *base; /* NULL on the first round, which only measures */
    size_t used;
};

static size_t pack(struct packer *packer, const void *data, size_t size)
{
    size_t at = packer->used;
    if (packer->base && size)
        memcpy(packer->base + at, data, size);
    packer->used = round_up(at + size);
    return at;
}

static void *pack_array(struct packer *packer, char *const *items)
{
    size_t n = 0;
    while (items[n])
        n++;
    size_t table = packer->used;
    packer->used += (n + 1) * sizeof(uint64_t);
    for (size_t i = 0; i <= n; i++) {
        uint64_t offset = items[i] ? pack(packer, items[i], strlen(items[i]) + 1) : 0;
        if (packer->base)
            memcpy(packer->base + table + i * sizeof offset, &offset, sizeof offset);
    }
    return (void *)(uintptr_t)table;
}

static size_t pack_request(char *base, const struct fns_plan *plan, const struct fns_args *args)
{
    struct packer packer = {.base = base, .used = round_up(sizeof(struct fns_request))};
    struct fns_request request = {.plan = *plan, .args = *args};
    request.plan.ops = (void *)(uintptr_t)pack(&packer, plan->ops, plan->n_ops * sizeof *plan->ops);
    request.plan.strings = (void *)(uintptr_t)pack(&packer, plan->strings, plan->n_strings);
    request.args.argv = pack_array(&packer, args->argv);
    request.args.envp = pack_array(&packer, args->envp);
    request.args.paths = pack_array(&packer, args->paths);
    if (args->cwd)
        request.args.cwd = (void *)(uintptr_t)pack(&packer, args->cwd, strlen(args->cwd) + 1);
    request.args.keep = NULL; /* done before the helper starts */
    request.args.n_keep = 0;
    request.size = packer.used;
    if (base)
        memcpy(base, &request, sizeof request);
    return packer.used;
}

static int request_file(const struct fns_plan *plan, const struct fns_args *args)
{
    size_t size = pack_request(NULL, plan, args);
    char *bytes = calloc(1, size);
    if (!bytes)
        return -ENOMEM;
    pack_request(bytes, plan, args);
    int fd = memory_file(bytes, size, 0);
    free(bytes);
    return fd;
}

/* ---- the conversation ----------------------------------------------------------------------- */

/* 1: a message; 0: the other side is gone; -errno. `*fd`: one that came along, or -1. */
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
    ssize_t n;
    *fd = -1;
    do
        n = recvmsg(control, &header, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n <= 0)
        return n < 0 && errno != ECONNRESET ? -errno : 0;
    struct cmsghdr *first = CMSG_FIRSTHDR(&header);
    if (first && first->cmsg_type == SCM_RIGHTS)
        memcpy(fd, CMSG_DATA(first), sizeof *fd);
    return n == sizeof *message ? 1 : -EPROTO;
}

/* What has been heard so far. The helper and the sandbox write to the same socket, so that the
 * sandbox's news may come before the helper's CHILD; nothing is acted on without the pidfd. */
struct heard {
    int map, running, failed;
};

static int take(const struct fns_message *message, int fd, struct fns_process *process,
                struct heard *heard, struct fns_error *error)
{
    switch ((enum fns_message_kind)message->kind) {
    case FNS_MESSAGE_CHILD:
        process->pid = message->value;
        process->pidfd = fd;
        return fd < 0 ? -EMFILE : 0; /* the kernel drops an fd that finds no place */
    case FNS_MESSAGE_MAP: heard->map = 1; return 0;
    case FNS_MESSAGE_RUNNING: heard->running = 1; return 0;
    case FNS_MESSAGE_FAILED:
        heard->failed = 1;
        *error = message->error;
        return 0;
    case FNS_MESSAGE_EXITED: /* a short command may end before the helper's message is here */
        process->ended = message->value;
        process->status = message->status;
        return 0;
    default: return -EPROTO;
    }
}

static int answer_map(const struct fns_plan *plan, int control, int pid, struct fns_error *error)
{
    struct fns_message go = {.kind = FNS_MESSAGE_GO};
    int ret = fns_write_id_maps(plan, pid, error);
    if (ret == 0 && send(control, &go, sizeof go, MSG_NOSIGNAL) < 0)
        ret = fns_set_error(error, FNS_STAGE_HELPER, -1, errno);
    return ret;
}

/* Follows the start to its end; fills process->pid and pidfd as soon as there is a sandbox. */
static int converse(const struct fns_plan *plan, int control, struct fns_process *process,
                    struct fns_error *error)
{
    struct heard heard = {0, 0, 0};
    for (;;) {
        struct fns_message message;
        int fd, ret = receive(control, &message, &fd);
        if (ret > 0)
            ret = take(&message, fd, process, &heard, error);
        else if (ret == 0) { /* the socket's end: executed, failed, or killed on the way */
            if (heard.failed)
                return -error->err;
            if (heard.running && process->pidfd >= 0)
                return 0;
            fns_set_error(error, FNS_STAGE_HELPER, -1, ECANCELED);
            error->detail = FNS_DETAIL_KILLED;
            return -ECANCELED;
        }
        if (ret < 0)
            return fns_set_error(error, FNS_STAGE_HELPER, -1, ret);
        if (process->pidfd < 0)
            continue;
        if (heard.failed)
            return -error->err;
        if (heard.running && (plan->options & FNS_PLAN_INIT))
            return 0;
        if (heard.map) {
            heard.map = 0;
            ret = answer_map(plan, control, process->pid, error);
            if (ret < 0)
                return ret;
        }
    }
}

/* Clones the helper; `fds`: control socket's far end, request, program. 0 and its pidfd, or -errno. */
static int start_helper(const struct fns_args *args, const int fds[3], int *pidfd,
                        struct fns_error *error)
{
    char control[12], request[12];
    char *argv[] = {(char *)"fastns-helper", control, request, NULL}, *envp[] = {NULL};
    snprintf(control, sizeof control, "%d", fds[0]);
    snprintf(request, sizeof request, "%d", fds[1]);

    struct fns_args helper_args = {.argv = argv, .envp = envp, .n_keep = args->n_keep + 3};
    memcpy(helper_args.stdio, args->stdio, sizeof helper_args.stdio);
    int *keep = malloc(helper_args.n_keep * sizeof *keep);
    if (!keep)
        return fns_set_error(error, FNS_STAGE_HELPER, -1, ENOMEM);
    for (uint32_t i = 0; i < helper_args.n_keep; i++) { /* insertion keeps the list ascending */
        int fd = i < args->n_keep ? args->keep[i] : fds[i - args->n_keep];
        uint32_t at = i;
        for (; at > 0 && keep[at - 1] > fd; at--)
            keep[at] = keep[at - 1];
        keep[at] = fd;
    }
    helper_args.keep = keep;

    static const struct fns_plan nothing; /* no ops: the helper does them */
    struct fns_child child = {.plan = &nothing,
                              .args = &helper_args,
                              .error = {.op_index = -1},
                              .exec_fd = fds[2],
                              .root = -1,
                              .scratch = -1};
    long pid = fns_clone_child(&child, 0, pidfd);
    free(keep);
    if (pid < 0)
        return fns_set_error(error, FNS_STAGE_CLONE, -1, (int)pid);
    if (child.progress == FNS_PROGRESS_EXEC)
        return 0;
    fns_discard(*pidfd);
    if (child.error.stage == FNS_STAGE_NONE)
        return fns_set_error(error, FNS_STAGE_HELPER, -1, ECANCELED);
    *error = child.error;
    return -error->err;
}

int fns_spawn_staged(const struct fns_plan *plan, const struct fns_args *args,
                     struct fns_process *process, struct fns_error *error)
{
    int pair[2] = {-1, -1}, fds[3] = {-1, -1, -1}, helper = -1, ret;
    if (!helper_bytes)
        return fns_set_error(error, FNS_STAGE_HELPER, -1, ENOENT);
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return fns_set_error(error, FNS_STAGE_HELPER, -1, errno);
    fds[0] = above_stdio(pair[1]);
    fds[1] = fds[0] < 0 ? fds[0] : request_file(plan, args);
    fds[2] = fds[1] < 0 ? fds[1] : memory_file(helper_bytes, helper_size, MFD_EXEC);
    ret = fds[2] < 0 ? fns_set_error(error, FNS_STAGE_HELPER, -1, fds[2])
                     : start_helper(args, fds, &helper, error);
    for (int i = 0; i < 3; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    if (ret == 0) {
        ret = converse(plan, pair[0], process, error);
        fns_discard(helper);
        if (ret < 0 && process->pidfd >= 0) {
            fns_discard(process->pidfd);
            process->pidfd = process->pid = -1;
        }
    }
    if (ret == 0 && (plan->options & FNS_PLAN_INIT))
        process->control = pair[0];
    else
        close(pair[0]);
    return ret;
}
