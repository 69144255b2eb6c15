/* The clone of a start, and the waits of a start. Runs in the caller, without the GIL.
 *
 * The child shares the caller's memory (CLONE_VM), so the cost of a clone does not grow with that memory. The
 * calling thread waits until the child has executed the program or has ended. This is safe: the child has its own
 * stack with a guard page; all signals are blocked until its exec, so no handler of the caller runs in it; and it makes
 * raw system calls only (border.c). CLONE_VFORK is no alternative: while the child is stopped or waits for a file
 * system, neither a time limit nor Ctrl-C would end the caller's wait.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "border/border.h"
#include "shared/sys.h"
#include "spawn.h"

enum {
    STACK_SIZE = 64 * 1024,
    GUARD_SIZE = 64 * 1024, /* the largest page size */
    MAX_STACKS = 32,
};
#define FIRST_LOOK_NS 500000u
#define LAST_LOOK_NS 10000000u

/* ---- stacks ----------------------------------------------------------------------------------- */

/* Free stacks. Swapped atomically instead of under a lock, which a fork could copy while it is held. */
static _Atomic(char *) stacks[MAX_STACKS];

char *fns_take_stack(void)
{
    for (int i = 0; i < MAX_STACKS; i++) {
        char *stack = atomic_load_explicit(&stacks[i], memory_order_relaxed);
        if (stack && (stack = atomic_exchange(&stacks[i], NULL)))
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

void fns_give_stack(char *stack)
{
    for (int i = 0; i < MAX_STACKS; i++) {
        char *empty = NULL;
        if (atomic_compare_exchange_strong(&stacks[i], &empty, stack))
            return;
    }
    munmap(stack, GUARD_SIZE + STACK_SIZE);
}

long fns_block_signals(uint64_t mask, uint64_t *before)
{
    /* A raw call: libc's sigprocmask() never blocks the two signals that libc uses itself. */
    return fns_sys4(__NR_rt_sigprocmask, FNS_SIG_BLOCK, &mask, before, FNS_SIGSET_SIZE);
}

void fns_restore_signals(uint64_t before)
{
    long result = -EINTR;
    for (int tries = 0; result < 0 && tries < FNS_TRIES; tries++)
        result = fns_sys4(__NR_rt_sigprocmask, FNS_SIG_SETMASK, &before, 0, FNS_SIGSET_SIZE);
}

/* ---- the clone -------------------------------------------------------------------------------- */

long fns_clone_on(char *stack, struct fns_clone_args *args, int (*fn)(void *), void *arg)
{
    uint64_t before;
    long pid = fns_block_signals(~0ull, &before);
    if (pid < 0)
        return pid;
    args->flags |= FNS_CLONE_VM | FNS_CLONE_PIDFD;
    args->stack = (uintptr_t)stack + GUARD_SIZE;
    args->stack_size = STACK_SIZE;
    pid = fns_clone_call(args, fn, arg);
    fns_restore_signals(before);
    return pid;
}

/* Waits until the child has left this memory. If its time is over (-ETIME) or the caller gives up (-EINTR), kills the
 * child and goes on waiting. */
static int await_leaving(volatile uint32_t *here, int pidfd, struct fns_deadline *deadline)
{
    int ret = 0;
    while (__atomic_load_n(here, __ATOMIC_ACQUIRE)) {
        const struct timespec time = fns_step(deadline);
        long waited = fns_sys4(__NR_futex, here, 0 /* FUTEX_WAIT */, 1, &time);
        if (ret == 0)
            ret = fns_over(deadline, waited == -EINTR);
        if (ret < 0) {
            fns_kill_by(pidfd);
            deadline->end = 0;
        }
    }
    return ret;
}

long fns_clone(struct fns_border *border, uint64_t namespaces, int into,
               struct fns_deadline *deadline, int *pidfd, int *gave_up)
{
    volatile uint32_t here = 1; /* set to 0 by the kernel when the child has left this memory */
    struct fns_clone_args args = {
        .flags = namespaces | FNS_CLONE_CHILD_CLEARTID | (into >= 0 ? FNS_CLONE_INTO_CGROUP : 0),
        .pidfd = (uintptr_t)pidfd,
        .child_tid = (uintptr_t)&here,
        .exit_signal = FNS_SIGCHLD,
        .cgroup = into >= 0 ? (uint64_t)into : 0,
    };
    char *stack = fns_take_stack();
    if (!stack)
        return -ENOMEM;
    long pid = fns_clone_on(stack, &args, fns_border_main, border);
    *gave_up = pid < 0 ? 0 : await_leaving(&here, *pidfd, deadline);
    fns_give_stack(stack);
    return pid;
}

/* ---- ending a process ------------------------------------------------------------------------- */

void fns_kill_by(int pidfd)
{
    long result = -EINTR;
    for (int tries = 0; result < 0 && result != -ESRCH && tries < FNS_TRIES; tries++)
        result = fns_sys4(__NR_pidfd_send_signal, pidfd, FNS_SIGKILL, 0, 0);
}

void fns_end(int pidfd)
{
    siginfo_t info = {.si_code = 0};
    long ret;
    int tries = 0;
    fns_kill_by(pidfd);
    do
        ret = fns_sys5(__NR_waitid, P_PIDFD, pidfd, &info, WEXITED | __WALL, 0);
    while (ret == -EINTR || (ret == 0 && info.si_code >= FNS_CLD_TRAPPED) ||
           (ret < 0 && ret != -ECHILD && ++tries < FNS_TRIES));
}

void fns_discard(int pidfd)
{
    fns_end(pidfd);
    close(pidfd);
}

/* ---- waits ------------------------------------------------------------------------------------ */

static int (*wants_to_give_up)(void);

void fns_set_interrupted(int (*interrupted)(void))
{
    wants_to_give_up = interrupted;
}

struct timespec fns_step(const struct fns_deadline *deadline)
{
    uint64_t now = deadline->end ? fns_now() : 0, left = FNS_LOOK_NS;
    if (deadline->end && deadline->end < now + left)
        left = deadline->end > now ? deadline->end - now : 0;
    return fns_timespec(left);
}

int fns_over(struct fns_deadline *deadline, int signalled)
{
    uint64_t now = fns_now();
    if (deadline->end && now >= deadline->end)
        return -ETIME;
    if (deadline->next == 0)
        deadline->next = now + FNS_LOOK_NS;
    if (!signalled && now < deadline->next)
        return 0;
    deadline->next = now + FNS_LOOK_NS;
    return wants_to_give_up && wants_to_give_up() ? -EINTR : 0;
}

int fns_over_kills(struct fns_deadline *deadline, int signalled, struct fns_process *process)
{
    int ret = fns_over(deadline, signalled);
    if (ret != -ETIME)
        return ret;
    fns_kill_by(process->pidfd);
    process->timed_out = 1;
    deadline->end = 0;
    return 0;
}

int fns_executed(int fd, struct fns_process *process, struct fns_deadline *deadline)
{
    int ret;
    long pause = FIRST_LOOK_NS;
    /* F_SETLKW could wait forever, and would miss a signal that came just before it. Usually the end of the pipe ends
     * this wait. The lock is polled as well, in case another process holds the pipe open. */
    while ((ret = fns_is_locked(fd)) > 0) {
        struct pollfd fds[2] = {{.fd = fd},
                                {.fd = process ? process->pidfd : -1, .events = POLLIN}};
        struct timespec time = fns_step(deadline);
        if (time.tv_nsec > pause)
            time.tv_nsec = pause;
        int n = ppoll(fds, 2, &time, NULL);
        if (n == 0 && pause < LAST_LOOK_NS)
            pause *= 2;
        ret = process ? fns_over_kills(deadline, n < 0, process) : fns_over(deadline, n < 0);
        if (ret < 0)
            break;
    }
    return ret;
}
