/* What happens around the ops, from the reset of the caller's settings to the exec of the command. Runs in
 * the program and in a template's sandboxes (child.h). */
#include "child.h"

enum { BUSY_TRIES = 50, BUSY_PAUSE_NS = 1000000 };
#define GET_PERSONALITY 0xffffffff /* personality(2): changes nothing */

int fns_reset_process(struct fns_child *child)
{
    const struct { /* the kernel's struct sigaction */
        uint64_t handler, flags, restorer, mask;
    } action = {0 /* SIG_DFL */, 0, 0, 0};
    for (int sig = 1; sig <= FNS_LAST_SIGNAL; sig++) {
        if (sig == FNS_SIGKILL || sig == FNS_SIGSTOP)
            continue;
        long result = fns_sys4(__NR_rt_sigaction, sig, &action, 0, FNS_SIGSET_SIZE);
        if (result < 0)
            return fns_child_failed(child, FNS_STAGE_SIGNALS, result);
    }
    /* The caller's personality may turn off address randomization (setarch(8)). */
    long result = fns_sys1(__NR_personality, PER_LINUX);
    /* A seccomp filter that the caller runs under may refuse the call even where it would change nothing. */
    if (result < 0 && fns_sys1(__NR_personality, GET_PERSONALITY) != PER_LINUX)
        return fns_child_failed(child, FNS_STAGE_PERSONALITY, result);
    return 0;
}

int fns_leave_session(struct fns_child *child)
{
    char attributes[64]; /* the kernel's struct termios */
    if (fns_sys3(__NR_ioctl, 0, TCGETS, attributes) >= 0)
        return 0;
    long result = fns_sys0(__NR_setsid);
    return result < 0 ? fns_child_failed(child, FNS_STAGE_SESSION, result) : 0;
}

int fns_change_directory(struct fns_child *child)
{
    char now[FNS_PATH_SIZE];
    if (!child->args->cwd)
        return 0;
    long result = fns_sys1(__NR_chdir, child->args->cwd);
    if (result >= 0)
        result = fns_sys2(__NR_getcwd, now, sizeof now);
    /* The magic link of a passed fd can lead out of the root: getcwd(2) then does not begin with "/". */
    if (result >= 0 && now[0] != '/')
        result = -ENOENT;
    return result < 0 ? fns_child_failed(child, FNS_STAGE_CHDIR, result) : 0;
}

/* Retries on ETXTBSY: a process that another thread of the caller has forked may have the file open for writing
 * until it executes. */
static int try_path(const struct fns_args *args, const char *path)
{
    const int64_t pause[2] = {0, BUSY_PAUSE_NS};
    int result = -ETXTBSY;
    for (int tries = 0; result == -ETXTBSY && tries < BUSY_TRIES; tries++) {
        if (tries)
            FNS_IGNORE(fns_sys2(__NR_nanosleep, pause, 0), "a shorter pause does no harm");
        result = (int)fns_sys3(__NR_execve, path, args->argv, args->envp);
    }
    return result;
}

/* Tries the paths in order, as execvp(3) does. Returns -EACCES only if no later path is found. */
static int try_paths(struct fns_child *child)
{
    int denied = 0, result = -ENOENT;
    for (char *const *path = child->args->paths; *path; path++) {
        result = try_path(child->args, *path);
        if (result == -ENOENT && fns_sys4(__NR_faccessat, AT_FDCWD, *path, 0, 0) == 0) {
            child->error.detail = FNS_DETAIL_FOUND;
            return result;
        }
        if (result != -EACCES && result != -ENOENT && result != -ENOTDIR)
            return result;
        denied |= result == -EACCES;
    }
    return denied ? -EACCES : result;
}

void fns_execute(struct fns_child *child)
{
    child->executed = fns_clock(); /* a filter may refuse the call */
    if (fns_run_last_ops(child) == 0)
        fns_execute_command(child);
}

void fns_execute_command(struct fns_child *child)
{
    const uint64_t none = 0;
    child->progress = FNS_PROGRESS_EXEC; /* from here a fatal signal counts as the command's end */
    /* Signals were blocked until now, so that a signal to the process group could not end the start halfway. */
    long result = fns_sys4(__NR_rt_sigprocmask, FNS_SIG_SETMASK, &none, 0, FNS_SIGSET_SIZE);
    if (result < 0)
        fns_child_failed(child, FNS_STAGE_SIGNALS, result);
    else
        fns_child_failed(child, FNS_STAGE_EXEC, try_paths(child));
}

int fns_close_but(int a, int b, int c)
{
    const int fds[3] = {a, b, c};
    int first = 3;
    for (;;) {
        int next = 0; /* the lowest fd still to keep */
        for (int i = 0; i < 3; i++)
            if (fds[i] >= first && (!next || fds[i] < next))
                next = fds[i];
        if (!next)
            return (int)fns_sys3(__NR_close_range, first, ~0u, 0);
        long result = next > first ? fns_sys3(__NR_close_range, first, next - 1, 0) : 0;
        if (result < 0)
            return (int)result;
        first = next + 1;
    }
}
