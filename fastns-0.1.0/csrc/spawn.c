/* Starting a sandbox: stacks, the signal mask, the clone. Runs in the parent, without the GIL.
 *
 * The clone shares memory with the child (CLONE_VM), so that its cost does not grow with the caller's,
 * and the parent sleeps until the child has executed or ended. What makes that safe: the child has a
 * stack of its own with a guard page; it starts with all signals blocked and sets every handler to
 * default before it unblocks them, so no handler of the caller ever runs in the child; the child makes
 * raw system calls only (child.c). Not CLONE_VFORK: neither a time limit nor Ctrl-C would end that sleep
 * while the child is stopped or waits for a file system.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "message.h"
#include "spawn.h"
#include "sys.h"

#define STACK_SIZE (64 * 1024)
#define GUARD_SIZE (64 * 1024) /* the largest page there is */
#define POOL_SIZE 32
#define FIRST_LOOK_NS 500000
#define LAST_LOOK_NS 10000000

/* Stacks that are not in use. Slots are swapped atomically: no lock that a fork could copy held. */
static _Atomic(char *) pool[POOL_SIZE];

static char *take_stack(void)
{
    for (int i = 0; i < POOL_SIZE; i++) {
        char *stack = atomic_load_explicit(&pool[i], memory_order_relaxed);
        if (stack && (stack = atomic_exchange(&pool[i], NULL)))
            return stack;
    }
    char *stack = mmap(NULL, GUARD_SIZE + STACK_SIZE, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED)
        return NULL;
    if (mprotect(stack, GUARD_SIZE, PROT_NONE) < 0) {
        munmap(stack, GUARD_SIZE + STACK_SIZE);
        return NULL;
    }
    return stack;
}

static void give_stack(char *stack)
{
    for (int i = 0; i < POOL_SIZE; i++) {
        char *empty = NULL;
        if (atomic_compare_exchange_strong(&pool[i], &empty, stack))
            return;
    }
    munmap(stack, GUARD_SIZE + STACK_SIZE);
}

/* Whether clone3 answered ENOSYS: once is enough (old kernel, or a filter around this process). */
static atomic_int no_clone3;

/* `here`: 1. When the child has left this memory, the kernel makes it 0 and wakes who waits for that. */
static long clone_any(uint64_t flags, char *stack, int *pidfd, volatile uint32_t *here,
                      struct fns_child *child)
{
    int into = (int)child->args->clone_into;
    long ret = -ENOSYS;
    if (!atomic_load_explicit(&no_clone3, memory_order_relaxed)) {
        struct fns_clone_args args = {
            .flags = flags,
            .pidfd = (uintptr_t)pidfd,
            .child_tid = (uintptr_t)here,
            .exit_signal = FNS_SIGCHLD,
            .stack = (uintptr_t)stack,
            .stack_size = STACK_SIZE,
        };
        if (into) {
            args.flags |= FNS_CLONE_INTO_CGROUP;
            args.cgroup = (uint64_t)child->args->groups[child->args->n_groups - 1];
        }
        child->entered = into;
        ret = fns_sys_clone_call(__NR_clone3, (long)&args, sizeof args, 0, 0, 0, fns_child_main,
                                 child);
        if (ret == -ENOSYS)
            atomic_store(&no_clone3, 1);
    }
    if (ret != -ENOSYS)
        return ret;
    child->entered = 0;
    /* clone(2) has no bit for CLONE_NEWTIME: that bit is part of its exit signal. */
    if (!(flags & FNS_CLONE_NEWTIME))
        ret =
            fns_sys_clone_call(__NR_clone, (long)(flags | FNS_SIGCHLD), (long)(stack + STACK_SIZE),
                               (long)pidfd, FNS_CLONE_TLS_LAST ? (long)here : 0,
                               FNS_CLONE_TLS_LAST ? 0 : (long)here, fns_child_main, child);
    return ret;
}

long fns_block_signals(uint64_t *before)
{
    const uint64_t all = ~0ull;
    /* libc's sigprocmask() never blocks its two internal signals; the raw call does. */
    return fns_sys4(__NR_rt_sigprocmask, FNS_SIG_SETMASK, &all, before, FNS_SIGSET_SIZE);
}

long fns_block_signal(int signal, uint64_t *before)
{
    const uint64_t one = 1ull << (signal - 1);
    return fns_sys4(__NR_rt_sigprocmask, FNS_SIG_BLOCK, &one, before, FNS_SIGSET_SIZE);
}

