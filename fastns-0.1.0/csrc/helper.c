/* The helper program: a process of its own for what must not run in the caller's memory.
 *
 * A static program without libc, run from a sealed memory file, started for a staged plan in the
 * caller's namespaces:
 *
 *   caller ──clone, exec──▶ helper ──clone (CLONE_PARENT)──▶ sandbox ──exec──▶ command
 *
 * The sandbox is the caller's own child; the helper joins what has to be joined, clones, hands the
 * pidfd over and exits. The sandbox runs the same child.c as a direct spawn, in memory that holds
 * nothing of the caller's: changed ids cannot make the caller undumpable (commit_creds()), and what
 * shares a joined pid namespace finds nothing to read. With FNS_PLAN_INIT the sandbox stays as
 * pid 1 and reaps. Raw system calls only; exits 127 when the parent is gone.
 */
#include "helper.h"
#include "program.h"

/* ---- the socket ----------------------------------------------------------------------------- */

struct pid_message { /* struct cmsghdr with struct ucred */
    size_t size;
    int level, type, pid, uid, gid, padding;
};

long fns_tell(int socket, const struct fns_message *message, int fd, int pid)
{
    struct {
        struct fns_one_fd rights;
        struct pid_message credentials;
    } control = {
        .rights = {sizeof(size_t) + 3 * sizeof(int), 1 /* SOL_SOCKET */, 1 /* SCM_RIGHTS */, fd, 0},
        .credentials = {sizeof(size_t) + 5 * sizeof(int), 1, 2 /* SCM_CREDENTIALS */, pid, 0, 0, 0},
    };
    struct fns_vector vector = {(void *)(uintptr_t)message, sizeof *message};
    struct fns_header header = {.vector = &vector, .vector_size = 1};
    if (fd >= 0) {
        header.control = &control;
        header.control_size = sizeof control.rights;
    }
    if (pid > 0) {
        control.credentials.uid = (int)fns_sys0(__NR_geteuid);
        control.credentials.gid = (int)fns_sys0(__NR_getegid);
        header.control_size = sizeof control;
    }
    long result;
    do
        result = fns_sys3(__NR_sendmsg, socket, &header, 0x4000 /* MSG_NOSIGNAL */);
    while (result == -EINTR);
    return result;
}

long fns_tell_failure(int socket, const struct fns_error *error)
{
    const struct fns_message message = {.kind = FNS_MESSAGE_FAILED, .error = *error};
    long result = -EINTR;
    /* A failure that is not reported looks like a process that was killed, or a command that has run. */
    for (int tries = 0; result < 0 && result != -EPIPE && tries < FNS_TRIES; tries++)
        result = fns_tell(socket, &message, -1, 0);
    return result;
}

static _Noreturn void tell_failure(int control, const struct fns_error *error)
{
    FNS_IGNORE(fns_tell_failure(control, error), "this process ends in any case");
    quit(127);
}

static _Noreturn void tell_error(int control, enum fns_stage stage, long result)
{
    struct fns_error error = {.stage = (uint16_t)stage, .op_index = -1, .err = (int)-result};
    tell_failure(control, &error);
}

static void tell(int control, const struct fns_message *message, int fd)
{
    long result = fns_tell(control, message, fd, 0);
    if (result < 0)
        tell_error(control, FNS_STAGE_HELPER, result);
}

/* ---- the request ---------------------------------------------------------------------------- */

/* Maps the request and turns its offsets into pointers. */
static struct fns_request *open_request(int control, int fd)
{
    uint64_t size = 0;
    long at = fns_sys4(__NR_pread64, fd, &size, sizeof size, 0);
    if (at >= 0)
        at = fns_sys6(__NR_mmap, 0, (long)size, 3 /* PROT_READ|WRITE */, 1 /* MAP_SHARED */, fd, 0);
    if (at < 0 && at > -4096)
        tell_error(control, FNS_STAGE_HELPER, at);
    char *base = (char *)at;
    struct fns_request *request = (struct fns_request *)(void *)base;
    if (size < sizeof *request || fns_open_plan(base, size, &request->plan) < 0 ||
        fns_open_plan(base, size, &request->sandbox) < 0 ||
        fns_open_args(base, size, &request->args) < 0)
        tell_error(control, FNS_STAGE_HELPER, -EPROTO);
    return request;
}

/* ---- the reaper ----------------------------------------------------------------------------- */

struct signal_info { /* siginfo_t, as far as it is read here */
    int number, error, code, padding;
    int pid, uid, status;
    char rest[100];
};

/* The child of a reaper until it has executed the command: both words are 1 until it may, and until it
 * has left this memory (CLONE_CHILD_CLEARTID). */
struct start {
    struct fns_child *child;
    volatile uint32_t held, here;
};

/* Until a word is 0. Not FUTEX_PRIVATE_FLAG: the kernel wakes without it (set_tid_address(2)). */
static void await_zero(volatile uint32_t *word)
{
    while (__atomic_load_n(word, __ATOMIC_SEQ_CST))
        FNS_IGNORE(fns_sys4(__NR_futex, word, 0 /* FUTEX_WAIT */, 1, 0), "the word is read again");
}

