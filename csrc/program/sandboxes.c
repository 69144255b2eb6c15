/* A server's sandboxes: whose turn it is, their start and their end. Runs in a template's server.
 *
 * A start can end another sandbox, and an end starts what waited for it, so both are in one file.
 */
#include "sandboxes.h"

#include "closer.h"
#include "command.h"
#include "connections.h"
#include "kill.h"
#include "netns.h"
#include "tables.h"

enum { MAX_STRAYS = 64 /* reaped in one go */ };

static const struct fns_heritage *heritage;
static struct fns_slot *batch_queue;   /* requests of full batches, the first first */
static struct fns_slot *network_queue; /* requests that wait for a network namespace, likewise */
/* Connections for which a sandbox is to be parked: now, and when there is a network namespace. */
static struct fns_list to_park, to_park_then;
static struct fns_pool_state waits;
static int has_started, has_strays;

void fns_open_sandboxes(const struct fns_heritage *from)
{
    heritage = from;
    to_park.first = to_park_then.first = FNS_NONE;
}

int fns_has_started(void)
{
    int started = has_started;
    has_started = 0;
    return started;
}

struct fns_pool_state fns_pool_waits(void)
{
    return waits;
}

/* ---- the start of one ----------------------------------------------------------------------- */

/* Stops a parked sandbox, so that it takes no request meanwhile. 1: it has none. 0: it has one, and goes on. */
static int stop_unused(const struct fns_sandbox *sandbox)
{
    struct fns_siginfo info;
    if (sandbox->pid <= 0 || !sandbox->is_parked || sandbox->requested)
        return 0;
    long result = fns_sys2(__NR_kill, sandbox->pid, FNS_SIGSTOP);
    if (result >= 0)
        result = fns_sys5(__NR_waitid, P_PID, sandbox->pid, &info,
                          WSTOPPED | WEXITED | __WALL | WNOWAIT, 0);
    if (result >= 0 && !sandbox->requested)
        return 1;
    FNS_IGNORE(fns_sys2(__NR_kill, sandbox->pid, FNS_SIGCONT), "a child that is not reaped");
    return 0;
}

/* Ends a parked sandbox, so that there is a pid for another. 1: there was one. */
static int give_up_unused(void)
{
    struct fns_siginfo info;
    for (struct fns_sandbox *at = fns_newest_watched(); at; at = fns_older_watched(at)) {
        int pid = at->pid;
        if (!stop_unused(at))
            continue;
        long result = fns_sys2(__NR_kill, pid, FNS_SIGKILL);
        if (result >= 0)
            result = fns_sys5(__NR_waitid, P_PID, pid, &info, WEXITED | __WALL | WNOWAIT, 0);
        return result >= 0 && fns_reap(pid);
    }
    return 0;
}

static long start(struct fns_slot *slot, int connection, int parked, int number,
                  enum fns_stage *stage)
{
    long result = fns_launch(heritage, slot, connection, parked, number, stage);
    /* EAGAIN: the limit of processes is reached. */
    while (result == -EAGAIN && *stage == FNS_STAGE_CLONE && !parked && give_up_unused())
        result = fns_launch(heritage, slot, connection, parked, number, stage);
    has_started |= result == 0;
    return result;
}

/* Starts a request. Its fds are the sandbox's own then, and are closed here. 0: it was started, or a failure
 * was sent. -EAGAIN: there is no network namespace yet. */
