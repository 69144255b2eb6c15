/* Measures the kernel's share of a start: the steps of a start in plain C, and nothing else.
 *
 * Each case but "server" adds one step to the case before it. Each takes turns with posix_spawn of the
 * same static program. "server" works like a template: a process with few mounts receives a request
 * from a socket, clones, reaps and replies. No case has limits, an id map, a filter or error reports.
 *
 * Usage, as root: floor ROUNDS ROOT EXEC. ROOT has /true, /proc and /tmp; EXEC executes /true.
 * Prints a JSON object.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define NAMESPACES (CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP)
#define GET_MOUNTS 0xff03 /* PIDFD_GET_MNT_NAMESPACE */
#define CAPABILITIES 41

enum step { BARE, CLONE, ROOT, MOUNTS, BOUNDING_SET, EXEC_PROGRAM, SERVER, STEPS };
static const char *const NAMES[] = {"posix_spawn",        "namespaces",     "+ root",
                                    "+ /proc, /tmp",      "+ bounding set", "+ exec program",
                                    "server, /proc, /tmp"};

static char *const arguments[] = {"/true", NULL}, *const environment[] = {NULL};
static const char *root;
static char host_path[4096], program[1 << 16], stack[1 << 16] __attribute__((aligned(4096)));
static long program_size;
static enum step step;
static int program_fd, server;

static void check(int good, const char *what)
{
    if (!good) {
        perror(what);
        exit(1);
    }
}

static void mount_in(int tree, const char *name, const char *type)
{
    int at = openat(tree, name, O_PATH | O_CLOEXEC);
    fchdir(at);
    mount(type, ".", type, 0, NULL);
    close(at);
}

/* Runs between clone and exec, in the parent's memory. */
static int child(void *unused)
{
    (void)unused;
    int tree = -1;
    if (step >= ROOT && step < SERVER) {
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
        tree = (int)syscall(SYS_open_tree, AT_FDCWD, root, 1 /* OPEN_TREE_CLONE */ | O_CLOEXEC);
        int old = open("/", O_PATH | O_CLOEXEC);
        syscall(SYS_move_mount, tree, "", old, "", 0x44 /* MOVE_MOUNT_[FT]_EMPTY_PATH */);
        close(old);
    }
    if (step == SERVER)
        tree = open("/", O_PATH | O_CLOEXEC);
    if (step >= MOUNTS) {
        mount_in(tree, "proc", "proc");
        mount_in(tree, "tmp", "tmpfs");
    }
    if (step >= ROOT && step < SERVER) {
        fchdir(tree);
        syscall(SYS_pivot_root, ".", ".");
        umount2(".", MNT_DETACH);
    }
    for (int i = 0; step >= BOUNDING_SET && step < SERVER && i < CAPABILITIES; i++)
        prctl(PR_CAPBSET_DROP, i);
    if (step == EXEC_PROGRAM)
        syscall(SYS_execveat, program_fd, "", arguments, environment, AT_EMPTY_PATH);
    execve(step >= ROOT ? "/true" : host_path, arguments, environment);
    _exit(127);
}

static int start(int flags, int *pidfd)
{
    return clone(child, stack + sizeof stack, CLONE_VM | SIGCHLD | NAMESPACES | flags, NULL, pidfd);
}

/* ---- the server ----------------------------------------------------------------------------- */

static void enter_root(void)
{
    check(unshare(CLONE_NEWNS) == 0, "unshare");
    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
    check(mount(root, root, NULL, MS_BIND, NULL) == 0 && chdir(root) == 0, root);
    check(syscall(SYS_pivot_root, ".", ".") == 0 && umount2(".", MNT_DETACH) == 0, "pivot_root");
}

/* Requests carry three fds, as a template's do. The server keeps the sandbox's mount namespace open
 * until it has replied. Otherwise the sandbox's exit would take it down before the reply. */
