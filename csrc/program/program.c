/* The program: carries out a plan, in memory of its own.
 *
 * Static, without libc, executed from a sealed memory file by the child of the caller's clone (border.c),
 * in the sandbox's namespaces. It runs every op of the plan, and then is
 *
 *   once    the command: executes it
 *   init    pid 1: starts the command as its child, passes signals on, reaps
 *   serve   a template's server (server.c)
 *
 * Being this program, /proc/self/exe leads nowhere else: were it the caller's, a command that is this link,
 * or a script whose interpreter is, would start the caller's program inside the root (CVE-2019-5736).
 * With FNS_PLAN_HOP it is executed in the caller's namespaces, joins what has to be joined, clones the
 * sandbox as the caller's own child, hands the pidfd over and exits. Raw system calls only; exits 127
 * when the parent is gone.
 */
#include "runtime.h"
#include "server.h"

/* ---- what is told ---------------------------------------------------------------------------- */

/* One start, as this process carries it out. */
struct start {
    struct fns_plan plan, sandbox;
    struct fns_args args;
    struct fns_child child;
    struct fns_numbers given;
    long at; /* where the packed plan is mapped */
    char *words, *words_end;
};

static _Noreturn void failed(const struct start *start)
{
    FNS_IGNORE(fns_say((int)start->given.status, FNS_MESSAGE_FAILED, &start->child.error),
               "this process ends in any case");
    quit(127);
}

static _Noreturn void fail(struct start *start, enum fns_stage stage, long result)
{
    start->child.error = (struct fns_error){(uint16_t)stage, 0, -1, (int)-result};
    failed(start);
}

static void say_running(struct start *start)
{
    const struct fns_error none = {.op_index = -1};
    long result = fns_say((int)start->given.status, FNS_MESSAGE_RUNNING, &none);
    if (result < 0)
        fail(start, FNS_STAGE_HELPER, result);
}

/* ---- what is given ---------------------------------------------------------------------------- */

static uint32_t next_number(const char **at)
{
    uint32_t n = 0;
    while (**at >= '0' && **at <= '9')
        n = n * 10 + (uint32_t)(*(*at)++ - '0');
    *at += **at == ' ';
    return n;
}

/* See FNS_NUMBERS. `groups`: room for FNS_MAX_GROUPS. */
static void open_arguments(struct start *start, long argc, char **argv, int *groups)
{
    if (argc < 4)
        quit(127);
    const char *at = argv[1];
    start->words = argv[1];
    start->words_end = argv[argc - 1];
    while (*start->words_end)
        start->words_end++;
#define X(name) start->given.name = next_number(&at);
    FNS_NUMBERS(X)
#undef X
    if (start->given.n_groups > FNS_MAX_GROUPS)
        quit(127);
    for (uint32_t i = 0; i < start->given.n_groups; i++)
        groups[i] = (int)next_number(&at);
    char **end = argv + 3;
    while (end < argv + argc && **end)
        end++;
    if (end == argv + argc)
        quit(127);
    *end = 0;
    start->args = (struct fns_args){
        .argv = end + 1,
        .envp = argv + argc + 1,
        .paths = argv + 3,
        .cwd = *argv[2] ? argv[2] : 0,
        .groups = groups,
        .n_groups = start->given.n_groups,
        .clone_into = start->given.clone_into,
        .userns = (int)start->given.userns,
    };
}

/* Maps the plan, and lets go of its file. A command that is /proc/self/exe executes this program once more,
 * with words and files of its own choice: it has no sealed file, which only who may call memfd_create(2) and
 * hand the fd over an exec has. */