static long start_request(struct fns_slot *slot, int connection)
{
    const struct fns_request *request = fns_request_of(&slot->received);
    enum fns_stage stage = FNS_STAGE_HELPER;
    /* From its clone on, the sandbox may change the slot. */
    int number = request->number, batch = request->share.batch;
    int n_fds = slot->received.n_fds, fds[FNS_REQUEST_FDS];
    uint64_t queued = slot->queued;
    for (int i = 0; i < n_fds; i++)
        fds[i] = slot->received.fds[i];
    int counted = batch ? fns_count_alive(batch, 1) : 0;
    long result = counted < 0 ? counted : start(slot, connection, 0, number, &stage);
    if (result == 0) {
        struct fns_sandbox *sandbox = fns_sandbox_at(fns_connection(connection)->sandbox);
        sandbox->batch = batch;
        sandbox->end.queued = queued;
    } else if (batch && counted == 0) {
        fns_count_alive(batch, -1);
    }
    if (result == -EAGAIN && stage == FNS_STAGE_NETWORK)
        return result;
    fns_close_all(fds, n_fds);
    if (result < 0)
        fns_reply_failed(connection, number, stage, result);
    return 0;
}

/* ---- parked sandboxes ----------------------------------------------------------------------- */

void fns_park_later(int connection)
{
    fns_list_add(&to_park, connection);
}

int fns_has_to_park(void)
{
    return to_park.first != FNS_NONE;
}

/* If it fails, the server reads the next request there, and fails in the same way. */
static void park_one(int connection)
{
    enum fns_stage stage = FNS_STAGE_HELPER;
    long result = 0;
    struct fns_slot *slot = fns_take_slot(&result);
    if (slot)
        result = start(slot, connection, 1, 0, &stage);
    fns_let_sandbox_read(connection, result == 0);
    if (result == -EAGAIN && stage == FNS_STAGE_NETWORK)
        fns_list_add(&to_park_then, connection);
}

void fns_park(void)
{
    for (int at; (at = fns_list_take(&to_park)) != FNS_NONE;) {
        const struct fns_connection *connection = fns_connection(at);
        if (connection->peer == FNS_PEER_CONNECTION && connection->wants_parked &&
            !connection->is_closed && !connection->is_queued && connection->sandbox == FNS_NONE)
            park_one(at);
    }
}

/* ---- queues --------------------------------------------------------------------------------- */

static struct fns_share share_of(const struct fns_slot *slot)
{
    return fns_request_of(&slot->received)->share;
}

/* Puts a request at the end of a queue. */
static void add_to_queue(struct fns_slot **queue, struct fns_slot *slot, int connection)
{
    while (*queue)
        queue = &(*queue)->next;
    *queue = slot;
    slot->next = 0;
    slot->taken = 1;
    slot->connection = connection;
    slot->since = fns_now();
    fns_connection(connection)->is_queued = 1;
}

/* Starts a request whose batch is not full, or queues it for a network namespace. */
static void start_or_wait(struct fns_slot *slot, int connection)
{
    if (!network_queue && start_request(slot, connection) != -EAGAIN)
        return;
    add_to_queue(&network_queue, slot, connection);
    waits.waits++;
}

void fns_run_request(struct fns_slot *slot, int connection)
{
    slot->queued = 0;
    if (fns_is_full(share_of(slot)))
        add_to_queue(&batch_queue, slot, connection);
    else
        start_or_wait(slot, connection);
}

/* A request that was queued was started, or has failed: then its slot is free. */
static void free_if_failed(struct fns_slot *slot, int connection)
{
    const struct fns_connection *at = fns_connection(connection);
    if (at->sandbox == FNS_NONE && !at->is_queued)
        slot->taken = 0;
}

/* A sandbox of a batch has ended: starts the next ones of it. */
static void start_next(int batch)
{
    for (struct fns_slot **at = &batch_queue; *at;) {
        struct fns_slot *slot = *at;
        struct fns_share share = share_of(slot);
        if (share.batch != batch || fns_is_full(share)) {
            at = &slot->next;
            continue;
        }
        *at = slot->next;
        slot->queued += fns_now() - slot->since;
        fns_connection(slot->connection)->is_queued = 0;
        start_or_wait(slot, slot->connection);
        free_if_failed(slot, slot->connection);
    }
}

