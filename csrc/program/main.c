/* The program: carries out a plan, in memory of its own.
 *
 * It is static and has no libc. The border executes it from a sealed memory file, in the sandbox's namespaces.
 * It runs every op of the plan, and then becomes
 *
 *   once    the command, by executing it
 *   init    pid 1, which starts the command as its child, passes signals on and reaps (init.c)
 *   serve   the server of a template (serve.c)
 *
 * With FNS_PLAN_HOP it is executed in the caller's namespaces, runs the early ops, and clones the sandbox.
 *
 * /proc/self/exe leads only to this program. If it led to the caller's program, a command that names this link,
 * or a script whose interpreter line does, would start the caller's program inside the root (CVE-2019-5736).
 *
 * Raw system calls only. Exits with FNS_EXIT_FAILED when the caller is gone.
 */
#include "program.h"

/* ---- what gcc expects of a libc, and the entry point ------------------------------------------ */

void *memcpy(void *restrict to, const void *restrict from, size_t size)
{
    char *t = to;
    const char *f = from;
    while (size--)
        *t++ = *f++;
    return to;
}

void *memset(void *to, int byte, size_t size)
{
    char *t = to;
    while (size--)
        *t++ = (char)byte;
    return to;
}

/* fns_program_main() gets the stack as the kernel leaves it, argc first, and does not return. */
#if defined(__x86_64__)
__asm__(".globl _start\n_start: xorl %ebp, %ebp\n movq %rsp, %rdi\n andq $-16, %rsp\n"
        "call fns_program_main\n hlt\n");
#else
__asm__(".globl _start\n_start: mov x29, xzr\n mov x30, xzr\n mov x0, sp\n"
        "bl fns_program_main\n brk #1\n");
#endif

/* ---- input ------------------------------------------------------------------------------------ */

static uint32_t next_number(const char **at)
{
    uint32_t n = 0;
    while (**at >= '0' && **at <= '9')
        n = n * 10 + (uint32_t)(*(*at)++ - '0');
    *at += **at == ' ';
    return n;
}

/* Parses the argv that shared/wire.h describes at FNS_NUMBERS. `groups`: space for FNS_MAX_GROUPS. */
static void open_arguments(struct fns_start *start, long argc, char **argv, int *groups)
{
    enum { NAME, NUMBERS, DIRECTORY, PATHS };
    if (argc <= PATHS)
        fns_quit(FNS_EXIT_FAILED);
    const char *at = argv[NUMBERS];
    start->words = argv[NUMBERS];
    start->words_end = argv[argc - 1] + fns_length(argv[argc - 1]);
#define X(name) start->numbers.name = next_number(&at);
    FNS_NUMBERS(X)
#undef X
    if (start->numbers.n_groups > FNS_MAX_GROUPS)
        fns_quit(FNS_EXIT_FAILED);
    for (uint32_t i = 0; i < start->numbers.n_groups; i++)
        groups[i] = (int)next_number(&at);
    char **end = argv + PATHS;
    while (end < argv + argc && **end)
        end++;
    if (end == argv + argc)
        fns_quit(FNS_EXIT_FAILED);
    *end = 0;
    start->args = (struct fns_args){
        .argv = end + 1,
        .envp = argv + argc + 1,
        .paths = argv + PATHS,
        .cwd = *argv[DIRECTORY] ? argv[DIRECTORY] : 0,
        .groups = groups,
        .n_groups = start->numbers.n_groups,
        .clone_into = start->numbers.clone_into,
        .userns = (int)start->numbers.userns,
    };
}

/* Maps the plan and closes its file. A command that is /proc/self/exe executes this program again, with
 * arguments and files of its choice. But it cannot have a sealed file, which takes memfd_create(2) and an fd
 * that stays open across an exec. */
static void open_plan(struct fns_start *start)
{
    const long seals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
    uint64_t size = start->numbers.plan_size;
    int file = (int)start->numbers.plan;
    long sealed = fns_sys3(__NR_fcntl, file, F_GET_SEALS, 0);
    fns_start_check(start, sealed);
    if ((sealed & seals) != seals)
        fns_quit(FNS_EXIT_FAILED);
    long at = fns_sys6(__NR_mmap, 0, (long)size, PROT_READ, MAP_PRIVATE, file, 0);
    if (!fns_is_address(at))
        fns_start_fail(start, FNS_STAGE_HELPER, at);
    fns_close(file);
    const struct fns_packed_plan *packed = (const void *)at;
    fns_start_check(start, size < sizeof *packed ? -EPROTO : 0);
    start->packed = at;
    start->plan = packed->plan;
    start->sandbox = packed->sandbox;
    const uint32_t both = FNS_PLAN_INIT | FNS_PLAN_SERVER;
    if ((start->plan.options & both) == both || fns_open_plan((char *)at, size, &start->plan) < 0 ||
        fns_open_plan((char *)at, size, &start->sandbox) < 0)
        fns_start_fail(start, FNS_STAGE_HELPER, -EPROTO);
}

