/* What a sandbox of a template does from its clone to its exec, in the server's memory.
 *
 * The server does not wait: each sandbox has a slot of its own. Follows the rule of child.h.
 */
#include "server.h"

#include "border/border.h"

enum { NULL_MAJOR = 1, NULL_MINOR = 3 /* of /dev/null, null(4) */ };

void fns_receive(int socket, int flags, struct fns_received *received)
{
    do {
        received->n_fds = FNS_REQUEST_FDS;
        received->size = fns_receive_message(socket, received->bytes, sizeof received->bytes,
                                             received->fds, &received->n_fds, 0, flags);
    } while (received->size == -EINTR);
    if (received->n_fds < 0) {
        received->n_fds = 0;
        received->size = FNS_TRUNCATED;
    }
}

/* Unpacks the request, which is in the slot, or in a memory file that is its last fd. */
static int open_request(struct fns_slot *slot, int *is_spawn)
{
    struct fns_received *received = &slot->received;
    struct fns_sandbox *sandbox = slot->sandbox;
    struct fns_request *request = fns_request_of(received);
    sandbox->request = request->number;
    if (received->size == FNS_TRUNCATED)
        return fns_child_failed(&sandbox->child, FNS_STAGE_FDS, -EMFILE);
    if (received->size < (long)sizeof *request)
        return fns_child_failed(&sandbox->child, FNS_STAGE_HELPER,
                                received->size < 0 ? received->size : -EPROTO);
    uint64_t size = (uint64_t)received->size;
    if (request->in_file && received->n_fds > 0) {
        size = request->size;
        long at = fns_sys6(__NR_mmap, 0, (long)size, PROT_READ | PROT_WRITE, MAP_PRIVATE,
                           received->fds[--received->n_fds], 0);
        if (!fns_is_address(at))
            return fns_child_failed(&sandbox->child, FNS_STAGE_HELPER, at);
        slot->mapped_size = size;
        slot->mapped = request = (struct fns_request *)at;
    }
    *is_spawn = request->kind == FNS_REQUEST_SPAWN;
    int result = fns_open_request(request, size, received->n_fds, &sandbox->args);
    return result < 0 ? fns_child_failed(&sandbox->child, FNS_STAGE_HELPER, result) : 0;
}

/* ---- fds ------------------------------------------------------------------------------------ */

/* Whether another fd can be sent over this one: over anything but a pipe, a file, a terminal and /dev/null, for all we
 * know. */
static int is_exposing(int fd)
{
    char attributes[64]; /* the kernel's struct termios */
    struct statx about;
    long result = fns_sys5(__NR_statx, fd, "", AT_EMPTY_PATH, STATX_TYPE, &about);
    unsigned type = result < 0 ? 0 : about.stx_mode & FNS_S_IFMT;
    int is_null = type == FNS_S_IFCHR && about.stx_rdev_major == NULL_MAJOR &&
                  about.stx_rdev_minor == NULL_MINOR;
    if (type == FNS_S_IFIFO || type == FNS_S_IFREG || is_null)
        return 0;
    return type != FNS_S_IFCHR || fns_sys3(__NR_ioctl, fd, TCGETS, attributes) < 0;
}

/* Gives the passed fds the numbers they have in the caller. First moves them, and the `own` fds that this
 * process needs until its exec, to numbers that no passed fd takes. */
