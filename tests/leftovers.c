/* Leaves something behind, or looks for it: what one command might leave for the next in the same sandbox.
 *
 *   leftovers plant CASE   exits with 0, or with REFUSED if the sandbox does not allow it
 *   leftovers seek CASE    exits with FOUND or NOT_FOUND
 *   leftovers both CASE    does both in one process
 *   leftovers list         prints the names of all cases
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/ioprio.h>
#include <mqueue.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <termios.h>
#include <unistd.h>

enum { FOUND = 10, NOT_FOUND = 11, REFUSED = 12 };
enum { KEY = 4711, LIMIT = 424242, NICE = 7, ADJUSTED = 500 };

/* Exits unless a call has worked: the sandbox refuses what the case needs. */
static int must(long result)
{
    if (result < 0)
        exit(REFUSED);
    return (int)result;
}

/* ---- files ---- */

static struct statx about(const char *path)
{
    struct statx at;
    must(statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS | STATX_BTIME, &at));
    return at;
}

static int differ(struct statx_timestamp a, struct statx_timestamp b)
{
    return a.tv_sec != b.tv_sec || a.tv_nsec != b.tv_nsec;
}

/* Whether something has changed since it was made. */
static int changed(const char *path)
{
    struct statx at = about(path);
    return differ(at.stx_ctime, at.stx_btime);
}

static int has_mode(const char *path, unsigned mode)
{
    return (about(path).stx_mode & 07777) == mode;
}

static int make(const char *path)
{
    return must(open(path, O_CREAT | O_RDWR, 0600));
}

static void plant_file(void)
{
    make("/tmp/left");
}
static int seek_file(void)
{
    return access("/tmp/left", F_OK) == 0;
}

static void plant_removed(void)
{
    make("/tmp/left");
    must(unlink("/tmp/left"));
}

static void plant_renamed(void)
{
    make("/run/left");
    must(rename("/run/left", "/run/right"));
    must(unlink("/run/right"));
}

static int seek_tmp(void)
{
    return changed("/tmp");
}
static int seek_run(void)
{
    return changed("/run");
}

static void plant_mode(void)
{
    must(chmod("/tmp", 0700));
}
static int seek_mode(void)
{
    return has_mode("/tmp", 0700);
}
static void plant_mode_of_run(void)
{
    must(chmod("/run", 0711));
}
static int seek_mode_of_run(void)
{
    return has_mode("/run", 0711);
}
static void plant_mode_of_shm(void)
{
    must(chmod("/dev/shm", 0711));
}
static int seek_mode_of_shm(void)
{
    return has_mode("/dev/shm", 0711);
}
static void plant_mode_of_dev(void)
{
    must(chmod("/dev", 0711));
}
static int seek_mode_of_dev(void)
{
    return has_mode("/dev", 0711);
}
static void plant_device(void)
{
    must(unlink("/dev/full"));
}
static int seek_device(void)
{
    return access("/dev/full", F_OK) < 0;
}
static void plant_mode_of_null(void)
{
    must(chmod("/dev/null", 0600));
}
static int seek_mode_of_null(void)
{
    return has_mode("/dev/null", 0600);
}
static void plant_mode_of_ptmx(void)
{
    must(chmod("/dev/pts/ptmx", 0600));
}
static int seek_mode_of_ptmx(void)
{
    return has_mode("/dev/pts/ptmx", 0600);
}
static void plant_mode_of_pts(void)
{
    must(chmod("/dev/pts", 0700));
}
static int seek_mode_of_pts(void)
{
    return has_mode("/dev/pts", 0700);
}
static void plant_mode_of_root(void)
{
    must(chmod("/", 0711));
}
static int seek_mode_of_root(void)
{
    return has_mode("/", 0711);
}

static void plant_mode_and_back(void)
{
    must(chmod("/tmp", 0700));
    must(chmod("/tmp", 01777));
}

static void plant_acl(void)
{
    /* posix_acl_xattr: version 2; user rwx, group rwx, other rwx */
    static const unsigned acl[] = {2, 7 << 16 | 1, ~0u, 7 << 16 | 4, ~0u, 7 << 16 | 32, ~0u};
    must(setxattr("/tmp", "system.posix_acl_default", acl, sizeof acl, 0));
}

