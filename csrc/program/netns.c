/* The maker of network namespaces: a process beside a template's server.
 *
 * Making a network namespace takes longer than everything else in a start, so the maker makes them ahead. It
 * shares the server's memory and fds. It makes a namespace by entering it, and puts an fd of it into a ring.
 *
 * The kernel takes network namespaces down in a single thread, which can fall behind. So the maker gives each a
 * number in the server's own network namespace, where the kernel then announces its end (RTM_DELNSID). While too
 * many wait to be taken down, the maker waits too. Raw system calls only.
 */
#include "server.h"

enum {
    MAX_POOL = 1024,
    MAX_DYING = 512, /* namespaces that have ended and are not yet taken down */
    STACK_SIZE = 16384,
    RETRY_NS = 1000000,   /* the pause after a failure */
    ANNOUNCE_US = 500000, /* how long the announcement of an end may take */
    BUFFER_SIZE = 1 << 20
};
#define PATIENCE_NS (10ull * FNS_NS) /* how long failures may last before they are reported */

static struct {
    uint32_t size;
    int ready;                     /* an eventfd */
    volatile uint32_t made, taken; /* totals, and so the ring's ends */
    volatile uint32_t wakeups;     /* the maker sleeps until this changes */
    volatile uint32_t wanted;      /* the server found the ring empty */
    volatile uint32_t live;        /* taken by sandboxes that have not ended */
    volatile int error;
    int fds[MAX_POOL];
    struct fns_pool_state state;
    int netlink;
    uint32_t deleted;
    uint64_t failing; /* for how long making them has failed, ns */
    char stack[STACK_SIZE] __attribute__((aligned(4096)));
} pool;

/* ---- the maker ------------------------------------------------------------------------------ */

/* A socket on which the kernel announces the ends of namespaces, or -errno. The maker can do without it. */
static int open_netlink(void)
{
    const int group = RTNLGRP_NSID, space = BUFFER_SIZE;
    const int64_t wait[2] = {0, ANNOUNCE_US}; /* struct timeval */
    int fd = (int)fns_sys3(__NR_socket, FNS_AF_NETLINK, FNS_SOCK_RAW | O_CLOEXEC, NETLINK_ROUTE);
    if (fd < 0)
        return fd;
    FNS_IGNORE(fns_sys5(__NR_setsockopt, fd, FNS_SOL_SOCKET, FNS_SO_RCVBUF, &space, sizeof space),
               "count_ends() copes with lost messages");
    long result = fns_sys5(__NR_setsockopt, fd, FNS_SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group,
                           sizeof group);
    if (result >= 0)
        result = fns_sys5(__NR_setsockopt, fd, FNS_SOL_SOCKET, FNS_SO_RCVTIMEO, wait, sizeof wait);
    return result < 0 ? fns_done_with(fd, result) : fd;
}

/* Requests a number for a namespace, so that its end is announced. */
static void number(int netns)
{
    const struct {
        struct nlmsghdr header;
        uint8_t family, padding[3];
        struct {
            struct nlattr head;
            int32_t value;
        } fd, number;
    } message = {.header = {sizeof message, RTM_NEWNSID, NLM_F_REQUEST, 1, 0},
                 .fd = {{sizeof message.fd, NETNSA_FD}, netns},
                 .number = {{sizeof message.number, NETNSA_NSID}, -1}};
    FNS_IGNORE(fns_sys6(__NR_sendto, pool.netlink, (long)&message, sizeof message, 0, 0, 0),
               "count_ends() starts over when nothing comes");
}

/* Counts the announced ends. flags: MSG_DONTWAIT, or 0 to wait for the first. */
static void count_ends(int flags)
{
    char bytes[8192] __attribute__((aligned(8)));
    for (;;) {
        long n = fns_sys6(__NR_recvfrom, pool.netlink, (long)bytes, sizeof bytes, flags, 0, 0);
        if (n == -ENOBUFS || (n == -EAGAIN && flags == 0)) /* announcements were lost: start over */
            pool.deleted = pool.made;
        if (n <= 0)
            return;
        for (long at = 0; at + (long)sizeof(struct nlmsghdr) <= n;) {
            const struct nlmsghdr *header = (const void *)(bytes + at);
            if (header->nlmsg_len < sizeof *header)
                break;
            pool.deleted += header->nlmsg_type == RTM_DELNSID;
            at += NLMSG_ALIGN(header->nlmsg_len);
        }
        flags = FNS_MSG_DONTWAIT;
    }
}

