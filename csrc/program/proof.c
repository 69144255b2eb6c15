/* Proves that a room is as new. Runs in the keeper.
 *
 * The room is not cleaned: if anything looks different, it is thrown away. A command can change
 *
 *   files       in the tmpfs of the overlay's layers and of each mount. A new entry, a removed one or a change of the
 *               top directory shows in that directory's times; the layers and mounts begin empty, so there is nothing
 *               deeper. Blocks and inodes in use show what is deleted but open.
 *   terminals   below /dev/pts
 *   ipc         System V objects, POSIX message queues
 *   network     sockets and counters (networks.c)
 *   the keeper  limits and scheduling, which the next command inherits. The keeper has the command's uid.
 */
#include "proof.h"

#include "server.h"

enum {
    MAX_PLACES = 24,
    N_NUMBERS = 12,
    N_LIMITS = 16,        /* RLIM_NLIMITS */
    SCHEDULING_SIZE = 56, /* struct sched_attr, with uclamp */
    CPUS_SIZE = 1024,     /* of a mask of CPUs, in bytes */
    ENTRIES_SIZE = 512,   /* of directories that hold a few entries */
    IPC_SIZE = 64,        /* at least that of struct seminfo, shm_info and msginfo */
};
enum { MSG_INFO = 12, SHM_INFO = 14, SEM_INFO = 19 };
enum { IOPRIO_WHO_PROCESS = 1, PRIO_PROCESS = 0, CLOCK_REALTIME_COARSE = 5 };
enum {
    TICK_NS = 1000000,    /* a part of one */
    FREEING_NS = 20000000 /* in which the kernel frees the sockets of ended processes */
};

/* All that is compared, except the network. */
struct look {
    uint64_t places[MAX_PLACES][N_NUMBERS]; /* what statx(2) and statfs(2) say of each */
    char terminals[ENTRIES_SIZE];           /* the entries of /dev/pts */
    char ipc[3][IPC_SIZE];
    uint64_t limits[N_LIMITS][2];
    char scheduling[SCHEDULING_SIZE], cpus[CPUS_SIZE];
    long nice, io_priority, timer_slack;
};

static struct {
    int places[MAX_PLACES]; /* O_PATH fds */
    int n_places;
    int terminals; /* fd of /dev/pts; -1: there is none */
    int network[FNS_NETWORK_FILES];
    int is_shallow; /* no command can reach a directory that was made ahead in a tmpfs */
    struct look before, now;
} proof;

/* ---- open ----------------------------------------------------------------------------------- */

/* Adds a place. Returns 0, or the -errno in `fd`. */
static long add(int fd)
{
    if (fd < 0)
        return fd;
    if (proof.n_places == MAX_PLACES)
        return fns_done_with(fd, -ENOSPC);
    proof.places[proof.n_places++] = fd;
    return 0;
}

static long add_path(const char *path)
{
    return add(fns_open(path, FNS_PATH_FLAGS | O_NOFOLLOW));
}

/* The queues of this ipc namespace; a mount of them that is attached nowhere. */
static long add_queues(void)
{
    int context = (int)fns_sys2(__NR_fsopen, "mqueue", FSOPEN_CLOEXEC);
    long result =
        context < 0 ? context : fns_sys5(__NR_fsconfig, context, FSCONFIG_CMD_CREATE, 0, 0, 0);
    if (result >= 0)
        result = fns_sys3(__NR_fsmount, context, FSMOUNT_CLOEXEC, 0);
    result = fns_done_with(context, result);
    return result == -ENODEV ? 0 : add((int)result); /* ENODEV: the kernel has no queues */
}

