/* The caller's side of a template: a server that starts sandboxes on request. Runs in the caller.
 *
 * The server (csrc/program/serve.c) is a sandbox that stays. Requests go over connections, which are SEQPACKET socket
 * pairs. A connection serves one sandbox at a time. The server either runs a command and reports its end, or starts a
 * command, and the caller requests its end later (shared/wire.h).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pack.h"
#include "shared/sys.h"
#include "spawn.h"

enum {
    FEW_FDS = 256, /* while fds have lower numbers, they are not scarce */
    MAX_FULL = 50, /* times FNS_LOOK_NS: how long a server may leave its control socket full */
    MAX_IN_FLIGHT = 5000, /* ms: how long to wait until fds in flight are received */
};

/* ---- a server that does not reply ------------------------------------------------------------ */

/* Limits each wait at the caller's end of a socket, so that the caller can check the server in between. */
static int limit_waits(int socket)
{
    const struct timeval time = {FNS_LOOK_NS / 1000000000, FNS_LOOK_NS % 1000000000 / 1000};
    if (setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time) < 0 ||
        setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &time, sizeof time) < 0)
        return -errno;
    return 0;
}

int fns_server_rouse(int pidfd, int kill)
{
    siginfo_t info = {.si_pid = 0};
    /* Without WNOWAIT, a stop is reported only once. */
    long ret =
        fns_sys5(__NR_waitid, P_PIDFD, pidfd, &info, WSTOPPED | WNOHANG | WNOWAIT | __WALL, 0);
    if (ret < 0 || info.si_pid == 0)
        return 0;
    FNS_IGNORE(fns_sys4(__NR_pidfd_send_signal, pidfd, kill ? FNS_SIGKILL : SIGCONT, 0, 0),
               "it may have ended");
    struct pollfd end = {.fd = pidfd, .events = POLLIN};
    if (kill) /* the next request must find it gone */
        poll(&end, 1, FNS_LOOK_NS / 1000000);
    return 1;
}

/* ---- requests -------------------------------------------------------------------------------- */

/* 0; -EPIPE: the other end is closed; -EAGAIN: the socket was full for FNS_LOOK_NS; -EINTR: the caller gives
 * up; -errno. */
static int send_request(int socket, const struct fns_request *request, size_t size, const int *fds,
                        int n_fds, enum fns_patience patience)
{
    const struct timespec pause = {0, 1000000};
    /* ETOOMANYREFS: the kernel limits each user's fds in flight to RLIMIT_NOFILE. */
    const int most = patience == FNS_AT_ONCE ? 0 : MAX_IN_FLIGHT;
    struct fns_deadline deadline = {0, 0};
    for (int tries = 0;;) {
        long n = fns_send_message(socket, request, size, fds, n_fds, 0, 0);
        if (n != -EINTR && (n != -ETOOMANYREFS || tries == most))
            return n == -ECONNRESET ? -EPIPE : n < 0 ? (int)n : 0;
        if (n == -ETOOMANYREFS) {
            nanosleep(&pause, NULL);
            tries++;
        }
        if (patience == FNS_MAY_GIVE_UP && fns_over(&deadline, n == -EINTR) < 0)
            return -EINTR;
    }
}

/* Sends CALLER or CONNECT. */
static int send_fd(const struct fns_process *server, enum fns_request_kind kind, int fd,
                   enum fns_patience patience)
{
    const struct fns_request request = {.kind = (uint16_t)kind, .size = sizeof request};
    int ret, roused = 0;
    for (int i = 0; i < MAX_FULL; i++) {
        ret = send_request(server->control, &request, sizeof request, &fd, 1, patience);
        if (ret != -EAGAIN || patience == FNS_AT_ONCE)
            break;
        roused |= fns_server_rouse(server->pidfd, roused);
    }
    return ret;
}

/* Sends SPAWN with `pipe`, the writing end of a pipe, or RUN if that is -1. Replies repeat `number`, so a late reply to
 * an earlier request is recognized. */