/* ---- the ops ---------------------------------------------------------------------------------- */

/* While this process is undumpable, no process can look into it from a namespace that it joins, or from the
 * sandbox whose pid 1 it becomes (CVE-2016-9962). Meanwhile, its files in /proc belong to root (proc(5)). */
static void set_dumpable(struct fns_start *start, int dumpable)
{
    fns_start_check(start, fns_prctl(PR_SET_DUMPABLE, (unsigned long)dumpable, 0));
}

static void run_ops(struct fns_start *start, uint32_t first, uint32_t end)
{
    if (fns_run_ops(&start->child, first, end) < 0)
        fns_start_failed(start);
}

static int is_map(const struct fns_op *op)
{
    return op->code == FNS_OP_WRITE && op->stage == FNS_STAGE_ID_MAP;
}

/* Runs the leading ops from `first` to before `end` that write this process's files in /proc or set limits.
 * Returns the index of the next op. */
static uint32_t write_own_files(struct fns_start *start, uint32_t first, uint32_t end)
{
    const struct fns_plan *plan = &start->plan;
    int mapped = (plan->options & FNS_PLAN_MAPS_FIRST) != 0;
    uint32_t next = first, n_writes = 0;
    for (; next < end && !(mapped && is_map(&plan->ops[next])); next++) {
        if (plan->ops[next].code != FNS_OP_WRITE && plan->ops[next].code != FNS_OP_RLIMIT)
            break;
        n_writes += plan->ops[next].code == FNS_OP_WRITE;
    }
    if (n_writes)
        set_dumpable(start, 1);
    run_ops(start, first, next);
    /* Sandboxes share the server's memory, and so its dumpable flag. To write their own maps they need it set. */
    int server_maps = plan->id_map == FNS_ID_MAP_SELF && plan->options & FNS_PLAN_SERVER &&
                      !(start->sandbox.options & FNS_PLAN_CONTAINER);
    if (n_writes && !server_maps)
        set_dumpable(start, 0);
    while (mapped && next < end && is_map(&plan->ops[next]))
        next++; /* the border has run these */
    return next;
}

/* Waits until the caller has the pidfd and has written the id maps. The socket closes without GO if the caller
 * has ended or has abandoned the start, or if the hop process was killed before it could send CHILD. */
static void await_go(struct fns_start *start)
{
    struct fns_message message;
    long got = fns_read((int)start->numbers.control, &message, sizeof message);
    fns_start_check(start, got);
    if (got != sizeof message || message.kind != FNS_MESSAGE_GO)
        fns_quit(FNS_EXIT_FAILED);
}

/* Runs the plan from op `next` on, then becomes the command, a reaper or a server. */
static _Noreturn void start_sandbox(struct fns_start *start, uint32_t next)
{
    struct fns_child *child = &start->child;
    const struct fns_plan *plan = &start->plan;
    int mapped_by_caller =
        plan->id_map == FNS_ID_MAP_PARENT || plan->id_map == FNS_ID_MAP_NEWUIDMAP;
    /* A plan without ops keeps all that is the caller's, including the session. */
    if (plan->n_ops && fns_leave_session(child) < 0)
        fns_start_failed(start);
    if (mapped_by_caller)
        await_go(start);
    /* After a hop, a process in a joined pid namespace may own this one's user namespace, and so have every right
     * in it. So this process stays undumpable. Its files in /proc belong to root, and so does it: decide() refuses
     * other callers. */
    if (!(plan->options & FNS_PLAN_HOP))
        next = write_own_files(start, next, plan->n_ops);
    run_ops(start, next, plan->n_ops);
    if (plan->options & FNS_PLAN_HOP && !mapped_by_caller)
        await_go(start); /* GO has usually arrived by now, so this costs nothing */
    if (plan->options & FNS_PLAN_INIT)
        fns_run_init(start);
    if (plan->options & FNS_PLAN_SERVER) {
        if (fns_run_last_ops(child) < 0)
            fns_start_failed(start);
        /* Processes with the same ids may run beside a container's server. A change of ids has reset this. */
        if (start->sandbox.options & FNS_PLAN_CONTAINER)
            set_dumpable(start, 0);
        fns_hide_arguments(start);
        fns_serve(start);
    }
    if (fns_change_directory(child) < 0)
        fns_start_failed(start);
    fns_report_running(start); /* before the last ops: a filter among them may refuse it */
    fns_execute(child);
    fns_start_failed(start);
}

