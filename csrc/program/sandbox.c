/* What a sandbox of a template does from its clone to its exec, in the server's memory.
 *
 * The server goes on meanwhile: each sandbox has a slot of its own. Follows the rule of child.h.
 */
#include "sandbox.h"

#include "border/border.h"
#include "command.h"
#include "linux.h"
#include "ops.h"

static int fail(struct fns_sandbox *sandbox, enum fns_stage stage, long result)
{
    return fns_child_failed(&sandbox->child, stage, -1, result);
}

/* Unpacks the request, in the slot or mapped from its last fd. */
static int open_request(struct fns_slot *slot, int *is_spawn)
{
    struct fns_received *received = &slot->received;
    struct fns_sandbox *sandbox = slot->sandbox;
    struct fns_request *request = (struct fns_request *)(void *)received->bytes;
    sandbox->request = request->number;
    if (received->size == FNS_TRUNCATED)
        return fail(sandbox, FNS_STAGE_FDS, -EMFILE);
    if (received->size < (long)sizeof *request)
        return fail(sandbox, FNS_STAGE_HELPER, -EPROTO);
    uint64_t size = (uint64_t)received->size;
    if (request->in_file && received->n_fds > 0) {
        size = request->size;
        long at = fns_sys6(__NR_mmap, 0, (long)size, PROT_READ | PROT_WRITE, MAP_PRIVATE,
                           received->fds[--received->n_fds], 0);
        if (!fns_is_address(at))
            return fail(sandbox, FNS_STAGE_HELPER, at);
        slot->mapped_size = size;
        slot->mapped = request = (struct fns_request *)at;
    }
    *is_spawn = request->kind == FNS_REQUEST_SPAWN;
    int result = fns_open_request(request, size, received->n_fds, &sandbox->args);
    return result < 0 ? fail(sandbox, FNS_STAGE_HELPER, result) : 0;
}

/* ---- fds ------------------------------------------------------------------------------------ */

static int is_passed(const struct fns_args *args, int fd)
{
    for (uint32_t i = 0; i < args->n_keep; i++)
        if (args->keep[i] == fd)
            return 1;
    return 0;
}

/* A copy of an fd at a number that no passed one takes, or -errno. */
static int move_away(const struct fns_args *args, int fd)
{
    for (int at = 3;; at++) {
        int to = (int)fns_sys3(__NR_fcntl, fd, F_DUPFD_CLOEXEC, at);
        if (to < 0 || !is_passed(args, to))
            return to;
        fns_close(to);
        at = to;
    }
}

/* Passed fds take the numbers they have in the caller. First all of them move out of each other's way, and
 * the `own` ones, which this process needs until its exec. */
static int move_fds(struct fns_args *args, const int *fds, int *own, int n_own)
{
    int n = 3 + (int)args->n_keep, moved[FNS_REQUEST_FDS];
    for (int i = 0; i < n + n_own; i++) {
        int to = move_away(args, i < n ? fds[i] : own[i - n]);
        if (to < 0)
            return to;
        *(i < n ? &moved[i] : &own[i - n]) = to;
    }
    for (int i = 0; i < n; i++) {
        long result = i < 3 ? 0 : fns_sys3(__NR_dup3, moved[i], args->keep[i - 3], 0);
        if (result < 0)
            return (int)result;
        if (i < 3)
            args->stdio[i] = moved[i];
    }
    return 0;
}

/* One more fd that stays open; the list is ascending. */
static void keep(struct fns_slot *slot, int fd)
{
    uint32_t at = slot->sandbox->args.n_keep++;
    for (; at > 0 && slot->keep[at - 1] > fd; at--)
        slot->keep[at] = slot->keep[at - 1];
    slot->keep[at] = fd;
}

/* Puts every fd in its place and closes all others but `own`. */
static int place_fds(struct fns_slot *slot, int *own, int n_own)
{
    struct fns_sandbox *sandbox = slot->sandbox;
    struct fns_args *args = &sandbox->args;
    for (int i = 0; i < 3; i++)
        args->stdio[i] = slot->received.fds[i];
    int result = args->n_keep ? move_fds(args, slot->received.fds, own, n_own) : 0;
    if (result < 0)
        return fail(sandbox, FNS_STAGE_FDS, result);
    for (uint32_t i = 0; i < args->n_keep; i++)
        slot->keep[i] = args->keep[i];
    args->keep = slot->keep;
    for (int i = 0; i < n_own; i++)
        keep(slot, own[i]);
    enum fns_stage stage;
    result = fns_place_fds(args, -1, &stage);
    if (result < 0)
        return fail(sandbox, stage, result);
    for (int i = 0; i < n_own; i++) {
        long set = fns_close_on_exec(own[i]);
        if (set < 0)
            return fail(sandbox, FNS_STAGE_FDS, set);
    }
    return 0;
}