static int send_args(int connection, int number, const struct fns_args *args,
                     struct fns_share share, int pipe)
{
    int fds[FNS_REQUEST_FDS], n = 0, file = -1, ret = 0;
    if (args->n_keep + args->n_groups > FNS_REQUEST_FDS - 5) /* stdio, the pipe, the file */
        return -EMFILE;
    struct fns_request *request = fns_pack_request(args);
    if (!request)
        return -ENOMEM;
    size_t size = request->size;
    request->kind = pipe < 0 ? FNS_REQUEST_RUN : FNS_REQUEST_SPAWN;
    request->number = number;
    request->share = share;
    for (int i = 0; i < 3; i++)
        fds[n++] = args->stdio[i] >= 0 ? args->stdio[i] : i;
    for (uint32_t i = 0; i < args->n_keep; i++)
        fds[n++] = args->keep[i];
    for (uint32_t i = 0; i < args->n_groups; i++)
        fds[n++] = args->groups[i];
    if (pipe >= 0)
        fds[n++] = pipe;
    if (size > FNS_REQUEST_INLINE) {
        request->in_file = 1;
        ret = file = fds[n++] = fns_memory_file("fastns", request, size, FNS_WRITABLE);
        size = sizeof *request;
    }
    if (ret >= 0)
        ret = send_request(connection, request, size, fds, n, FNS_MAY_GIVE_UP);
    fns_close_fd(&file);
    free(request);
    return ret;
}

/* ---- replies --------------------------------------------------------------------------------- */

struct reply {
    struct fns_ended message; /* ENDED, or a shorter one */
    int pid, pidfd;           /* from RUNNING; the pid in this process's pid namespace; -1: none */
};

/* Receives the next message. -EAGAIN: none came within FNS_LOOK_NS; -EINTR: a signal came first. */
static int receive_any(int connection, struct reply *reply)
{
    int fd, n_fds;
    long n;
    /* ECONNRESET is reported once, before messages that were sent earlier. Other errors may be temporary, and giving up
     * would lose a reply. */
    for (int tries = 0; tries <= FNS_TRIES; tries++) {
        n_fds = 1;
        n = fns_receive_message(connection, &reply->message, sizeof reply->message, &fd, &n_fds,
                                &reply->pid, 0);
        if (n >= 0 || n == -EAGAIN || n == -EINTR)
            break;
    }
    if (n <= 0)
        return n < 0 && n != -ECONNRESET ? (int)n : -ECANCELED;
    if (n_fds == 1)
        reply->pidfd = fns_above_stdio(fd);
    int is_long = reply->message.message.kind == FNS_MESSAGE_ENDED;
    return n >= (long)(is_long ? sizeof reply->message : sizeof reply->message.message) ? 0
                                                                                        : -EPROTO;
}

/* Receives the reply to the request with this number. Continues a stopped server, and kills it if it stops again.
 * -ECANCELED: the server is gone; -EINTR: the caller gives up. */
static int receive(int server, int connection, int number, enum fns_patience patience,
                   struct reply *reply)
{
    struct fns_deadline deadline = {0, 0};
    *reply = (struct reply){.pid = -1, .pidfd = -1};
    for (int roused = 0;;) {
        int ret = receive_any(connection, reply);
        int of = reply->message.message.number;
        if (ret == 0 ? of == number || of == FNS_ANY_REQUEST : ret != -EAGAIN && ret != -EINTR)
            return ret;
        fns_close_fd(&reply->pidfd);
        if (ret == -EAGAIN)
            roused |= fns_server_rouse(server, roused);
        if (patience == FNS_MAY_GIVE_UP && fns_over(&deadline, ret == -EINTR) < 0)
            return -EINTR;
    }
}

/* Sets the error of a connection that cannot be used again. Returns `ret`. */
static int broken(struct fns_error *error, int ret)
{
    int gone = ret == -EPIPE || ret == -ECANCELED;
    fns_set_error(error, ret == -EBADF || ret == -EMFILE ? FNS_STAGE_FDS : FNS_STAGE_HELPER, -1,
                  gone ? ECANCELED : ret);
    error->detail = FNS_DETAIL_BROKEN;
    return ret;
}