void fns_restore_signals(uint64_t before)
{
    long result = -EINTR;
    for (int tries = 0; result < 0 && tries < FNS_TRIES; tries++)
        result = fns_sys4(__NR_rt_sigprocmask, FNS_SIG_SETMASK, &before, 0, FNS_SIGSET_SIZE);
}

/* Waits until the child has left this memory. Kills it when its time is over (-ETIME) or the caller gives up
 * (-EINTR), and waits for it even then. */
static int await_leaving(volatile uint32_t *here, int pidfd, uint64_t end)
{
    uint64_t next = 0;
    int ret = 0;
    while (__atomic_load_n(here, __ATOMIC_ACQUIRE)) {
        uint64_t now = end ? fns_now() : 0, left = FNS_LOOK_NS;
        if (end && ret == 0)
            left = now >= end ? 0 : end - now < left ? end - now : left;
        const struct timespec time = {(time_t)(left / 1000000000u), (long)(left % 1000000000u)};
        long waited = fns_sys4(__NR_futex, here, 0 /* FUTEX_WAIT */, 1, &time);
        if (ret == 0 && end && now >= end)
            ret = -ETIME;
        if (ret == 0 && fns_interrupted(&next, waited == -EINTR))
            ret = -EINTR;
        if (ret < 0)
            fns_kill_by(pidfd);
    }
    return ret;
}

/* The pid of a child that has executed or ended; -errno. */
static long clone_child(struct fns_child *child, uint64_t namespaces, uint64_t end, int *pidfd,
                        int *gave_up)
{
    volatile uint32_t here = 1;
    uint64_t before;
    char *stack = take_stack();
    if (!stack)
        return -ENOMEM;
    long pid = fns_block_signals(&before);
    if (pid >= 0) {
        pid = clone_any(FNS_CLONE_VM | FNS_CLONE_CHILD_CLEARTID | FNS_CLONE_PIDFD | namespaces,
                        stack + GUARD_SIZE, pidfd, &here, child);
        fns_restore_signals(before);
    }
    *gave_up = pid < 0 ? 0 : await_leaving(&here, *pidfd, end);
    give_stack(stack);
    return pid;
}

void fns_kill_by(int pidfd)
{
    long result = -EINTR;
    for (int tries = 0; result < 0 && result != -ESRCH && tries < FNS_TRIES; tries++)
        result = fns_sys4(__NR_pidfd_send_signal, pidfd, FNS_SIGKILL, 0, 0);
}

void fns_discard(int pidfd)
{
    siginfo_t info = {.si_code = 0};
    long ret;
    int tries = 0;
    fns_kill_by(pidfd);
    do
        ret = fns_sys5(__NR_waitid, P_PIDFD, pidfd, &info, WEXITED | __WALL, 0);
    while (ret == -EINTR || (ret == 0 && info.si_code >= FNS_CLD_TRAPPED) ||
           (ret < 0 && ret != -ECHILD && ++tries < FNS_TRIES));
    close(pidfd);
}

long fns_run_child(struct fns_child *child, uint64_t namespaces, uint64_t end, int *pidfd,
                   struct fns_error *error)
{
    int gave_up;
    long pid = clone_child(child, namespaces, end, pidfd, &gave_up);
    if (pid < 0)
        return fns_set_error(error, FNS_STAGE_CLONE, -1, (int)pid);
    if (gave_up == 0 && child->progress == FNS_PROGRESS_EXEC)
        return pid;
    fns_discard(*pidfd);
    *pidfd = -1;
    if (gave_up < 0)
        return fns_set_error(error, FNS_STAGE_CLONE, -1, gave_up);
    *error = child->error;
    if (child->progress == FNS_PROGRESS_SETUP) { /* no error recorded: killed on the way */
        fns_set_error(error, FNS_STAGE_CLONE, -1, ECANCELED);
        error->detail = FNS_DETAIL_KILLED;
    }
    return -error->err;
}

int fns_keep_more(struct fns_args *to, const struct fns_args *from, const int *fds, int n_fds)
{
    uint32_t n_known = from->n_keep + from->n_groups, n = n_known + (uint32_t)n_fds;
    int *keep = malloc(n * sizeof *keep);
    if (!keep)
        return -ENOMEM;
    for (uint32_t i = 0; i < n; i++) { /* insertion keeps the list ascending */
        int fd = i < from->n_keep ? from->keep[i]
                 : i < n_known    ? from->groups[i - from->n_keep]
                                  : fds[i - n_known];
        uint32_t at = i;
        for (; at > 0 && keep[at - 1] > fd; at--)
            keep[at] = keep[at - 1];
        keep[at] = fd;
    }
    to->keep = keep;
    to->n_keep = n;
    return 0;
}

