/* The closer: a process beside a template's server, with its memory and fds.
 *
 * The last one to close a mount namespace takes it down: frees all that was written to its tmpfs, and
 * waits for all CPUs. The server must not: it has others to answer. Raw system calls only.
 */
#include "server.h"

#include "sys.h"

#define MAX_CLOSED 128 /* at a time; the server holds fewer */

static struct {
    int pid;
    volatile uint32_t given, closed; /* ever: the ring's ends */
    unsigned unheard;                /* given since it was woken last */
    int fds[MAX_CLOSED];
    char stack[8192] __attribute__((aligned(4096)));
} closer;

static _Noreturn void run_closer(void)
{
    for (;;) {
        uint32_t given = __atomic_load_n(&closer.given, __ATOMIC_SEQ_CST);
        while (closer.closed != given) {
            fns_sys1(__NR_close, closer.fds[closer.closed % MAX_CLOSED]);
            __atomic_store_n(&closer.closed, closer.closed + 1, __ATOMIC_SEQ_CST);
        }
        fns_sys4(__NR_futex, &closer.given, 128 /* FUTEX_WAIT|PRIVATE */, given, 0);
    }
}

static int closer_main(void *arg)
{
    (void)arg;
    run_closer();
}

int fns_closer_start(void)
{
    long pid =
        fns_sys_clone_call(__NR_clone, FNS_CLONE_VM | FNS_CLONE_FILES | FNS_SIGCHLD,
                           (long)(closer.stack + sizeof closer.stack), 0, 0, 0, closer_main, 0);
    closer.pid = pid < 0 ? 0 : (int)pid;
    return pid < 0 ? (int)pid : 0;
}

int fns_closer_pid(void)
{
    return closer.pid;
}

void fns_close_later(int fd)
{
    closer.fds[closer.given % MAX_CLOSED] = fd;
    __atomic_store_n(&closer.given, closer.given + 1, __ATOMIC_SEQ_CST);
    closer.unheard++;
}

unsigned fns_closer_unheard(void)
{
    return closer.unheard;
}

void fns_closer_wake(void)
{
    closer.unheard = 0;
    fns_sys4(__NR_futex, &closer.given, 1 | 128 /* FUTEX_WAKE|PRIVATE */, 1, 0);
}

unsigned fns_closer_closed(void)
{
    return closer.closed;
}