static int move_fds(struct fns_args *args, const int *fds, int *own, int n_own)
{
    int n = 3 + (int)args->n_keep, moved[FNS_REQUEST_FDS];
    for (int i = 0; i < n + n_own; i++) {
        int to = fns_move_away(args, i < n ? fds[i] : own[i - n]);
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

/* Adds an fd to those that stay open, in ascending order. */
static void keep(struct fns_slot *slot, int fd)
{
    uint32_t at = slot->sandbox->args.n_keep++;
    for (; at > 0 && slot->keep[at - 1] > fd; at--)
        slot->keep[at] = slot->keep[at - 1];
    slot->keep[at] = fd;
}

/* Puts every fd in its place and closes all others except `own`. */
static int place_fds(struct fns_slot *slot, int *own, int n_own)
{
    struct fns_sandbox *sandbox = slot->sandbox;
    struct fns_args *args = &sandbox->args;
    int may_serve_again = (sandbox->child.plan->options & FNS_PLAN_NETWORKS) != 0;
    for (uint32_t i = 0; i < 3 + args->n_keep && may_serve_again; i++)
        sandbox->exposed |= (uint32_t)is_exposing(slot->received.fds[i]);
    for (int i = 0; i < 3; i++)
        args->stdio[i] = slot->received.fds[i];
    int result = args->n_keep ? move_fds(args, slot->received.fds, own, n_own) : 0;
    if (result < 0)
        return fns_child_failed(&sandbox->child, FNS_STAGE_FDS, result);
    memcpy(slot->keep, args->keep, args->n_keep * sizeof *args->keep);
    args->keep = slot->keep;
    for (int i = 0; i < n_own; i++)
        keep(slot, own[i]);
    enum fns_stage stage;
    result = fns_place_fds(args, -1, &stage);
    if (result < 0)
        return fns_child_failed(&sandbox->child, stage, result);
    for (int i = 0; i < n_own; i++) {
        long set = fns_close_on_exec(own[i]);
        if (set < 0)
            return fns_child_failed(&sandbox->child, FNS_STAGE_FDS, set);
    }
    return 0;
}

/* ---- the start ------------------------------------------------------------------------------ */

/* Locks the status pipe until the exec, and sends RUNNING. */
static int report_running(struct fns_slot *slot, int connection, int status)
{
    struct fns_sandbox *sandbox = slot->sandbox;
    const struct fns_message running = {
        .kind = FNS_MESSAGE_RUNNING, .value = sandbox->number, .number = sandbox->request};
    int self = (int)fns_sys0(__NR_getpid);
    int pidfd = (int)fns_sys2(__NR_pidfd_open, self, 0);
    long result = pidfd < 0 ? pidfd : fns_lock(status, F_SETLK, F_WRLCK);
    sandbox->reported = 1;
    if (result >= 0)
        result = fns_send(connection, &running, pidfd, self);
    fns_close_if_open(pidfd);
    return result < 0 ? fns_child_failed(&sandbox->child, FNS_STAGE_HELPER, result) : 0;
}

static int is_ahead(const struct fns_plan *plan)
{
    return (plan->options & FNS_PLAN_AHEAD) != 0;
}

/* Sets the limit on open files, which the server has raised for itself. */
static int cap_files(struct fns_slot *slot)
{
    long result = slot->files ? fns_sys4(__NR_prlimit64, 0, FNS_RLIMIT_NOFILE, slot->files, 0) : 0;
    return result < 0 ? fns_child_failed(&slot->sandbox->child, FNS_STAGE_RLIMIT, result) : 0;
}

/* Does everything that does not depend on the request, then waits for it. */
static int park(struct fns_slot *slot, int connection, uint32_t n_before)
{
    struct fns_sandbox *sandbox = slot->sandbox;
    struct fns_request request = {.number = 0};
    int result = fns_close_but(connection, sandbox->child.userns, 0);
    if (result < 0)
        return fns_child_failed(&sandbox->child, FNS_STAGE_FDS, result);
    if (fns_run_ops(&sandbox->child, 0, n_before) < 0)
        return -1;
    if (is_ahead(sandbox->child.plan) &&
        (fns_run_ops(&sandbox->child, n_before + 1, sandbox->child.plan->n_ops) < 0 ||
         fns_run_last_ops(&sandbox->child) < 0))
        return -1;
    /* A sandbox that is killed after it has received its request cannot reply. So it records the request's
     * number first, while the server can still find the request in the socket. */
    if (fns_sys6(__NR_recvfrom, connection, (long)&request, sizeof request, FNS_MSG_PEEK, 0, 0) <=
        0)
        return -1;
    sandbox->request = request.number;
    sandbox->requested = 1;
    fns_receive(connection, 0, &slot->received);
    return 0;
}

/* Runs the ops that depend on the request, and executes the command. */
static void run_command(struct fns_slot *slot, uint32_t n_before)
{
    struct fns_child *child = &slot->sandbox->child;
    int ahead = slot->sandbox->is_parked && is_ahead(child->plan);
    if (cap_files(slot) < 0)
        return;
    int result =
        ahead ? fns_run_one(child, n_before) : fns_run_ops(child, n_before, child->plan->n_ops);
    if (result < 0 || fns_change_directory(child) < 0) /* the server has reset all signal actions */
        return;
    child->executed = fns_clock();
    if (ahead)
        fns_execute_command(child);
    else
        fns_execute(child);
}

/* Moves files in place of an exec. Signals stay blocked, so the end of a pipe is an error and no signal. */
static void transfer(struct fns_child *child)
{
    if (fns_run_last_ops(child) < 0)
        return;
    child->progress = FNS_PROGRESS_EXEC;
    /* Releases the lock of the status pipe, as an exec would. */
    FNS_IGNORE(fns_sys3(__NR_close_range, 3, ~0u, 0), "the arguments are valid");
    fns_quit(fns_run_transfer(child->args));
}

/* As run_command(), in a container. Files are moved with the command's ids, but without its limits. */
static void run_in_container(struct fns_slot *slot)
{
    struct fns_child *child = &slot->sandbox->child;
    const struct fns_plan *plan = child->plan;
    uint32_t n_ids = 0;
    int result = 0, file = child->args->files;
    while (n_ids < plan->n_ops && plan->ops[n_ids].code != FNS_OP_RLIMIT)
        n_ids++;
    if (fns_run_ops(child, 0, n_ids) < 0)
        return;
    if (child->args->transfer) {
        transfer(child);
        return;
    }
    if (file)
        result = fns_put_files(file);
    if (result < 0)
        fns_child_failed(child, FNS_STAGE_FILE, result);
    if (file)
        fns_close(file);
    if (result == 0 && cap_files(slot) == 0 && fns_run_ops(child, n_ids, plan->n_ops) == 0 &&
        fns_change_directory(child) == 0)
        fns_execute(child);
}

uint32_t fns_count_ops_before_request(const struct fns_plan *plan)
{
    uint32_t n = 0;
    while (n < plan->n_ops && plan->ops[n].code < FNS_OP_REQUEST)
        n++;
    return n;
}

int fns_sandbox_main(void *arg)
{
    struct fns_slot *slot = arg;
    struct fns_sandbox *sandbox = slot->sandbox;
    struct fns_child *child = &sandbox->child;
    struct fns_args *args = &sandbox->args;
    int own[3 + FNS_MAX_GROUPS], n_own = 0, userns = -1, is_spawn = 0;
    uint32_t n_before = fns_count_ops_before_request(child->plan);
    if (child->plan->options & FNS_PLAN_CONTAINER)
        sandbox->command = slot->command; /* here, as the supervisor may be killed */
    /* Enters a session of its own, as in fns_leave_session(). */
    long result = fns_sys0(__NR_setsid);
    if (result < 0)
        fns_child_failed(&sandbox->child, FNS_STAGE_SESSION, result);
    if (result < 0 || (sandbox->is_parked && park(slot, sandbox->connection, n_before) < 0) ||
        open_request(slot, &is_spawn) < 0)
        return FNS_EXIT_FAILED;
    if (is_spawn) { /* the server replies to RUN, the sandbox to SPAWN */
        own[n_own++] = sandbox->connection;
        own[n_own++] = slot->received.fds[slot->received.n_fds - 1];
    }
    if (child->userns > 0) /* -1: joined already */
        own[userns = n_own++] = child->userns;
    for (uint32_t i = 0; i < args->n_groups; i++)
        own[n_own++] = slot->received.fds[3 + args->n_keep + i];
    args->groups = own + n_own - args->n_groups;
    if (place_fds(slot, own, n_own) < 0)
        return FNS_EXIT_FAILED;
    if (userns >= 0)
        child->userns = own[userns];
    if ((!sandbox->is_parked && fns_run_ops(child, 0, n_before) < 0) ||
        (is_spawn && report_running(slot, own[0], own[1]) < 0))
        return FNS_EXIT_FAILED;
    if (child->plan->options & FNS_PLAN_CONTAINER)
        run_in_container(slot);
    else
        run_command(slot, n_before);
    if (is_spawn)
        FNS_IGNORE(fns_write_retrying(own[1], &child->error, sizeof child->error),
                   "this process ends in any case");
    return FNS_EXIT_FAILED;
}

int fns_command_main(void *arg)
{
    struct fns_slot *slot = arg;
    struct fns_child *child = &slot->sandbox->child;
    int is_spawn = 0;
    long result = fns_sys0(__NR_setsid);
    if (result < 0) {
        fns_child_failed(child, FNS_STAGE_SESSION, result);
        return FNS_EXIT_FAILED;
    }
    fns_receive(slot->sandbox->connection, 0, &slot->received);
    if (open_request(slot, &is_spawn) < 0)
        return FNS_EXIT_FAILED;
    if (is_spawn) /* the caller sends it over another connection */
        fns_child_failed(child, FNS_STAGE_HELPER, -EPROTO);
    else if (place_fds(slot, 0, 0) == 0 && fns_change_directory(child) == 0) {
        child->executed = fns_clock();
        fns_execute_command(child);
    }
    return FNS_EXIT_FAILED;
}