/* Opens and adds /dev/pts, unless it is hidden, or another file system is there. */
static long add_terminals(void)
{
    proof.terminals = fns_open("/dev/pts", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    long result = proof.terminals < 0 ? proof.terminals : add_path("/dev/pts");
    if (result >= 0)
        result = add_path("/dev/pts/ptmx");
    return result == -ENOENT ? 0 : result;
}

static int are_equal_texts(const char *a, const char *b)
{
    size_t size = fns_length(a);
    return size == fns_length(b) && fns_equal(a, b, size);
}

/* The target of an op, relative to the root. */
static const char *target_of(const struct fns_child *child, const struct fns_op *op)
{
    const char *target = fns_text(child, op->target);
    return target + (*target == '/');
}

/* Adds the top of a tmpfs. */
static long add_top(int fd)
{
    enum { EMPTY = 2 }; /* links to a directory without subdirectories */
    struct statx about;
    long result = fd < 0 ? fd : fns_sys5(__NR_statx, fd, "", AT_EMPTY_PATH, STATX_NLINK, &about);
    if (result < 0)
        return fns_done_with(fd, result);
    if (about.stx_nlink != EMPTY || fns_check_type(fd, TMPFS_MAGIC) < 0)
        proof.is_shallow = 0;
    return add(fd);
}

/* Adds the top of each tmpfs that the plan mounts, also where a link in the root leads to it. `root`: fd of "/". */
static long add_mounts(const struct fns_child *child, int root)
{
    long result = root;
    for (uint32_t i = 0; i < child->plan->n_ops && result >= 0; i++) {
        const struct fns_op *op = &child->plan->ops[i];
        if (op->code == FNS_OP_MOUNT && are_equal_texts(fns_text(child, op->type), "tmpfs"))
            result = add_top(fns_resolve(root, fns_text(child, op->target), 0));
    }
    return result;
}

/* ---- the overlay's layer -------------------------------------------------------------------- */

struct entry { /* struct linux_dirent64 */
    uint64_t inode, next;
    uint16_t size;
    uint8_t type;
    char name[];
};

/* Whether "/" + name is a mount point of the plan. What lies below the mount is out of reach. */
static int is_mount_point(const struct fns_child *child, const char *name)
{
    for (uint32_t i = 0; i < child->plan->n_ops; i++) {
        const struct fns_op *op = &child->plan->ops[i];
        if ((op->code == FNS_OP_MOUNT || op->code == FNS_OP_BIND) &&
            are_equal_texts(target_of(child, op), name))
            return 1;
    }
    return 0;
}

/* Reads all entries of a directory of a few. Returns their size, or -errno. */
static long list(int directory, char *entries)
{
    long result = fns_sys3(__NR_lseek, directory, 0, 0);
    if (result >= 0)
        result = fns_sys3(__NR_getdents64, directory, entries, ENTRIES_SIZE);
    return result;
}

/* Sets is_shallow. `upper`: fd of the layer's directory. 0 or -errno. */
static long look_at_layer(const struct fns_child *child, int upper)
{
    char entries[ENTRIES_SIZE] __attribute__((aligned(8)));
    long size;
    while ((size = fns_sys3(__NR_getdents64, upper, entries, sizeof entries)) > 0)
        for (long at = 0; at < size; at += ((struct entry *)(void *)(entries + at))->size) {
            const struct entry *entry = (const void *)(entries + at);
            int is_dots = are_equal_texts(entry->name, ".") || are_equal_texts(entry->name, "..");
            if (!is_dots && !is_mount_point(child, entry->name))
                proof.is_shallow = 0;
        }
    return size;
}

static long open_layer(const struct fns_child *child, int scratch)
{
    int upper = fns_open_in(scratch, "upper", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    long result = upper < 0 ? upper : look_at_layer(child, upper);
    if (result >= 0)
        return add(upper) < 0 ? -ENOSPC : add(fns_open_in(scratch, "work/work", FNS_PATH_FLAGS));
    return fns_done_with(upper, result);
}

long fns_open_proof(struct fns_child *child)
{
    long result = 0;
    proof.is_shallow = 1;
    if (child->scratch >= 0)
        result = fns_done_with(child->scratch, open_layer(child, child->scratch));
    child->scratch = -1;
    child->keeps_scratch = 0;
    int root = fns_open("/", FNS_PATH_FLAGS | O_DIRECTORY);
    if (result >= 0)
        result = fns_done_with(root, add_mounts(child, root));
    if (result >= 0)
        result = add_terminals();
    if (result >= 0)
        result = add_queues();
    int net = fns_open("/proc/self/net", FNS_PATH_FLAGS | O_DIRECTORY);
    if (result >= 0)
        result = net < 0 ? net : fns_open_network_files(net, proof.network);
    return fns_done_with(net, result);
}

/* ---- look ----------------------------------------------------------------------------------- */

static long look_at_place(int fd, uint64_t *numbers)
{
    enum { BLOCKS_FREE = 3, FILES_FREE = 6 }; /* in struct statfs, of 64-bit numbers */
    uint64_t system[16];
    struct statx about;
    long result = fns_sys2(__NR_fstatfs, fd, system);
    if (result >= 0)
        result = fns_sys5(__NR_statx, fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &about);
    if (result < 0)
        return result;
    const uint64_t found[N_NUMBERS] = {
        about.stx_mode | (uint64_t)about.stx_nlink << 32,
        about.stx_uid | (uint64_t)about.stx_gid << 32,
        about.stx_size,
        about.stx_blocks,
        (uint64_t)about.stx_atime.tv_sec,
        (uint64_t)about.stx_mtime.tv_sec,
        (uint64_t)about.stx_ctime.tv_sec,
        about.stx_atime.tv_nsec,
        about.stx_mtime.tv_nsec,
        about.stx_ctime.tv_nsec,
        system[BLOCKS_FREE],
        system[FILES_FREE],
    };
    memcpy(numbers, found, sizeof found);
    return 0;
}

static long look_at_ipc(char ipc[3][IPC_SIZE])
{
    long result = fns_sys3(__NR_shmctl, 0, SHM_INFO, ipc[0]);
    if (result >= 0)
        result = fns_sys4(__NR_semctl, 0, 0, SEM_INFO, ipc[1]);
    if (result >= 0)
        result = fns_sys3(__NR_msgctl, 0, MSG_INFO, ipc[2]);
    return result == -ENOSYS ? 0 : result; /* the kernel has none of them */
}

static long look_at_keeper(struct look *look)
{
    long result = 0;
    for (int i = 0; i < N_LIMITS && result >= 0; i++)
        result = fns_sys4(__NR_prlimit64, 0, i, 0, look->limits[i]);
    if (result >= 0)
        result = fns_sys4(__NR_sched_getattr, 0, look->scheduling, SCHEDULING_SIZE, 0);
    if (result >= 0)
        result = fns_sys3(__NR_sched_getaffinity, 0, CPUS_SIZE, look->cpus);
    if (result >= 0)
        result = look->nice = fns_sys2(__NR_getpriority, PRIO_PROCESS, 0);
    if (result >= 0) {
        look->io_priority = fns_sys2(__NR_ioprio_get, IOPRIO_WHO_PROCESS, 0);
        result = look->io_priority == -ENOSYS ? 0 : look->io_priority; /* no block devices */
    }
    if (result >= 0)
        result = look->timer_slack = fns_prctl(PR_GET_TIMERSLACK, 0, 0);
    return result;
}

static long look(struct look *look)
{
    long result = 0;
    for (int i = 0; i < proof.n_places && result >= 0; i++)
        result = look_at_place(proof.places[i], look->places[i]);
    if (result >= 0 && proof.terminals >= 0)
        result = list(proof.terminals, look->terminals);
    if (result >= 0)
        result = look_at_ipc(look->ipc);
    return result < 0 ? result : look_at_keeper(look);
}

/* Whether a tmpfs takes the time of a change from a finer clock if the last time has been looked at (Linux 6.13). Of
 * /dev/pts and of the queues, whose times are coarse, everything else that can change is compared too. */
static int has_fine_times(void)
{
    enum { FIELD = 65, RELEASE = 2 * FIELD, MAJOR = 6, MINOR = 13 };
    char names[6 * FIELD]; /* struct new_utsname */
    unsigned numbers[2] = {0, 0}, n = 0;
    if (fns_sys1(__NR_uname, names) < 0)
        return 0;
    for (const char *at = names + RELEASE; n < 2 && (*at == '.' || (*at >= '0' && *at <= '9'));
         at++)
        if (*at == '.')
            n++;
        else
            numbers[n] = numbers[n] * 10 + (unsigned)(*at - '0');
    return numbers[0] > MAJOR || (numbers[0] == MAJOR && numbers[1] >= MINOR);
}

/* Waits until the clock from which the kernel otherwise takes these times has moved. 0 or -errno. */
static long await_tick(void)
{
    const int64_t tick[2] = {0, TICK_NS};
    int64_t started[2], time[2];
    long result = fns_sys2(__NR_clock_gettime, CLOCK_REALTIME_COARSE, started);
    while (result >= 0) {
        result = fns_sys2(__NR_clock_gettime, CLOCK_REALTIME_COARSE, time);
        if (time[0] != started[0] || time[1] != started[1])
            break;
        FNS_IGNORE(fns_sys2(__NR_nanosleep, tick, 0), "the clock is read again");
    }
    return result;
}

long fns_start_proof(void)
{
    long result = look(&proof.before);
    return result < 0 || has_fine_times() ? result : await_tick();
}

int fns_prove(void)
{
    const int64_t pause[2] = {0, FREEING_NS};
    if (!proof.is_shallow || look(&proof.now) < 0 ||
        !fns_equal(&proof.before, &proof.now, sizeof proof.now))
        return 0;
    enum fns_network_use use = fns_network_use(proof.network);
    if (use == FNS_NETWORK_DOUBTFUL) {
        FNS_IGNORE(fns_sys2(__NR_nanosleep, pause, 0), "a shorter pause does no harm");
        use = fns_network_use(proof.network);
    }
    return use == FNS_NETWORK_UNUSED;
}