static void serve(int socket)
{
    enter_root();
    step = SERVER;
    for (;;) {
        char bytes[256], rights[CMSG_SPACE(3 * sizeof(int))];
        struct iovec vector = {bytes, sizeof bytes};
        struct msghdr header = {.msg_iov = &vector,
                                .msg_iovlen = 1,
                                .msg_control = rights,
                                .msg_controllen = sizeof rights};
        struct rusage usage;
        int pidfd, status = -1, fds[3];
        if (recvmsg(socket, &header, MSG_CMSG_CLOEXEC) <= 0)
            exit(0);
        int pid = start(CLONE_PIDFD, &pidfd), held = ioctl(pidfd, GET_MOUNTS, 0);
        close(pidfd);
        memcpy(fds, CMSG_DATA(CMSG_FIRSTHDR(&header)), sizeof fds);
        for (int i = 0; i < 3; i++)
            close(fds[i]);
        wait4(pid, &status, __WALL, &usage);
        memcpy(bytes, &status, sizeof status);
        write(socket, bytes, sizeof bytes);
        if (held >= 0)
            close(held);
    }
}

static int request(void)
{
    char bytes[256] = {0}, rights[CMSG_SPACE(3 * sizeof(int))] = {0};
    struct iovec vector = {bytes, sizeof bytes};
    struct msghdr header = {.msg_iov = &vector,
                            .msg_iovlen = 1,
                            .msg_control = rights,
                            .msg_controllen = sizeof rights};
    struct cmsghdr *at = CMSG_FIRSTHDR(&header);
    const int fds[3] = {0, 1, 2};
    int status = -1;
    *at = (struct cmsghdr){CMSG_LEN(sizeof fds), SOL_SOCKET, SCM_RIGHTS};
    memcpy(CMSG_DATA(at), fds, sizeof fds);
    if (sendmsg(server, &header, 0) > 0 && read(server, bytes, sizeof bytes) > 0)
        memcpy(&status, bytes, sizeof status);
    return status;
}

/* ---- timing --------------------------------------------------------------------------------- */

static int run(enum step what)
{
    int pid = -1, status = -1;
    step = what;
    if (what == SERVER)
        return request();
    if (what == BARE)
        posix_spawn(&pid, host_path, NULL, NULL, arguments, environment);
    if (what == EXEC_PROGRAM) {
        program_fd = memfd_create("program", MFD_CLOEXEC);
        check(write(program_fd, program, (size_t)program_size) == program_size, "memfd");
    }
    if (what != BARE)
        pid = start(CLONE_VFORK, NULL);
    waitpid(pid, &status, 0);
    if (what == EXEC_PROGRAM)
        close(program_fd);
    return status;
}

static double timed(enum step what)
{
    struct timespec from, to;
    clock_gettime(CLOCK_MONOTONIC, &from);
    int status = run(what);
    clock_gettime(CLOCK_MONOTONIC, &to);
    if (status != 0) {
        fprintf(stderr, "%s: status %d\n", NAMES[what], status);
        exit(1);
    }
    return (double)(to.tv_sec - from.tv_sec) * 1e6 + (double)(to.tv_nsec - from.tv_nsec) / 1e3;
}

static int compare(const void *one, const void *two)
{
    double a = *(const double *)one, b = *(const double *)two;
    return (a > b) - (a < b);
}

static double median(double *values, int n)
{
    qsort(values, (size_t)n, sizeof *values, compare);
    return values[n / 2];
}

int main(int argc, char **argv)
{
    check(argc == 4, "usage: floor ROUNDS ROOT EXEC");
    int rounds = atoi(argv[1]), pair[2], file = open(argv[3], O_RDONLY | O_CLOEXEC);
    root = argv[2];
    snprintf(host_path, sizeof host_path, "%s/true", root);
    program_size = read(file, program, sizeof program);
    check(rounds > 0 && program_size > 0, argv[3]);
    close(file);
    check(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0, "socketpair");
    server = pair[0];
    int pid = fork();
    if (pid == 0) {
        close(pair[0]);
        serve(pair[1]);
    }
    close(pair[1]);
    double *times = calloc((size_t)rounds * 2, sizeof *times);
    check(pid > 0 && times, "fork");
    for (enum step what = CLONE; what < STEPS; what++) {
        for (int i = 0; i < 10; i++)
            timed(what);
        for (int i = 0; i < rounds; i++)
            for (int turn = 0; turn < 2; turn++) {
                int bare = (i + turn) % 2;
                times[bare * rounds + i] = timed(bare ? BARE : what);
            }
        double its = median(times, rounds), bares = median(times + rounds, rounds);
        printf("%s\"%s\": {\"median_us\": %.1f, \"bare_us\": %.1f, \"ratio\": %.3f}",
               what == CLONE ? "{" : ", ", NAMES[what], its, bares, its / bares);
    }
    printf("}\n");
    close(server);
    waitpid(pid, NULL, 0);
    return 0;
}