static size_t count(char *const *items)
{
    size_t n = 0;
    while (items[n])
        n++;
    return n;
}

/* What the exec program is told: as decimal numbers. */
struct exec_numbers {
    char news[12], userns[12], late[12];
};

/* Whether the working directory is the exec program's to enter, with the ids of the command. */
static int changes_ids_late(const struct fns_plan *plan)
{
    return plan->late && plan->late->n_ops && plan->late->ops[0].code < FNS_OP_LAST;
}

/* The exec program's argv: see exec.c. */
static char **exec_argv(const struct fns_plan *plan, const struct fns_args *args,
                        struct exec_numbers *numbers)
{
    size_t n_paths = count(args->paths), n_argv = count(args->argv);
    char **argv = malloc((n_paths + n_argv + 7) * sizeof *argv), **at = argv;
    if (!argv)
        return NULL;
    *at++ = (char *)"fastns-exec";
    *at++ = numbers->news;
    *at++ = numbers->userns;
    *at++ = numbers->late;
    *at++ = (char *)(changes_ids_late(plan) && args->cwd ? args->cwd : "");
    for (size_t i = 0; i < n_paths; i++)
        *at++ = args->paths[i];
    *at++ = (char *)"";
    for (size_t i = 0; i <= n_argv; i++)
        *at++ = args->argv[i];
    return argv;
}

int fns_time_left(const struct fns_process *process, uint64_t time_ns)
{
    uint64_t spent = fns_now() - process->start;
    if (spent >= time_ns)
        return 0;
    return time_ns - spent < 999999999 ? (int)(time_ns - spent) : 999999999;
}

int fns_keep_time(struct fns_process *process, uint64_t time_ns)
{
    if (time_ns == 0 || process->late)
        return -1;
    int left = fns_time_left(process, time_ns);
    if (left > 0)
        return left;
    fns_kill_by(process->pidfd);
    process->late = 1;
    return -1;
}

/* ---- giving up ------------------------------------------------------------------------------- */

static int (*wants_to_give_up)(void);

void fns_set_interrupted(int (*interrupted)(void))
{
    wants_to_give_up = interrupted;
}

int fns_interrupted(uint64_t *next, int signalled)
{
    uint64_t now = fns_now();
    if (*next == 0)
        *next = now + FNS_LOOK_NS;
    if (!signalled && now < *next)
        return 0;
    *next = now + FNS_LOOK_NS;
    return wants_to_give_up && wants_to_give_up();
}

int fns_executed(int fd, struct fns_process *process, uint64_t time_ns)
{
    int ret, pause = FIRST_LOOK_NS;
    uint64_t next = 0;
    /* F_SETLKW would wait for ever, and miss a signal that came just before. Usually the end of the pipe ends
     * this wait; if something else holds the pipe open, the lock is tried again. */
    while ((ret = fns_lock(fd, F_SETLK, F_RDLCK)) == -EINTR || ret == -EAGAIN || ret == -EACCES) {
        int left = fns_keep_time(process, time_ns);
        struct pollfd fds[2] = {{.fd = fd},
                                {.fd = process ? process->pidfd : -1, .events = POLLIN}};
        struct timespec time = {0, left >= 0 && left < pause ? left : pause};
        int n = ppoll(fds, 2, &time, NULL);
        if (n == 0 && pause < LAST_LOOK_NS)
            pause *= 2;
        if (fns_interrupted(&next, n < 0))
            return -EINTR;
    }
    return ret;
}

int fns_believe_error(const struct fns_plan *plan, const struct fns_error *said,
                      struct fns_error *error)
{
    uint32_t n_ops = plan->n_ops + (plan->late ? plan->late->n_ops : 0);
    if (said->stage == FNS_STAGE_NONE || said->stage >= FNS_STAGE_COUNT || said->op_index < -1 ||
        (said->op_index >= 0 && (uint32_t)said->op_index >= n_ops) || said->err <= 0)
        return fns_set_error(error, FNS_STAGE_HELPER, -1, EPROTO);
    *error = *said;
    return -error->err;
}

