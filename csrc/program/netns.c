/* The maker of network namespaces: a process beside a template's server.
 *
 * Making one takes longer than all else of a sandbox, and taking one down is the work of a single
 * thread of the kernel. The maker shares the server's memory and fds: it makes one by entering it,
 * and leaves an fd of it in a ring. So that what is taken down does not pile up, each has a number in
 * the maker's first network namespace, whose end the kernel announces (RTM_DELNSID): when too many are
 * to be taken down, the maker waits. Raw system calls only.
 */
#include "netns.h"

#include "loopback.h"
#include "shared/sys.h"

#define MAX_QUEUED 512          /* ended, and not yet taken down */
#define PATIENCE 10000000000ull /* ns of failures until who waits is told */

static struct {
    uint32_t size;
    int ready, pid;
    volatile uint32_t made, taken; /* ever: the ring's ends */
    volatile uint32_t asked;       /* the maker may go on until `made` - `taken` is `size` */
    volatile uint32_t wanted;      /* somebody found none */
    volatile uint32_t live;
    volatile int error;
    int fds[FNS_MAX_POOL];
    int netlink;
    uint32_t deleted;
    char stack[16384] __attribute__((aligned(4096)));
} pool;

/* ---- the maker ------------------------------------------------------------------------------ */

struct nl_header { /* struct nlmsghdr */
    uint32_t size;
    uint16_t type, flags;
    uint32_t sequence, port;
};

/* -errno: the maker goes on without. */
static int open_netlink(void)
{
    const int group = 28 /* RTNLGRP_NSID */, space = 1 << 20;
    const int64_t wait[2] = {0, 500000}; /* struct timeval */
    int fd = (int)fns_sys3(__NR_socket, 16 /* AF_NETLINK */, 3 /* SOCK_RAW */ | O_CLOEXEC, 0);
    if (fd < 0)
        return fd;
    FNS_IGNORE(
        fns_sys5(__NR_setsockopt, fd, 1 /* SOL_SOCKET */, 8 /* SO_RCVBUF */, &space, sizeof space),
        "count_ends() bears what is lost");
    long result = fns_sys5(__NR_setsockopt, fd, 270 /* SOL_NETLINK */, 1 /* ADD_MEMBERSHIP */,
                           &group, sizeof group);
    if (result >= 0)
        result = fns_sys5(__NR_setsockopt, fd, 1, 20 /* SO_RCVTIMEO */, wait, sizeof wait);
    if (result >= 0)
        return fd;
    fns_close(fd);
    return (int)result;
}

/* Asks for a number for the namespace, so that its end is announced. */
static void number(int netns)
{
    const struct {
        struct nl_header header;
        uint8_t family, padding[3];
        struct {
            uint16_t size, type;
            int32_t value;
        } fd, number;
    } message = {.header = {sizeof message, 88 /* RTM_NEWNSID */, 1 /* NLM_F_REQUEST */, 1, 0},
                 .fd = {8, 3 /* NETNSA_FD */, netns},
                 .number = {8, 1 /* NETNSA_NSID */, -1}};
    FNS_IGNORE(fns_sys6(__NR_sendto, pool.netlink, (long)&message, sizeof message, 0, 0, 0),
               "count_ends() begins anew when nothing comes");
}

/* Counts the ends that were announced. */
static void count_ends(int flags)
{
    char bytes[8192] __attribute__((aligned(8)));
    for (;;) {
        long n = fns_sys6(__NR_recvfrom, pool.netlink, (long)bytes, sizeof bytes, flags, 0, 0);
        if (n == -ENOBUFS || (n == -EAGAIN && flags == 0)) { /* some were lost: begin anew */
            pool.deleted = pool.made;
            return;
        }
        if (n <= 0)
            return;
        for (long at = 0; at + (long)sizeof(struct nl_header) <= n;) {
            const struct nl_header *header = (const void *)(bytes + at);
            if (header->size < sizeof *header)
                break;
            pool.deleted += header->type == 89 /* RTM_DELNSID */;
            at += (header->size + 3) & ~3u;
        }
        flags = 0x40 /* MSG_DONTWAIT */;
    }
}