/* How many have ended and are not yet taken down. */
static uint32_t count_dying(void)
{
    uint32_t alive = pool.made - pool.taken + pool.live + 1; /* 1: the one that the maker is in */
    uint32_t not_deleted = pool.made - pool.deleted;
    return not_deleted > alive && not_deleted < 1u << 31 ? not_deleted - alive : 0;
}

/* Makes a network namespace and enters it. Its fd, or -errno. */
static int make(void)
{
    int result = (int)fns_sys1(__NR_unshare, FNS_CLONE_NEWNET);
    int socket = result < 0 ? result : fns_loopback_up();
    return fns_done_with(socket, socket < 0 ? socket : fns_sys3(__NR_ioctl, socket, SIOCGSKNS, 0));
}

static void wake_server(void)
{
    const uint64_t one = 1;
    if (__atomic_exchange_n(&pool.wanted, 0, __ATOMIC_SEQ_CST) &&
        fns_write(pool.ready, &one, sizeof one) < 0)
        pool.wanted = 1; /* try again with the next one */
}

/* Makes one and puts it into the ring. */
static void make_one(void)
{
    const int64_t pause[2] = {0, RETRY_NS};
    if (pool.netlink >= 0)
        count_ends(FNS_MSG_DONTWAIT);
    while (pool.netlink >= 0 && count_dying() > MAX_DYING)
        count_ends(0);
    int netns = make();
    if (netns < 0) {
        pool.failing += RETRY_NS;
        if (pool.failing > PATIENCE_NS) {
            pool.error = netns;
            wake_server();
        }
        FNS_IGNORE(fns_sys2(__NR_nanosleep, pause, 0), "a shorter pause does no harm");
        return;
    }
    pool.failing = 0;
    pool.error = 0;
    if (pool.netlink >= 0)
        number(netns);
    pool.fds[pool.made % MAX_POOL] = netns;
    __atomic_store_n(&pool.made, pool.made + 1, __ATOMIC_SEQ_CST);
    wake_server();
}

static _Noreturn int maker_main(void *arg)
{
    for (;;) {
        uint32_t wakeups = pool.wakeups;
        while (pool.made - pool.taken < pool.size)
            make_one();
        fns_futex(&pool.wakeups, FUTEX_WAIT, wakeups);
    }
}

/* ---- the server ----------------------------------------------------------------------------- */

static void refill(void)
{
    if (pool.made - pool.taken == pool.size)
        return;
    __atomic_store_n(&pool.wakeups, pool.wakeups + 1, __ATOMIC_SEQ_CST);
    fns_futex(&pool.wakeups, FUTEX_WAKE, 1);
}

static int open_pool(uint32_t size)
{
    pool.netlink = open_netlink(); /* in the server's own network namespace */
    pool.size = size < MAX_POOL ? size : MAX_POOL;
    pool.ready = (int)fns_sys2(__NR_eventfd2, 0, O_CLOEXEC | O_NONBLOCK);
    return pool.ready < 0 ? pool.ready : fns_watch(pool.ready, FNS_PEER_READY);
}

int fns_netns_start(uint32_t size)
{
    int result = pool.size ? 0 : open_pool(size);
    if (result < 0)
        return result;
    pool.wanted = 1; /* a maker that was killed may have left the server waiting */
    result =
        (int)fns_sys_clone_call(__NR_clone, FNS_CLONE_VM | FNS_CLONE_FILES | FNS_SIGCHLD,
                                (long)(pool.stack + sizeof pool.stack), 0, 0, 0, maker_main, 0);
    refill();
    return result;
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
    int fd = pool.fds[pool.taken % MAX_POOL];
    pool.live++;
    __atomic_store_n(&pool.taken, pool.taken + 1, __ATOMIC_SEQ_CST);
    if ((pool.made - pool.taken) * 2 <= pool.size) /* not sooner: the maker takes CPU time */
        refill();
    return fd;
}

void fns_netns_ended(void)
{
    pool.live--;
    refill();
}

struct fns_pool_state *fns_netns_state(void)
{
    pool.state.made = pool.made;
    return &pool.state;
}
