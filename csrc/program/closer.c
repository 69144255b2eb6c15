/* The closer: a process beside a template's server that takes mount namespaces down.
 *
 * The last one to hold a mount namespace takes it down: frees all that was written to its tmpfs, and
 * waits for all CPUs (RCU). A sandbox must not, as its end is told only then; the server must not, as
 * it has others to answer. So the server sends an fd of each namespace to the closer as the sandbox
 * starts, and the closer reads it after the end. In between the fds are in the socket: were they the
 * server's, each sandbox would be born with copies of them, and it would be one of these that takes a
 * namespace down as it closes what is not its own. The closer has threads, for no other reason than that
 * those who wait for all CPUs at the same time wait once. Raw system calls only.
 */
#include "server.h"

#include "shared/sys.h"

#define HANDS 3        /* threads beside the closer's own */
#define DONT_WAIT 0x40 /* MSG_DONTWAIT */

/* Of a slot. GIVEN by the server; RECEIVED, TAKEN and FREE again by the closer. */
enum state { FREE, SENT, GIVEN, RECEIVED, TAKEN };

static struct {
    int pid, sockets[2]; /* the server's end, the closer's */
    unsigned next, unheard;
    volatile uint32_t woken, received; /* counters, to wait for */
    volatile uint8_t states[FNS_MAX_HELD];
    int fds[FNS_MAX_HELD]; /* the closer's */
    char stack[8192] __attribute__((aligned(4096)));
    char stacks[HANDS][4096] __attribute__((aligned(4096)));
} closer;

/* Takes what was sent. */
static void receive_all(int socket)
{
    for (;;) {
        int slot = 0, fd = -1, n_fds = 1;
        if (fns_receive_message(socket, &slot, sizeof slot, &fd, &n_fds, 0, DONT_WAIT) <= 0)
            return;
        closer.fds[slot] = n_fds == 1 ? fd : -1;
    }
}

enum { WAIT, WAKE }; /* FUTEX_* */

/* The result of a wait is not needed: whoever waits reads the word again. */
static void futex(volatile uint32_t *word, int op, uint32_t value)
{
    long result = -EINTR;
    for (int tries = 0; result < 0 && tries < (op == WAKE ? FNS_TRIES : 1); tries++)
        result = fns_sys4(__NR_futex, word, op | 128 /* FUTEX_PRIVATE_FLAG */, value, 0);
}

static void close_received(void)
{
    for (unsigned slot = 0; slot < FNS_MAX_HELD; slot++) {
        uint8_t state = RECEIVED;
        if (!__atomic_compare_exchange_n(&closer.states[slot], &state, TAKEN, 0, __ATOMIC_SEQ_CST,
                                         __ATOMIC_SEQ_CST))
            continue;
        int fd = closer.fds[slot];
        closer.fds[slot] = -1;
        fns_close(fd);
        __atomic_store_n(&closer.states[slot], FREE, __ATOMIC_SEQ_CST);
    }
}

static _Noreturn void run_hand(void)
{
    for (;;) {
        uint32_t received = __atomic_load_n(&closer.received, __ATOMIC_SEQ_CST);
        close_received();
        futex(&closer.received, WAIT, received);
    }
}

static int hand_main(void *arg)
{
    (void)arg;
    run_hand();
}

/* Without them, should there be no room for a thread, all is done one after the other. */
static void start_hands(void)
{
    const uint64_t flags = FNS_CLONE_VM | FNS_CLONE_FILES | FNS_CLONE_SIGHAND | FNS_CLONE_THREAD;
    for (int i = 0; i < HANDS; i++)
        FNS_IGNORE(fns_sys_clone_call(__NR_clone, (long)flags,
                                      (long)(closer.stacks[i] + sizeof closer.stacks[i]), 0, 0, 0,
                                      hand_main, 0),
                   "the others do its work");
}

/* Marks what was given as received: how many these are. */
static int receive_given(int socket)
{
    int n = 0;
    receive_all(socket);
    for (unsigned slot = 0; slot < FNS_MAX_HELD; slot++) {
        if (__atomic_load_n(&closer.states[slot], __ATOMIC_SEQ_CST) != GIVEN)
            continue;
        if (closer.fds[slot] < 0) /* it was sent, and given, since the last look */
            receive_all(socket);
        __atomic_store_n(&closer.states[slot], RECEIVED, __ATOMIC_SEQ_CST);
        n++;
    }
    return n;
}

static void run_closer(void)
{
    int socket = closer.sockets[1];
    long result = socket > 0 ? fns_sys3(__NR_close_range, 0, socket - 1, 0) : 0;
    if (result >= 0)
        result = fns_sys3(__NR_close_range, socket + 1, ~0u, 0);
    if (result < 0) /* if it kept the server's fds, connections could never be closed */
        return;
    for (unsigned slot = 0; slot < FNS_MAX_HELD; slot++) { /* what one before had ended with it */
        uint8_t state = TAKEN;
        closer.fds[slot] = -1;
        __atomic_compare_exchange_n(&closer.states[slot], &state, FREE, 0, __ATOMIC_SEQ_CST,
                                    __ATOMIC_SEQ_CST);
    }
    start_hands();
    for (;;) {
        uint32_t woken = __atomic_load_n(&closer.woken, __ATOMIC_SEQ_CST);
        if (receive_given(socket) > 1) {
            __atomic_fetch_add(&closer.received, 1, __ATOMIC_SEQ_CST);
            futex(&closer.received, WAKE, HANDS);
        }
        close_received();
        futex(&closer.woken, WAIT, woken);
    }
}

static int closer_main(void *arg)
{
    (void)arg;
    run_closer();
    return 1;
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
    if (slot < 0 ||
        fns_send_message(closer.sockets[0], &slot, sizeof slot, &fd, 1, 0, DONT_WAIT) < 0)
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
    futex(&closer.woken, WAKE, 1);
}
