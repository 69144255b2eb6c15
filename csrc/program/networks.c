/* Network namespaces that serve more than one sandbox. Runs in a template's server.
 *
 * Making a network namespace, and taking it down, is half of the cost of a start. So the server keeps the one of a
 * sandbox that has ended, and gives it to the next sandbox, if /proc/net reads as in a new one. Otherwise, or if an
 * fd of it may have left the sandbox, the server drops it. It is not cleaned: what was used is not used again.
 *
 * What a command could do that /proc/net does not show, it may not do: the compiler asks for this
 * (FNS_PLAN_NETWORKS) only for sandboxes with the default filter and without capabilities. Raw system calls only.
 */
#include "server.h"

enum {
    MAX_KEPT = 256,
    MAX_DOUBTFUL = 64,
    LOOK_AGAIN_MS = 50, /* by then the kernel has freed the sockets of processes that have ended */
    MOST_TRIES = 20,    /* when the limit of network namespaces is reached: the kernel takes them down later */
    STACK_SIZE = 8192,
    STATE_SIZE = 4096
};
#define RETRY_NS 5000000

/* What is compared of a network namespace, as text. */
struct state {
    long size;
    char text[STATE_SIZE];
};

static struct {
    int proc; /* fd of a /proc of the server's pid namespace */
    int owned;
    int kept[MAX_KEPT];
    int n_kept;
    struct {
        int fd;
        uint64_t due; /* when to look again: CLOCK_MONOTONIC, ns */
    } doubtful[MAX_DOUBTFUL]; /* the oldest first */
    int n_doubtful;
    struct state unused; /* that of a new one */
    struct fns_stats stats;
    char stack[STACK_SIZE] __attribute__((aligned(4096)));
} networks;

int fns_open_networks(int owned)
{
    networks.owned = owned;
    int context = (int)fns_sys2(__NR_fsopen, "proc", FSOPEN_CLOEXEC);
    long result = context < 0 ? context
                              : fns_sys5(__NR_fsconfig, context, FSCONFIG_CMD_CREATE, 0, 0, 0);
    /* These attributes are those of the default /proc. In a user namespace, the kernel requires them here if the
     * /proc that is visible has them. */
    const long attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
    if (result >= 0)
        result = fns_sys3(__NR_fsmount, context, FSMOUNT_CLOEXEC, attributes);
    return networks.proc = fns_done_with(context, result);
}

struct fns_stats *fns_get_stats(void)
{
    return &networks.stats;
}

/* ---- what is compared ----------------------------------------------------------------------- */

static int is_space(char c)
{
    return c == ' ' || c == '\n';
}

static int are_equal(const char *a, const char *b, long size)
{
    while (size > 0 && *a == *b)
        a++, b++, size--;
    return size == 0;
}

/* Whether a word of sockstat names a counter of the whole host. */
static int is_of_host(const char *word, long size)
{
    static const char names[][8] = {"mem", "alloc", "orphan"};
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
        if (size == (long)fns_length(names[i]) && are_equal(word, names[i], size))
            return 1;
    return 0;
}

/* Removes the host's counters from a text of sockstat ("TCP: inuse 0 orphan 0 tw 0 alloc 8 mem 1"). Returns its new
 * size. */
static long remove_host(char *text, long size)
{
    long to = 0, skip = 0;
    for (long at = 0; at < size;) {
        long end = at;
        while (end < size && !is_space(text[end]))
            end++;
        if (is_of_host(text + at, end - at))
            skip = 2; /* the name and the number */
        for (; at < size && at <= end; at++)
            if (!skip)
                text[to++] = text[at];
        skip -= skip > 0;
    }
    return to;
}

