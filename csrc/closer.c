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

static struct {
    int pid, sockets[2];             /* the server's end, the closer's */
    unsigned sent, unheard;          /* ever; to be closed, since it was woken last */
    volatile uint32_t given, closed; /* ever: how many may be closed, and are */
    char stack[8192] __attribute__((aligned(4096)));
} closer;

struct one_fd { /* struct cmsghdr with its fd */
    size_t size;
    int level, type, fd, padding;
};

/* Closes the oldest namespace sent. 0: there is none. */
static int close_one(int socket)
{
    struct one_fd rights = {.fd = -1};
    char byte;
    struct fns_vector vector = {&byte, 1};
    struct fns_header header = {
        .vector = &vector, .vector_size = 1, .control = &rights, .control_size = sizeof rights};
    if (fns_sys3(__NR_recvmsg, socket, &header,
                 0x40 | 0x40000000 /* MSG_DONTWAIT|CMSG_CLOEXEC */) <= 0)
        return 0;
    fns_sys1(__NR_close, rights.fd);
    return 1;
}

static _Noreturn void run_closer(void)
{
    int socket = closer.sockets[1];
    if (socket > 0)
        fns_sys3(__NR_close_range, 0, socket - 1, 0);
    fns_sys3(__NR_close_range, socket + 1, ~0u, 0);
    for (;;) {
        uint32_t given = __atomic_load_n(&closer.given, __ATOMIC_SEQ_CST);
        while (closer.closed != given) {
            close_one(socket);
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
    long result = 0;
    if (!closer.sockets[1]) /* else it has ended, and what was sent waits for the next */
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

int fns_closer_hold(int fd)
{
    struct one_fd rights = {sizeof(size_t) + 3 * sizeof(int), 1 /* SOL_SOCKET */,
                            1 /* SCM_RIGHTS */, fd, 0};
    char byte = 0;
    struct fns_vector vector = {&byte, 1};
    const struct fns_header header = {
        .vector = &vector, .vector_size = 1, .control = &rights, .control_size = sizeof rights};
    if (closer.sent - closer.closed >= FNS_MAX_HELD ||
        fns_sys3(__NR_sendmsg, closer.sockets[0], &header, 0x4040 /* MSG_NOSIGNAL|DONTWAIT */) < 0)
        return 0;
    closer.sent++;
    return 1;
}

void fns_closer_give(void)
{
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
