/* What a sandbox of a template does between its clone and its exec, in the server's memory.
 *
 * The server goes on meanwhile: a room of its own for each. What was asked came with the clone, or,
 * in one that is parked, comes when all that could be done ahead is done. Raw system calls only.
 */
#include "border/border.h"
#include "server.h"
#include "shared/sys.h"

static int fail(struct fns_sandbox *sandbox, enum fns_stage stage, long result)
{
    sandbox->child.error = (struct fns_error){(uint16_t)stage, 0, -1, (int)-result};
    sandbox->child.progress = FNS_PROGRESS_FAILED;
    return (int)result;
}

void fns_close_all(const int *fds, int n)
{
    for (int i = 0; i < n; i++)
        fns_close(fds[i]);
}

int fns_close_but(const int fds[3])
{
    int first = 3, next;
    for (int round = 0; round < 3; round++, first = next + 1) {
        next = 0;
        for (int i = 0; i < 3; i++)
            if (fds[i] >= first && (!next || fds[i] < next))
                next = fds[i];
        if (!next)
            break;
        long result = next > first ? fns_sys3(__NR_close_range, first, next - 1, 0) : 0;
        if (result < 0)
            return (int)result;
    }
    return (int)fns_sys3(__NR_close_range, first, ~0u, 0);
}

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

/* The ask, in the room or mapped from its last fd. */
static int open_ask(struct fns_room *room, int *loud)
{
    struct fns_received *received = &room->received;
    struct fns_sandbox *sandbox = room->sandbox;
    struct fns_request *ask = (struct fns_request *)(void *)received->bytes;
    sandbox->ask = ask->number;
    if (received->size == FNS_TRUNCATED)
        return fail(sandbox, FNS_STAGE_FDS, -EMFILE);
    if (received->size < (long)sizeof *ask)
        return fail(sandbox, FNS_STAGE_HELPER, -EPROTO);
    uint64_t size = (uint64_t)received->size;
    if (ask->in_file && received->n_fds > 0) {
        size = ask->size;
        long at = fns_sys6(__NR_mmap, 0, (long)size, 3 /* PROT_READ|WRITE */, 2 /* MAP_PRIVATE */,
                           received->fds[--received->n_fds], 0);
        if (at < 0 && at > -4096)
            return fail(sandbox, FNS_STAGE_HELPER, at);
        room->mapped_size = size;
        room->mapped = ask = (struct fns_request *)at;
    }
    *loud = ask->kind == FNS_REQUEST_SPAWN;
    int result = fns_open_request(ask, size, received->n_fds, &sandbox->args);
    return result < 0 ? fail(sandbox, FNS_STAGE_HELPER, result) : 0;
}

static int is_wanted(const struct fns_args *args, int fd)
{
    for (uint32_t i = 0; i < args->n_keep; i++)
        if (args->keep[i] == fd)
            return 1;
    return 0;
}

/* A copy of an fd at a number that no passed one wants, or -errno. */
static int move_away(const struct fns_args *args, int fd)
{
    for (int at = 3;; at++) {
        int to = (int)fns_sys3(__NR_fcntl, fd, F_DUPFD_CLOEXEC, at);
        if (to < 0 || !is_wanted(args, to))
            return to;
        fns_close(to);
        at = to;
    }
}

/* Passed fds take the numbers they have in the caller; first all move out of each other's way, and
 * the `own` ones, which this process needs until it executes. */
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
        int result = i < 3 ? 0 : (int)fns_sys3(__NR_dup3, moved[i], args->keep[i - 3], 0);
        if (result < 0)
            return result;
        if (i < 3)
            args->stdio[i] = moved[i];
    }
    return 0;
}

/* One more fd that stays open; the list is ascending. */
static void keep(struct fns_room *room, int fd)
{
    struct fns_args *args = &room->sandbox->args;
    uint32_t at = args->n_keep++;
    for (; at > 0 && room->keep[at - 1] > fd; at--)
        room->keep[at] = room->keep[at - 1];
    room->keep[at] = fd;
}

/* Everything at its place, all else closed but `own`. */
static int place_fds(struct fns_room *room, int *own, int n_own)
{
    struct fns_sandbox *sandbox = room->sandbox;
    struct fns_args *args = &sandbox->args;
    for (int i = 0; i < 3; i++)
        args->stdio[i] = room->received.fds[i];
    if (args->n_keep) {
        int result = move_fds(args, room->received.fds, own, n_own);
        if (result < 0)
            return fail(sandbox, FNS_STAGE_FDS, result);
    }
    for (uint32_t i = 0; i < args->n_keep; i++)
        room->keep[i] = args->keep[i];
    args->keep = room->keep;
    for (int i = 0; i < n_own; i++)
        keep(room, own[i]);
    enum fns_stage stage;
    int placed = fns_place_fds(args, -1, &stage);
    if (placed < 0)
        return fail(sandbox, stage, placed);
    for (int i = 0; i < n_own; i++) {
        long result = fns_close_on_exec(own[i]);
        if (result < 0)
            return fail(sandbox, FNS_STAGE_FDS, result);
    }
    return 0;
}