static int seek_acl(void)
{
    return getxattr("/tmp", "system.posix_acl_default", NULL, 0) > 0;
}
static void plant_attribute(void)
{
    must(setxattr("/tmp", "user.left", "x", 1, 0));
}
static int seek_attribute(void)
{
    return getxattr("/tmp", "user.left", NULL, 0) > 0;
}

static void plant_attribute_removed(void)
{
    plant_attribute();
    must(removexattr("/tmp", "user.left"));
}

static void plant_times(void)
{
    const struct timespec times[2] = {{1000, 0}, {1000, 0}};
    must(utimensat(AT_FDCWD, "/tmp", times, 0));
}

static int seek_times(void)
{
    return about("/tmp").stx_mtime.tv_sec == 1000;
}

static void plant_access_time(void)
{
    DIR *tmp = opendir("/tmp");
    while (tmp && readdir(tmp))
        continue;
    if (!differ(about("/tmp").stx_atime, about("/tmp").stx_btime))
        exit(REFUSED); /* reading changes nothing here */
}

static int seek_access_time(void)
{
    return differ(about("/tmp").stx_atime, about("/tmp").stx_btime);
}

static void plant_nameless(void)
{
    must(write(must(open("/tmp", O_TMPFILE | O_RDWR, 0600)), "x", 1));
}

static int seek_nameless(void)
{
    struct statfs tmp;
    must(statfs("/tmp", &tmp));
    return tmp.f_files - tmp.f_ffree > 1; /* 1: the directory itself */
}

static void plant_deep(void)
{
    must(mkdir("/dev/shm/deep", 0700));
    make("/dev/shm/deep/left");
}

static int seek_deep(void)
{
    return access("/dev/shm/deep/left", F_OK) == 0;
}
static void plant_whiteout(void)
{
    must(unlink("/etc/hosts"));
}
static int seek_whiteout(void)
{
    return access("/etc/hosts", F_OK) < 0;
}
static void plant_copy_up(void)
{
    must(open("/etc/hostname", O_WRONLY | O_TRUNC));
}
static int seek_copy_up(void)
{
    return about("/etc/hostname").stx_size == 0;
}
static void plant_root_file(void)
{
    make("/left");
}
static int seek_root_file(void)
{
    return access("/left", F_OK) == 0;
}
static void plant_fifo(void)
{
    must(mkfifo("/tmp/left", 0600));
}
static void plant_lock(void)
{
    must(lockf(make("/dev/shm/left"), F_LOCK, 0));
}
static int seek_lock(void)
{
    return access("/dev/shm/left", F_OK) == 0;
}

static void plant_socket_file(void)
{
    const struct sockaddr_un place = {AF_UNIX, "/tmp/left"};
    must(bind(must(socket(AF_UNIX, SOCK_STREAM, 0)), (const void *)&place, sizeof place));
}

/* ---- terminals ---- */

static int open_terminal(void)
{
    int master = must(open("/dev/ptmx", O_RDWR | O_NOCTTY)), unlocked = 0;
    must(ioctl(master, TIOCSPTLCK, &unlocked));
    return must(ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY));
}

static void plant_raw_terminal(void)
{
    struct termios mode;
    int terminal = open_terminal();
    must(tcgetattr(terminal, &mode));
    cfmakeraw(&mode);
    must(tcsetattr(terminal, TCSANOW, &mode));
}

static int seek_raw_terminal(void)
{
    struct termios mode;
    if (access("/dev/pts/0", F_OK) == 0) /* the process that planted it, in the control */
        return tcgetattr(must(open("/dev/pts/0", O_RDWR | O_NOCTTY)), &mode) == 0 &&
               !(mode.c_lflag & ICANON);
    must(tcgetattr(open_terminal(), &mode));
    return !(mode.c_lflag & ICANON);
}

static void plant_terminal(void)
{
    open_terminal();
}
static int seek_terminal(void)
{
    return access("/dev/pts/0", F_OK) == 0;
}

