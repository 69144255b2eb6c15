/* Starting a sandbox: stacks, the signal mask, the clone. Runs in the parent, without the GIL.
 *
 * The clone shares memory with the child (CLONE_VM) and sleeps until the child has executed or ended
 * (CLONE_VFORK), so that its cost does not grow with the caller's memory. What makes that safe: the
 * child has a stack of its own with a guard page; all signals are blocked from before the clone to
 * after it, and the child sets every handler to default before it unblocks them, so no handler of
 * the caller ever runs in the child; the child makes raw system calls only (child.c).
 */
#include "spawn.h"

#include <errno.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sys.h"

#define STACK_SIZE (64 * 1024)
#define GUARD_SIZE 4096
#define POOL_SIZE 32

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

static long clone_any(uint64_t flags, char *stack, int *pidfd, struct fns_child *child)
{
    long ret = -ENOSYS;
    if (!atomic_load_explicit(&no_clone3, memory_order_relaxed)) {
        struct fns_clone_args args = {
            .flags = flags,
            .pidfd = (uintptr_t)pidfd,
            .exit_signal = FNS_SIGCHLD,
            .stack = (uintptr_t)stack,
            .stack_size = STACK_SIZE,
        };
        ret = fns_sys_clone_call(__NR_clone3, (long)&args, sizeof args, 0, 0, 0, fns_child_main,
                                 child);
        if (ret == -ENOSYS)
            atomic_store(&no_clone3, 1);
    }
    /* clone(2) has no bit for CLONE_NEWTIME: that bit is part of its exit signal. */
    if (ret == -ENOSYS && !(flags & FNS_CLONE_NEWTIME))
        ret =
            fns_sys_clone_call(__NR_clone, (long)(flags | FNS_SIGCHLD), (long)(stack + STACK_SIZE),
                               (long)pidfd, 0, 0, fns_child_main, child);
    return ret;
}

long fns_clone_child(struct fns_child *child, uint64_t namespaces, int *pidfd)
{
    const uint64_t all = ~0ull;
    uint64_t before;
    char *stack = take_stack();
    if (!stack)
        return -ENOMEM;
    /* The raw call: libc's own leaves its two internal signals unblocked. */
    fns_sys4(__NR_rt_sigprocmask, FNS_SIG_SETMASK, &all, &before, FNS_SIGSET_SIZE);
    long pid = clone_any(FNS_CLONE_VM | FNS_CLONE_VFORK | FNS_CLONE_PIDFD | namespaces,
                         stack + GUARD_SIZE, pidfd, child);
    fns_sys4(__NR_rt_sigprocmask, FNS_SIG_SETMASK, &before, 0, FNS_SIGSET_SIZE);
    give_stack(stack);
    return pid;
}

void fns_discard(int pidfd)
{
    siginfo_t info;
    long ret;
    fns_sys4(__NR_pidfd_send_signal, pidfd, FNS_SIGKILL, 0, 0);
    do
        ret = fns_sys5(__NR_waitid, P_PIDFD, pidfd, &info, WEXITED | __WALL, 0);
    while (ret == -EINTR);
    close(pidfd);
}

static int spawn_direct(const struct fns_plan *plan, const struct fns_args *args,
                        struct fns_process *process, struct fns_error *error)
{
    struct fns_child child = {
        .plan = plan,
        .args = args,
        .error = {.op_index = -1},
        .exec_fd = -1,
        .root = -1,
        .scratch = -1,
    };
    int pidfd = -1;
    long pid = fns_clone_child(&child, plan->clone_flags, &pidfd);
    if (pid < 0)
        return fns_set_error(error, FNS_STAGE_CLONE, -1, (int)pid);
    if (child.progress != FNS_PROGRESS_EXEC) {
        fns_discard(pidfd);
        if (child.progress == FNS_PROGRESS_SETUP) { /* no error recorded: killed on the way */
            fns_set_error(&child.error, FNS_STAGE_CLONE, -1, ECANCELED);
            child.error.detail = FNS_DETAIL_KILLED;
        }
        *error = child.error;
        return -error->err;
    }
    struct rusage own;
    getrusage(RUSAGE_SELF, &own);
    process->rss_floor = own.ru_maxrss;
    process->pid = (int)pid;
    process->pidfd = pidfd;
    return 0;
}

int fns_spawn(const struct fns_plan *plan, const struct fns_args *args, struct fns_process *process,
              struct fns_error *error)
{
    *error = (struct fns_error){.op_index = -1};
    *process = (struct fns_process){.pid = -1, .pidfd = -1, .control = -1, .start = fns_now()};
    int saved = errno;
    int ret = plan->options & FNS_PLAN_STAGED ? fns_spawn_staged(plan, args, process, error)
                                              : spawn_direct(plan, args, process, error);
    errno = saved;
    return ret;
}
