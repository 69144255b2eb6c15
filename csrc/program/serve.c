/* The server of a template: starts sandboxes for the caller, in the program's small memory.
 *
 * It is pid 1 of a pid namespace of its own, in a mount namespace that holds only the finished root. Each
 * sandbox is a clone that shares the server's memory until its exec, in a slot of its own (sandbox.c). The server
 * does not wait for that exec. It reaps, reports how each sandbox ended, and keeps nothing of one for the next.
 * It ends with the caller, and all sandboxes end with it, because they are in its pid namespace. Raw system calls
 * only.
 *
 *   serve.c               the loop and the requests
 *   sandboxes.c, kill.c   whose turn it is, the start and the end of a sandbox; the kill
 *   connections.c         what the server listens to
 *   tables.c              slots, sandboxes and batches
 *   keeper.c, proof.c     rooms
 *   networks.c            network namespaces that serve more than one sandbox
 *   container.c, supervisor.c
 *                         commands in the server's own namespaces
 *   transfer.c            files into a container and out of it
 *   closer.c              a process beside the server, which takes mount namespaces down
 */
#include "program.h"

#include "server.h"

enum { MAX_EVENTS = 64 };

static struct fns_received no_slot; /* for a message when there is no free slot */

/* ---- requests (shared/wire.h) --------------------------------------------------------------- */

/* Handles a connection that the caller has shut down or closed. */
static void hang_up(int connection)
{
    struct fns_connection *at = fns_connection(connection);
    if (at->is_closed || (at->is_queued && fns_drop_queued(connection)))
        return;
    struct fns_sandbox *sandbox = at->sandbox;
    if (sandbox && !sandbox->reported) {
        fns_kill(sandbox);
        at->is_closed = 1; /* stays until the sandbox's end was sent */
        fns_ignore(connection);
        return;
    }
    if (sandbox) {
        sandbox->connection = FNS_NONE;
        sandbox->is_awaited = 0;
    }
    fns_forget(connection);
}

/* The sandbox that a request names. 0: there is none, and the error was sent. */
static struct fns_sandbox *find(int connection, const struct fns_request *request)
{
    struct fns_sandbox *sandbox = fns_find_number(request->sandbox);
    if (!sandbox)
        fns_reply_error(connection, request->number, FNS_FAILED(FNS_STAGE_WAIT, -ECHILD));
    return sandbox;
}

/* Replies to LOOK or STATS. */
static void describe(int connection, const struct fns_request *request)
{
    struct fns_ended reply = {.message = {.kind = FNS_MESSAGE_ENDED, .number = request->number}};
    if (request->kind == FNS_REQUEST_STATS) {
        reply.stats = *fns_get_stats();
    } else {
        const struct fns_sandbox *sandbox = find(connection, request);
        if (!sandbox)
            return;
        reply.message.value = sandbox->pid != 0;
    }
    fns_reply(connection, &reply);
}

/* Carries out REAP or KILL. */
static void reap(int connection, const struct fns_request *request)
{
    int kill = request->kind == FNS_REQUEST_KILL;
    struct fns_sandbox *sandbox = find(connection, request);
    if (!sandbox)
        return;
    sandbox->request = request->number;
    if (sandbox->has_ended) {
        sandbox->end.message.number = request->number;
        fns_reply(connection, &sandbox->end);
        fns_free_sandbox(sandbox);
        return;
    }
    if (sandbox->connection != FNS_NONE) { /* the connection it was spawned over */
        fns_connection(sandbox->connection)->sandbox = 0;
        fns_let_sandbox_read(sandbox->connection, 0);
    }
    sandbox->connection = connection;
    sandbox->is_awaited = 1;
    fns_connection(connection)->sandbox = sandbox;
    if (kill)
        fns_kill(sandbox);
    fns_watch_sandbox(sandbox);
    fns_reap(sandbox->pid);
}

/* Whether the request that is in the socket runs a command. */
static int is_run(int connection)
{
    struct fns_request request;
    return fns_sys6(__NR_recvfrom, connection, (long)&request, sizeof request,
                    FNS_MSG_PEEK | FNS_MSG_DONTWAIT, 0, 0) == sizeof request &&
           request.kind == FNS_REQUEST_RUN;
}