static void open_plan(struct start *start)
{
    const long seals = 1 | 2 | 4 | 8; /* F_SEAL_SEAL|SHRINK|GROW|WRITE */
    uint64_t size = start->given.plan_size;
    int file = (int)start->given.plan;
    long sealed = fns_sys3(__NR_fcntl, file, 1034 /* F_GET_SEALS */, 0);
    if (sealed < 0)
        fail(start, FNS_STAGE_HELPER, sealed);
    if ((sealed & seals) != seals)
        quit(127);
    long at = fns_sys6(__NR_mmap, 0, (long)size, 1 /* PROT_READ */, 2 /* MAP_PRIVATE */, file, 0);
    if (at < 0 && at > -4096)
        fail(start, FNS_STAGE_HELPER, at);
    fns_close(file);
    const struct fns_packed_plan *packed = (const void *)at;
    if (size < sizeof *packed)
        fail(start, FNS_STAGE_HELPER, -EPROTO);
    start->at = at;
    start->plan = packed->plan;
    start->sandbox = packed->sandbox;
    const uint32_t both = FNS_PLAN_INIT | FNS_PLAN_SERVER;
    if ((start->plan.options & both) == both || fns_open_plan((char *)at, size, &start->plan) < 0 ||
        fns_open_plan((char *)at, size, &start->sandbox) < 0)
        fail(start, FNS_STAGE_HELPER, -EPROTO);
}

/* What was given stands in /proc/self/cmdline, with the command's arguments. Who stays shows a name. */
static void hide_arguments(struct start *start)
{
    for (char *at = start->words; at < start->words_end; at++)
        *at = 0;
}

/* ---- init ----------------------------------------------------------------------------- */

struct signal_info { /* siginfo_t, as far as it is read here */
    int number, error, code, padding;
    int pid, uid, status;
    char rest[100];
};

/* The child of a reaper until it has executed the command: both words are 1 until it may, and until it
 * has left this memory (CLONE_CHILD_CLEARTID). */
struct begun {
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
    struct begun *begun = arg;
    await_zero(&begun->held);
    if (fns_child_chdir(begun->child) == 0)
        FNS_IGNORE(fns_child_exec(begun->child), "it is in child->error");
    return 127;
}

/* Starts the command: its pid, or -errno. This process has lost its capabilities by the time it may
 * run, and those of the command are its own; so are its pipes, whose readers are to see the end when it
 * closes them. */
static long start_command(struct start *start)
{
    static char stack[32768] __attribute__((aligned(16)));
    struct begun begun = {.child = &start->child, .held = 1, .here = 1};
    const int needed[3] = {(int)start->given.control, (int)start->given.status, 0};
    const uint32_t header[2] = {0x20080522, 0}, none[6] = {0};
    long here = (long)&begun.here;
    long pid = fns_sys_clone_call(__NR_clone, FNS_CLONE_VM | FNS_CLONE_CHILD_CLEARTID | FNS_SIGCHLD,
                                  (long)(stack + sizeof stack), 0, FNS_CLONE_TLS_LAST ? here : 0,
                                  FNS_CLONE_TLS_LAST ? 0 : here, exec_main, &begun);
    if (pid < 0)
        return pid;
    long result = fns_sys2(__NR_capset, header, none);
    if (result >= 0)
        result = fns_sys3(__NR_close_range, 0, 2, 0);
    if (result >= 0)
        result = fns_close_but(needed);
    __atomic_store_n(&begun.held, result < 0, __ATOMIC_SEQ_CST);
    if (result >= 0)
        result = fns_sys4(__NR_futex, &begun.held, 1 /* FUTEX_WAKE */, 1, 0);
    if (result < 0)
        return result;
    await_zero(&begun.here);
    return pid;
}

/* pid 1 of the sandbox: starts the command, passes signals on, reaps, ends with the command. */
static _Noreturn void run_init(struct start *start)
{
    const uint64_t all = ~0ull;
    struct fns_child *child = &start->child;
    int control = (int)start->given.control;
    long pid = start_command(start);
    if (pid < 0)
        fail(start, FNS_STAGE_INIT, pid);
    if (child->progress == FNS_PROGRESS_SETUP) /* it was killed */
        child->error = (struct fns_error){FNS_STAGE_INIT, FNS_DETAIL_KILLED, -1, ECANCELED};
    if (child->progress != FNS_PROGRESS_EXEC)
        failed(start);
    FNS_IGNORE(fns_sys2(__NR_munmap, start->at, start->given.plan_size), "it only costs memory");
    hide_arguments(start);
    say_running(start);
    fns_close((int)start->given.status);
    struct fns_message message = {.kind = FNS_MESSAGE_EXITED};

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
            message.value = info.code;
            message.status = info.status;
            long told = fns_tell(control, &message, -1, 0);
            if (told < 0) /* without EXITED, the parent takes the exit code for the errno */
                quit((int)-told);
            quit(info.code == 1 /* CLD_EXITED */ ? info.status : 128 + info.status);
        }
    }
}

