/* The caller's side of a template: a server that starts sandboxes on request. Runs in the parent.
 *
 * The server (server.c) is a staged spawn that stays. It is asked over connections, SEQPACKET socket
 * pairs, each for one sandbox at a time: to run a command and say how it ended, or to start one and
 * to be asked for its end later (message.h).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "message.h"
#include "spawn.h"
#include "sys.h"

struct rights {
    struct cmsghdr header;
    int fds[FNS_ASK_FDS];
};

/* 0; -EPIPE: the other end is closed; -errno. */
static int send_ask(int socket, const struct fns_ask *ask, size_t size, const int *fds, int n_fds)
{
    struct rights rights = {.header = {.cmsg_len = CMSG_LEN(n_fds * sizeof(int)),
                                       .cmsg_level = SOL_SOCKET,
                                       .cmsg_type = SCM_RIGHTS}};
    struct iovec vector = {(void *)(uintptr_t)ask, size};
    struct msghdr header = {.msg_iov = &vector,
                            .msg_iovlen = 1,
                            .msg_control = n_fds ? &rights : NULL,
                            .msg_controllen = n_fds ? CMSG_SPACE(n_fds * sizeof(int)) : 0};
    if (n_fds)
        memcpy(rights.fds, fds, n_fds * sizeof(int));
    ssize_t n;
    do
        n = sendmsg(socket, &header, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return errno == ECONNRESET ? -EPIPE : -errno;
    return 0;
}

static int send_fd(int control, enum fns_ask_kind kind, int fd)
{
    const struct fns_ask ask = {.kind = kind, .size = sizeof ask};
    return send_ask(control, &ask, sizeof ask, &fd, 1);
}

/* The server is gone: what it was told of is too. */
static void lost(struct fns_error *error)
{
    fns_set_error(error, FNS_STAGE_HELPER, -1, ECANCELED);
    error->detail = FNS_DETAIL_KILLED;
}

int fns_server_start(const struct fns_plan *plan, int null, struct fns_process *server,
                     struct fns_error *error)
{
    char *none[] = {NULL};
    const struct fns_args args = {
        .argv = none, .envp = none, .paths = none, .stdio = {null, null, null}};
    int ret = fns_spawn(plan, &args, server, error);
    if (ret < 0)
        return ret;
    long self = fns_sys2(__NR_pidfd_open, getpid(), 0);
    ret = self < 0 ? (int)self : send_fd(server->control, FNS_ASK_CALLER, (int)self);
    if (self >= 0)
        close((int)self);
    if (ret == 0)
        return 0;
    fns_server_stop(server);
    return fns_set_error(error, FNS_STAGE_HELPER, -1, ret);
}

void fns_server_stop(struct fns_process *server)
{
    if (server->control >= 0)
        close(server->control);
    if (server->pidfd >= 0)
        fns_discard(server->pidfd);
    server->control = server->pidfd = -1;
}

int fns_server_connect(const struct fns_process *server)
{
    const int on = 1;
    int pair[2], ret = 0;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return -errno;
    if (setsockopt(pair[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof on) <
        0) /* RUNNING tells the pid */
        ret = -errno;
    if (ret == 0)
        ret = send_fd(server->control, FNS_ASK_CONNECT, pair[1]);
    close(pair[1]);
    if (ret < 0)
        close(pair[0]);
    return ret < 0 ? ret : pair[0];
}

/* `news`: for SPAWN. */
static int send_run(int connection, enum fns_ask_kind kind, const struct fns_args *args, int news)
{
    int fds[FNS_ASK_FDS], n = 0, file = -1, ret;
    if (args->n_keep > FNS_ASK_FDS - 5)
        return -EMFILE;
    struct fns_ask *ask = fns_pack_ask(args);
    if (!ask)
        return -ENOMEM;
    ask->kind = (uint16_t)kind;
    for (int i = 0; i < 3; i++)
        fds[n++] = args->stdio[i] >= 0 ? args->stdio[i] : i;
    for (uint32_t i = 0; i < args->n_keep; i++)
        fds[n++] = args->keep[i];
    if (kind == FNS_ASK_SPAWN)
        fds[n++] = news;
    size_t size = ask->size;
    if (size > FNS_ASK_INLINE) {
        ask->in_file = 1;
        file = fds[n++] = fns_memory_file(ask, size, 0);
        size = sizeof *ask;
    }
    ret = ask->in_file && file < 0 ? file : send_ask(connection, ask, size, fds, n);
    if (file >= 0)
        close(file);
    free(ask);
    return ret;
}

/* An answer: ENDED, or a shorter one. With RUNNING the pidfd comes along, and the pid as this process'
 * namespaces have it. */
static int hear(int connection, struct fns_ended *answer, int *pid, int *pidfd)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int)) + CMSG_SPACE(sizeof(struct ucred))];
    } rights;
    struct iovec vector = {answer, sizeof *answer};
    struct msghdr header = {.msg_iov = &vector,
                            .msg_iovlen = 1,
                            .msg_control = &rights,
                            .msg_controllen = sizeof rights};
    ssize_t n;
    do
        n = recvmsg(connection, &header, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n <= 0)
        return n < 0 && errno != ECONNRESET ? -errno : -ECANCELED;
    for (struct cmsghdr *at = CMSG_FIRSTHDR(&header); at; at = CMSG_NXTHDR(&header, at)) {
        struct ucred credentials;
        if (at->cmsg_type == SCM_RIGHTS) {
            memcpy(pidfd, CMSG_DATA(at), sizeof *pidfd);
        } else if (at->cmsg_type == SCM_CREDENTIALS) {
            memcpy(&credentials, CMSG_DATA(at), sizeof credentials);
            *pid = credentials.pid;
        }
    }
    int whole = answer->message.kind == FNS_MESSAGE_ENDED;
    return n >= (ssize_t)(whole ? sizeof *answer : sizeof answer->message) ? 0 : -EPROTO;
}