/* Sets `error` from a FAILED. If that is for any request, the server has closed the connection. */
static int believe(const struct fns_plan *sandbox, const struct fns_message *failed,
                   struct fns_error *error)
{
    int ret = fns_believe_error(sandbox, &failed->error, error);
    if (failed->number == FNS_ANY_REQUEST)
        error->detail = FNS_DETAIL_BROKEN;
    return ret;
}

/* Receives ENDED: 0; or -errno and `error`. */
static int receive_end(int server, int connection, int number, const struct fns_plan *sandbox,
                       struct fns_ended *ended, struct fns_error *error)
{
    struct reply reply;
    int ret = receive(server, connection, number, FNS_PATIENT, &reply);
    fns_close_fd(&reply.pidfd);
    *ended = reply.message;
    if (ret < 0)
        return broken(error, ret);
    if (ended->message.kind == FNS_MESSAGE_FAILED)
        return believe(sandbox, &ended->message, error);
    return ended->message.kind == FNS_MESSAGE_ENDED ? 0 : broken(error, -EPROTO);
}

/* Sends a request without fds about the sandbox with this number, and receives ENDED. 0; -ECANCELED: the server is
 * gone; -errno. */
static int request_end(int server, int connection, enum fns_request_kind kind, int sandbox,
                       struct fns_ended *ended)
{
    static const struct fns_plan none; /* no op can be named */
    const struct fns_request request = {.kind = (uint16_t)kind,
                                        .number = fns_next_number(),
                                        .sandbox = sandbox,
                                        .size = sizeof request};
    struct fns_error error;
    int ret = send_request(connection, &request, sizeof request, NULL, 0, FNS_PATIENT);
    if (ret == 0)
        ret = receive_end(server, connection, request.number, &none, ended, &error);
    return ret == -EPIPE ? -ECANCELED : ret;
}

static void set_result(const struct fns_ended *ended, struct fns_result *result)
{
    result->code = ended->message.value;
    result->status = ended->message.status;
    memcpy(&result->usage, ended->usage, sizeof result->usage);
    result->reused = (int)ended->reused;
    result->queued = ended->queued;
    result->executed = ended->executed;
    result->ended = ended->ended;
    result->end = fns_now();
}

/* ---- a server -------------------------------------------------------------------------------- */

int fns_server_start(const struct fns_plan *plan, int null, int userns, struct fns_cgroups *groups,
                     struct fns_cgroup *cgroup, struct fns_process *server, struct fns_error *error)
{
    char *none[] = {NULL};
    struct fns_args args = {
        .argv = none, .envp = none, .paths = none, .userns = userns, .stdio = {null, null, null}};
    struct fns_cgroup unlimited;
    cgroup = cgroup ? cgroup : &unlimited;
    int ret = fns_cgroup_take(groups, cgroup, &args, error);
    if (ret == 0)
        ret = fns_spawn(plan, &args, 0, server, error);
    fns_cgroup_entered(cgroup);
    if (ret < 0) {
        fns_cgroup_give(groups, cgroup);
        return ret;
    }
    int self = fns_open_pidfd(getpid());
    ret = self < 0 ? self : limit_waits(server->control);
    if (ret == 0)
        ret = send_fd(server, FNS_REQUEST_CALLER, self, FNS_MAY_GIVE_UP);
    fns_close_fd(&self);
    if (ret == 0)
        return 0;
    fns_server_stop(server);
    fns_server_close(server);
    fns_cgroup_give(groups, cgroup);
    return fns_set_error(error, FNS_STAGE_HELPER, -1, ret == -EPIPE ? ECANCELED : ret);
}

void fns_server_stop(const struct fns_process *server)
{
    if (server->control >= 0)
        shutdown(server->control, SHUT_RDWR);
    if (server->pidfd >= 0)
        fns_end(server->pidfd);
}

