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
    MAX_OPEN = 64, /* opening the files takes longer than reading them, but costs fds */
    MAX_DOUBTFUL = 64,
    LOOK_AGAIN_MS = 50, /* by then the kernel has freed the sockets of processes that have ended */
    MOST_TRIES =
        20, /* when the limit of network namespaces is reached: the kernel takes them down later */
    MANY_FDS = 1 << 20,
    MOST_STOPS = 3, /* after which a process that makes a network namespace is killed */
    STACK_SIZE = 8192,
    STATE_SIZE = 4096
};
#define RETRY_NS 5000000

/* What is compared of a network namespace, as text. */
struct state {
    long size;
    long n_devices; /* size of the first part, about devices */
    char text[STATE_SIZE];
};

static struct {
    int proc; /* fd of a /proc of the server's pid namespace */
    int owned;
    int scarce; /* an fd with this number, or a higher one, shows that fds are scarce */
    int kept[MAX_KEPT];
    int n_kept;
    struct {
        int fd;
        uint64_t due;         /* when to look again: CLOCK_MONOTONIC, ns */
    } doubtful[MAX_DOUBTFUL]; /* the oldest first */
    int n_doubtful;
    struct {
        int fd, files[FNS_NETWORK_FILES];
    } open[MAX_OPEN]; /* those whose files stay open */
    int n_open;
    struct state unused; /* that of a new one */
    char stack[STACK_SIZE] __attribute__((aligned(4096)));
} networks;

int fns_open_networks(int owned)
{
    uint64_t limit[2]; /* soft, hard */
    long limited = fns_sys4(__NR_prlimit64, 0, FNS_RLIMIT_NOFILE, 0, limit);
    if (limited < 0)
        return (int)limited;
    networks.scarce = (int)(limit[0] < MANY_FDS ? limit[0] : MANY_FDS) / 4 * 3;
    networks.owned = owned;
    int context = (int)fns_sys2(__NR_fsopen, "proc", FSOPEN_CLOEXEC);
    long result =
        context < 0 ? context : fns_sys5(__NR_fsconfig, context, FSCONFIG_CMD_CREATE, 0, 0, 0);
    /* These attributes are those of the default /proc. In a user namespace, the kernel requires them here if the
     * /proc that is visible has them. */
    const long attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
    if (result >= 0)
        result = fns_sys3(__NR_fsmount, context, FSMOUNT_CLOEXEC, attributes);
    return networks.proc = fns_done_with(context, result);
}

/* ---- what is compared ----------------------------------------------------------------------- */

static int is_space(char c)
{
    return c == ' ' || c == '\n';
}

/* Whether a word of sockstat names a counter of the whole host. */
static int is_of_host(const char *word, long size)
{
    static const char names[][8] = {"mem", "alloc", "orphan"};
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
        if (size == (long)fns_length(names[i]) && fns_equal(word, names[i], (size_t)size))
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

int fns_open_network_files(int directory, int files[FNS_NETWORK_FILES])
{
    static const char names[FNS_NETWORK_FILES][12] = {"dev", "sockstat", "sockstat6"};
    long result = 0;
    for (int i = 0; i < FNS_NETWORK_FILES; i++) {
        files[i] = fns_open_in(directory, names[i], O_RDONLY | O_CLOEXEC);
        if (files[i] < 0 && files[i] != -ENOENT) /* without IPv6 there is no sockstat6 */
            result = files[i];
    }
    return (int)result;
}

/* Appends what a file says, from its beginning. These files give all they have to one read. 0 or -errno. */
static long append(struct state *state, int file, int is_sockstat)
{
    char *text = state->text + state->size;
    long space = STATE_SIZE - state->size, size;
    do
        size = fns_sys4(__NR_pread64, file, text, space, 0);
    while (size == -EINTR);
    if (size < 0 || size == space)
        return size < 0 ? size : -ENOSPC;
    state->size += is_sockstat ? remove_host(text, size) : size;
    return 0;
}

static long read_state(const int files[FNS_NETWORK_FILES], struct state *state)
{
    long result = state->size = 0;
    for (int i = 0; i < FNS_NETWORK_FILES && result >= 0; i++) {
        result = files[i] < 0 ? 0 : append(state, files[i], i > 0);
        state->n_devices = i == 0 ? state->size : state->n_devices;
    }
    return result;
}

/* With FNS_NETWORK_DOUBTFUL, only sockets differ, which the kernel may be about to free. */
enum fns_network_use fns_network_use(const int files[FNS_NETWORK_FILES])
{
    struct state now;
    const struct state *unused = &networks.unused;
    if (read_state(files, &now) < 0 || now.n_devices != unused->n_devices ||
        !fns_equal(now.text, unused->text, (size_t)now.n_devices))
        return FNS_NETWORK_USED;
    return now.size == unused->size && fns_equal(now.text, unused->text, (size_t)now.size)
               ? FNS_NETWORK_UNUSED
               : FNS_NETWORK_DOUBTFUL;
}

/* Enters a network namespace, and opens its files. 0 or -errno. */
static long open_files(int fd, int files[FNS_NETWORK_FILES])
{
    for (int i = 0; i < FNS_NETWORK_FILES; i++)
        files[i] = FNS_NONE;
    long result = fns_sys2(__NR_setns, fd, FNS_CLONE_NEWNET);
    if (result < 0)
        return result;
    int directory = fns_open_in(networks.proc, "self/net", FNS_PATH_FLAGS | O_DIRECTORY);
    return fns_done_with(directory,
                         directory < 0 ? directory : fns_open_network_files(directory, files));
}

static void close_files(const int files[FNS_NETWORK_FILES])
{
    for (int i = 0; i < FNS_NETWORK_FILES; i++)
        fns_close_if_open(files[i]);
}

/* Returns the index in networks.open, or n_open. */
static int find_open(int fd)
{
    int i = 0;
    while (i < networks.n_open && networks.open[i].fd != fd)
        i++;
    return i;
}

static enum fns_network_use use_of(int fd)
{
    int files[FNS_NETWORK_FILES], i = find_open(fd);
    enum fns_network_use use = FNS_NETWORK_USED;
    if (i < networks.n_open)
        return fns_network_use(networks.open[i].files);
    if (open_files(fd, files) >= 0)
        use = fns_network_use(files);
    close_files(files);
    return use;
}

static void close_network(int fd)
{
    int i = find_open(fd);
    if (i < networks.n_open) {
        close_files(networks.open[i].files);
        networks.open[i] = networks.open[--networks.n_open];
    }
    fns_close(fd);
}

/* ---- making one ----------------------------------------------------------------------------- */

/* Runs in the new network namespace, with the server's memory and fds. Sets `*made` to an fd of it, or to -errno. */
static int make_main(void *made)
{
    int socket = fns_loopback_up();
    *(int *)made =
        fns_done_with(socket, socket < 0 ? socket : fns_sys3(__NR_ioctl, socket, SIOCGSKNS, 0));
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
                 FNS_CLONE_FILES,
        .stack = (uintptr_t)networks.stack,
        .stack_size = sizeof networks.stack,
    };
    long pid = fns_clone_call(&args, make_main, &made);
    if (pid < 0)
        return (int)pid;
    /* Not by CLONE_VFORK: a stopped process would then stop the server too. */
    for (int stops = 0, failed = 0;;) {
        info.code = 0;
        long result = fns_sys5(__NR_waitid, P_PID, pid, &info, WEXITED | WSTOPPED | __WALL, 0);
        if (result < 0 && result != -EINTR && ++failed == FNS_TRIES)
            fns_quit(0); /* it may still use the stack */
        if (result >= 0 && info.code < FNS_CLD_TRAPPED)
            return made;
        if (result >= 0)
            FNS_IGNORE(fns_sys2(__NR_kill, pid, stops++ < MOST_STOPS ? FNS_SIGCONT : FNS_SIGKILL),
                       "a child exists until it is reaped");
    }
}