/* ---- ipc ---- */

static void plant_shm(void)
{
    must(shmget(KEY, 4096, IPC_CREAT | 0600));
}
static int seek_shm(void)
{
    return shmget(KEY, 0, 0) >= 0;
}
static void plant_sem(void)
{
    must(semget(KEY, 1, IPC_CREAT | 0600));
}
static int seek_sem(void)
{
    return semget(KEY, 0, 0) >= 0;
}
static void plant_msg(void)
{
    must(msgget(KEY, IPC_CREAT | 0600));
}
static int seek_msg(void)
{
    return msgget(KEY, 0) >= 0;
}

static void plant_shm_removed(void)
{
    int id = must(shmget(KEY, 4096, IPC_CREAT | 0600));
    if (shmat(id, NULL, 0) == (void *)-1)
        exit(REFUSED);
    must(shmctl(id, IPC_RMID, NULL));
}

static int seek_shm_removed(void)
{
    struct shm_info info;
    must(shmctl(0, SHM_INFO, (void *)&info));
    return info.used_ids > 0;
}

static void plant_queue(void)
{
    must(syscall(SYS_mq_open, "left", O_CREAT | O_RDWR, 0600, NULL));
}
static int seek_queue(void)
{
    return syscall(SYS_mq_open, "left", O_RDONLY, 0, NULL) >= 0;
}
static void plant_named_sem(void)
{
    make("/dev/shm/sem.left");
}
static int seek_named_sem(void)
{
    return access("/dev/shm/sem.left", F_OK) == 0;
}

/* ---- network ---- */

static struct sockaddr_in at_port(unsigned short port)
{
    return (struct sockaddr_in){AF_INET, htons(port), {htonl(INADDR_LOOPBACK)}, {0}};
}

static void plant_connection(void)
{
    struct sockaddr_in place = at_port(0);
    socklen_t size = sizeof place;
    int server = must(socket(AF_INET, SOCK_STREAM, 0)),
        client = must(socket(AF_INET, SOCK_STREAM, 0));
    must(bind(server, (void *)&place, size));
    must(listen(server, 1));
    must(getsockname(server, (void *)&place, &size));
    must(connect(client, (void *)&place, size));
    int accepted = must(accept(server, NULL, NULL));
    close(client); /* first, so that TIME_WAIT is on this side */
    close(accepted);
}

static void plant_datagram(void)
{
    struct sockaddr_in place = at_port(9);
    must(sendto(must(socket(AF_INET, SOCK_DGRAM, 0)), "x", 1, 0, (void *)&place, sizeof place));
}

static int contains(const char *path, const char *text)
{
    static char content[65536];
    int fd = open(path, O_RDONLY);
    long n = fd < 0 ? 0 : read(fd, content, sizeof content - 1);
    content[n > 0 ? n : 0] = 0;
    return strstr(content, text) != NULL;
}

/* Whether lo has sent a packet. */
static int seek_packet(void)
{
    return !contains(
        "/proc/net/dev",
        "lo:       0       0    0    0    0     0          0         0        0       0");
}

static int used_sockets(void)
{
    unsigned used = 0;
    FILE *file = fopen("/proc/net/sockstat", "r");
    if (!file || fscanf(file, "sockets: used %u", &used) != 1)
        exit(REFUSED);
    fclose(file);
    return used > 0;
}