/* The error of a conversation that has broken off. */
static int broken(struct fns_error *error, int ret)
{
    if (ret == -ECANCELED || ret == -EPIPE)
        lost(error);
    else
        fns_set_error(error, ret == -EBADF || ret == -EMFILE ? FNS_STAGE_FDS : FNS_STAGE_HELPER, -1,
                      ret);
    return ret;
}

/* An answer that is not RUNNING. 0: ENDED; -errno and `error`. */
static int hear_end(int connection, const struct fns_plan *sandbox, struct fns_ended *ended,
                    struct fns_error *error)
{
    int pid = -1, pidfd = -1, ret = hear(connection, ended, &pid, &pidfd);
    if (pidfd >= 0)
        close(pidfd);
    if (ret < 0)
        return broken(error, ret);
    if (ended->message.kind == FNS_MESSAGE_FAILED)
        return fns_believe_error(sandbox, &ended->message.error, error);
    return ended->message.kind == FNS_MESSAGE_ENDED ? 0 : broken(error, -EPROTO);
}

int fns_server_run(int connection, const struct fns_args *args, struct fns_process *process,
                   struct fns_error *error)
{
    *error = (struct fns_error){.op_index = -1};
    *process = (struct fns_process){.pid = -1, .pidfd = -1, .control = -1, .start = fns_now()};
    int ret = send_run(connection, FNS_ASK_RUN, args, -1);
    if (ret < 0)
        return broken(error, ret);
    process->control = connection;
    process->quiet = 1;
    return 0;
}

static void set_result(const struct fns_ended *ended, struct fns_result *result)
{
    result->code = ended->message.value;
    result->status = ended->message.status;
    memcpy(&result->usage, ended->usage, sizeof result->usage);
    result->end = fns_now();
}

int fns_server_end(const struct fns_process *process, const struct fns_plan *sandbox,
                   struct fns_result *result, struct fns_error *error)
{
    struct fns_ended ended;
    int ret = hear_end(process->control, sandbox, &ended, error);
    if (ret == 0)
        set_result(&ended, result);
    return ret;
}

static int ask_end(int connection, enum fns_ask_kind kind, int number, struct fns_ended *ended)
{
    const struct fns_ask ask = {.kind = (uint16_t)kind, .number = number, .size = sizeof ask};
    const struct fns_plan none = {.n_ops = 0};
    struct fns_error error;
    int ret = send_ask(connection, &ask, sizeof ask, NULL, 0);
    return ret < 0 ? ret : hear_end(connection, &none, ended, &error);
}

int fns_server_reap(int connection, const struct fns_process *process, struct fns_result *result)
{
    struct fns_ended ended;
    int ret = ask_end(connection, FNS_ASK_REAP, process->served - 1, &ended);
    if (ret == 0)
        set_result(&ended, result);
    return ret == -EPIPE ? -ECANCELED : ret;
}

int fns_server_pool(int connection, struct fns_pool_state *state)
{
    struct fns_ended ended;
    int ret = ask_end(connection, FNS_ASK_POOL, 0, &ended);
    if (ret == 0)
        memcpy(state, ended.usage, sizeof *state);
    return ret;
}

/* From RUNNING to the command: 0, or -errno and `error`. */
static int follow(int connection, const struct fns_plan *sandbox, int news, int number, int pidfd,
                  struct fns_error *error)
{
    struct fns_ended ended;
    if (pidfd < 0) { /* the kernel drops an fd that finds no place */
        ask_end(connection, FNS_ASK_KILL, number, &ended);
        return fns_set_error(error, FNS_STAGE_HELPER, -1, EMFILE);
    }
    int ret = fns_hear_exec(sandbox, news, error);
    if (ret < 0)
        ret = hear_end(connection, sandbox, &ended, error);
    return ret;
}

int fns_server_spawn(int connection, const struct fns_plan *sandbox, const struct fns_args *args,
                     struct fns_process *process, struct fns_error *error)
{
    struct fns_ended answer = {.message = {.kind = 0}};
    int news[2], pid = -1, pidfd = -1;
    *error = (struct fns_error){.op_index = -1};
    *process = (struct fns_process){.pid = -1, .pidfd = -1, .control = -1, .start = fns_now()};
    if (pipe2(news, O_CLOEXEC | O_NONBLOCK) < 0)
        return fns_set_error(error, FNS_STAGE_HELPER, -1, errno);
    int ret = send_run(connection, FNS_ASK_SPAWN, args, news[1]);
    close(news[1]);
    if (ret == 0)
        ret = hear(connection, &answer, &pid, &pidfd);
    if (ret < 0)
        broken(error, ret);
    else if (answer.message.kind == FNS_MESSAGE_FAILED)
        ret = fns_believe_error(sandbox, &answer.message.error, error);
    else if (answer.message.kind == FNS_MESSAGE_RUNNING)
        ret = follow(connection, sandbox, news[0], answer.message.value, pidfd, error);
    else
        ret = broken(error, -EPROTO);
    close(news[0]);
    if (ret < 0) {
        if (pidfd >= 0)
            close(pidfd);
        return ret;
    }
    *process = (struct fns_process){.pid = pid,
                                    .pidfd = pidfd,
                                    .control = -1,
                                    .served = answer.message.value + 1,
                                    .start = process->start};
    return 0;
}

int fns_server_park(int connection)
{
    const struct fns_ask ask = {.kind = FNS_ASK_PARK, .size = sizeof ask};
    return send_ask(connection, &ask, sizeof ask, NULL, 0);
}