/* RUNNING, under a lock that ends with the exec. */
static int tell_running(struct fns_room *room, int connection, int news)
{
    struct fns_sandbox *sandbox = room->sandbox;
    const struct fns_message running = {
        .kind = FNS_MESSAGE_RUNNING, .value = sandbox->number, .number = sandbox->ask};
    int self = (int)fns_sys0(__NR_getpid);
    long pidfd = fns_sys2(__NR_pidfd_open, self, 0), result = pidfd;
    if (pidfd >= 0)
        result = fns_lock(news, F_SETLK, F_WRLCK);
    sandbox->told = 1;
    if (result >= 0)
        result = fns_tell(connection, &running, (int)pidfd, self);
    if (pidfd >= 0)
        fns_close(pidfd);
    if (result < 0)
        return fail(sandbox, FNS_STAGE_HELPER, result);
    return 0;
}

/* How many of the ops come before those that are about this process alone: its cgroups,
 * limits and ids. */
static uint32_t count_first_ops(const struct fns_plan *plan)
{
    uint32_t n = 0;
    while (n < plan->n_ops && plan->ops[n].code < FNS_OP_CGROUP)
        n++;
    return n;
}

/* All that needs no command; then waits for one. */
static int park(struct fns_room *room, int connection, uint32_t n_first)
{
    struct fns_child *child = &room->sandbox->child;
    struct fns_request ask;
    const int needed[3] = {connection, child->userns, 0};
    int result = fns_close_but(needed);
    if (result < 0)
        return fail(room->sandbox, FNS_STAGE_FDS, result);
    if (fns_child_ops(child, 0, n_first) < 0)
        return -1;
    /* Killed with an ask in its hands, it could not say so: `asked`, and which it is, are set while the
     * ask is still in the socket, where the server finds it. */
    ask.number = 0;
    if (fns_sys6(__NR_recvfrom, connection, (long)&ask, sizeof ask, 2 /* MSG_PEEK */, 0, 0) <= 0)
        return -1;
    room->sandbox->ask = ask.number;
    room->sandbox->asked = 1;
    fns_receive(connection, 0, &room->received);
    return 0;
}

int fns_sandbox_main(void *arg)
{
    struct fns_room *room = arg;
    /* Out of the process group and session of the caller, whose processes kill(0) would reach, and
     * whose terminal could be typed into (TIOCSTI). */
    long result = fns_sys0(__NR_setsid);
    if (result < 0) {
        fail(room->sandbox, FNS_STAGE_SESSION, result);
        return 127;
    }
    struct fns_child *child = &room->sandbox->child;
    struct fns_args *args = &room->sandbox->args;
    int connection = room->sandbox->connection, parked = room->sandbox->parked, loud = 0;
    int own[3 + FNS_MAX_GROUPS] = {connection}, n_own = 0, userns = -1;
    uint32_t n_first = count_first_ops(child->plan);
    if (parked && park(room, connection, n_first) < 0)
        return 127;
    if (open_ask(room, &loud) < 0)
        return 127;
    if (loud) {
        n_own = 2;
        own[1] = room->received.fds[room->received.n_fds - 1];
    }
    if (child->userns)
        own[userns = n_own++] = child->userns;
    for (uint32_t i = 0; i < args->n_groups; i++)
        own[n_own++] = room->received.fds[3 + args->n_keep + i];
    args->groups = own + n_own - args->n_groups;
    if (place_fds(room, own, n_own) < 0)
        return 127;
    if (userns >= 0)
        child->userns = own[userns];
    if (!parked && fns_child_ops(child, 0, n_first) < 0)
        return 127;
    if (loud && tell_running(room, own[0], own[1]) < 0)
        return 127;
    if (room->files)
        result = fns_sys4(__NR_prlimit64, 0, 7 /* RLIMIT_NOFILE */, room->files, 0);
    if (result < 0)
        fail(room->sandbox, FNS_STAGE_RLIMIT, result);
    else if (fns_child_ops(child, n_first, child->plan->n_ops) == 0 &&
             fns_child_chdir(child) == 0) /* signals are at their defaults */
        FNS_IGNORE(fns_child_exec(child), "it is in child->error");
    if (loud)
        fns_child_report(child, own[1]);
    return 127;
}
