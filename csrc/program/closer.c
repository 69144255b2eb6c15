/* The closer: a process beside a template's server that takes mount namespaces down.
 *
 * The process that drops the last reference to a mount namespace takes it down: it frees all that was written to
 * its tmpfs, and waits for an RCU grace period. In the sandbox this would delay the report of its end; in the
 * server, the replies to other requests. So the server sends the closer an fd of each namespace when the sandbox
 * starts, and the closer closes the fd after the sandbox's end. Until then the fds stay in the socket: if the
 * server kept them, each new sandbox would have copies, and might drop the last reference by closing one. The
 * closer has threads so that several namespaces can share a grace period. Raw system calls only.
 */
#include "server.h"

#define MAX_ENTRIES 128
#define N_WORKERS 3 /* threads beside the closer's own */
#define STACK_SIZE 8192
#define WORKER_STACK_SIZE 4096

/* The states of an entry. The server sets SENT and RELEASED; the closer sets RECEIVED, TAKEN and FREE. */
enum state { FREE, SENT, RELEASED, RECEIVED, TAKEN };

static struct {
    int sockets[2]; /* the server's end, the closer's */
    unsigned next, pending;
    volatile uint32_t woken, received; /* counters, and the futex words of the waits */
    volatile uint8_t states[MAX_ENTRIES];
    int fds[MAX_ENTRIES]; /* numbers in the closer's fd table */
    char stack[STACK_SIZE] __attribute__((aligned(4096)));
    char stacks[N_WORKERS][WORKER_STACK_SIZE] __attribute__((aligned(4096)));
} closer;

static void receive_all(int socket)
{
    for (;;) {
        int entry = 0, fd = -1, n_fds = 1;
        if (fns_receive_message(socket, &entry, sizeof entry, &fd, &n_fds, 0, FNS_MSG_DONTWAIT) <=
            0)
            return;
        closer.fds[entry] = n_fds == 1 ? fd : -1;
    }
}

/* 1: the state was `from` and is now `to`. */
static int change(unsigned entry, uint8_t from, uint8_t to)
{
    return __atomic_compare_exchange_n(&closer.states[entry], &from, to, 0, __ATOMIC_SEQ_CST,
                                       __ATOMIC_SEQ_CST);
}

static void close_received(void)
{
    for (unsigned entry = 0; entry < MAX_ENTRIES; entry++) {
        if (!change(entry, RECEIVED, TAKEN))
            continue;
        int fd = closer.fds[entry];
        closer.fds[entry] = -1;
        fns_close(fd);
        __atomic_store_n(&closer.states[entry], FREE, __ATOMIC_SEQ_CST);
    }
}

static _Noreturn int worker_main(void *arg)
{
    for (;;) {
        uint32_t received = __atomic_load_n(&closer.received, __ATOMIC_SEQ_CST);
        close_received();
        fns_futex(&closer.received, FUTEX_WAIT, received);
    }
}

/* Marks all released entries as received. Returns how many. */
static int receive_released(int socket)
{
    int n = 0;
    receive_all(socket);
    for (unsigned entry = 0; entry < MAX_ENTRIES; entry++) {
        if (__atomic_load_n(&closer.states[entry], __ATOMIC_SEQ_CST) != RELEASED)
            continue;
        if (closer.fds[entry] < 0) /* sent and released since receive_all() */
            receive_all(socket);
        __atomic_store_n(&closer.states[entry], RECEIVED, __ATOMIC_SEQ_CST);
        n++;
    }
    return n;
}

/* Returns only on failure. */
static int closer_main(void *arg)
{
    int socket = closer.sockets[1];
    long result = socket > 0 ? fns_sys3(__NR_close_range, 0, socket - 1, 0) : 0;
    if (result >= 0)
        result = fns_sys3(__NR_close_range, socket + 1, ~0u, 0);
    if (result < 0) /* the server's connections would stay open here */
        return 1;
    for (unsigned entry = 0; entry < MAX_ENTRIES; entry++) {
        closer.fds[entry] = -1;
        change(entry, TAKEN, FREE); /* taken by a closer that has ended */
    }
    const uint64_t flags = FNS_CLONE_VM | FNS_CLONE_FILES | FNS_CLONE_SIGHAND | FNS_CLONE_THREAD;
    for (int i = 0; i < N_WORKERS; i++)
        FNS_IGNORE(fns_sys_clone_call(__NR_clone, (long)flags,
                                      (long)(closer.stacks[i] + WORKER_STACK_SIZE), 0, 0, 0,
                                      worker_main, 0),
                   "the other threads do its work");
    for (;;) {
        uint32_t woken = __atomic_load_n(&closer.woken, __ATOMIC_SEQ_CST);
        if (receive_released(socket) > 1) {
            __atomic_fetch_add(&closer.received, 1, __ATOMIC_SEQ_CST);
            fns_futex(&closer.received, FUTEX_WAKE, N_WORKERS);
        }
        close_received();
        fns_futex(&closer.woken, FUTEX_WAIT, woken);
    }
}

int fns_closer_start(void)
{
    int result = closer.sockets[1] ? 0 : fns_socket_pair(closer.sockets);
    if (result < 0)
        return result;
    return (int)fns_sys_clone_call(__NR_clone, FNS_CLONE_VM | FNS_SIGCHLD,
                                   (long)(closer.stack + sizeof closer.stack), 0, 0, 0, closer_main,
                                   0);
}

int fns_closer_hold(int fd)
{
    for (unsigned i = 0; i < MAX_ENTRIES; i++) {
        int entry = (int)(closer.next++ % MAX_ENTRIES);
        if (__atomic_load_n(&closer.states[entry], __ATOMIC_SEQ_CST) != FREE)
            continue;
        if (fns_send_message(closer.sockets[0], &entry, sizeof entry, &fd, 1, 0, FNS_MSG_DONTWAIT) <
            0)
            break;
        closer.states[entry] = SENT;
        return entry;
    }
    return FNS_NONE;
}

void fns_closer_release(int entry)
{
    __atomic_store_n(&closer.states[entry], RELEASED, __ATOMIC_SEQ_CST);
    closer.pending++;
}

unsigned fns_closer_pending(void)
{
    return closer.pending;
}

void fns_closer_wake(void)
{
    closer.pending = 0;
    __atomic_fetch_add(&closer.woken, 1, __ATOMIC_SEQ_CST);
    fns_futex(&closer.woken, FUTEX_WAKE, 1);
}
