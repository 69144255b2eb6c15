/* What a sandbox of a template does between its clone and its exec, in the server's memory.
 *
 * The server goes on meanwhile: a room of its own for each. What was asked came with the clone, or,
 * in one that is parked, comes when all that could be done ahead is done. Raw system calls only.
 */
#include "server.h"

#include "sys.h"

static int fail(struct fns_sandbox *sandbox, enum fns_stage stage, long result)
{
    sandbox->child.error = (struct fns_error){(uint16_t)stage, 0, -1, (int)-result};
    sandbox->child.progress = FNS_PROGRESS_FAILED;
    return (int)result;
}

void fns_close_all(const int *fds, int n)
{
    for (int i = 0; i < n; i++)
        fns_sys1(__NR_close, fds[i]);
}

void fns_receive(int socket, int flags, struct fns_received *received)
{
    struct fns_vector vector = {received->bytes, sizeof received->bytes};
    struct fns_header header = {.vector = &vector,
                                .vector_size = 1,
                                .control = received->rights,
                                .control_size = sizeof received->rights};
    struct {
        size_t size;
        int level, type;
    } *rights = (void *)received->rights;
    rights->size = 0;
    long n;
    do
        n = fns_sys3(__NR_recvmsg, socket, &header, flags | 0x40000000 /* MSG_CMSG_CLOEXEC */);
    while (n == -EINTR);
    received->size = n;
    received->fds = (int *)(void *)(received->rights + sizeof *rights);
    received->n_fds = 0;
    if (n > 0 && header.control_size >= sizeof *rights && rights->type == 1 /* SCM_RIGHTS */)
        received->n_fds = (int)((rights->size - sizeof *rights) / sizeof(int));
    if (n > 0 && (header.flags & 0x28 /* MSG_TRUNC|MSG_CTRUNC */)) {
        fns_close_all(received->fds, received->n_fds); /* no room for an fd */
        received->n_fds = 0;
        received->size = -EMFILE;
    }
}

/* The ask, in the room or mapped from its last fd. */
static int open_ask(struct fns_room *room, int *loud)
{
    struct fns_received *received = &room->received;
    struct fns_sandbox *sandbox = room->sandbox;
    struct fns_ask *ask = (struct fns_ask *)(void *)received->bytes;
    if (received->size == -EMFILE)
        return fail(sandbox, FNS_STAGE_FDS, -EMFILE);
    if (received->size < (long)sizeof *ask ||
        (ask->kind != FNS_ASK_RUN && ask->kind != FNS_ASK_SPAWN))
        return fail(sandbox, FNS_STAGE_HELPER, -EPROTO);
    sandbox->asked = 1;
    *loud = ask->kind == FNS_ASK_SPAWN;
    if (ask->in_file && received->n_fds > 0) {
        uint64_t size = ask->size;
        long at = fns_sys6(__NR_mmap, 0, (long)size, 3 /* PROT_READ|WRITE */, 2 /* MAP_PRIVATE */,
                           received->fds[--received->n_fds], 0);
        if (at < 0 && at > -4096)
            return fail(sandbox, FNS_STAGE_HELPER, at);
        room->mapped_size = size;
        room->mapped = ask = (struct fns_ask *)at;
    }
    sandbox->args = ask->args;
    if (received->n_fds != 3 + (int)ask->args.n_keep + *loud || ask->args.n_keep > FNS_ASK_FDS)
        return fail(sandbox, FNS_STAGE_HELPER, -EPROTO);
    fns_open_args((char *)ask, &sandbox->args);
    return 0;
}

/* Passed fds take the numbers they have in the caller; first all move out of each other's way, the
 * `own` ones, which this process needs until it executes, behind the others. */