void fns_network_is_ready(void)
{
    while (network_queue) {
        struct fns_slot *slot = network_queue;
        int connection = slot->connection;
        if (fns_is_full(share_of(slot))) { /* others of its batch were started before it */
            network_queue = slot->next;
            waits.waits--;
            add_to_queue(&batch_queue, slot, connection);
            continue;
        }
        if (start_request(slot, connection) == -EAGAIN)
            return;
        network_queue = slot->next;
        fns_connection(connection)->is_queued = 0;
        waits.wait_ns += fns_now() - slot->since;
        free_if_failed(slot, connection);
    }
    for (int at; (at = fns_list_take(&to_park_then)) != FNS_NONE;)
        fns_park_later(at);
}

int fns_drop_queued(int connection)
{
    struct fns_slot **queues[] = {&batch_queue, &network_queue};
    for (int i = 0; i < 2; i++) {
        struct fns_slot **at = queues[i];
        while (*at && (*at)->connection != connection)
            at = &(*at)->next;
        struct fns_slot *slot = *at;
        if (!slot)
            continue;
        *at = slot->next;
        fns_connection(connection)->is_queued = 0;
        fns_close_all(slot->received.fds, slot->received.n_fds);
        fns_reply_killed(connection, fns_request_of(&slot->received)->number);
        slot->taken = 0;
        fns_forget(connection);
        return 1;
    }
    return 0;
}

/* ---- the end of one ------------------------------------------------------------------------- */

static void reply_end(int connection, struct fns_sandbox *sandbox)
{
    sandbox->end.message.number = sandbox->request;
    fns_reply(connection, &sandbox->end);
}

/* Describes the end in `sandbox->end`: ENDED, or FAILED if it has not come to its command. */
static void describe_end(struct fns_sandbox *sandbox, int code, int status)
{
    struct fns_message *message = &sandbox->end.message;
    *message = (struct fns_message){.kind = FNS_MESSAGE_ENDED, .value = code, .status = status};
    if (sandbox->child.progress == FNS_PROGRESS_EXEC)
        return;
    message->kind = FNS_MESSAGE_FAILED;
    message->error = sandbox->child.progress == FNS_PROGRESS_FAILED ? sandbox->child.error
                                                                    : FNS_KILLED(FNS_STAGE_CLONE);
}

/* Frees the connection of a sandbox that has ended for the next. */
static void end_use(int connection)
{
    struct fns_connection *at = fns_connection(connection);
    at->sandbox = FNS_NONE;
    if (at->is_closed)
        fns_forget(connection);
    else if (at->wants_parked)
        fns_park_later(connection);
}

/* Whether a parked sandbox has ended without its request: that is still in the socket. */
static int is_unused(const struct fns_sandbox *sandbox)
{
    char byte;
    if (!sandbox->is_parked || !sandbox->requested)
        return sandbox->is_parked;
    return sandbox->child.progress != FNS_PROGRESS_EXEC && !sandbox->reported &&
           fns_sys6(__NR_recvfrom, sandbox->connection, (long)&byte, 1,
                    FNS_MSG_PEEK | FNS_MSG_DONTWAIT, 0, 0) > 0;
}

/* The server reads what is requested there next, or was. If the caller has closed the connection, it gets a
 * reply to what is still in the socket. */
static void end_unused(struct fns_sandbox *sandbox, int connection)
{
    struct fns_request request;
    fns_free_sandbox(sandbox);
    if (!fns_connection(connection)->is_closed) {
        fns_let_sandbox_read(connection, 0);
        return;
    }
    long n =
        fns_sys6(__NR_recvfrom, connection, (long)&request, sizeof request, FNS_MSG_DONTWAIT, 0, 0);
    if (n == sizeof request)
        fns_reply_killed(connection, request.number);
    fns_forget(connection);
}

/* Keeps the end of a sandbox for a REAP. If its RUNNING was not sent, its pipe may be silent: whoever waits
 * for RUNNING is told now. */
static void keep_end(struct fns_sandbox *sandbox, int code, int status)
{
    if (sandbox->child.progress == FNS_PROGRESS_SETUP && sandbox->connection != FNS_NONE)
        reply_end(sandbox->connection, sandbox);
    sandbox->end.message =
        (struct fns_message){.kind = FNS_MESSAGE_ENDED, .value = code, .status = status};
    sandbox->has_ended = 1;
    sandbox->connection = FNS_NONE;
}

