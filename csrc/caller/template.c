/* The caller's side of a template: a server that starts sandboxes on request. Runs in the parent.
 *
 * The server (server.c) is a spawn that stays. It is asked over connections, SEQPACKET socket
 * pairs, each for one sandbox at a time: to run a command and say how it ended, or to start one and
 * to be asked for its end later (wire.h).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "pack.h"
#include "shared/sys.h"
#include "spawn.h"

#define FEW_FDS 256 /* are never too many */

/* ---- a server that does not answer ----------------------------------------------------------- */

/* A wait at the caller's end of a socket lasts no longer than this; then the server is checked. */
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
    /* WNOWAIT: without it a stop is reported only once. */
    long ret =
        fns_sys5(__NR_waitid, P_PIDFD, pidfd, &info, WSTOPPED | WNOHANG | WNOWAIT | __WALL, 0);
    if (ret < 0 || info.si_pid == 0)
        return 0;
    FNS_IGNORE(fns_sys4(__NR_pidfd_send_signal, pidfd, kill ? FNS_SIGKILL : SIGCONT, 0, 0),
               "it may have ended");
    struct pollfd end = {.fd = pidfd, .events = POLLIN};
    if (kill) /* whoever asks it next must find it gone */
        poll(&end, 1, FNS_LOOK_NS / 1000000);
    return 1;
}

/* ---- asking ---------------------------------------------------------------------------------- */

/* 0; -EPIPE: the other end is closed; -EAGAIN: the socket was full for FNS_LOOK_NS; -EINTR: the
 * caller gives up; -errno. */
static int send_ask(int socket, const struct fns_request *ask, size_t size, const int *fds,
                    int n_fds, enum fns_patience patience)
{
    const struct timespec pause = {0, 1000000};
    uint64_t next = 0;
    long n = fns_send_message(socket, ask, size, fds, n_fds, 0, 0);
    /* The kernel counts the fds that are on their way: RLIMIT_NOFILE for each user. */
    const int most = patience == FNS_AT_ONCE ? 0 : 5000;
    for (int tries = 0; n == -EINTR || (n == -ETOOMANYREFS && tries < most);) {
        int signalled = n == -EINTR;
        if (!signalled) {
            nanosleep(&pause, NULL);
            tries++;
        }
        if (patience == FNS_MAY_GIVE_UP && fns_interrupted(&next, signalled))
            return -EINTR;
        n = fns_send_message(socket, ask, size, fds, n_fds, 0, 0);
    }
    return n == -ECONNRESET ? -EPIPE : n < 0 ? (int)n : 0;
}

enum { PATIENCE = 50 }; /* times FNS_LOOK_NS: how long a server may leave its control socket full */

static int send_fd(const struct fns_process *server, enum fns_request_kind kind, int fd,
                   enum fns_patience patience)
{
    const struct fns_request ask = {.kind = kind, .size = sizeof ask};
    int ret, roused = 0;
    for (int i = 0; i < PATIENCE; i++) {
        ret = send_ask(server->control, &ask, sizeof ask, &fd, 1, patience);
        if (ret != -EAGAIN || patience == FNS_AT_ONCE)
            break;
        roused |= fns_server_rouse(server->pidfd, roused);
    }
    return ret;
}

int fns_server_start(const struct fns_plan *plan, int null, int userns, struct fns_process *server,
                     struct fns_error *error)
{
    char *none[] = {NULL};
    const struct fns_args args = {
        .argv = none, .envp = none, .paths = none, .userns = userns, .stdio = {null, null, null}};
    int ret = fns_spawn(plan, &args, 0, server, error);
    if (ret < 0)
        return ret;
    long self = fns_sys2(__NR_pidfd_open, getpid(), 0);
    ret = self < 0 ? (int)self : limit_waits(server->control);
    if (ret == 0)
        ret = send_fd(server, FNS_REQUEST_CALLER, (int)self, FNS_MAY_GIVE_UP);
    if (self >= 0)
        close((int)self);
    if (ret == 0)
        return 0;
    fns_server_stop(server);
    fns_server_close(server);
    return fns_set_error(error, FNS_STAGE_HELPER, -1, ret == -EPIPE ? ECANCELED : ret);
}

void fns_server_stop(const struct fns_process *server)
{
    siginfo_t info;
    long ret;
    if (server->control >= 0)
        shutdown(server->control, SHUT_RDWR);
    if (server->pidfd < 0)
        return;
    fns_kill_by(server->pidfd);
    do
        ret = fns_sys5(__NR_waitid, P_PIDFD, server->pidfd, &info, WEXITED | __WALL, 0);
    while (ret == -EINTR);
}

