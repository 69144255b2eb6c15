/* The exec program: the last step but one of a direct spawn. It executes the command, and nothing else.
 *
 * The child of a direct spawn shares the caller's memory, and with it /proc/self/exe: a command that
 * is that link, or a script whose interpreter is, would start the caller's own program inside the
 * root (CVE-2019-5736). Executed from a sealed memory file, this program stands between: the link
 * leads to it. Static, without libc, one page, so that it costs as little as can be.
 */
#include "child.h"
#include "program.h"

/* argv: name, the fd for an error, the paths to try, "", the command's argv. */
__attribute__((used)) _Noreturn void fns_exec_main(long *stack)
{
    long argc = stack[0];
    char **argv = (char **)(stack + 1);
    if (argc < 4)
        quit(127);
    int news = number(argv[1]);
    char **at = argv + 2;
    while (at < argv + argc && **at)
        at++;
    if (at >= argv + argc)
        quit(127);
    *at = 0;
    struct fns_args args = {.argv = at + 1, .envp = argv + argc + 1, .paths = argv + 2};
    const struct fns_plan done = {.n_ops = 0}; /* by who has executed this program */
    struct fns_child child = {
        .plan = &done, .args = &args, .error = {.op_index = -1}, .exec_fd = -1, .news = -1};
    fns_sys3(__NR_fcntl, news, F_SETFD, FD_CLOEXEC);
    /* The caller, woken by the exec just done, is about to sleep again. Let it: an execve beside
     * another runnable process has the kernel move this one to another CPU first (sched_exec()),
     * which costs more than all that this program does. */
    fns_sys0(__NR_sched_yield);
    fns_child_exec(&child);
    fns_sys3(__NR_write, news, &child.error, sizeof child.error);
    quit(127);
}

FNS_PROGRAM(fns_exec_main)