static void read_request(int connection)
{
    struct fns_connection *at = fns_connection(connection);
    long error = 0;
    int is_for_room = fns_has_rooms() && !at->sandbox && !at->is_queued && is_run(connection);
    int has_failed = is_for_room && at->n_failed_rooms >= FNS_MOST_FAILED_ROOMS;
    if (is_for_room && !has_failed && fns_make_room(connection))
        return;
    if (at->room_error.err ==
        EAGAIN) /* a room takes more processes than a sandbox that serves once */
        has_failed = 0;
    struct fns_slot *slot = fns_take_slot(&error);
    struct fns_received *received = slot ? &slot->received : &no_slot;
    const struct fns_request *request = fns_request_of(received);
    fns_receive(connection, FNS_MSG_DONTWAIT, received);
    if (at->sandbox &&
        (at->sandbox->replied || (at->sandbox->reported && !at->sandbox->is_awaited))) {
        at->sandbox->connection = FNS_NONE; /* after RUNNING it needs no connection */
        at->sandbox = 0;
    }
    if (received->size == -EAGAIN) /* the event was for an earlier connection with this fd */
        return;
    if (received->size == FNS_TRUNCATED) {
        fns_reply_error(connection, request->number, FNS_FAILED(FNS_STAGE_FDS, -EMFILE));
        return;
    }
    int is_request = received->size >= (long)sizeof *request && !at->sandbox && !at->is_queued;
    switch (is_request ? request->kind : 0) {
    case FNS_REQUEST_RUN:
    case FNS_REQUEST_SPAWN:
        if (slot && !has_failed) {
            at->n_failed_rooms = 0;
            fns_run_request(slot, connection);
            break;
        }
        fns_close_all(received->fds, received->n_fds);
        fns_reply_error(connection, request->number,
                        has_failed ? at->room_error : FNS_FAILED(FNS_STAGE_HELPER, error));
        at->n_failed_rooms = 0;
        break;
    case FNS_REQUEST_REAP:
    case FNS_REQUEST_KILL: reap(connection, request); break;
    case FNS_REQUEST_LOOK:
    case FNS_REQUEST_STATS: describe(connection, request); break;
    case FNS_REQUEST_PARK:
        at->wants_parked = 1;
        fns_park_later(connection);
        break;
    default: /* the other end is closed, or this is not a request that is valid now */
        if (received->size < 0)
            fns_reply_error(connection, FNS_ANY_REQUEST,
                            FNS_FAILED(FNS_STAGE_HELPER, received->size));
        fns_close_all(received->fds, received->n_fds);
        hang_up(connection);
    }
}

/* Handles a message on the control socket: CALLER or CONNECT. */
static void read_control(int control)
{
    struct fns_received *received = &no_slot;
    const struct fns_request *request = fns_request_of(received);
    fns_receive(control, FNS_MSG_DONTWAIT, received);
    if (received->size == 0)
        fns_quit(0); /* the caller has ended the template */
    if (received->size == -EAGAIN)
        return;
    int is_request = received->size >= (long)sizeof *request && received->n_fds == 1;
    int is_caller = is_request && request->kind == FNS_REQUEST_CALLER;
    int result = -EPROTO;
    if (is_request)
        result = fns_watch(received->fds[0], is_caller ? FNS_PEER_CALLER : FNS_PEER_CONNECTION);
    if (result < 0 && received->n_fds == 1 && !is_caller)
        fns_reply_error(received->fds[0], FNS_ANY_REQUEST, FNS_FAILED(FNS_STAGE_HELPER, result));
    if (result < 0)
        fns_close_all(received->fds, received->n_fds); /* the other end then reads end of file */
}

/* ---- the loop ------------------------------------------------------------------------------- */

static void handle(int fd)
{
    const struct fns_connection *at = fns_connection(fd);
    int info[32] = {0}; /* struct signalfd_siginfo: signo, errno, code, pid, ... */
    switch ((enum fns_peer)at->peer) {
    case FNS_PEER_CONTROL: read_control(fd); break;
    case FNS_PEER_CALLER: fns_quit(0); /* the caller has ended */
    case FNS_PEER_CONNECTION:
        /* If a parked sandbox reads here, the event is a hangup. If that sandbox has ended and no next one was
         * made yet, the server reads the request that it may have left. */
        if (at->sandbox_reads && at->sandbox)
            hang_up(fd);
        else
            read_request(fd);
        break;
    case FNS_PEER_ENDS:
        FNS_IGNORE(fns_sys3(__NR_read, fd, info, sizeof info), "info then names no process");
        fns_reap_ended(info[3]);
        break;
    case FNS_PEER_NONE: break;
    }
}

/* Blocks all signals, and reads SIGCHLD from a signalfd. */
static long listen_for_ends(void)
{
    const uint64_t all = ~0ull, sigchld = 1ull << (FNS_SIGCHLD - 1);
    long result = fns_sys4(__NR_rt_sigprocmask, FNS_SIG_SETMASK, &all, 0, FNS_SIGSET_SIZE);
    if (result >= 0)
        result = fns_sys4(__NR_signalfd4, -1, &sigchld, sizeof sigchld, O_CLOEXEC | O_NONBLOCK);
    return result < 0 ? result : fns_watch((int)result, FNS_PEER_ENDS);
}

_Noreturn void fns_serve(struct fns_start *start)
{
    int control = (int)start->numbers.control, status = (int)start->numbers.status;
    int userns = start->child.userns;
    struct epoll_event events[MAX_EVENTS];
    fns_start_check(start, fns_close_but(control, status, userns));
    fns_start_check(start, userns > 0 ? fns_close_on_exec(userns) : 0); /* -1: joined already */
    fns_start_check(start, fns_open_connections());
    fns_start_check(start, fns_watch(control, FNS_PEER_CONTROL));
    fns_start_check(start, listen_for_ends());
    /* A stopped server would not notice the caller's end, so this signal continues it. The signal also comes,
     * and does nothing, when only the thread that was its parent ends. A change of credentials would clear the
     * setting, but none follows. */
    fns_start_check(start, fns_prctl(PR_SET_PDEATHSIG, FNS_SIGCONT, 0));
    fns_start_check(start, fns_open_sandboxes(&start->sandbox, userns));
    fns_report_running(start);
    fns_close(status);
    for (int idle = 0;;) {
        int n = fns_await_events(events, MAX_EVENTS, fns_do_chores(idle));
        for (int i = 0; i < n; i++) /* n < 0: EINTR, after a stop (signal(7)) */
            handle((int)events[i].data);
        idle = n == 0;
    }
}