static void plant_cycle(void)
{
    int ends[2];
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control = {.header = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
    struct iovec byte = {"x", 1};
    const struct msghdr message = {.msg_iov = &byte,
                                   .msg_iovlen = 1,
                                   .msg_control = &control,
                                   .msg_controllen = sizeof control};
    must(socketpair(AF_UNIX, SOCK_DGRAM, 0, ends));
    memcpy(CMSG_DATA(&control.header), &ends[1], sizeof(int));
    must(sendmsg(ends[0], &message, 0)); /* ends[1] is now in its own queue */
    close(ends[0]);
    close(ends[1]);
}

static void plant_group(void)
{
    struct ip_mreqn group = {
        {inet_addr("239.1.2.3")}, {htonl(INADDR_ANY)}, (int)if_nametoindex("lo")};
    must(setsockopt(must(socket(AF_INET, SOCK_DGRAM, 0)), IPPROTO_IP, IP_ADD_MEMBERSHIP, &group,
                    sizeof group));
}

static int seek_group(void)
{
    return contains("/proc/net/igmp", "030201EF");
}
static void plant_netlink(void)
{
    must(socket(AF_NETLINK, SOCK_RAW, 0));
}

static void plant_label(void)
{
    const struct {
        unsigned char address[16];
        unsigned label;
        unsigned char action, share;
        unsigned short flags, expires, linger;
        unsigned padding;
    } request = {
        .address = {[15] = 1}, .label = htonl(0x12345), .share = 255, .flags = 1, .linger = 60};
    must(setsockopt(must(socket(AF_INET6, SOCK_DGRAM, 0)), 41, 32, &request, sizeof request));
}

static int seek_label(void)
{
    return contains("/proc/net/ip6_flowlabel", "12345");
}

static void plant_key(void)
{
    must(write(must(open("/proc/sys/net/ipv4/tcp_fastopen_key", O_WRONLY)), "1-2-3-4", 7));
}

static int seek_key(void)
{
    return contains("/proc/sys/net/ipv4/tcp_fastopen_key", "00000001-00000002");
}

static void plant_abstract(void)
{
    struct sockaddr_un place = {AF_UNIX, "\0left"};
    int server = must(socket(AF_UNIX, SOCK_STREAM, 0));
    must(bind(server, (void *)&place, sizeof place));
    must(listen(server, 1));
    if (fork() == 0)
        sleep(1000);
}

static int seek_abstract(void)
{
    struct sockaddr_un place = {AF_UNIX, "\0left"};
    return connect(must(socket(AF_UNIX, SOCK_STREAM, 0)), (void *)&place, sizeof place) == 0;
}

/* ---- pid 1: the keeper of a room, and the command itself in a fresh sandbox ---- */

static void plant_limit(void)
{
    const struct rlimit limit = {LIMIT, LIMIT};
    must(prlimit(1, RLIMIT_FSIZE, &limit, NULL));
}

static int seek_limit(void)
{
    struct rlimit limit;
    must(getrlimit(RLIMIT_FSIZE, &limit));
    return limit.rlim_max == LIMIT;
}

static void plant_stack(void)
{
    const struct rlimit limit = {RLIM_INFINITY, RLIM_INFINITY};
    must(prlimit(1, RLIMIT_STACK, &limit, NULL));
}

static int seek_stack(void)
{
    struct rlimit limit;
    must(getrlimit(RLIMIT_STACK, &limit));
    return limit.rlim_cur == RLIM_INFINITY;
}

static void plant_nice(void)
{
    must(setpriority(PRIO_PROCESS, 1, NICE));
}
static void plant_nice_of_user(void)
{
    must(setpriority(PRIO_USER, 0, NICE));
}
static int seek_nice(void)
{
    return getpriority(PRIO_PROCESS, 0) == NICE;
}

static void plant_policy(void)
{
    const struct sched_param none = {0};
    must(sched_setscheduler(1, SCHED_IDLE, &none));
}

static int seek_policy(void)
{
    return sched_getscheduler(0) == SCHED_IDLE;
}

static void plant_affinity(void)
{
    cpu_set_t all, one;
    must(sched_getaffinity(0, sizeof all, &all));
    if (CPU_COUNT(&all) < 2)
        exit(REFUSED);
    CPU_ZERO(&one);
    for (int cpu = 0; cpu < CPU_SETSIZE && !CPU_COUNT(&one); cpu++)
        if (CPU_ISSET(cpu, &all))
            CPU_SET(cpu, &one);
    must(sched_setaffinity(1, sizeof one, &one));
}

static int seek_affinity(void)
{
    cpu_set_t now;
    must(sched_getaffinity(0, sizeof now, &now));
    return CPU_COUNT(&now) == 1;
}

static void plant_io_priority(void)
{
    must(syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, 1, IOPRIO_PRIO_VALUE(IOPRIO_CLASS_BE, 7)));
}