static void end_sandbox(struct fns_sandbox *sandbox, int code, int status)
{
    int connection = sandbox->connection;
    describe_end(sandbox, code, status);
    sandbox->pid = 0;
    fns_killed_ended(sandbox);
    fns_unwatch_sandbox(sandbox);
    if (heritage->plan->netns_pool)
        fns_netns_ended();
    if (sandbox->batch) { /* before the reply, whose receiver would take the CPU that is free now */
        fns_count_alive(sandbox->batch, -1);
        start_next(sandbox->batch);
    }
    if (is_unused(sandbox)) {
        end_unused(sandbox, connection);
        return;
    }
    if (sandbox->reported && !sandbox->is_awaited &&
        sandbox->child.progress != FNS_PROGRESS_FAILED) {
        keep_end(sandbox, code, status);
    } else {
        if (connection != FNS_NONE)
            reply_end(connection, sandbox);
        fns_free_sandbox(sandbox);
    }
    if (connection != FNS_NONE)
        end_use(connection);
}

/* ---- reaping -------------------------------------------------------------------------------- */

static int is_maker(int pid)
{
    return heritage->plan->netns_pool && pid == fns_netns_maker();
}

int fns_reap(int pid)
{
    struct fns_siginfo info = {.pid = 0};
    char usage[sizeof((struct fns_ended *)0)->usage];
    long result = fns_sys5(__NR_waitid, P_PID, pid, &info, WNOHANG | WEXITED | __WALL, usage);
    if (result < 0 || info.pid != pid || info.code >= FNS_CLD_TRAPPED)
        return 0;
    if (pid == fns_closer_pid() || is_maker(pid)) {
        if ((pid == fns_closer_pid() ? fns_closer_start() : fns_netns_restart()) < 0)
            fns_quit(0); /* and with this pid 1 every sandbox */
        return 1;
    }
    struct fns_sandbox *sandbox = fns_find_pid(pid);
    if (sandbox) {
        memcpy(sandbox->end.usage, usage, sizeof usage);
        end_sandbox(sandbox, info.code, info.status);
    }
    return 1;
}

/* Whether its command runs, and nobody waits for it: only a REAP can ask for its end. */
static int is_on_its_own(const struct fns_sandbox *sandbox)
{
    int has_left = sandbox->slot->sandbox != sandbox || !sandbox->slot->taken;
    return has_left && sandbox->reported && !sandbox->is_awaited &&
           sandbox->child.progress == FNS_PROGRESS_EXEC;
}

/* waitid(2) for any child would go through all that live. So this looks at those whose end somebody waits
 * for, and at the one that the signal names. */
void fns_reap_ended(int pid)
{
    if (pid > 0) {
        int known = pid == fns_closer_pid() || is_maker(pid) || fns_find_pid(pid);
        fns_reap(pid);
        has_strays |= !known;
    }
    fns_reap(fns_closer_pid());
    if (heritage->plan->netns_pool)
        fns_reap(fns_netns_maker());
    for (struct fns_sandbox *at = fns_newest_watched(), *older; at; at = older) {
        older = fns_older_watched(at);
        if (!fns_reap(at->pid) && is_on_its_own(at))
            fns_unwatch_sandbox(at);
    }
}

int fns_has_strays(void)
{
    return has_strays;
}

void fns_reap_strays(void)
{
    for (int i = 0; i < MAX_STRAYS; i++) {
        struct fns_siginfo info = {.pid = 0};
        long result =
            fns_sys5(__NR_waitid, P_ALL, 0, &info, WNOHANG | WEXITED | __WALL | WNOWAIT, 0);
        if (result < 0 || info.pid <= 0) {
            has_strays = 0;
            break;
        }
        if (!fns_reap(info.pid))
            break;
    }
}
