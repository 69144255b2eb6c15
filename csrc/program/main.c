/* The program: carries out a plan, in memory of its own.
 *
 * Static, without libc, executed from a sealed memory file by the border, in the sandbox's namespaces. It
 * runs every op of the plan, and then is
 *
 *   once    the command: it executes it (start.c)
 *   init    pid 1: it starts the command as its child, passes signals on, reaps (init.c)
 *   serve   the server of a template (serve.c)
 *
 * With FNS_PLAN_HOP it is executed in the caller's namespaces, and clones the sandbox (hop.c).
 *
 * /proc/self/exe leads to this program alone. If it were the caller's program, a command that is this link,
 * or a script whose interpreter is, would start the caller's program inside the root (CVE-2019-5736).
 *
 * Raw system calls only. Exits with FNS_EXIT_FAILED when the caller is gone.
 */
#include "command.h"
#include "program.h"
#include "runtime.h"
#include "shared/wire.h"

static uint32_t next_number(const char **at)
{
    uint32_t n = 0;
    while (**at >= '0' && **at <= '9')
        n = n * 10 + (uint32_t)(*(*at)++ - '0');
    *at += **at == ' ';
    return n;
}

/* Reads what FNS_NUMBERS describes. `groups`: space for FNS_MAX_GROUPS. */
static void open_arguments(struct fns_start *start, long argc, char **argv, int *groups)
{
    enum { NAME, NUMBERS, DIRECTORY, PATHS };
    if (argc <= PATHS)
        fns_quit(FNS_EXIT_FAILED);
    const char *at = argv[NUMBERS];
    start->words = argv[NUMBERS];
    start->words_end = argv[argc - 1] + fns_length(argv[argc - 1]);
#define X(name) start->given.name = next_number(&at);
    FNS_NUMBERS(X)
#undef X
    if (start->given.n_groups > FNS_MAX_GROUPS)
        fns_quit(FNS_EXIT_FAILED);
    for (uint32_t i = 0; i < start->given.n_groups; i++)
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
        .n_groups = start->given.n_groups,
        .clone_into = start->given.clone_into,
        .userns = (int)start->given.userns,
    };
}

/* Maps the plan and closes its file. A command that is /proc/self/exe executes this program once more, with
 * arguments and files of its choice. It has no sealed file: only a process that may call memfd_create(2),
 * and hand the fd over an exec, has one. */
static void open_plan(struct fns_start *start)
{
    const long seals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
    uint64_t size = start->given.plan_size;
    int file = (int)start->given.plan;
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

__attribute__((used)) _Noreturn void fns_program_main(long *stack)
{
    int groups[FNS_MAX_GROUPS];
    struct fns_start start;
    open_arguments(&start, stack[0], (char **)(stack + 1), groups);
    start.child = (struct fns_child)FNS_CHILD(&start.plan, &start.args, (int)start.given.status);
    start.child.entered = (int)start.given.entered;
    /* If the exec left the pipe open, the caller would wait, whatever the timeout, and the command could
     * write to it. */
    fns_start_check(&start, fns_close_on_exec((int)start.given.status));
    if (start.given.control)
        fns_start_check(&start, fns_close_on_exec((int)start.given.control));
    open_plan(&start);
    fns_set_dumpable(&start, 0);
    if (fns_reset_process(&start.child) < 0)
        fns_start_failed(&start);
    if (start.plan.options & FNS_PLAN_HOP)
        fns_hop(&start);
    fns_start_sandbox(&start, 0);
}

FNS_PROGRAM(fns_program_main)