void fns_server_close(struct fns_process *server)
{
    fns_close_fd(&server->control);
    fns_close_fd(&server->pidfd);
}

int fns_server_connect(const struct fns_process *server, enum fns_patience patience)
{
    const int on = 1;
    int ends[2], ret = fns_socket_pair(ends);
    if (ret < 0)
        return ret;
    /* RUNNING carries the sandbox's pid. */
    if (setsockopt(ends[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof on) < 0)
        ret = -errno;
    if (ret == 0)
        ret = limit_waits(ends[0]);
    if (ret == 0)
        ret = send_fd(server, FNS_REQUEST_CONNECT, ends[1], patience);
    close(ends[1]);
    if (ret < 0)
        close(ends[0]);
    return ret < 0 ? ret : ends[0];
}

void fns_server_disconnect(int connection)
{
    shutdown(connection, SHUT_RDWR);
    close(connection);
}

int fns_server_park(int connection)
{
    const struct fns_request request = {.kind = FNS_REQUEST_PARK, .size = sizeof request};
    return send_request(connection, &request, sizeof request, NULL, 0, FNS_AT_ONCE);
}

int fns_server_stats(const struct fns_process *server, int connection, struct fns_stats *stats)
{
    struct fns_ended ended;
    int ret = request_end(server->pidfd, connection, FNS_REQUEST_STATS, 0, &ended);
    if (ret == 0)
        *stats = ended.stats;
    return ret;
}

/* ---- a command run to its end ---------------------------------------------------------------- */

static const struct fns_process nothing = {.pid = -1, .pidfd = -1, .control = -1};

int fns_server_run(const struct fns_process *server, int connection, const struct fns_args *args,
                   struct fns_share share, struct fns_process *process, struct fns_error *error)
{
    int number = fns_next_number();
    *error = (struct fns_error){.op_index = -1};
    *process = nothing;
    process->start = fns_now();
    int ret = send_args(connection, number, args, share, -1);
    if (ret < 0)
        return broken(error, ret);
    process->control = connection;
    process->server = server->pidfd;
    process->remote = 1;
    process->number = number;
    return 0;
}

int fns_server_end(struct fns_process *process, const struct fns_plan *sandbox,
                   struct fns_result *result, struct fns_error *error)
{
    struct fns_ended ended;
    int ret =
        receive_end(process->server, process->control, process->number, sandbox, &ended, error);
    if (ret == 0) {
        set_result(&ended, result);
        process->start += ended.queued;
        process->rss_floor = ended.rss_floor;
    }
    return ret;
}

/* ---- a command that is started --------------------------------------------------------------- */

/* Kills a running sandbox over a new connection: if the sandbox was parked, the server may not be reading its old one.
 * If no fd is free, uses the old one. */
static void kill_running(const struct fns_process *server, int connection, int running)
{
    struct fns_ended ended;
    int other = fns_server_connect(server, FNS_PATIENT);
    FNS_IGNORE(request_end(server->pidfd, other < 0 ? connection : other, FNS_REQUEST_KILL, running,
                           &ended),
               "without a reply the server is gone, and its sandboxes too");
    fns_close_fd(&other);
}

/* Ends a sandbox whose start the caller gives up, however far the start has got. */
static void give_up(const struct fns_process *server, int connection, int number)
{
    struct reply reply;
    FNS_IGNORE(fns_sys4(__NR_pidfd_send_signal, server->pidfd, SIGCONT, 0, 0), "it may have ended");
    shutdown(connection, SHUT_WR);
    int ret = receive(server->pidfd, connection, number, FNS_PATIENT, &reply);
    fns_close_fd(&reply.pidfd);
    if (ret == 0 && reply.message.message.kind == FNS_MESSAGE_RUNNING)
        kill_running(server, connection, reply.message.message.value);
}

/* After RUNNING, waits for the exec, which releases the lock on `pipe`. 0, or -errno and `error`. */
static int await_exec(const struct fns_process *server, int connection, int number,
                      const struct fns_plan *sandbox, int pipe, const struct reply *running,
                      struct fns_error *error)
{
    struct fns_deadline deadline = {0, 0};
    struct fns_ended ended;
    struct fns_error said;
    long n = -EMFILE; /* if no fd is free, the kernel drops the pidfd */
    if (running->pidfd >= 0)
        n = fns_executed(pipe, NULL, &deadline);
    if (n == 0)
        n = fns_read(pipe, &said, sizeof said);
    if (n < 0 && n != -EAGAIN) { /* EAGAIN: it is empty, and another process holds it open */
        kill_running(server, connection, running->message.message.value);
        return broken(error, (int)n);
    }
    return n == sizeof said ? receive_end(server->pidfd, connection, number, sandbox, &ended, error)
                            : 0;
}

/* Whether most of the fds that this process may have are in use. */
static int is_scarce(int fd)
{
    struct rlimit files;
    return fd >= FEW_FDS && getrlimit(RLIMIT_NOFILE, &files) == 0 &&
           (rlim_t)fd >= files.rlim_cur / 4 * 3;
}

int fns_server_spawn(const struct fns_process *server, int connection,
                     const struct fns_plan *sandbox, const struct fns_args *args,
                     struct fns_process *process, struct fns_error *error)
{
    struct reply reply = {.pid = -1, .pidfd = -1};
    const struct fns_message *message = &reply.message.message;
    int number = fns_next_number(), pipe[2];
    *error = (struct fns_error){.op_index = -1};
    *process = nothing;
    process->start = fns_now();
    int ret = fns_pipe(pipe, O_NONBLOCK);
    if (ret < 0)
        return fns_set_error(error, FNS_STAGE_HELPER, -1, ret);
    ret = send_args(connection, number, args, (struct fns_share){0, 0}, pipe[1]);
    close(pipe[1]);
    if (ret == 0) {
        ret = receive(server->pidfd, connection, number, FNS_MAY_GIVE_UP, &reply);
        if (ret == -EINTR)
            give_up(server, connection, number);
    }
    if (ret < 0)
        broken(error, ret);
    else if (message->kind == FNS_MESSAGE_FAILED)
        ret = believe(sandbox, message, error);
    else if (message->kind == FNS_MESSAGE_RUNNING)
        ret = await_exec(server, connection, number, sandbox, pipe[0], &reply, error);
    else
        ret = broken(error, -EPROTO);
    close(pipe[0]);
    if (ret < 0 || is_scarce(reply.pidfd))
        fns_close_fd(&reply.pidfd);
    if (ret < 0)
        return ret;
    process->pid = reply.pid;
    process->pidfd = reply.pidfd;
    process->served = 1;
    process->server = server->pidfd;
    process->number = message->value;
    return 0;
}

static int reap(int connection, const struct fns_process *process, enum fns_request_kind kind,
                struct fns_result *result)
{
    struct fns_ended ended;
    int ret = request_end(process->server, connection, kind, process->number, &ended);
    if (ret == 0)
        set_result(&ended, result);
    return ret;
}

int fns_server_reap(int connection, const struct fns_process *process, struct fns_result *result)
{
    return reap(connection, process, FNS_REQUEST_REAP, result);
}

int fns_server_kill(int connection, const struct fns_process *process, struct fns_result *result)
{
    return reap(connection, process, FNS_REQUEST_KILL, result);
}

int fns_server_look(int connection, const struct fns_process *process, int *pidfd)
{
    struct fns_ended ended;
    /* Open the pidfd before the request: if the sandbox is still alive afterwards, its pid had not been reused. */
    int fd = fns_open_pidfd(process->pid);
    int ret = request_end(process->server, connection, FNS_REQUEST_LOOK, process->number, &ended);
    if (ret == 0 && ended.message.value) {
        if (fd < 0)
            return fd;
        *pidfd = fd;
        return 1;
    }
    fns_close_fd(&fd);
    return ret;
}