/* Appends a file of /proc/net of the current network namespace. A file that the kernel lacks is empty. 0 or -errno. */
static long append(struct state *state, const char *path, int is_sockstat)
{
    int fd = fns_open_in(networks.proc, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return fd == -ENOENT ? 0 : fd;
    char *text = state->text + state->size;
    long space = STATE_SIZE - state->size, size = 0, n;
    while ((n = fns_read(fd, text + size, (size_t)(space - size))) > 0)
        size += n;
    fns_close(fd);
    if (n < 0 || size == space)
        return n < 0 ? n : -ENOSPC;
    state->size += is_sockstat ? remove_host(text, size) : size;
    return 0;
}

/* Enters a network namespace and reads its state. 0 or -errno. */
static long read_state(int fd, struct state *state)
{
    state->size = 0;
    long result = fns_sys2(__NR_setns, fd, FNS_CLONE_NEWNET);
    if (result >= 0)
        result = append(state, "self/net/dev", 0);
    if (result >= 0)
        result = append(state, "self/net/sockstat", 1);
    if (result >= 0)
        result = append(state, "self/net/sockstat6", 1);
    return result;
}

static int is_unused(int fd)
{
    struct state now;
    const struct state *unused = &networks.unused;
    return read_state(fd, &now) >= 0 && now.size == unused->size &&
           are_equal(now.text, unused->text, now.size);
}

/* ---- making one ----------------------------------------------------------------------------- */

/* Runs in the new network namespace, with the server's memory and fds. Sets `*made` to an fd of it, or to -errno. */
static int make_main(void *made)
{
    int socket = fns_loopback_up();
    *(int *)made = fns_done_with(socket, socket < 0 ? socket : fns_sys3(__NR_ioctl, socket, SIOCGSKNS, 0));
    return 0;
}

/* Makes one, with lo up. Returns its fd, or -errno. If the server is in a user namespace, the sandboxes there have
 * the ids that own it. So they get network namespaces of another, which has no ids: nobody owns their files in
 * /proc, and changes their modes. */
static int clone_new(void)
{
    int made = -ECANCELED; /* it was killed */
    struct fns_siginfo info;
    const struct fns_clone_args args = {
        .flags = FNS_CLONE_NEWNET | (networks.owned ? FNS_CLONE_NEWUSER : 0) | FNS_CLONE_VM |
                 FNS_CLONE_VFORK | FNS_CLONE_FILES,
        .stack = (uintptr_t)networks.stack,
        .stack_size = sizeof networks.stack,
    };
    long pid = fns_clone_call(&args, make_main, &made);
    if (pid < 0)
        return (int)pid;
    long result;
    do
        result = fns_sys5(__NR_waitid, P_PID, pid, &info, WEXITED | __WALL, 0);
    while (result == -EINTR);
    return made;
}

static int make(void)
{
    const int64_t pause[2] = {0, RETRY_NS};
    int fd = clone_new();
    for (int tries = 0; fd == -ENOSPC && tries < MOST_TRIES; tries++) {
        FNS_IGNORE(fns_sys2(__NR_nanosleep, pause, 0), "a shorter pause does no harm");
        fd = clone_new();
    }
    long result = fd < 0 ? fd : read_state(fd, &networks.unused);
    if (result >= 0) {
        networks.stats.networks_made++;
        return fd;
    }
    fns_close_if_open(fd);
    return (int)result;
}

/* ---- take and give back --------------------------------------------------------------------- */

int fns_take_network(void)
{
    if (networks.n_kept == 0)
        return make();
    int fd = networks.kept[--networks.n_kept];
    long result = fns_sys2(__NR_setns, fd, FNS_CLONE_NEWNET);
    if (result < 0)
        return fns_done_with(fd, result);
    networks.stats.networks_reused++;
    return fd;
}

static void keep(int fd)
{
    if (networks.n_kept < MAX_KEPT)
        networks.kept[networks.n_kept++] = fd;
    else
        fns_close(fd);
}

void fns_give_network(int fd, int exposed)
{
    if (exposed) {
        networks.stats.networks_exposed++;
        fns_close(fd);
    } else if (is_unused(fd)) {
        keep(fd);
    } else if (networks.n_doubtful < MAX_DOUBTFUL) {
        networks.doubtful[networks.n_doubtful].fd = fd;
        networks.doubtful[networks.n_doubtful++].due = fns_now() + LOOK_AGAIN_MS * 1000000ull;
    } else {
        networks.stats.networks_touched++;
        fns_close(fd);
    }
}

int fns_check_networks(void)
{
    int n_due = 0;
    uint64_t now = networks.n_doubtful ? fns_now() : 0;
    while (n_due < networks.n_doubtful && networks.doubtful[n_due].due <= now) {
        int fd = networks.doubtful[n_due++].fd;
        if (is_unused(fd)) {
            keep(fd);
        } else {
            networks.stats.networks_touched++;
            fns_close(fd);
        }
    }
    networks.n_doubtful -= n_due;
    for (int i = 0; n_due && i < networks.n_doubtful; i++)
        networks.doubtful[i] = networks.doubtful[i + n_due];
    return networks.n_doubtful ? LOOK_AGAIN_MS : FNS_NONE;
}
