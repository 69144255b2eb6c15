/* The reaper: pid 1 of a sandbox whose command is its child. Runs in the program, with FNS_PLAN_INIT. */
#include "program.h"

enum {
    STACK_SIZE = 32768,
    SIGNAL_EXIT = 128 /* added to a signal's number in the exit status, as shells do */
};

/* Shared with the command's process until its exec. Both words start as 1. */
struct command {
    struct fns_child *child;
    volatile uint32_t blocked; /* 0: the command's process may continue */
    volatile uint32_t present; /* 0: it has left this memory (CLONE_CHILD_CLEARTID) */
};

/* Without FUTEX_PRIVATE_FLAG, because the wake-up for CLONE_CHILD_CLEARTID has none either
 * (set_tid_address(2)). */
static void await_zero(volatile uint32_t *word)
{
    while (__atomic_load_n(word, __ATOMIC_SEQ_CST))
        FNS_IGNORE(fns_sys4(__NR_futex, word, FUTEX_WAIT, 1, 0), "the word is read again");
}

static int command_main(void *arg)
{
    struct command *command = arg;
    await_zero(&command->blocked);
    if (fns_change_directory(command->child) == 0)
        fns_execute(command->child);
    return FNS_EXIT_FAILED;
}

/* Drops the reaper's capabilities and closes its fds. With the fds open here, whoever reads the command's pipes
 * would not see end of file when the command closes them. */
static long give_up_rights(const struct fns_start *start)
{
    const struct fns_capabilities none = {0, 0, 0};
    long result = fns_capset(&none);
    if (result >= 0)
        result = fns_sys3(__NR_close_range, 0, 2, 0);
    if (result >= 0)
        result = fns_close_but((int)start->numbers.control, (int)start->numbers.status, 0);
    return result;
}

/* Starts the command's process. It has its own fds and capabilities, and waits until this process has given up
 * its own. Returns after the exec, or a failure: the pid, or -errno. */
static long start_command(struct fns_start *start)
{
    static char stack[STACK_SIZE] __attribute__((aligned(16)));
    struct command command = {.child = &start->child, .blocked = 1, .present = 1};
    long word = (long)&command.present;
    long pid = fns_sys_clone_call(__NR_clone, FNS_CLONE_VM | FNS_CLONE_CHILD_CLEARTID | FNS_SIGCHLD,
                                  (long)(stack + sizeof stack), 0, FNS_CLONE_TLS_LAST ? word : 0,
                                  FNS_CLONE_TLS_LAST ? 0 : word, command_main, &command);
    if (pid < 0)
        return pid;
    long result = give_up_rights(start);
    __atomic_store_n(&command.blocked, result < 0, __ATOMIC_SEQ_CST);
    if (result >= 0)
        result = fns_sys4(__NR_futex, &command.blocked, FUTEX_WAKE, 1, 0);
    if (result < 0)
        return result;
    await_zero(&command.present);
    return pid;
}

/* Reports how the command ended, and exits with the corresponding status. */
static _Noreturn void end_with_command(const struct fns_start *start,
                                       const struct fns_siginfo *info)
{
    const struct fns_message message = {
        .kind = FNS_MESSAGE_EXITED, .value = info->code, .status = info->status};
    long sent = fns_send((int)start->numbers.control, &message, -1, 0);
    if (sent < 0) /* without EXITED, the caller reads errno from the exit status */
        fns_quit((int)-sent);
    fns_quit(info->code == FNS_CLD_EXITED ? info->status : SIGNAL_EXIT + info->status);
}

/* Reaps every process that has ended. */
static void reap(const struct fns_start *start, long pid)
{
    for (int failed = 0;;) {
        struct fns_siginfo info;
        info.pid = 0;
        long result = fns_sys5(__NR_waitid, P_ALL, 0, &info, WNOHANG | WEXITED, 0);
        if (result == -ECHILD || (result == 0 && info.pid == 0))
            return;
        if (result < 0 && ++failed == FNS_TRIES) /* the command's end would go unnoticed */
            fns_quit((int)-result);
        if (result == 0 && info.pid == pid && info.code < FNS_CLD_TRAPPED)
            end_with_command(start, &info);
    }
}

_Noreturn void fns_run_init(struct fns_start *start)
{
    const uint64_t all = ~0ull;
    struct fns_child *child = &start->child;
    long pid = start_command(start);
    if (pid < 0)
        fns_start_fail(start, FNS_STAGE_INIT, pid);
    if (child->progress == FNS_PROGRESS_SETUP) /* it was killed */
        child->error = FNS_KILLED(FNS_STAGE_INIT);
    if (child->progress != FNS_PROGRESS_EXEC)
        fns_start_failed(start);
    FNS_IGNORE(fns_sys2(__NR_munmap, start->packed, start->numbers.plan_size),
               "it only costs memory");
    fns_hide_arguments(start);
    fns_report_running(start);
    fns_close((int)start->numbers.status);
    for (;;) {
        struct fns_siginfo info;
        long sig = fns_sys4(__NR_rt_sigtimedwait, &all, &info, 0, FNS_SIGSET_SIZE);
        /* A signal from a terminal (SI_KERNEL) has already reached the whole foreground group. */
        if (sig > 0 && sig != FNS_SIGCHLD && info.code != FNS_SI_KERNEL)
            FNS_IGNORE(fns_sys2(__NR_kill, pid, sig), "the command may have ended");
        reap(start, pid);
    }
}
