/* Runs as a sandbox's command and takes as much as it can, at most NUMBER, of a resource that all
 * users of the host share: `exhaust WHAT [NUMBER]`.
 *
 * Prints how much it got and the errno of the first failure, then keeps it until stdin is closed.
 * `core` tries to change the limit on core dumps; `crash` makes a child dump core.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { FDS_OF_A_MESSAGE = 253 };

/* Raises the soft limit to the hard one. */
static void raise_soft_limit(int resource)
{
    struct rlimit limit;
    getrlimit((__rlimit_resource_t)resource, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit((__rlimit_resource_t)resource, &limit);
}

/* Sends n copies of an fd in one message that no process receives. */
static int send_fds(int socket, int n)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(FDS_OF_A_MESSAGE * sizeof(int))];
    } rights = {.header = {.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
    int fds[FDS_OF_A_MESSAGE];
    struct iovec vector = {(char *)"", 1};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = &rights};
    for (int i = 0; i < n; i++)
        fds[i] = socket;
    rights.header.cmsg_len = CMSG_LEN((size_t)n * sizeof(int));
    message.msg_controllen = CMSG_SPACE((size_t)n * sizeof(int));
    memcpy(CMSG_DATA(&rights.header), fds, (size_t)n * sizeof(int));
    return sendmsg(socket, &message, MSG_DONTWAIT) < 0 ? -1 : n;
}

static int fds_in_flight(void)
{
    static int pair[2] = {-1, -1};
    int sent = pair[0] < 0 ? -1 : send_fds(pair[0], FDS_OF_A_MESSAGE);
    if (sent < 0 && (pair[0] < 0 || errno == EAGAIN)) { /* this socket is full */
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0)
            return -1;
        sent = send_fds(pair[0], FDS_OF_A_MESSAGE);
    }
    return sent;
}

static int timer(void)
{
    timer_t id;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    return timer_create(CLOCK_MONOTONIC, &event, &id) < 0 ? -1 : 1;
}

static int pty(void)
{
    return open("/dev/ptmx", O_RDWR | O_NOCTTY) < 0 ? -1 : 1;
}

static int inotify_instance(void)
{
    return inotify_init1(IN_CLOEXEC) < 0 ? -1 : 1;
}

static int open_file(void)
{
    return open("/", O_PATH) < 0 ? -1 : 1;
}

static void take(int (*one)(void), int most)
{
    char byte;
    int n = 0, got = 0, err = 0;
    while (n < most && (got = one()) > 0)
        n += got;
    if (got < 0)
        err = errno;
    printf("%d %d\n", n, err);
    fflush(stdout);
    while (read(0, &byte, 1) > 0)
        ;
}

/* Prints the errno of a call (0: it succeeded), and the limits after it. */
static void show_core(const char *name, long result)
{
    int err = result < 0 ? errno : 0;
    struct rlimit limit;
    getrlimit(RLIMIT_CORE, &limit);
    printf("%s %d %lld %lld\n", name, err, (long long)limit.rlim_cur, (long long)limit.rlim_max);
}

static void try_core_limits(void)
{
    const struct rlimit none = {0, 0}, soft = {0, 1};
    struct rlimit old = {7, 7};
    const long high = 1l << 32; /* bits that the kernel ignores */
    show_core("as it is", 0);
    show_core("setrlimit", syscall(SYS_setrlimit, RLIMIT_CORE, &soft));
    show_core("setrlimit-high", syscall(SYS_setrlimit, RLIMIT_CORE | high, &soft));
    show_core("prlimit", syscall(SYS_prlimit64, 0, RLIMIT_CORE, &soft, 0));
    show_core("prlimit-pid", syscall(SYS_prlimit64, getpid(), RLIMIT_CORE, &soft, 0));
    show_core("prlimit-high", syscall(SYS_prlimit64, high, RLIMIT_CORE | high, &soft, 0));
    show_core("prlimit-both", syscall(SYS_prlimit64, 0, RLIMIT_CORE, &soft, &old));
    show_core("libc", setrlimit(RLIMIT_CORE, &none));
    show_core("read", prlimit(0, RLIMIT_CORE, NULL, &old));
    printf("old 0 %lld %lld\n", (long long)old.rlim_cur, (long long)old.rlim_max);
    show_core("other", setrlimit(RLIMIT_FSIZE, &none));
}

/* A child sets the soft limit to 0, which does not stop a core handler, and crashes. Prints the
 * signal that ended it, and whether the kernel reports a core dump. */
static void crash(void)
{
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        const struct rlimit soft = {0, 1};
        setrlimit(RLIMIT_CORE, &soft);
        signal(SIGSEGV, SIG_DFL);
        raise(SIGSEGV);
        _exit(1);
    }
    waitpid(pid, &status, 0);
    printf("%d %d\n", WTERMSIG(status), WCOREDUMP(status) != 0);
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    int most = argc > 2 ? atoi(argv[2]) : 1 << 30;
    if (!strcmp(what, "core")) {
        try_core_limits();
    } else if (!strcmp(what, "crash")) {
        crash();
    } else if (!strcmp(what, "fds-in-flight")) {
        raise_soft_limit(RLIMIT_NOFILE);
        take(fds_in_flight, most);
    } else if (!strcmp(what, "timers")) {
        raise_soft_limit(RLIMIT_SIGPENDING);
        take(timer, most);
    } else if (!strcmp(what, "ptys")) {
        raise_soft_limit(RLIMIT_NOFILE);
        take(pty, most);
    } else if (!strcmp(what, "inotify")) {
        take(inotify_instance, most);
    } else if (!strcmp(what, "fds")) {
        raise_soft_limit(RLIMIT_NOFILE);
        take(open_file, most);
    } else {
        return 2;
    }
    return 0;
}