static int make(void)
{
    const int64_t pause[2] = {0, RETRY_NS};
    int fd = clone_new();
    for (int tries = 0; fd == -ENOSPC && tries < MOST_TRIES; tries++) {
        FNS_IGNORE(fns_sys2(__NR_nanosleep, pause, 0), "a shorter pause does no harm");
        fd = clone_new();
    }
    if (fd < 0)
        return fd;
    int files[FNS_NETWORK_FILES];
    long result = open_files(fd, files);
    if (result >= 0)
        result = read_state(files, &networks.unused);
    if (result >= 0 && networks.n_open < MAX_OPEN && fd < networks.scarce) {
        networks.open[networks.n_open].fd = fd;
        memcpy(networks.open[networks.n_open++].files, files, sizeof files);
    } else {
        close_files(files);
    }
    if (result < 0)
        return fns_done_with(fd, result);
    fns_get_stats()->networks_made++;
    return fd;
}

/* ---- take and give back --------------------------------------------------------------------- */

int fns_take_network(void)
{
    if (networks.n_kept == 0)
        return make();
    int fd = networks.kept[--networks.n_kept];
    long result = fns_sys2(__NR_setns, fd, FNS_CLONE_NEWNET);
    if (result < 0) {
        close_network(fd);
        return (int)result;
    }
    fns_get_stats()->networks_reused++;
    return fd;
}

int fns_let_network_go(int fd)
{
    if (fd < networks.scarce)
        return 0;
    close_network(fd);
    return 1;
}

static void keep(int fd)
{
    if (networks.n_kept < MAX_KEPT)
        networks.kept[networks.n_kept++] = fd;
    else
        close_network(fd);
}

static void drop(int fd, uint64_t *counter)
{
    ++*counter;
    close_network(fd);
}

void fns_give_network(int fd, int exposed)
{
    struct fns_stats *stats = fns_get_stats();
    enum fns_network_use use = exposed ? FNS_NETWORK_USED : use_of(fd);
    if (use == FNS_NETWORK_UNUSED) {
        keep(fd);
    } else if (use == FNS_NETWORK_DOUBTFUL && networks.n_doubtful < MAX_DOUBTFUL) {
        networks.doubtful[networks.n_doubtful].fd = fd;
        networks.doubtful[networks.n_doubtful++].due = fns_clock() + LOOK_AGAIN_MS * 1000000ull;
    } else {
        drop(fd, exposed ? &stats->networks_exposed : &stats->networks_touched);
    }
}

int fns_check_networks(void)
{
    int n_due = 0;
    uint64_t now = networks.n_doubtful ? fns_clock() : 0;
    while (n_due < networks.n_doubtful && networks.doubtful[n_due].due <= now) {
        int fd = networks.doubtful[n_due++].fd;
        if (use_of(fd) == FNS_NETWORK_UNUSED)
            keep(fd);
        else
            drop(fd, &fns_get_stats()->networks_touched);
    }
    networks.n_doubtful -= n_due;
    for (int i = 0; n_due && i < networks.n_doubtful; i++)
        networks.doubtful[i] = networks.doubtful[i + n_due];
    return networks.n_doubtful ? LOOK_AGAIN_MS : FNS_NONE;
}
