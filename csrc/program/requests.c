/* What a server is requested to do (shared/wire.h). Runs in a template's server. */
#include "requests.h"

#include "command.h"
#include "connections.h"
#include "kill.h"
#include "netns.h"
#include "sandboxes.h"
#include "tables.h"

static struct fns_received no_slot; /* for a message without a slot */

void fns_hang_up(int connection)
{
    struct fns_connection *at = fns_connection(connection);
    if (at->is_closed || (at->is_queued && fns_drop_queued(connection)))
        return;
    struct fns_sandbox *sandbox = fns_sandbox_at(at->sandbox);
    if (sandbox && !sandbox->reported) {
        fns_kill(sandbox);
        at->is_closed = 1; /* here once its end was sent */
        fns_ignore(connection);
        return;
    }
    if (sandbox) {
        sandbox->connection = FNS_NONE;
        sandbox->is_awaited = 0;
    }
    fns_forget(connection);
}

/* The sandbox that a request names; 0: there is none, and the reply says so. */
static struct fns_sandbox *find(int connection, const struct fns_request *request)
{
    struct fns_sandbox *sandbox = fns_find_number(request->sandbox);
    if (!sandbox)
        fns_reply_failed(connection, request->number, FNS_STAGE_WAIT, -ECHILD);
    return sandbox;
}

static struct fns_ended reply_to(const struct fns_request *request)
{
    return (struct fns_ended){.message = {.kind = FNS_MESSAGE_ENDED, .number = request->number}};
}

static void look(int connection, const struct fns_request *request)
{
    const struct fns_sandbox *sandbox = find(connection, request);
    struct fns_ended reply = reply_to(request);
    if (!sandbox)
        return;
    reply.message.value = sandbox->pid != 0;
    fns_reply(connection, &reply);
}

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
    if (sandbox->connection != FNS_NONE) { /* the one it was spawned over */
        fns_connection(sandbox->connection)->sandbox = FNS_NONE;
        fns_let_sandbox_read(sandbox->connection, 0);
    }
    sandbox->connection = connection;
    sandbox->is_awaited = 1;
    fns_connection(connection)->sandbox = fns_index_of(sandbox);
    if (kill)
        fns_kill(sandbox);
    fns_watch_sandbox(sandbox);
    fns_reap(sandbox->pid);
}

static void describe_pool(int connection, const struct fns_request *request)
{
    struct fns_ended reply = reply_to(request);
    reply.pool = fns_pool_waits();
    reply.pool.made = fns_netns_made();
    fns_reply(connection, &reply);
}

/* A request that a connection may make now: its kind, else 0. */
static int kind_of(const struct fns_connection *at, const struct fns_received *received)
{
    int is_free = at->sandbox == FNS_NONE && !at->is_queued;
    if (received->size < (long)sizeof(struct fns_request) || !is_free)
        return 0;
    return fns_request_of(received)->kind;
}

/* A sandbox whose RUNNING was sent has no more use of its connection. */
static void free_connection(struct fns_connection *at)
{
    struct fns_sandbox *sandbox = fns_sandbox_at(at->sandbox);
    if (!sandbox || !sandbox->reported || sandbox->is_awaited)
        return;
    sandbox->connection = FNS_NONE;
    at->sandbox = FNS_NONE;
}

/* The other end is closed, or what came is no request. */
static void refuse(int connection, const struct fns_received *received)
{
    if (received->size < 0)
        fns_reply_failed(connection, FNS_ANY_REQUEST, FNS_STAGE_HELPER, received->size);
    fns_close_all(received->fds, received->n_fds);
    fns_hang_up(connection);
}

void fns_read_request(int connection)
{
    struct fns_connection *at = fns_connection(connection);
    long error = 0;
    struct fns_slot *slot = fns_take_slot(&error);
    struct fns_received *received = slot ? &slot->received : &no_slot;
    const struct fns_request *request = fns_request_of(received);
    fns_receive(connection, FNS_MSG_DONTWAIT, received);
    free_connection(at);
    if (received->size == -EAGAIN) /* the event was of an earlier connection with this fd */
        return;
    if (received->size == FNS_TRUNCATED) {
        fns_reply_failed(connection, request->number, FNS_STAGE_FDS, -EMFILE);
        return;
    }
    switch (kind_of(at, received)) {
    case FNS_REQUEST_RUN:
    case FNS_REQUEST_SPAWN:
        if (slot) {
            fns_run_request(slot, connection);
            break;
        }
        fns_close_all(received->fds, received->n_fds);
        fns_reply_failed(connection, request->number, FNS_STAGE_HELPER, error);
        break;
    case FNS_REQUEST_REAP:
    case FNS_REQUEST_KILL: reap(connection, request); break;
    case FNS_REQUEST_LOOK: look(connection, request); break;
    case FNS_REQUEST_POOL: describe_pool(connection, request); break;
    case FNS_REQUEST_PARK:
        at->wants_parked = 1;
        fns_park_later(connection);
        break;
    default: refuse(connection, received);
    }
}

void fns_read_control(int control)
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
        fns_reply_failed(received->fds[0], FNS_ANY_REQUEST, FNS_STAGE_HELPER, result);
    if (result < 0)
        fns_close_all(received->fds, received->n_fds); /* its other end reads end of file */
}
