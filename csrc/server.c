/* The server of a template: starts sandboxes for the caller, in the helper program's tiny memory.
 *
 * pid 1 of a pid namespace of its own, in a mount namespace that holds only the finished root. Each
 * sandbox is a vfork-style clone of it that runs the plan's ops and executes; the server reaps it
 * and says how it ended. Nothing of one spawn is kept for the next. It ends when the caller does, and
 * with it, as the kernel has it for a pid 1, every sandbox. Raw system calls only.
 */
#include "helper.h"

#include "sys.h"

#define MAX_FD (1 << 20)
#define STACK_SIZE 65536
#define FD_SPACE (sizeof(size_t) + 2 * sizeof(int) + FNS_ASK_FDS * sizeof(int))

/* What is at the other end of an fd that epoll watches; indexed by that fd. */
enum peer_kind { NOBODY, CONTROL, CALLER, CONNECTION, SANDBOX };
struct peer {
    uint32_t kind; /* enum peer_kind */
    int other;     /* a connection's sandbox, a sandbox's connection; -1: none */
};
struct event { /* struct epoll_event */
    uint32_t events;
    uint64_t fd;
}
#if defined(__x86_64__)
__attribute__((packed))
#endif
;

/* Everything the server has; one of them, in bss. */
static struct {
    const struct fns_plan *plan;
    struct peer *peers;
    int epoll;
    uint64_t files[2]; /* struct rlimit of RLIMIT_NOFILE, as the caller had it */
    char ask[FNS_ASK_INLINE] __attribute__((aligned(8)));
    char rights[FD_SPACE] __attribute__((aligned(8)));
    char stack[STACK_SIZE] __attribute__((aligned(4096)));
} server;

static _Noreturn void stop(void)
{
    for (;;)
        fns_sys1(__NR_exit_group, 0);
}

static void close_fds(const int *fds, int n)
{
    for (int i = 0; i < n; i++)
        fns_sys1(__NR_close, fds[i]);
}

static int watch(int fd, enum peer_kind kind, int other)
{
    struct event event = {1 /* EPOLLIN */, (uint64_t)fd};
    if (fd >= MAX_FD)
        return -EMFILE;
    server.peers[fd] = (struct peer){kind, other};
    return (int)fns_sys4(__NR_epoll_ctl, server.epoll, 1 /* EPOLL_CTL_ADD */, fd, &event);
}

/* The caller has the same file, so that closing it here alone would leave it watched. */
static void forget(int fd)
{
    server.peers[fd].kind = NOBODY;
    fns_sys4(__NR_epoll_ctl, server.epoll, 2 /* EPOLL_CTL_DEL */, fd, 0);
    fns_sys1(__NR_close, fd);
}

/* ---- one datagram --------------------------------------------------------------------------- */

/* Bytes received into server.ask, and the fds that came along; 0: the other end is closed. */
static long receive(int socket, int **fds, int *n_fds)
{
    struct fns_vector vector = {server.ask, sizeof server.ask};
    struct fns_header header = {.vector = &vector,
                                .vector_size = 1,
                                .control = server.rights,
                                .control_size = sizeof server.rights};
    struct {
        size_t size;
        int level, type;
    } *rights = (void *)server.rights;
    rights->size = 0;
    long n = fns_sys3(__NR_recvmsg, socket, &header, 0x40000000 /* MSG_CMSG_CLOEXEC */);
    *fds = (int *)(void *)(server.rights + sizeof *rights);
    *n_fds = 0;
    if (n > 0 && header.control_size >= sizeof *rights && rights->type == 1 /* SCM_RIGHTS */)
        *n_fds = (int)((rights->size - sizeof *rights) / sizeof(int));
    if (n > 0 && (header.flags & 0x28 /* MSG_TRUNC|MSG_CTRUNC */)) {
        close_fds(*fds, *n_fds); /* no room for an fd */
        *n_fds = 0;
        return -EMFILE;
    }
    return n;
}

static void hear_control(int control)
{
    int *fds, n_fds;
    long n = receive(control, &fds, &n_fds);
    const struct fns_ask *ask = (const struct fns_ask *)(const void *)server.ask;
    if (n == 0)
        stop();
    if (n < (long)sizeof *ask || n_fds != 1 ||
        watch(fds[0], ask->kind == FNS_ASK_CALLER ? CALLER : CONNECTION, -1) < 0)
        close_fds(fds, n_fds); /* its other end reads as closed */
}

/* ---- a sandbox ------------------------------------------------------------------------------ */

/* A spawn on its way: what the child, in this memory, is given. */
struct start {
    struct fns_child child;
    struct fns_args args;
    const int *fds; /* stdio, then one for each of args.keep */
};

