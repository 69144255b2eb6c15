/* The closer: a process beside a template's server that takes mount namespaces down.
 *
 * The last one to hold a mount namespace takes it down: frees all that was written to its tmpfs, and
 * waits for all CPUs (RCU). A sandbox must not, as its end is told only then; the server must not, as
 * it has others to answer. So the server sends an fd of each namespace to the closer as the sandbox
 * starts, and the closer reads it after the end. In between the fds are in the socket: were they the
 * server's, each sandbox would be born with copies of them, and it would be one of these that takes a
 * namespace down as it closes what is not its own. Raw system calls only.
 */
#include "server.h"

#include "sys.h"

enum state { FREE, SENT, GIVEN }; /* of a slot; the closer makes it free again */

static struct {
    int pid, sockets[2]; /* the server's end, the closer's */
    unsigned next, unheard;
    volatile uint32_t woken;
    volatile uint8_t states[FNS_MAX_HELD];
    int fds[FNS_MAX_HELD]; /* the closer's */
    char stack[8192] __attribute__((aligned(4096)));
} closer;

/* Takes what was sent. */
static void receive_all(int socket)
{
    for (;;) {
        struct fns_one_fd rights = {.fd = -1};
        int slot = 0;
        struct fns_vector vector = {&slot, sizeof slot};
        struct fns_header header = {
            .vector = &vector, .vector_size = 1, .control = &rights, .control_size = sizeof rights};
        const long flags = 0x40 | 0x40000000; /* MSG_DONTWAIT|MSG_CMSG_CLOEXEC */
        if (fns_sys3(__NR_recvmsg, socket, &header, flags) <= 0)
            return;
        closer.fds[slot] = rights.fd;
    }
}

static _Noreturn void run_closer(void)
{
    int socket = closer.sockets[1];
    if (socket > 0)
        fns_sys3(__NR_close_range, 0, socket - 1, 0);
    fns_sys3(__NR_close_range, socket + 1, ~0u, 0);
    for (unsigned slot = 0; slot < FNS_MAX_HELD; slot++)
        closer.fds[slot] = -1; /* those of one before ended with it */
    for (;;) {
        uint32_t woken = __atomic_load_n(&closer.woken, __ATOMIC_SEQ_CST);
        receive_all(socket);
        for (unsigned slot = 0; slot < FNS_MAX_HELD; slot++) {
            if (__atomic_load_n(&closer.states[slot], __ATOMIC_SEQ_CST) != GIVEN)
                continue;
            if (closer.fds[slot] < 0) /* it was sent, and given, since the last look */
                receive_all(socket);
            fns_sys1(__NR_close, closer.fds[slot]);
            closer.fds[slot] = -1;
            __atomic_store_n(&closer.states[slot], FREE, __ATOMIC_SEQ_CST);
        }
        fns_sys4(__NR_futex, &closer.woken, 128 /* FUTEX_WAIT|PRIVATE */, woken, 0);
    }
}

static int closer_main(void *arg)
{
    (void)arg;
    run_closer();
}

int fns_closer_start(void)
{
    long result = 0;
    if (!closer.sockets[1])
        result = fns_sys4(__NR_socketpair, 1 /* AF_UNIX */, 5 | O_CLOEXEC /* SOCK_SEQPACKET */, 0,
                          closer.sockets);
    if (result < 0)
        return (int)result;
    long pid =
        fns_sys_clone_call(__NR_clone, FNS_CLONE_VM | FNS_SIGCHLD,
                           (long)(closer.stack + sizeof closer.stack), 0, 0, 0, closer_main, 0);
    closer.pid = pid < 0 ? 0 : (int)pid;
    return pid < 0 ? (int)pid : 0;
}

int fns_closer_pid(void)
{
    return closer.pid;
}

/* A slot that is free, or -1. */
static int take_slot(void)
{
    for (unsigned i = 0; i < FNS_MAX_HELD; i++) {
        unsigned slot = closer.next++ % FNS_MAX_HELD;
        if (__atomic_load_n(&closer.states[slot], __ATOMIC_SEQ_CST) == FREE)
            return (int)slot;
    }
    return -1;
}

int fns_closer_hold(int fd)
{
    int slot = take_slot();
    struct fns_one_fd rights = {sizeof(size_t) + 3 * sizeof(int), 1 /* SOL_SOCKET */,
                                1 /* SCM_RIGHTS */, fd, 0};
    struct fns_vector vector = {&slot, sizeof slot};
    const struct fns_header header = {
        .vector = &vector, .vector_size = 1, .control = &rights, .control_size = sizeof rights};
    if (slot < 0 ||
        fns_sys3(__NR_sendmsg, closer.sockets[0], &header, 0x4040 /* MSG_NOSIGNAL|DONTWAIT */) < 0)
        return -1;
    closer.states[slot] = SENT;
    return slot;
}

void fns_closer_give(int slot)
{
    __atomic_store_n(&closer.states[slot], GIVEN, __ATOMIC_SEQ_CST);
    closer.unheard++;
}

unsigned fns_closer_unheard(void)
{
    return closer.unheard;
}

void fns_closer_wake(void)
{
    closer.unheard = 0;
    __atomic_fetch_add(&closer.woken, 1, __ATOMIC_SEQ_CST);
    fns_sys4(__NR_futex, &closer.woken, 1 | 128 /* FUTEX_WAKE|PRIVATE */, 1, 0);
}