/* ---- the start ------------------------------------------------------------------------------ */

/* Sends RUNNING, holding a lock on the status pipe that ends with the exec. */
static int report_running(struct fns_slot *slot, int connection, int status)
{
    struct fns_sandbox *sandbox = slot->sandbox;
    const struct fns_message running = {
        .kind = FNS_MESSAGE_RUNNING, .value = sandbox->number, .number = sandbox->request};
    int self = (int)fns_sys0(__NR_getpid);
    long pidfd = fns_sys2(__NR_pidfd_open, self, 0);
    long result = pidfd < 0 ? pidfd : fns_lock(status, F_SETLK, F_WRLCK);
    sandbox->reported = 1;
    if (result >= 0)
        result = fns_tell(connection, &running, (int)pidfd, self);
    if (pidfd >= 0)
        fns_close((int)pidfd);
    return result < 0 ? fail(sandbox, FNS_STAGE_HELPER, result) : 0;
}

/* An unreported failure looks like a command that has run, so this is retried whatever the error. */
static void report_failure(const struct fns_child *child, int status)
{
    for (int tries = 0; tries < FNS_TRIES; tries++)
        if (fns_write(status, &child->error, sizeof child->error) >= 0)
            return;
}

/* Does everything that does not depend on the request, then waits for it. */
static int park(struct fns_slot *slot, int connection, uint32_t n_first)
{
    struct fns_sandbox *sandbox = slot->sandbox;
    struct fns_request request = {.number = 0};
    const int needed[3] = {connection, sandbox->child.userns, 0};
    int result = fns_close_but(needed);
    if (result < 0)
        return fail(sandbox, FNS_STAGE_FDS, result);
    if (fns_run_ops(&sandbox->child, 0, n_first) < 0)
        return -1;
    /* A sandbox that is killed with its request cannot reply to it. So it says which one it takes while the
     * request is still in the socket, where the server finds it. */
    if (fns_sys6(__NR_recvfrom, connection, (long)&request, sizeof request, FNS_MSG_PEEK, 0, 0) <=
        0)
        return -1;
    sandbox->request = request.number;
    sandbox->requested = 1;
    fns_receive(connection, 0, &slot->received);
    return 0;
}

/* The ops that depend on the request, and the exec. */
static void run_command(struct fns_slot *slot, uint32_t n_first)
{
    struct fns_child *child = &slot->sandbox->child;
    long result = slot->files ? fns_sys4(__NR_prlimit64, 0, FNS_RLIMIT_NOFILE, slot->files, 0) : 0;
    if (result < 0)
        fail(slot->sandbox, FNS_STAGE_RLIMIT, result);
    else if (fns_run_ops(child, n_first, child->plan->n_ops) == 0 &&
             fns_change_directory(child) == 0) /* signals have their default actions */
        FNS_IGNORE(fns_execute(child), "it is in child->error");
}

int fns_sandbox_main(void *arg)
{
    struct fns_slot *slot = arg;
    struct fns_sandbox *sandbox = slot->sandbox;
    struct fns_child *child = &sandbox->child;
    struct fns_args *args = &sandbox->args;
    int own[3 + FNS_MAX_GROUPS], n_own = 0, userns = -1, is_spawn = 0;
    uint32_t n_first = fns_count_ops_before(child->plan, FNS_OP_REQUEST);
    /* Out of the caller's process group and session: kill(0) would reach the group, and TIOCSTI type into
     * the session's terminal. */
    long result = fns_sys0(__NR_setsid);
    if (result < 0) {
        fail(sandbox, FNS_STAGE_SESSION, result);
        return FNS_EXIT_FAILED;
    }
    if (sandbox->is_parked && park(slot, sandbox->connection, n_first) < 0)
        return FNS_EXIT_FAILED;
    if (open_request(slot, &is_spawn) < 0)
        return FNS_EXIT_FAILED;
    if (is_spawn) { /* to RUN the server replies */
        own[n_own++] = sandbox->connection;
        own[n_own++] = slot->received.fds[slot->received.n_fds - 1];
    }
    if (child->userns)
        own[userns = n_own++] = child->userns;
    for (uint32_t i = 0; i < args->n_groups; i++)
        own[n_own++] = slot->received.fds[3 + args->n_keep + i];
    args->groups = own + n_own - args->n_groups;
    if (place_fds(slot, own, n_own) < 0)
        return FNS_EXIT_FAILED;
    if (userns >= 0)
        child->userns = own[userns];
    if (!sandbox->is_parked && fns_run_ops(child, 0, n_first) < 0)
        return FNS_EXIT_FAILED;
    if (is_spawn && report_running(slot, own[0], own[1]) < 0)
        return FNS_EXIT_FAILED;
    run_command(slot, n_first);
    if (is_spawn)
        report_failure(child, own[1]);
    return FNS_EXIT_FAILED;
}