static int seek_io_priority(void)
{
    return syscall(SYS_ioprio_get, IOPRIO_WHO_PROCESS, 0) == IOPRIO_PRIO_VALUE(IOPRIO_CLASS_BE, 7);
}

static void plant_oom_score(void)
{
    must(write(must(open("/proc/1/oom_score_adj", O_WRONLY)), "500", 3));
}

static int seek_oom_score(void)
{
    return contains("/proc/self/oom_score_adj", "500");
}

static void plant_signal(void)
{
    sigset_t all;
    const union sigval value = {.sival_int = 1};
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);
    must(sigqueue(1, SIGRTMIN, value));
    must(sigqueue(1, SIGUSR1, value));
}

static int seek_signal(void)
{
    sigset_t pending;
    sigpending(&pending);
    return sigismember(&pending, SIGRTMIN) || sigismember(&pending, SIGUSR1);
}

/* ---- processes ---- */

static void plant_daemon(void)
{
    if (must(fork()) == 0) {
        setsid();
        if (fork())
            _exit(0);
        sleep(1000);
    }
}

static void plant_stopped(void)
{
    if (must(fork()) == 0)
        raise(SIGSTOP);
}

static void plant_storm(void)
{
    for (int i = 0; i < 40; i++)
        if (must(fork()) == 0)
            sleep(1000);
}

static void plant_without_signal(void)
{
    if (must(syscall(SYS_clone, 0, 0, 0, 0, 0)) == 0)
        sleep(1000);
}

static int seek_process(void)
{
    return kill(-1, 0) == 0;
}

/* clang-format off */
#define CASES(X) \
    X(file, file) X(removed, tmp) X(renamed, run) X(mode, mode) X(mode_and_back, tmp) \
    X(mode_of_run, mode_of_run) X(mode_of_shm, mode_of_shm) X(mode_of_dev, mode_of_dev) \
    X(device, device) X(mode_of_null, mode_of_null) X(mode_of_ptmx, mode_of_ptmx) X(mode_of_pts, mode_of_pts) \
    X(mode_of_root, mode_of_root) X(acl, acl) X(attribute, attribute) X(attribute_removed, tmp) \
    X(times, times) X(access_time, access_time) X(nameless, nameless) X(deep, deep) \
    X(whiteout, whiteout) X(copy_up, copy_up) X(root_file, root_file) X(fifo, file) \
    X(lock, lock) X(socket_file, file) X(raw_terminal, raw_terminal) X(terminal, terminal) \
    X(shm, shm) X(sem, sem) X(msg, msg) X(shm_removed, shm_removed) X(queue, queue) X(named_sem, named_sem) \
    X(connection, packet) X(datagram, packet) X(cycle, sockets) X(group, group) \
    X(netlink, sockets) X(label, label) X(key, key) X(abstract, abstract) X(limit, limit) X(stack, stack) \
    X(nice, nice) X(nice_of_user, nice) X(policy, policy) X(affinity, affinity) \
    X(io_priority, io_priority) X(oom_score, oom_score) X(signal, signal) X(daemon, process) \
    X(stopped, process) X(storm, process) X(without_signal, process)
/* clang-format on */

static int seek_sockets(void)
{
    return used_sockets();
}

static const struct {
    const char *name;
    void (*plant)(void);
    int (*seek)(void);
} cases[] = {
#define X(name, seek) {#name, plant_##name, seek_##seek},
    CASES(X)
#undef X
};

int main(int argc, char **argv)
{
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (argc == 2)
            puts(cases[i].name);
        if (argc != 3 || strcmp(argv[2], cases[i].name) != 0)
            continue;
        if (strcmp(argv[1], "both") == 0)
            usleep(
                20000); /* the clock of files ticks, so that a change has another time than the making */
        if (strcmp(argv[1], "seek") != 0)
            cases[i].plant();
        return strcmp(argv[1], "plant") == 0 ? 0 : cases[i].seek() ? FOUND : NOT_FOUND;
    }
    return argc == 2 ? 0 : 1;
}
