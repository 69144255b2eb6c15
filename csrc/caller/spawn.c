/* The clone of a start, and the waits of one. Runs in the parent, without the GIL.
 *
 * The clone shares memory with the child (CLONE_VM), so that its cost does not grow with the caller's,
 * and the parent sleeps until the child has executed the program or ended. What makes that safe: the child
 * has a stack of its own with a guard page; it has all signals blocked until that exec, so no handler of
 * the caller ever runs in the child; the child makes raw system calls only (border.c). Not CLONE_VFORK:
 * neither a time limit nor Ctrl-C would end that sleep while the child is stopped or waits for a file
 * system.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "border/border.h"
#include "shared/sys.h"
#include "spawn.h"

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

/* `here`: 1. When the child has left this memory, the kernel makes it 0 and wakes who waits for that.
 * `into`: the directory of a cgroup for the child; -1: none. */
static long clone_any(uint64_t flags, char *stack, int *pidfd, volatile uint32_t *here, int into,
                      struct fns_border *border)
{
    long ret = -ENOSYS;
    if (!atomic_load_explicit(&no_clone3, memory_order_relaxed)) {
        struct fns_clone_args args = {
            .flags = flags | (into >= 0 ? FNS_CLONE_INTO_CGROUP : 0),
            .pidfd = (uintptr_t)pidfd,
            .child_tid = (uintptr_t)here,
            .exit_signal = FNS_SIGCHLD,
            .stack = (uintptr_t)stack,
            .stack_size = STACK_SIZE,
            .cgroup = into >= 0 ? (uint64_t)into : 0,
        };
        ret = fns_sys_clone_call(__NR_clone3, (long)&args, sizeof args, 0, 0, 0, fns_border_main,
                                 border);
        if (ret == -ENOSYS)
            atomic_store(&no_clone3, 1);
    }
    /* clone(2) has no bit for CLONE_NEWTIME: that bit is part of its exit signal. Nor one for a cgroup. */
    if (ret == -ENOSYS && into < 0 && !(flags & FNS_CLONE_NEWTIME))
        ret =
            fns_sys_clone_call(__NR_clone, (long)(flags | FNS_SIGCHLD), (long)(stack + STACK_SIZE),
                               (long)pidfd, FNS_CLONE_TLS_LAST ? (long)here : 0,
                               FNS_CLONE_TLS_LAST ? 0 : (long)here, fns_border_main, border);
    return ret;
}

int fns_clones_into_cgroups(void)
{
    return !atomic_load_explicit(&no_clone3, memory_order_relaxed);
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

long fns_clone(struct fns_border *border, uint64_t namespaces, int into, uint64_t end, int *pidfd,
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
                        stack + GUARD_SIZE, pidfd, &here, into, border);
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
    while ((ret = fns_is_locked(fd)) > 0) {
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