/* ---- the hop ---------------------------------------------------------------------------------- */

/* Clones the sandbox as the caller's child. The kernel also writes the pid to a shared file, before the sandbox
 * runs. The caller reads it there if this process is killed before it sends CHILD. clone(2) cannot write it,
 * because it has only one place for the pid and the pidfd. */
static long clone_sandbox(struct fns_start *start, int *pidfd)
{
    int file = (int)start->numbers.pid_file;
    long at = fns_sys6(__NR_mmap, 0, sizeof(int32_t), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (!fns_is_address(at))
        fns_start_fail(start, FNS_STAGE_HELPER, at);
    fns_close(file);
    uint64_t namespaces = start->plan.clone_flags;
    struct fns_clone_args args = {
        .flags = namespaces | FNS_CLONE_PARENT | FNS_CLONE_PIDFD | FNS_CLONE_PARENT_SETTID,
        .pidfd = (uintptr_t)pidfd,
        .parent_tid = (uint64_t)at,
    };
    long pid = fns_sys2(__NR_clone3, &args, sizeof args);
    if (pid == -ENOSYS && !(namespaces & FNS_CLONE_NEWTIME))
        pid = fns_sys5(__NR_clone, args.flags & ~FNS_CLONE_PARENT_SETTID, 0, pidfd, 0, 0);
    return pid;
}

/* The hop process: joins the namespaces that a clone depends on, clones the sandbox as the caller's child,
 * hands its pidfd over and exits. */
static _Noreturn void hop(struct fns_start *start)
{
    int status = (int)start->numbers.status, pidfd = -1;
    uint32_t n_early = start->plan.n_early;
    /* Ends this process with its caller, even while it is stopped. The signal comes when the thread that waits
     * for this start ends, which happens only with the caller. The clone does not inherit the setting. */
    fns_start_check(start, fns_prctl(PR_SET_PDEATHSIG, FNS_SIGKILL, 0));
    run_ops(start, write_own_files(start, 0, n_early), n_early);
    /* Releases the lock, so that the sandbox can take it. The gap does no harm, because the caller knows of no
     * sandbox before CHILD. */
    fns_start_check(start, fns_lock(status, F_SETLK, F_UNLCK));
    long pid = clone_sandbox(start, &pidfd);
    if (pid < 0)
        fns_start_fail(start, FNS_STAGE_CLONE, pid);
    if (pid == 0) {
        fns_start_check(start, fns_lock(status, F_SETLK, F_WRLCK));
        start_sandbox(start, n_early);
    }
    const struct fns_message message = {.kind = FNS_MESSAGE_CHILD, .value = (int)pid};
    /* If this fails (ETOOMANYREFS), the caller finds the pid in the file. */
    fns_start_check(start, fns_send((int)start->numbers.control, &message, pidfd, 0));
    fns_quit(0);
}

__attribute__((used)) _Noreturn void fns_program_main(long *stack)
{
    int groups[FNS_MAX_GROUPS];
    struct fns_start start;
    open_arguments(&start, stack[0], (char **)(stack + 1), groups);
    start.child = (struct fns_child)FNS_CHILD(&start.plan, &start.args, (int)start.numbers.status);
    start.child.entered = (int)start.numbers.entered;
    /* If the exec left the pipe open, the caller would wait forever, and the command could write to the pipe. */
    fns_start_check(&start, fns_close_on_exec((int)start.numbers.status));
    if (start.numbers.control)
        fns_start_check(&start, fns_close_on_exec((int)start.numbers.control));
    open_plan(&start);
    set_dumpable(&start, 0);
    if (fns_reset_process(&start.child) < 0)
        fns_start_failed(&start);
    if (start.plan.options & FNS_PLAN_HOP)
        hop(&start);
    start_sandbox(&start, 0);
}