static long move_fds(struct fns_args *args, const int *fds, int *own, int n_own)
{
    int n = 3 + (int)args->n_keep, top = 3, moved[FNS_ASK_FDS];
    for (int i = 0; i < n + n_own; i++) {
        int wanted = i < 3 || i >= n ? 0 : args->keep[i - 3];
        int source = i < n ? fds[i] : own[i - n];
        top = top > source ? top : source + 1;
        top = top > wanted ? top : wanted + 1;
    }
    for (int i = 0; i < n + n_own; i++) {
        long to = fns_sys3(__NR_fcntl, i < n ? fds[i] : own[i - n], F_DUPFD_CLOEXEC, top);
        if (to < 0)
            return to;
        *(i < n ? &moved[i] : &own[i - n]) = (int)to;
    }
    for (int i = 0; i < n; i++) {
        long result = i < 3 ? 0 : fns_sys3(__NR_dup3, moved[i], args->keep[i - 3], 0);
        if (result < 0)
            return result;
        if (i < 3)
            args->stdio[i] = moved[i];
    }
    return 0;
}

/* Everything at its place, all else closed but `own`. */
static int place_fds(struct fns_room *room, int *own, int n_own)
{
    struct fns_sandbox *sandbox = room->sandbox;
    struct fns_args *args = &sandbox->args;
    uint32_t n = 0;
    for (int i = 0; i < 3; i++)
        args->stdio[i] = room->received.fds[i];
    if (args->n_keep) {
        long result = move_fds(args, room->received.fds, own, n_own);
        if (result < 0)
            return fail(sandbox, FNS_STAGE_FDS, result);
    }
    for (; n < args->n_keep; n++)
        room->keep[n] = args->keep[n];
    int first = n_own == 2 && own[0] > own[1]; /* ascending */
    for (int i = 0; i < n_own; i++)
        room->keep[n++] = own[i ^ first];
    args->keep = room->keep;
    args->n_keep = n;
    int result = fns_child_fds(&sandbox->child);
    for (int i = 0; result == 0 && i < n_own; i++)
        fns_sys3(__NR_fcntl, own[i], F_SETFD, FD_CLOEXEC);
    if (result == 0)
        fns_sys4(__NR_prlimit64, 0, 7 /* RLIMIT_NOFILE */, room->files, 0);
    return result;
}

/* RUNNING, under a lock that ends with the exec. */
static int tell_running(struct fns_room *room, int connection, int news)
{
    const struct fns_message running = {.kind = FNS_MESSAGE_RUNNING, .value = room->number};
    int self = (int)fns_sys0(__NR_getpid);
    long pidfd = fns_sys2(__NR_pidfd_open, self, 0), result = pidfd;
    if (pidfd >= 0)
        result = fns_lock(news, F_SETLK, F_WRLCK);
    if (result >= 0)
        result = fns_tell(connection, &running, (int)pidfd, self);
    if (pidfd >= 0)
        fns_sys1(__NR_close, pidfd);
    if (result < 0)
        return fail(room->sandbox, FNS_STAGE_HELPER, result);
    room->sandbox->told = 1;
    return 0;
}

/* All that needs no command; then waits for one. */
static int park(struct fns_room *room, int connection)
{
    struct fns_child *child = &room->sandbox->child;
    if (connection > 3)
        fns_sys3(__NR_close_range, 3, connection - 1, 0);
    fns_sys3(__NR_close_range, connection + 1, ~0u, 0);
    int result = fns_child_ops(child, 0, child->plan->n_ops);
    if (result == 0)
        fns_receive(connection, 0, &room->received);
    return result;
}

int fns_sandbox_main(void *arg)
{
    struct fns_room *room = arg;
    struct fns_child *child = &room->sandbox->child;
    int own[2] = {room->sandbox->connection, -1}, loud = 0, parked = room->sandbox->parked;
    if (parked && park(room, own[0]) < 0)
        return 127;
    if (open_ask(room, &loud) < 0)
        return 127;
    if (loud)
        own[1] = room->received.fds[room->received.n_fds - 1];
    if (place_fds(room, own, loud ? 2 : 0) < 0)
        return 127;
    if (!parked && fns_child_ops(child, 0, child->plan->n_ops) < 0)
        return 127;
    if (loud && tell_running(room, own[0], own[1]) < 0)
        return 127;
    fns_child_exec(child); /* signals are at their defaults in this process */
    if (loud)
        fns_sys3(__NR_write, own[1], &child->error, sizeof child->error);
    return 127;
}