static uint32_t queued(void)
{
    uint32_t alive = pool.made - pool.taken + pool.live + 1; /* this process is in the last */
    uint32_t not_deleted = pool.made - pool.deleted;
    return not_deleted > alive && not_deleted < 1u << 31 ? not_deleted - alive : 0;
}

/* Enters a new one: its fd, or -errno. */
static int make(void)
{
    int netns = (int)fns_sys1(__NR_unshare, FNS_CLONE_NEWNET);
    if (netns < 0)
        return netns;
    int socket = fns_loopback_up();
    if (socket < 0)
        return socket;
    netns = (int)fns_sys3(__NR_ioctl, socket, SIOCGSKNS, 0);
    fns_close(socket);
    return netns;
}

static void tell_waiting(void)
{
    const uint64_t one = 1;
    if (__atomic_exchange_n(&pool.wanted, 0, __ATOMIC_SEQ_CST) &&
        fns_write(pool.ready, &one, sizeof one) < 0)
        pool.wanted = 1; /* for the next time */
}

static void sleep_ns(int64_t ns)
{
    const int64_t time[2] = {0, ns};
    FNS_IGNORE(fns_sys2(__NR_nanosleep, time, 0), "it is tried again the sooner");
}

static _Noreturn void run_maker(void)
{
    uint64_t failing = 0;
    for (;;) {
        uint32_t asked = pool.asked;
        while (pool.made - pool.taken < pool.size) {
            if (pool.netlink >= 0)
                count_ends(0x40 /* MSG_DONTWAIT */);
            while (pool.netlink >= 0 && queued() > MAX_QUEUED)
                count_ends(0);
            int netns = make();
            if (netns < 0) {
                failing += 1000000;
                if (failing > PATIENCE) {
                    pool.error = netns;
                    tell_waiting();
                }
                sleep_ns(1000000);
                continue;
            }
            failing = 0;
            pool.error = 0;
            if (pool.netlink >= 0)
                number(netns);
            pool.fds[pool.made % FNS_MAX_POOL] = netns;
            __atomic_store_n(&pool.made, pool.made + 1, __ATOMIC_SEQ_CST);
            tell_waiting();
        }
        fns_futex(&pool.asked, FUTEX_WAIT, asked);
    }
}

static int maker_main(void *arg)
{
    (void)arg;
    run_maker();
}

/* ---- the server ----------------------------------------------------------------------------- */

static void refill(void)
{
    if (pool.made - pool.taken == pool.size)
        return;
    __atomic_store_n(&pool.asked, pool.asked + 1, __ATOMIC_SEQ_CST);
    fns_futex(&pool.asked, FUTEX_WAKE, 1);
}

int fns_netns_start(uint32_t size, int ready)
{
    if (!pool.size) /* in the server's own network namespace, for good */
        pool.netlink = open_netlink();
    pool.size = size < FNS_MAX_POOL ? size : FNS_MAX_POOL;
    pool.ready = ready;
    pool.wanted = 1; /* a maker that was killed may have left without saying so */
    long pid = fns_sys_clone_call(__NR_clone, FNS_CLONE_VM | FNS_CLONE_FILES | FNS_SIGCHLD,
                                  (long)(pool.stack + sizeof pool.stack), 0, 0, 0, maker_main, 0);
    pool.pid = pid < 0 ? 0 : (int)pid;
    refill();
    return pid < 0 ? (int)pid : 0;
}

int fns_netns_maker(void)
{
    return pool.pid;
}

int fns_netns_take(void)
{
    if (pool.taken == __atomic_load_n(&pool.made, __ATOMIC_SEQ_CST)) {
        __atomic_store_n(&pool.wanted, 1, __ATOMIC_SEQ_CST);
        if (pool.taken == __atomic_load_n(&pool.made, __ATOMIC_SEQ_CST)) {
            refill();
            return pool.error ? pool.error : -EAGAIN;
        }
    }
    int fd = pool.fds[pool.taken % FNS_MAX_POOL];
    pool.live++;
    __atomic_store_n(&pool.taken, pool.taken + 1, __ATOMIC_SEQ_CST);
    if ((pool.made - pool.taken) * 2 <= pool.size) /* else later: it would take a CPU now */
        refill();
    return fd;
}

void fns_netns_ended(void)
{
    pool.live--;
    refill();
}

uint64_t fns_netns_made(void)
{
    return pool.made;
}