static int exec_main(void *arg)
{
    struct start *start = arg;
    await_zero(&start->held);
    FNS_IGNORE(fns_child_exec(start->child), "it is in child->error");
    return 127;
}

/* Starts the command: its pid, or -errno. This process has lost its capabilities by the time it may
 * run, and those of the command are its own; so are its pipes, whose readers are to see the end when it
 * closes them. */
static long start_command(struct fns_child *child, int control)
{
    static char stack[32768] __attribute__((aligned(16)));
    struct start start = {.child = child, .held = 1, .here = 1};
    const uint32_t header[2] = {0x20080522, 0}, none[6] = {0};
    long here = (long)&start.here;
    long pid = fns_sys_clone_call(__NR_clone, FNS_CLONE_VM | FNS_CLONE_CHILD_CLEARTID | FNS_SIGCHLD,
                                  (long)(stack + sizeof stack), 0, FNS_CLONE_TLS_LAST ? here : 0,
                                  FNS_CLONE_TLS_LAST ? 0 : here, exec_main, &start);
    if (pid < 0)
        return pid;
    long result = fns_sys2(__NR_capset, header, none);
    if (result >= 0 && control > 0)
        result = fns_sys3(__NR_close_range, 0, control - 1, 0);
    if (result >= 0)
        result = fns_sys3(__NR_close_range, control + 1, ~0u, 0);
    __atomic_store_n(&start.held, result < 0, __ATOMIC_SEQ_CST);
    if (result >= 0)
        result = fns_sys4(__NR_futex, &start.held, 1 /* FUTEX_WAKE */, 1, 0);
    if (result < 0)
        return result;
    await_zero(&start.here);
    return pid;
}

/* pid 1 of the sandbox: starts the command, passes signals on, reaps, ends with the command. */
static _Noreturn void run_init(struct fns_child *child, int control)
{
    const uint64_t all = ~0ull;
    long pid = fns_sys4(__NR_rt_sigprocmask, FNS_SIG_SETMASK, &all, 0, FNS_SIGSET_SIZE);
    if (pid >= 0)
        pid = start_command(child, control);
    if (pid < 0)
        tell_error(control, FNS_STAGE_INIT, pid);
    if (child->progress == FNS_PROGRESS_SETUP) /* it was killed */
        child->error = (struct fns_error){FNS_STAGE_INIT, FNS_DETAIL_KILLED, -1, ECANCELED};
    if (child->progress != FNS_PROGRESS_EXEC)
        tell_failure(control, &child->error);
    struct fns_message message = {.kind = FNS_MESSAGE_RUNNING};
    tell(control, &message, -1);

    for (;;) {
        struct signal_info info;
        long sig = fns_sys4(__NR_rt_sigtimedwait, &all, &info, 0, FNS_SIGSET_SIZE);
        /* A terminal's signal (SI_KERNEL) has reached the whole foreground group already. */
        if (sig > 0 && sig != FNS_SIGCHLD && info.code != 0x80)
            FNS_IGNORE(fns_sys2(__NR_kill, pid, sig), "it may have ended");
        for (int failed = 0;;) {
            info.pid = 0;
            long ret =
                fns_sys5(__NR_waitid, 0 /* P_ALL */, 0, &info, 1 | 4 /* WNOHANG|WEXITED */, 0);
            if (ret == -ECHILD || (ret == 0 && info.pid == 0))
                break;
            if (ret < 0 && ++failed == FNS_TRIES) /* no end would be heard any more */
                quit((int)-ret);
            if (ret < 0)
                continue;
            if (info.pid != pid || info.code >= FNS_CLD_TRAPPED)
                continue;
            message.kind = FNS_MESSAGE_EXITED;
            message.value = info.code;
            message.status = info.status;
            long told = fns_tell(control, &message, -1, 0);
            if (told < 0) /* without EXITED, the parent takes the exit code for the errno */
                quit((int)-told);
            quit(info.code == 1 /* CLD_EXITED */ ? info.status : 128 + info.status);
        }
    }
}

/* ---- the two processes ---------------------------------------------------------------------- */

/* Nobody may look into this process: not from a namespace it joins, not from the sandbox whose
 * pid 1 it becomes (CVE-2016-9962). */
static void make_undumpable(int control)
{
    long result = fns_sys5(__NR_prctl, 4 /* PR_SET_DUMPABLE */, 0, 0, 0, 0);
    if (result < 0)
        tell_error(control, FNS_STAGE_HELPER, result);
}

/* Without GO nobody knows of this sandbox: the helper was killed before it could tell. */
static void await_go(int control)
{
    struct fns_message message;
    long got = fns_read(control, &message, sizeof message);
    if (got < 0)
        tell_error(control, FNS_STAGE_HELPER, got);
    if (got != sizeof message || message.kind != FNS_MESSAGE_GO)
        quit(127);
}