/* ---- the start -------------------------------------------------------------------------------- */

/* Nobody may look into this process: not from a namespace it joins, not from the sandbox whose pid 1 it
 * becomes (CVE-2016-9962). While it is, its files in /proc are root's (proc(5)). */
static void set_dumpable(struct start *start, int dumpable)
{
    long result = fns_sys5(__NR_prctl, 4 /* PR_SET_DUMPABLE */, dumpable, 0, 0, 0);
    if (result < 0)
        fail(start, FNS_STAGE_HELPER, result);
}

static int is_map(const struct fns_op *op)
{
    return op->code == FNS_OP_WRITE && op->stage == FNS_STAGE_ID_MAP;
}

static void run_ops(struct start *start, uint32_t first, uint32_t last)
{
    if (fns_child_ops(&start->child, first, last) < 0)
        failed(start);
}

/* The ops that come first, among them those that write this process' files in /proc. Those before `end`;
 * returns the first op that is left. */
static uint32_t write_own_files(struct start *start, uint32_t first, uint32_t end)
{
    const struct fns_plan *plan = &start->plan;
    int maps_are_written = (plan->options & FNS_PLAN_MAPS_FIRST) != 0;
    uint32_t next = first, n_writes = 0;
    while (next < end &&
           (plan->ops[next].code == FNS_OP_WRITE || plan->ops[next].code == FNS_OP_RLIMIT) &&
           !(maps_are_written && is_map(&plan->ops[next])))
        n_writes += plan->ops[next++].code == FNS_OP_WRITE;
    if (n_writes)
        set_dumpable(start, 1);
    run_ops(start, first, next);
    /* The sandboxes of such a server write map files as well. */
    int stays = plan->id_map == FNS_ID_MAP_SELF && plan->options & FNS_PLAN_SERVER;
    if (n_writes && !stays)
        set_dumpable(start, 0);
    while (maps_are_written && next < end && is_map(&plan->ops[next]))
        next++;
    return next;
}

/* Without GO nobody knows of this sandbox: the process that has cloned it was killed before it could tell. */
static void await_go(struct start *start)
{
    struct fns_message message;
    long got = fns_read((int)start->given.control, &message, sizeof message);
    if (got < 0)
        fail(start, FNS_STAGE_HELPER, got);
    if (got != sizeof message || message.kind != FNS_MESSAGE_GO)
        quit(127);
}

static _Noreturn void run_sandbox(struct start *start, uint32_t next)
{
    struct fns_child *child = &start->child;
    const struct fns_plan *plan = &start->plan;
    int mapped = plan->id_map == FNS_ID_MAP_PARENT || plan->id_map == FNS_ID_MAP_NEWUIDMAP;
    int hopped = (plan->options & FNS_PLAN_HOP) != 0;
    /* A plan without ops is the caller's own surroundings, its session too. */
    if (plan->n_ops && fns_child_leave_session(child) < 0)
        failed(start);
    if (mapped)
        await_go(start);
    next = write_own_files(start, next, plan->n_ops);
    run_ops(start, next, plan->n_ops);
    if (hopped && !mapped) /* by now it is there: waiting for it here costs nothing */
        await_go(start);
    if (plan->options & FNS_PLAN_INIT)
        run_init(start);
    if (plan->options & FNS_PLAN_SERVER) {
        if (fns_child_last(child) < 0)
            failed(start);
        hide_arguments(start);
        fns_serve(&start->sandbox, (int)start->given.control, (int)start->given.status,
                  child->userns);
    }
    if (fns_child_chdir(child) < 0)
        failed(start);
    /* Before the last ops: a filter among them may refuse it. */
    say_running(start);
    FNS_IGNORE(fns_child_exec(child), "it is in child->error");
    failed(start);
}