void fns_server_close(struct fns_process *server)
{
    if (server->control >= 0)
        close(server->control);
    if (server->pidfd >= 0)
        close(server->pidfd);
    server->control = server->pidfd = -1;
}

int fns_server_connect(const struct fns_process *server, enum fns_patience patience)
{
    const int on = 1;
    int pair[2], ret = 0;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return -errno;
    ret = fns_both_above_stdio(pair);
    if (ret < 0)
        return ret;
    if (setsockopt(pair[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof on) <
        0) /* RUNNING tells the pid */
        ret = -errno;
    if (ret == 0)
        ret = limit_waits(pair[0]);
    if (ret == 0)
        ret = send_fd(server, FNS_REQUEST_CONNECT, pair[1], patience);
    close(pair[1]);
    if (ret < 0)
        close(pair[0]);
    return ret < 0 ? ret : pair[0];
}

/* The number of an ask, which its answers have: one that came too late for the last is not taken for
 * this one's. */
static int next_number(void)
{
    static atomic_int last;
    return atomic_fetch_add(&last, 1) & 0x7fffffff;
}

/* `news`: for SPAWN. */
static int send_run(int connection, enum fns_request_kind kind, int number,
                    const struct fns_args *args, struct fns_share share, int news)
{
    int fds[FNS_REQUEST_FDS], n = 0, file = -1, ret;
    if (args->n_keep + args->n_groups > FNS_REQUEST_FDS - 5)
        return -EMFILE;
    struct fns_request *ask = fns_pack_request(args);
    if (!ask)
        return -ENOMEM;
    ask->kind = (uint16_t)kind;
    ask->number = number;
    ask->share = share;
    for (int i = 0; i < 3; i++)
        fds[n++] = args->stdio[i] >= 0 ? args->stdio[i] : i;
    for (uint32_t i = 0; i < args->n_keep; i++)
        fds[n++] = args->keep[i];
    for (uint32_t i = 0; i < args->n_groups; i++)
        fds[n++] = args->groups[i];
    if (kind == FNS_REQUEST_SPAWN)
        fds[n++] = news;
    size_t size = ask->size;
    if (size > FNS_REQUEST_INLINE) {
        ask->in_file = 1;
        file = fds[n++] = fns_memory_file("fastns", ask, size, FNS_WRITABLE);
        size = sizeof *ask;
    }
    ret =
        ask->in_file && file < 0 ? file : send_ask(connection, ask, size, fds, n, FNS_MAY_GIVE_UP);
    if (file >= 0)
        close(file);
    free(ask);
    return ret;
}

/* Receives one message. -EAGAIN: none came within FNS_LOOK_NS; -EINTR: a signal came first. RUNNING brings the
 * pidfd, and the pid in this process' namespaces. */
static int hear_one(int connection, struct fns_ended *answer, int *pid, int *pidfd)
{
    int fd, n_fds;
    long n;
    /* ECONNRESET is reported once, before messages that were sent earlier. Other failures may pass, and an
     * answer that is not read is lost. */
    for (int tries = 0; tries <= FNS_TRIES; tries++) {
        n_fds = 1;
        n = fns_receive_message(connection, answer, sizeof *answer, &fd, &n_fds, pid, 0);
        if (n >= 0 || n == -EAGAIN || n == -EINTR)
            break;
    }
    if (n <= 0)
        return n < 0 && n != -ECONNRESET ? (int)n : -ECANCELED;
    if (n_fds == 1)
        *pidfd = fns_above_stdio(fd);
    int whole = answer->message.kind == FNS_MESSAGE_ENDED;
    return n >= (long)(whole ? sizeof *answer : sizeof answer->message) ? 0 : -EPROTO;
}

/* The answer to the ask with this number: ENDED, or a shorter one. A stopped server is continued, and killed
 * if it stops again. -EINTR: the caller gives up. */
static int hear(int server, int connection, int number, enum fns_patience patience,
                struct fns_ended *answer, int *pid, int *pidfd)
{
    uint64_t next = 0;
    int roused = 0;
    for (;;) {
        int ret = hear_one(connection, answer, pid, pidfd);
        if (ret == -EAGAIN)
            roused |= fns_server_rouse(server, roused);
        int is_it = ret == 0 &&
                    (answer->message.number == number || answer->message.number == FNS_ANY_REQUEST);
        if (is_it || (ret < 0 && ret != -EAGAIN && ret != -EINTR))
            return ret;
        if (patience == FNS_MAY_GIVE_UP && fns_interrupted(&next, ret == -EINTR))
            return -EINTR;
    }
}

/* The error of a conversation that has broken off. */
static int broken(struct fns_error *error, int ret)
{
    int gone = ret == -EPIPE || ret == -ECANCELED;
    fns_set_error(error, ret == -EBADF || ret == -EMFILE ? FNS_STAGE_FDS : FNS_STAGE_HELPER, -1,
                  gone ? ECANCELED : ret);
    error->detail = FNS_DETAIL_BROKEN;
    return ret;
}

/* FAILED: -errno and `error`. It is for any ask where the server closes the connection. */
static int believe(const struct fns_plan *sandbox, const struct fns_message *failed,
                   struct fns_error *error)
{
    int ret = fns_believe_error(sandbox, &failed->error, error);
    if (failed->number == FNS_ANY_REQUEST)
        error->detail = FNS_DETAIL_BROKEN;
    return ret;
}

/* An answer that is not RUNNING. 0: ENDED; -errno and `error`. */
static int hear_end(int server, int connection, int number, const struct fns_plan *sandbox,
                    struct fns_ended *ended, struct fns_error *error)
{
    int pid = -1, pidfd = -1;
    int ret = hear(server, connection, number, FNS_PATIENT, ended, &pid, &pidfd);
    if (pidfd >= 0)
        close(pidfd);
    if (ret < 0)
        return broken(error, ret);
    if (ended->message.kind == FNS_MESSAGE_FAILED)
        return believe(sandbox, &ended->message, error);
    return ended->message.kind == FNS_MESSAGE_ENDED ? 0 : broken(error, -EPROTO);
}

int fns_server_run(const struct fns_process *server, int connection, const struct fns_args *args,
                   struct fns_share share, struct fns_process *process, struct fns_error *error)
{
    *error = (struct fns_error){.op_index = -1};
    *process = (struct fns_process){.pid = -1, .pidfd = -1, .control = -1, .start = fns_now()};
    int number = next_number(),
        ret = send_run(connection, FNS_REQUEST_RUN, number, args, share, -1);
    if (ret < 0)
        return broken(error, ret);
    process->control = connection;
    process->server = server->pidfd;
    process->quiet = 1;
    process->number = number;
    return 0;
}

static void set_result(const struct fns_ended *ended, struct fns_result *result)
{
    result->code = ended->message.value;
    result->status = ended->message.status;
    memcpy(&result->usage, ended->usage, sizeof result->usage);
    result->end = fns_now();
}

int fns_server_end(struct fns_process *process, const struct fns_plan *sandbox,
                   struct fns_result *result, struct fns_error *error)
{
    struct fns_ended ended;
    int ret = hear_end(process->server, process->control, process->number, sandbox, &ended, error);
    if (ret == 0) {
        set_result(&ended, result);
        process->start += ended.queued;
    }
    return ret;
}

static int ask_end(int server, int connection, enum fns_request_kind kind, int sandbox,
                   struct fns_ended *ended)
{
    int number = next_number();
    const struct fns_request ask = {
        .kind = (uint16_t)kind, .number = number, .sandbox = sandbox, .size = sizeof ask};
    const struct fns_plan none = {.n_ops = 0};
    struct fns_error error;
    int ret = send_ask(connection, &ask, sizeof ask, NULL, 0, FNS_PATIENT);
    return ret < 0 ? ret : hear_end(server, connection, number, &none, ended, &error);
}

int fns_server_reap(int connection, const struct fns_process *process, struct fns_result *result)
{
    struct fns_ended ended;
    int ret = ask_end(process->server, connection, FNS_REQUEST_REAP, process->number, &ended);
    if (ret == 0)
        set_result(&ended, result);
    return ret == -EPIPE ? -ECANCELED : ret;
}

int fns_server_look(int connection, const struct fns_process *process, int *pidfd)
{
    struct fns_ended ended;
    /* In this order: who is alive after that was opened is the one that was opened. */
    int fd = (int)syscall(__NR_pidfd_open, process->pid, 0);
    fd = fns_above_stdio(fd);
    int ret = ask_end(process->server, connection, FNS_REQUEST_LOOK, process->number, &ended);
    int alive = ret == 0 && ended.message.value;
    if (alive && fd >= 0)
        *pidfd = fd;
    else if (fd >= 0)
        close(fd);
    if (ret < 0)
        return ret == -EPIPE ? -ECANCELED : ret;
    return alive && fd < 0 ? fd : alive;
}

int fns_server_pool(const struct fns_process *server, int connection, struct fns_pool_state *state)
{
    struct fns_ended ended;
    int ret = ask_end(server->pidfd, connection, FNS_REQUEST_POOL, 0, &ended);
    if (ret == 0)
        memcpy(state, ended.usage, sizeof *state);
    return ret;
}

/* Ends a sandbox that is running. Asks over a new connection, as nobody may listen on that of a parked one;
 * without an fd for that, over the old one. */
static void end_running(const struct fns_process *server, int connection, int running)
{
    struct fns_ended ended;
    int other = fns_server_connect(server, FNS_PATIENT);
    ask_end(server->pidfd, other < 0 ? connection : other, FNS_REQUEST_KILL, running, &ended);
    if (other >= 0)
        close(other);
}

/* Ends a sandbox that the caller gives up, however far it has come. */
static void give_up(const struct fns_process *server, int connection, int number)
{
    struct fns_ended answer;
    int pid = -1, pidfd = -1;
    FNS_IGNORE(fns_sys4(__NR_pidfd_send_signal, server->pidfd, SIGCONT, 0, 0), "it may have ended");
    shutdown(connection, SHUT_WR);
    int ret = hear(server->pidfd, connection, number, FNS_PATIENT, &answer, &pid, &pidfd);
    if (pidfd >= 0)
        close(pidfd);
    if (ret == 0 && answer.message.kind == FNS_MESSAGE_RUNNING)
        end_running(server, connection, answer.message.value);
}

/* From RUNNING to the command: 0, or -errno and `error`. */
static int follow(const struct fns_process *server, int connection, int number,
                  const struct fns_plan *sandbox, int news, int running, int pidfd,
                  struct fns_error *error)
{
    struct fns_ended ended;
    struct fns_error said;
    long n = -EMFILE; /* the kernel drops an fd that finds no place */
    if (pidfd >= 0)
        n = fns_executed(news, NULL, 0);
    if (n == 0)
        n = fns_read(news, &said, sizeof said);
    if (n < 0 && n != -EAGAIN) { /* EAGAIN: nothing, and another process holds the pipe open */
        end_running(server, connection, running);
        return broken(error, (int)n);
    }
    if (n != sizeof said)
        return 0;
    return hear_end(server->pidfd, connection, number, sandbox, &ended, error);
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
    struct fns_ended answer = {.message = {.kind = 0}};
    int number = next_number(), news[2], pid = -1, pidfd = -1;
    *error = (struct fns_error){.op_index = -1};
    *process = (struct fns_process){.pid = -1, .pidfd = -1, .control = -1, .start = fns_now()};
    int ret = pipe2(news, O_CLOEXEC | O_NONBLOCK) < 0 ? -errno : fns_both_above_stdio(news);
    if (ret < 0)
        return fns_set_error(error, FNS_STAGE_HELPER, -1, ret);
    ret = send_run(connection, FNS_REQUEST_SPAWN, number, args, (struct fns_share){0, 0}, news[1]);
    close(news[1]);
    if (ret == 0) {
        ret = hear(server->pidfd, connection, number, FNS_MAY_GIVE_UP, &answer, &pid, &pidfd);
        if (ret == -EINTR)
            give_up(server, connection, number);
    }
    if (ret < 0)
        broken(error, ret);
    else if (answer.message.kind == FNS_MESSAGE_FAILED)
        ret = believe(sandbox, &answer.message, error);
    else if (answer.message.kind == FNS_MESSAGE_RUNNING)
        ret = follow(server, connection, number, sandbox, news[0], answer.message.value, pidfd,
                     error);
    else
        ret = broken(error, -EPROTO);
    close(news[0]);
    if (ret < 0) {
        if (pidfd >= 0)
            close(pidfd);
        return ret;
    }
    if (is_scarce(pidfd)) {
        close(pidfd);
        pidfd = -1;
    }
    *process = (struct fns_process){.pid = pid,
                                    .pidfd = pidfd,
                                    .control = -1,
                                    .served = 1,
                                    .server = server->pidfd,
                                    .number = answer.message.value,
                                    .start = process->start};
    return 0;
}

int fns_server_park(int connection)
{
    const struct fns_request ask = {.kind = FNS_REQUEST_PARK, .size = sizeof ask};
    return send_ask(connection, &ask, sizeof ask, NULL, 0, FNS_AT_ONCE);
}