static _Noreturn void run_sandbox(struct fns_child *child, const struct fns_plan *served,
                                  int control)
{
    const struct fns_plan *plan = child->plan;
    if (fns_child_leave_session(child) < 0)
        tell_failure(control, &child->error);
    int mapped = plan->id_map == FNS_ID_MAP_PARENT || plan->id_map == FNS_ID_MAP_NEWUIDMAP;
    uint32_t next = plan->n_early;
    if (mapped)
        await_go(control);
    if (plan->id_map ==
        FNS_ID_MAP_SELF) { /* the map files of the undumpable are root's (proc(5)) */
        while (next < plan->n_ops && plan->ops[next].code == FNS_OP_WRITE)
            next++;
        if (fns_child_ops(child, plan->n_early, next) < 0)
            tell_failure(control, &child->error);
        if (!(plan->options & FNS_PLAN_SERVER)) /* whose sandboxes write map files as well */
            make_undumpable(control);
    }
    if (fns_child_ops(child, next, plan->n_ops) < 0)
        tell_failure(control, &child->error);
    if (!mapped) /* by now it is there: waiting for it here costs nothing */
        await_go(control);
    if (plan->options & FNS_PLAN_INIT)
        run_init(child, control);
    if (plan->options & FNS_PLAN_SERVER) {
        if (fns_child_last(child) < 0)
            tell_failure(control, &child->error);
        fns_serve(served, control, child->userns);
    }
    int result = fns_lock(control, F_SETLK, F_WRLCK);
    if (result < 0)
        tell_error(control, FNS_STAGE_HELPER, result);
    struct fns_message message = {.kind = FNS_MESSAGE_RUNNING};
    tell(control, &message, -1);
    FNS_IGNORE(fns_child_exec(child), "it is in child->error");
    tell_failure(control, &child->error);
}

/* Should this process be killed before it can tell of the sandbox, the caller finds its pid in the
 * request: the kernel writes it before the sandbox runs. clone(2) has but one place for both. */
static long clone_sandbox(struct fns_request *request, int *pidfd)
{
    uint64_t namespaces = request->plan.clone_flags;
    struct fns_clone_args args = {
        .flags = namespaces | FNS_CLONE_PARENT | FNS_CLONE_PIDFD | FNS_CLONE_PARENT_SETTID,
        .pidfd = (uintptr_t)pidfd,
        .parent_tid = (uintptr_t)&request->pid,
    };
    long pid = fns_sys2(__NR_clone3, &args, sizeof args);
    if (pid == -ENOSYS && !(namespaces & FNS_CLONE_NEWTIME))
        pid = fns_sys5(__NR_clone, args.flags & ~FNS_CLONE_PARENT_SETTID, 0, pidfd, 0, 0);
    return pid;
}

/* argv: name, control socket, request file. */
__attribute__((used)) _Noreturn void fns_helper_main(long *stack)
{
    char **argv = (char **)(stack + 1);
    if (stack[0] != 3)
        quit(127);
    int control = number(argv[1]), file = number(argv[2]), pidfd = -1;
    /* Otherwise the command would have it, and could send messages to the caller. */
    long result = fns_close_on_exec(control);
    /* Ends the helper with its caller, also while it is stopped. The parent's thread waits for this start, so
     * it ends only if the caller does. Processes that the helper clones do not inherit the setting. */
    if (result >= 0)
        result = fns_sys5(__NR_prctl, 1 /* PR_SET_PDEATHSIG */, FNS_SIGKILL, 0, 0, 0);
    if (result < 0)
        tell_error(control, FNS_STAGE_HELPER, result);
    struct fns_request *request = open_request(control, file);
    fns_close(file);
    struct fns_child child = FNS_CHILD(&request->plan, &request->args, -1, -1);
    /* Before PR_SET_DUMPABLE, which gives its files in /proc to root (proc(5)). */
    uint32_t written = 0;
    while (written < request->plan.n_early && request->plan.ops[written].code == FNS_OP_WRITE)
        written++;
    if (fns_child_ops(&child, 0, written) < 0)
        tell_failure(control, &child.error);
    if (request->plan.id_map != FNS_ID_MAP_SELF)
        make_undumpable(control);
    if (fns_child_ops(&child, written, request->plan.n_early) < 0)
        tell_failure(control, &child.error);
    long pid = clone_sandbox(request, &pidfd);
    if (pid < 0)
        tell_error(control, FNS_STAGE_CLONE, pid);
    if (pid == 0)
        run_sandbox(&child, &request->sandbox, control);
    struct fns_message message = {.kind = FNS_MESSAGE_CHILD, .value = (int)pid};
    long told = fns_tell(control, &message, pidfd, 0);
    if (told < 0) /* as with ETOOMANYREFS: the caller finds the pid in the request */
        tell_error(control, FNS_STAGE_HELPER, told);
    quit(0);
}

FNS_PROGRAM(fns_helper_main)