int fns_hear_exec(const struct fns_plan *plan, int news, struct fns_process *process,
                  uint64_t time_ns, struct fns_error *error)
{
    struct fns_error said;
    int ret = fns_executed(news, process, time_ns);
    if (ret < 0)
        return fns_set_error(error, FNS_STAGE_HELPER, -1, ret);
    long n = fns_read(news, &said, sizeof said);
    if (n < 0 && n != -EAGAIN) /* EAGAIN: nothing, and another process holds the pipe open */
        return fns_set_error(error, FNS_STAGE_HELPER, -1, (int)n);
    return n == sizeof said ? fns_believe_error(plan, &said, error) : 0;
}

static unsigned late_offset(const struct fns_plan *plan)
{
    return (unsigned)(plan->image_size - sizeof(struct fns_late) -
                      plan->late->n_ops * sizeof *plan->late->ops - plan->late->n_strings);
}

static int exec_file(const struct fns_plan *plan)
{
    return plan->late ? fns_memory_file(plan->image, plan->image_size, MFD_EXEC)
                      : fns_program_file(FNS_PROGRAM_EXEC);
}

/* The child shares this process' memory until it executes, and with it /proc/self/exe: were the
 * command that link, this very program would start inside the root, with the root's own loader
 * (CVE-2019-5736). So it executes exec.c's program from memory, and that the command. */
static int spawn_direct(const struct fns_plan *plan, const struct fns_args *args, uint64_t time_ns,
                        struct fns_process *process, struct fns_error *error)
{
    struct fns_args exec_args = *args;
    struct exec_numbers numbers;
    int news[2] = {-1, -1}, fds[2] = {-1, -1}, pidfd = -1, ret;
    exec_args.argv = NULL;
    exec_args.keep = NULL;
    if (pipe2(news, O_CLOEXEC | O_NONBLOCK) < 0)
        return fns_set_error(error, FNS_STAGE_HELPER, -1, errno);
    fds[0] = fns_above_stdio(news[1]);
    /* The child keeps 0, 1 and 2: closed by its first exec, a reading end there would drop the lock. */
    news[0] = fns_above_stdio(news[0]);
    if (news[0] < 0 && fds[0] >= 0) {
        close(fds[0]);
        fds[0] = news[0];
    }
    fds[1] = fds[0] < 0 ? fds[0] : exec_file(plan);
    const int kept[3] = {fds[0], fds[1], args->userns};
    ret = fds[1] < 0 ? fds[1] : fns_keep_more(&exec_args, args, kept, args->userns ? 3 : 2);
    if (ret == 0) {
        snprintf(numbers.news, sizeof numbers.news, "%d", fds[0]);
        snprintf(numbers.userns, sizeof numbers.userns, "%d", args->userns);
        snprintf(numbers.late, sizeof numbers.late, "%u", plan->late ? late_offset(plan) : 0);
        exec_args.argv = exec_argv(plan, args, &numbers);
        ret = exec_args.argv ? 0 : -ENOMEM;
    }
    if (changes_ids_late(plan))
        exec_args.cwd = NULL;
    if (ret < 0) {
        fns_set_error(error, FNS_STAGE_HELPER, -1, ret);
    } else {
        struct fns_child child = FNS_CHILD(plan, &exec_args, fds[1], fds[0]);
        long pid =
            fns_run_child(&child, plan->clone_flags, fns_end_of(process, time_ns), &pidfd, error);
        process->pid = (int)pid;
        process->pidfd = pidfd;
        ret = pid < 0 ? (int)pid : 0;
        process->late = ret == -ETIME;
    }
    for (int i = 0; i < 2; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    free((void *)exec_args.keep);
    free((void *)exec_args.argv);
    if (ret == 0) {
        ret = fns_hear_exec(plan, news[0], process, time_ns, error);
        if (ret < 0)
            fns_discard(pidfd);
    }
    if (news[0] >= 0)
        close(news[0]);
    if (ret < 0) {
        process->pid = process->pidfd = -1;
        return ret;
    }
    struct rusage own;
    getrusage(RUSAGE_SELF, &own);
    process->rss_floor = own.ru_maxrss;
    return 0;
}

int fns_spawn(const struct fns_plan *plan, const struct fns_args *args, uint64_t time_ns,
              struct fns_process *process, struct fns_error *error)
{
    *error = (struct fns_error){.op_index = -1};
    *process = (struct fns_process){.pid = -1, .pidfd = -1, .control = -1, .start = fns_now()};
    int saved = errno;
    int ret = plan->options & FNS_PLAN_STAGED
                  ? fns_spawn_staged(plan, args, time_ns, process, error)
                  : spawn_direct(plan, args, time_ns, process, error);
    errno = saved;
    return ret;
}
