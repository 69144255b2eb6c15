/* The exec program: the last step but one of a direct spawn. It executes the command and, before that,
 * does what may not be done in the caller's memory: joining a user namespace and changing ids.
 *
 * The child of a direct spawn shares the caller's memory, and with it /proc/self/exe: a command that
 * is that link, or a script whose interpreter is, would start the caller's own program inside the
 * root (CVE-2019-5736). Executed from a sealed memory file, this program stands between: the link
 * leads to it. Static, without libc, one page, so that it costs as little as can be.
 */
#include "child.h"
#include "message.h"
#include "program.h"

extern char __executable_start[];

/* The ops that are this process' to do, at `offset` of the program. */
static int open_late(struct fns_plan *plan, int offset)
{
    const struct fns_late *late = (const void *)(__executable_start + offset);
    plan->ops = (const void *)(late + 1);
    plan->strings = (const void *)(plan->ops + late->n_ops);
    plan->n_ops = late->n_ops;
    plan->n_strings = late->n_strings;
    return late->first;
}

/* argv: name, the fd for an error, that of a user namespace, where the late ops are (0: nowhere), the
 * working directory (empty: this one), the paths to try, "", the command's argv. */
__attribute__((used)) _Noreturn void fns_exec_main(long *stack)
{
    long argc = stack[0];
    char **argv = (char **)(stack + 1);
    if (argc < 7)
        quit(127);
    int news = number(argv[1]), userns = number(argv[2]), offset = number(argv[3]), first = 0;
    char **at = argv + 5;
    while (at < argv + argc && **at)
        at++;
    if (at >= argv + argc)
        quit(127);
    *at = 0;
    struct fns_args args = {
        .argv = at + 1, .envp = argv + argc + 1, .paths = argv + 5, .userns = userns};
    struct fns_plan plan = {.n_ops = 0}; /* done by who has executed this program */
    struct fns_child child = FNS_CHILD(&plan, &args, -1, news);
    if (offset)
        first = open_late(&plan, offset);
    if (*argv[4])
        args.cwd = argv[4];
    /* Left open by the exec it would keep the caller waiting, whatever the timeout, and be the command's
     * to write to. */
    long closing = fns_close_on_exec(news);
    if (closing < 0) {
        child.error.stage = FNS_STAGE_HELPER;
        child.error.err = (int)-closing;
        fns_child_report(&child, news);
        quit(127);
    }
    /* The caller, woken by the exec just done, is about to sleep again. Let it: an execve beside
     * another runnable process has the kernel move this one to another CPU first (sched_exec()),
     * which costs more than all that this program does. */
    FNS_IGNORE(fns_sys0(__NR_sched_yield), "it only costs time");
    if (!offset || fns_child_ops(&child, 0, plan.n_ops) == 0)
        FNS_IGNORE(fns_child_exec(&child), "it is in child.error");
    if (child.error.op_index >= 0)
        child.error.op_index += first;
    fns_child_report(&child, news);
    quit(127);
}

FNS_PROGRAM(fns_exec_main)