static int fail(struct start *start, enum fns_stage stage, long result)
{
    start->child.error = (struct fns_error){(uint16_t)stage, 0, -1, (int)-result};
    start->child.progress = FNS_PROGRESS_FAILED;
    return 127;
}

/* Passed fds take the numbers they have in the caller; first all move out of each other's way. */
static long place_fds(struct start *start)
{
    struct fns_args *args = &start->args;
    int n = 3 + (int)args->n_keep, top = 3, moved[FNS_ASK_FDS];
    for (int i = 0; i < n; i++) {
        int wanted = i < 3 ? 0 : args->keep[i - 3];
        top = top > start->fds[i] ? top : start->fds[i] + 1;
        top = top > wanted ? top : wanted + 1;
    }
    for (int i = 0; i < n; i++) {
        moved[i] = (int)fns_sys3(__NR_fcntl, start->fds[i], F_DUPFD_CLOEXEC, top);
        if (moved[i] < 0)
            return moved[i];
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

static int start_main(void *arg)
{
    struct start *start = arg;
    long result = start->args.n_keep ? place_fds(start) : 0;
    if (result < 0)
        return fail(start, FNS_STAGE_FDS, result);
    fns_sys4(__NR_prlimit64, 0, 7 /* RLIMIT_NOFILE */, server.files, 0);
    /* Signals are at their defaults in this process. */
    if (fns_child_fds(&start->child) == 0 &&
        fns_child_ops(&start->child, 0, start->child.plan->n_ops) == 0)
        fns_child_exec(&start->child);
    return 127;
}

static long clone_start(struct start *start, int *pidfd)
{
    struct fns_clone_args args = {
        .flags = server.plan->clone_flags | FNS_CLONE_VM | FNS_CLONE_VFORK | FNS_CLONE_PIDFD,
        .pidfd = (uintptr_t)pidfd,
        .exit_signal = FNS_SIGCHLD,
        .stack = (uintptr_t)server.stack,
        .stack_size = sizeof server.stack,
    };
    long pid =
        fns_sys_clone_call(__NR_clone3, (long)&args, sizeof args, 0, 0, 0, start_main, start);
    if (pid == -ENOSYS)
        pid = fns_sys_clone_call(__NR_clone, (long)(args.flags | FNS_SIGCHLD),
                                 (long)(server.stack + sizeof server.stack), (long)pidfd, 0, 0,
                                 start_main, start);
    return pid;
}

static void reap(int pidfd, struct fns_ended *ended)
{
    int info[32] = {0}; /* siginfo_t */
    long result;
    do
        result = fns_sys5(__NR_waitid, 3 /* P_PIDFD */, pidfd, info, 4 | 0x40000000 /* __WALL */,
                          ended->usage);
    while (result == -EINTR);
    ended->code = info[2];
    ended->status = info[6];
    forget(pidfd);
}

/* 0, or -errno with start->child.error set. */
static long spawn(struct start *start, int connection)
{
    int pidfd = -1;
    struct fns_ended ended;
    long pid = clone_start(start, &pidfd);
    if (pid < 0) {
        fail(start, FNS_STAGE_CLONE, pid);
        return pid;
    }
    if (start->child.progress == FNS_PROGRESS_EXEC) {
        const struct fns_message running = {.kind = FNS_MESSAGE_RUNNING};
        server.peers[connection].other = pidfd;
        long result = watch(pidfd, SANDBOX, connection);
        if (result >= 0)
            result = fns_tell(connection, &running, pidfd, (int)pid);
        if (result >= 0)
            return 0;
        server.peers[connection].other = -1;
        fail(start, FNS_STAGE_HELPER, result);
    } else if (start->child.progress == FNS_PROGRESS_SETUP) {
        fail(start, FNS_STAGE_CLONE, -ECANCELED);
        start->child.error.detail = FNS_DETAIL_KILLED;
    }
    fns_sys4(__NR_pidfd_send_signal, pidfd, FNS_SIGKILL, 0, 0);
    reap(pidfd, &ended);
    return -start->child.error.err;
}

/* The ask itself, mapped from the last fd when it is a big one; 0: it cannot be. */
static struct fns_ask *open_ask(int file, uint64_t size)
{
    long at =
        fns_sys6(__NR_mmap, 0, (long)size, 3 /* PROT_READ|WRITE */, 2 /* MAP_PRIVATE */, file, 0);
    return at < 0 && at > -4096 ? 0 : (struct fns_ask *)at;
}

static void answer(struct fns_ask *ask, int connection, const int *fds, int n_fds)
{
    struct start start = {.child = {.plan = server.plan,
                                    .error = {.op_index = -1},
                                    .exec_fd = -1,
                                    .news = -1,
                                    .root = -1,
                                    .scratch = -1},
                          .args = ask->args,
                          .fds = fds};
    start.child.args = &start.args;
    long result = -EPROTO;
    if (n_fds == 3 + (int)ask->args.n_keep) {
        fns_open_args((char *)ask, &start.args);
        for (int i = 0; i < 3; i++)
            start.args.stdio[i] = fds[i];
        result = spawn(&start, connection);
    } else {
        fail(&start, FNS_STAGE_HELPER, result);
    }
    if (result < 0)
        fns_tell_failure(connection, &start.child.error);
}

static void hang_up(int connection)
{
    int sandbox = server.peers[connection].other;
    if (sandbox >= 0) {
        server.peers[sandbox].other = -1;
        fns_sys4(__NR_pidfd_send_signal, sandbox, FNS_SIGKILL, 0, 0);
    }
    forget(connection);
}

static void hear_connection(int connection)
{
    int *fds, n_fds;
    long n = receive(connection, &fds, &n_fds);
    struct fns_ask *ask = (struct fns_ask *)(void *)server.ask;
    if (n == -EMFILE) {
        const struct fns_error error = {FNS_STAGE_FDS, 0, -1, EMFILE};
        fns_tell_failure(connection, &error);
        return;
    }
    if (n < (long)sizeof *ask || ask->kind != FNS_ASK_SPAWN ||
        server.peers[connection].other >= 0) {
        close_fds(fds, n_fds);
        hang_up(connection);
        return;
    }
    if (ask->in_file && n_fds > 0) {
        uint64_t size = ask->size;
        ask = open_ask(fds[n_fds - 1], size);
        if (ask) {
            answer(ask, connection, fds, n_fds - 1);
            fns_sys2(__NR_munmap, ask, size);
        } else {
            const struct fns_error error = {FNS_STAGE_HELPER, 0, -1, ENOMEM};
            fns_tell_failure(connection, &error);
        }
    } else {
        answer(ask, connection, fds, n_fds);
    }
    close_fds(fds, n_fds);
}

static void end_sandbox(int pidfd)
{
    struct fns_ended ended;
    int connection = server.peers[pidfd].other;
    reap(pidfd, &ended);
    if (connection < 0)
        return;
    server.peers[connection].other = -1;
    fns_sys6(__NR_sendto, connection, (long)&ended, sizeof ended, 0x4000 /* MSG_NOSIGNAL */, 0, 0);
}

/* ---- the loop ------------------------------------------------------------------------------- */

static void prepare(int control)
{
    const uint64_t all = ~0ull;
    fns_sys4(__NR_rt_sigprocmask, FNS_SIG_SETMASK, &all, 0, FNS_SIGSET_SIZE);
    if (control > 3)
        fns_sys3(__NR_close_range, 3, control - 1, 0);
    fns_sys3(__NR_close_range, control + 1, ~0u, 0);
    /* The fds of many sandboxes are this process' own; each sandbox gets the caller's limit back. */
    fns_sys4(__NR_prlimit64, 0, 7 /* RLIMIT_NOFILE */, 0, server.files);
    const uint64_t most[2] = {server.files[1], server.files[1]};
    fns_sys4(__NR_prlimit64, 0, 7, most, 0);
    long peers = fns_sys6(__NR_mmap, 0, MAX_FD * sizeof(struct peer), 3 /* PROT_READ|WRITE */,
                          0x4022 /* MAP_PRIVATE|ANONYMOUS|NORESERVE */, -1, 0);
    server.epoll = (int)fns_sys1(__NR_epoll_create1, O_CLOEXEC);
    if ((peers < 0 && peers > -4096) || server.epoll < 0)
        stop();
    server.peers = (struct peer *)peers;
    /* The first page of the stack is a guard. */
    if (watch(control, CONTROL, -1) < 0 || fns_sys3(__NR_mprotect, server.stack, 4096, 0) < 0)
        stop();
}

_Noreturn void fns_serve(const struct fns_plan *sandbox, int control)
{
    const struct fns_message running = {.kind = FNS_MESSAGE_RUNNING};
    struct event events[64];
    server.plan = sandbox;
    prepare(control);
    if (fns_tell(control, &running, -1, 0) < 0)
        stop();
    for (;;) {
        long n = fns_sys6(__NR_epoll_pwait, server.epoll, (long)events, 64, -1, 0, 0);
        for (long i = 0; i < n; i++) {
            int fd = (int)events[i].fd;
            switch ((enum peer_kind)server.peers[fd].kind) {
            case CONTROL: hear_control(fd); break;
            case CALLER: stop();
            case CONNECTION: hear_connection(fd); break;
            case SANDBOX: end_sandbox(fd); break;
            case NOBODY: break;
            }
        }
    }
}