/* Should this process be killed before it can tell of the sandbox, the caller finds its pid in a file: the
 * kernel writes it before the sandbox runs. clone(2) has but one place for both. */
static long clone_sandbox(struct start *start, int *pidfd)
{
    int file = (int)start->given.told;
    long told = fns_sys6(__NR_mmap, 0, sizeof(int32_t), 3 /* PROT_READ|WRITE */, 1 /* MAP_SHARED */,
                         file, 0);
    if (told < 0 && told > -4096)
        fail(start, FNS_STAGE_HELPER, told);
    fns_close(file);
    uint64_t namespaces = start->plan.clone_flags;
    struct fns_clone_args args = {
        .flags = namespaces | FNS_CLONE_PARENT | FNS_CLONE_PIDFD | FNS_CLONE_PARENT_SETTID,
        .pidfd = (uintptr_t)pidfd,
        .parent_tid = (uint64_t)told,
    };
    long pid = fns_sys2(__NR_clone3, &args, sizeof args);
    if (pid == -ENOSYS && !(namespaces & FNS_CLONE_NEWTIME))
        pid = fns_sys5(__NR_clone, args.flags & ~FNS_CLONE_PARENT_SETTID, 0, pidfd, 0, 0);
    return pid;
}

/* The sandbox is to be one that this process clones. */
static _Noreturn void hop(struct start *start)
{
    int control = (int)start->given.control, status = (int)start->given.status, pidfd = -1;
    /* Ends this process with its caller, also while it is stopped. The parent's thread waits for this start,
     * so it ends only if the caller does. What is cloned here does not inherit the setting. */
    long result = fns_sys5(__NR_prctl, 1 /* PR_SET_PDEATHSIG */, FNS_SIGKILL, 0, 0, 0);
    if (result < 0)
        fail(start, FNS_STAGE_HELPER, result);
    run_ops(start, write_own_files(start, 0, start->plan.n_early), start->plan.n_early);
    /* The sandbox takes the lock over. Nobody hears of it before CHILD. */
    result = fns_lock(status, F_SETLK, F_UNLCK);
    if (result < 0)
        fail(start, FNS_STAGE_HELPER, result);
    long pid = clone_sandbox(start, &pidfd);
    if (pid < 0)
        fail(start, FNS_STAGE_CLONE, pid);
    if (pid == 0) {
        result = fns_lock(status, F_SETLK, F_WRLCK);
        if (result < 0)
            fail(start, FNS_STAGE_HELPER, result);
        run_sandbox(start, start->plan.n_early);
    }
    const struct fns_message message = {.kind = FNS_MESSAGE_CHILD, .value = (int)pid};
    result = fns_tell(control, &message, pidfd, 0);
    if (result < 0) /* as with ETOOMANYREFS: the caller finds the pid in the file */
        fail(start, FNS_STAGE_HELPER, result);
    quit(0);
}

__attribute__((used)) _Noreturn void fns_program_main(long *stack)
{
    int groups[FNS_MAX_GROUPS];
    struct start start;
    open_arguments(&start, stack[0], (char **)(stack + 1), groups);
    start.child = (struct fns_child)FNS_CHILD(&start.plan, &start.args, (int)start.given.status);
    start.child.entered = (int)start.given.entered;
    /* Left open by the exec, it would keep the caller waiting, whatever the timeout, and be the command's to
     * write to. */
    long result = fns_close_on_exec((int)start.given.status);
    if (result >= 0 && start.given.control)
        result = fns_close_on_exec((int)start.given.control);
    if (result < 0)
        fail(&start, FNS_STAGE_HELPER, result);
    open_plan(&start);
    set_dumpable(&start, 0);
    if (fns_child_begin(&start.child) < 0)
        failed(&start);
    if (start.plan.options & FNS_PLAN_HOP)
        hop(&start);
    run_sandbox(&start, 0);
}

FNS_PROGRAM(fns_program_main)
