/* The probe: a static program that runs inside a sandbox and reports what it sees.
 *
 * Runs as the sandbox's command, often as its pid 1, in a root that may contain only this file.
 * Without an option it prints one JSON object on stdout. A value that cannot be read, for example
 * without /proc, is null. Bytes outside ASCII are not escaped, so decode with surrogateescape. With
 * an option it does one thing, for tests that need a process with known behaviour; see usage().
 *
 * Exit status: 0 done; 1 a step failed, with "probe: STEP PATH: ENAME" on stderr; 2 wrong usage.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <inttypes.h>
#include <linux/capability.h>
#include <net/if.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_FDS 1024
#define MAX_TEXT (1 << 20)

/* ---- JSON: a comma is due before every value that follows another one ---- */

static bool comma_due;

static void before_value(void)
{
    if (comma_due)
        putchar(',');
    comma_due = true;
}

static void begin(char bracket)
{
    before_value();
    putchar(bracket);
    comma_due = false;
}

static void end(char bracket)
{
    putchar(bracket);
    comma_due = true;
}

static void string_n(const char *text, size_t n)
{
    before_value();
    putchar('"');
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c == '"' || c == '\\')
            printf("\\%c", c);
        else if (c < 0x20 || c == 0x7f)
            printf("\\u%04x", c);
        else
            putchar(c);
    }
    putchar('"');
}

static void null(void)
{
    before_value();
    fputs("null", stdout);
}

static void string(const char *text)
{
    if (text)
        string_n(text, strlen(text));
    else
        null();
}

static void number(int64_t value)
{
    before_value();
    printf("%" PRId64, value);
}

static void boolean(bool value)
{
    before_value();
    fputs(value ? "true" : "false", stdout);
}

static void key(const char *name)
{
    string(name);
    putchar(':');
    comma_due = false;
}

static void number_field(const char *name, int64_t value)
{
    key(name);
    number(value);
}

static void string_field(const char *name, const char *value)
{
    key(name);
    string(value);
}

/* ---- reading ---- */

/* Returns the file's contents, NUL-terminated, in a static buffer that the next call overwrites.
 * NULL if it cannot be read. */
static char *read_text(const char *path)
{
    static char text[MAX_TEXT];
    size_t have = 0;
    ssize_t got = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return NULL;
    while (have < sizeof text - 1 && (got = read(fd, text + have, sizeof text - 1 - have)) > 0)
        have += (size_t)got;
    close(fd);
    text[have] = '\0';
    return got < 0 ? NULL : text;
}

/* Returns the number in a line of /proc/self/status; -1 without that line or without /proc. */
static int64_t status_number(const char *name)
{
    const char *text = read_text("/proc/self/status"), *line = text ? strstr(text, name) : NULL;

    return line ? atoll(line + strlen(name)) : -1;
}

static const char *link_target(const char *path)
{
    static char target[4096];
    ssize_t n = readlink(path, target, sizeof target - 1);

    if (n < 0)
        return NULL;
    target[n] = '\0';
    return target;
}

static bool is_number(const char *text)
{
    return *text && strspn(text, "0123456789") == strlen(text);
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static int visible(const struct dirent *entry)
{
    return strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
}

/* ---- the report, a function for each group of fields ---- */

/* Must run before anything else opens an fd. */
static void report_fds(void)
{
    char path[64];
    int count = 0;

    key("fds");
    begin('[');
    for (int fd = 0; fd < MAX_FDS; fd++) {
        int flags = fcntl(fd, F_GETFD);
        if (flags < 0)
            continue;
        count++;
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        begin('{');
        number_field("fd", fd);
        string_field("target", link_target(path));
        end('}');
    }
    end(']');
    number_field("fd_count", count);
}

static void report_ids(void)
{
    gid_t groups[1024];
    int n = getgroups(1024, groups);
    uid_t uid, euid, suid;
    gid_t gid, egid, sgid;

    number_field("pid", getpid());
    number_field("ppid", getppid());
    number_field("sid", getsid(0));
    number_field("pgid", getpgid(0));
    getresuid(&uid, &euid, &suid);
    getresgid(&gid, &egid, &sgid);
    number_field("uid", uid);
    number_field("euid", euid);
    number_field("suid", suid);
    number_field("gid", gid);
    number_field("egid", egid);
    number_field("sgid", sgid);
    key("groups");
    begin('[');
    for (int i = 0; i < n; i++)
        number(groups[i]);
    end(']');
    string_field("uid_map", read_text("/proc/self/uid_map"));
    string_field("gid_map", read_text("/proc/self/gid_map"));
    string_field("setgroups", read_text("/proc/self/setgroups"));
}

static void report_place(int argc, char **argv)
{
    struct utsname names;
    char cwd[4096];
    mode_t mask = umask(0);

    umask(mask);
    uname(&names);
    string_field("hostname", names.nodename);
    string_field("domainname", names.domainname);
    string_field("cwd", getcwd(cwd, sizeof cwd));
    number_field("umask", mask);
    key("argv");
    begin('[');
    for (int i = 0; i < argc; i++)
        string(argv[i]);
    end(']');
    key("environ");
    begin('[');
    for (char **entry = environ; *entry; entry++)
        string(*entry);
    end(']');
    string_field("cgroup", read_text("/proc/self/cgroup"));
    string_field("personality", read_text("/proc/self/personality"));
    string_field("oom_score_adj", read_text("/proc/self/oom_score_adj"));
}

static void report_namespaces(void)
{
    static const char *const names[] = {"cgroup", "ipc",  "mnt",  "net",
                                        "pid",    "time", "user", "uts"};
    char path[64];

    key("namespaces");
    if (access("/proc/self/ns", F_OK) != 0) {
        null();
        return;
    }
    begin('{');
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "/proc/self/ns/%s", names[i]);
        string_field(names[i], link_target(path));
    }
    end('}');
}

/* Prints a string of mountinfo, where space, tab, newline and backslash are \ooo (proc(5)). */
static void string_unescaped(char *text)
{
    char *to = text;

    for (char *from = text; *from; to++) {
        if (from[0] == '\\' && from[1] && from[2] && from[3]) {
            *to = (char)((from[1] - '0') * 64 + (from[2] - '0') * 8 + (from[3] - '0'));
            from += 4;
        } else {
            *to = *from++;
        }
    }
    string_n(text, (size_t)(to - text));
}

static void comma_list(const char *name, char *text)
{
    char *save = NULL;

    key(name);
    begin('[');
    for (char *part = strtok_r(text, ",", &save); part; part = strtok_r(NULL, ",", &save))
        string(part);
    end(']');
}

/* One line: "id parent major:minor root point options propagation... - type source super" */
static void report_mount(char *line)
{
    static const char *const names[] = {"id", "parent", "device", "root", "point"};
    char *save = NULL;
    char *word;

    begin('{');
    for (size_t i = 0; i < 5; i++) {
        word = strtok_r(i ? NULL : line, " ", &save);
        key(names[i]);
        if (i < 2)
            number(atoll(word));
        else
            string_unescaped(word);
    }
    comma_list("options", strtok_r(NULL, " ", &save));
    key("propagation");
    begin('[');
    while ((word = strtok_r(NULL, " ", &save)) && strcmp(word, "-") != 0)
        string(word);
    end(']');
    string_field("type", strtok_r(NULL, " ", &save));
    key("source");
    word = strtok_r(NULL, " ", &save);
    if (word)
        string_unescaped(word);
    else
        null();
    word = strtok_r(NULL, " ", &save);
    comma_list("super_options", word ? word : (char[]){""});
    end('}');
}

static void report_mounts(void)
{
    char *text = read_text("/proc/self/mountinfo");
    char *save = NULL;

    key("mounts");
    if (!text) {
        null();
        return;
    }
    begin('[');
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
        report_mount(line);
    end(']');
}

static void report_rlimits(void)
{
    static const struct {
        const char *name;
        int resource;
    } limits[] = {
#define LIMIT(name) {#name, name}
        LIMIT(RLIMIT_AS),      LIMIT(RLIMIT_CORE),     LIMIT(RLIMIT_CPU),
        LIMIT(RLIMIT_DATA),    LIMIT(RLIMIT_FSIZE),    LIMIT(RLIMIT_LOCKS),
        LIMIT(RLIMIT_MEMLOCK), LIMIT(RLIMIT_MSGQUEUE), LIMIT(RLIMIT_NICE),
        LIMIT(RLIMIT_NOFILE),  LIMIT(RLIMIT_NPROC),    LIMIT(RLIMIT_RSS),
        LIMIT(RLIMIT_RTPRIO),  LIMIT(RLIMIT_RTTIME),   LIMIT(RLIMIT_SIGPENDING),
        LIMIT(RLIMIT_STACK),
#undef LIMIT
    };
    struct rlimit limit;

    key("rlimits"); /* infinity is -1, as in Python's resource module */
    begin('{');
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        if (getrlimit((__rlimit_resource_t)limits[i].resource, &limit) != 0)
            continue;
        key(limits[i].name);
        begin('[');
        number((int64_t)limit.rlim_cur);
        number((int64_t)limit.rlim_max);
        end(']');
    }
    end('}');
}

/* Uses raw system calls, because glibc hides its two internal signals and /proc may be absent. */
static void report_signals(void)
{
    uint64_t blocked = 0;
    uintptr_t handler[8]; /* struct kernel_sigaction: the handler is its first word */
    uint64_t ignored = 0, caught = 0;

    syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &blocked, sizeof blocked);
    for (int sig = 1; sig <= 64; sig++) {
        if (syscall(SYS_rt_sigaction, sig, NULL, handler, sizeof blocked) != 0)
            continue;
        if (handler[0] == (uintptr_t)SIG_IGN)
            ignored |= 1ULL << (sig - 1);
        else if (handler[0] != (uintptr_t)SIG_DFL)
            caught |= 1ULL << (sig - 1);
    }
    const struct {
        const char *name;
        uint64_t set;
    } sets[] = {{"blocked", blocked}, {"ignored", ignored}, {"caught", caught}};

    key("signals");
    begin('{');
    for (size_t i = 0; i < 3; i++) {
        key(sets[i].name);
        begin('[');
        for (int sig = 1; sig <= 64; sig++)
            if (sets[i].set >> (sig - 1) & 1)
                number(sig);
        end(']');
    }
    end('}');
}

static void report_privileges(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {{0}};
    uint64_t bounding = 0, ambient = 0;

    syscall(SYS_capget, &header, data);
    for (unsigned cap = 0; cap < 64; cap++) {
        if (prctl(PR_CAPBSET_READ, cap, 0, 0, 0) == 1)
            bounding |= 1ULL << cap;
        if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, cap, 0, 0) == 1)
            ambient |= 1ULL << cap;
    }
    key("capabilities"); /* bit n: capability number n */
    begin('{');
    number_field("effective", (int64_t)(data[0].effective | (uint64_t)data[1].effective << 32));
    number_field("permitted", (int64_t)(data[0].permitted | (uint64_t)data[1].permitted << 32));
    number_field("inheritable",
                 (int64_t)(data[0].inheritable | (uint64_t)data[1].inheritable << 32));
    number_field("bounding", (int64_t)bounding);
    number_field("ambient", (int64_t)ambient);
    end('}');
    number_field("dumpable", prctl(PR_GET_DUMPABLE, 0, 0, 0, 0));
    number_field("no_new_privs", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    number_field("seccomp", prctl(PR_GET_SECCOMP, 0, 0, 0, 0));
    number_field("seccomp_filters", status_number("Seccomp_filters:"));
    number_field("securebits", prctl(PR_GET_SECUREBITS, 0, 0, 0, 0));
    int parent_death = 0;
    prctl(PR_GET_PDEATHSIG, &parent_death, 0, 0, 0);
    number_field("parent_death_signal", parent_death);
}

/* The id of the session keyring, or the name of the error. */
static void report_keyring(void)
{
    long keyring = syscall(SYS_keyctl, 0 /* KEYCTL_GET_KEYRING_ID */, -3, 0);

    key("keyring");
    if (keyring >= 0)
        number(keyring);
    else
        string(strerrorname_np(errno));
}

static const char *type_name(mode_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFREG: return "file";
    case S_IFDIR: return "directory";
    case S_IFLNK: return "symlink";
    case S_IFCHR: return "char";
    case S_IFBLK: return "block";
    case S_IFIFO: return "fifo";
    case S_IFSOCK: return "socket";
    default: return "unknown";
    }
}

static void stat_object(const char *path, const struct stat *st)
{
    begin('{');
    string_field("type", type_name(st->st_mode));
    number_field("mode", st->st_mode & 07777);
    number_field("uid", st->st_uid);
    number_field("gid", st->st_gid);
    number_field("size", st->st_size);
    number_field("nlink", (int64_t)st->st_nlink);
    number_field("inode", (int64_t)st->st_ino);
    number_field("device", (int64_t)st->st_dev);
    key("rdev");
    begin('[');
    number(major(st->st_rdev));
    number(minor(st->st_rdev));
    end(']');
    string_field("target", S_ISLNK(st->st_mode) ? link_target(path) : NULL);
    end('}');
}

/* Prints an object that maps each name in the directory to its stat_object(). */
static void report_directory(const char *name, const char *path)
{
    struct dirent **entries;
    char child[4352];
    struct stat st;
    int n = scandir(path, &entries, visible, by_name);

    key(name);
    if (n < 0) {
        null();
        return;
    }
    begin('{');
    for (int i = 0; i < n; i++) {
        snprintf(child, sizeof child, "%s/%s", path, entries[i]->d_name);
        key(entries[i]->d_name);
        if (lstat(child, &st) == 0)
            stat_object(child, &st);
        else
            null();
        free(entries[i]);
    }
    end('}');
    free(entries);
}

static int names_process(const struct dirent *entry)
{
    return is_number(entry->d_name);
}

/* Prints null if no proc file system is mounted. /proc is then empty or missing. */
static void report_processes(void)
{
    struct dirent **entries = NULL;
    int n = scandir("/proc", &entries, names_process, by_name);

    key("proc_pids");
    if (n <= 0) {
        null();
    } else {
        begin('[');
        for (int i = 0; i < n; i++) {
            number(atoll(entries[i]->d_name));
            free(entries[i]);
        }
        end(']');
    }
    free(entries);
}

static void report_interfaces(void)
{
    struct if_nameindex *list = if_nameindex();
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    key("interfaces");
    if (!list || fd < 0) {
        null();
        return;
    }
    begin('{');
    for (struct if_nameindex *one = list; one->if_index; one++) {
        struct ifreq request = {0};
        char address[INET_ADDRSTRLEN];
        memcpy(request.ifr_name, one->if_name, strnlen(one->if_name, IFNAMSIZ - 1));
        key(one->if_name);
        begin('{');
        number_field("index", one->if_index);
        key("up");
        boolean(ioctl(fd, SIOCGIFFLAGS, &request) == 0 && request.ifr_flags & IFF_UP);
        key("address");
        if (ioctl(fd, SIOCGIFADDR, &request) == 0) {
            struct sockaddr_in *in = (struct sockaddr_in *)(void *)&request.ifr_addr;
            string(inet_ntop(AF_INET, &in->sin_addr, address, sizeof address));
        } else {
            null();
        }
        end('}');
    }
    end('}');
    if_freenameindex(list);
    close(fd);
}

/* MSG_INFO returns the highest used index; its msgpool is the number of queues (msgctl(2)). */
static void report_queues(void)
{
    struct msginfo info;
    struct msqid_ds queue;
    int highest = msgctl(0, MSG_INFO, (struct msqid_ds *)(void *)&info);

    key("queues");
    if (highest < 0) {
        null();
        return;
    }
    begin('[');
    for (int i = 0; info.msgpool > 0 && i <= highest; i++) {
        int id = msgctl(i, MSG_STAT_ANY, &queue);
        if (id >= 0)
            number(id);
    }
    end(']');
    number_field("queue_count", info.msgpool);
}

static void report_clocks(void)
{
    struct timespec boot, monotonic;

    clock_gettime(CLOCK_BOOTTIME, &boot);
    clock_gettime(CLOCK_MONOTONIC, &monotonic);
    number_field("boottime", boot.tv_sec);
    number_field("monotonic", monotonic.tv_sec);
}

static int report(int argc, char **argv)
{
    begin('{');
    report_fds();
    report_ids();
    report_place(argc, argv);
    report_namespaces();
    report_mounts();
    report_rlimits();
    report_signals();
    report_privileges();
    report_keyring();
    report_directory("root", "/");
    report_directory("dev", "/dev");
    report_processes();
    report_interfaces();
    report_queues();
    report_clocks();
    end('}');
    putchar('\n');
    return 0;
}

/* ---- the options ---- */

static int failed(const char *step, const char *subject)
{
    fprintf(stderr, "probe: %s %s: %s\n", step, subject, strerrorname_np(errno));
    return 1;
}

/* Writes all bytes, or returns -1 with errno. */
static int write_all(int fd, const char *bytes, size_t n)
{
    while (n > 0) {
        ssize_t done = write(fd, bytes, n);
        if (done < 0)
            return -1;
        bytes += done;
        n -= (size_t)done;
    }
    return 0;
}

static void sleep_for(double seconds)
{
    struct timespec left = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};

    while (nanosleep(&left, &left) != 0 && errno == EINTR)
        ;
}

static int do_exit(char **args)
{
    return atoi(args[0]);
}

static int do_signal(char **args)
{
    kill(getpid(), atoi(args[0]));
    puts("survived"); /* the kernel drops signals from pid 1 to itself, even SIGKILL */
    return 0;
}

/* Ends with a processor fault, which kills even pid 1. */
static int do_crash(char **args)
{
    (void)args;
    __builtin_trap();
}

static int do_sleep(char **args)
{
    sleep_for(atof(args[0]));
    return 0;
}

static int do_write(char **args)
{
    int fd = open(args[0], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

    if (fd < 0 || write_all(fd, args[1], strlen(args[1])) != 0 || close(fd) != 0)
        return failed("write", args[0]);
    return 0;
}

static int copy(int from, const char *name)
{
    char bytes[65536];
    ssize_t got;

    while ((got = read(from, bytes, sizeof bytes)) > 0)
        if (write_all(STDOUT_FILENO, bytes, (size_t)got) != 0)
            return failed("write", "stdout");
    return got < 0 ? failed("read", name) : 0;
}

static int do_read(char **args)
{
    int fd = open(args[0], O_RDONLY | O_CLOEXEC);

    return fd < 0 ? failed("read", args[0]) : copy(fd, args[0]);
}

static int do_echo(char **args)
{
    (void)args;
    return copy(STDIN_FILENO, "stdin");
}

static int do_mkdir(char **args)
{
    return mkdir(args[0], 0755) == 0 ? 0 : failed("mkdir", args[0]);
}

static int do_stat(char **args)
{
    struct stat st;

    if (lstat(args[0], &st) != 0)
        return failed("stat", args[0]);
    stat_object(args[0], &st);
    putchar('\n');
    return 0;
}

/* Prints the daemons' pids, one per line, once each has its own session. */
static int fork_sleep(char **args, bool keep_stdio)
{
    for (int i = 0; i < atoi(args[0]); i++) {
        int ready[2];
        pid_t pid, daemon = 0;

        if (pipe(ready) != 0 || (pid = fork()) < 0)
            return failed("fork", "child");
        if (pid == 0) {
            setsid();
            daemon = fork();
            if (daemon == 0) {
                for (int fd = 0; fd < 3 && !keep_stdio; fd++)
                    close(fd);
                close(ready[0]);
                close(ready[1]);
                sleep_for(atof(args[1]));
                _exit(0);
            }
            _exit(write(ready[1], &daemon, sizeof daemon) != sizeof daemon || daemon < 0);
        }
        if (read(ready[0], &daemon, sizeof daemon) != sizeof daemon || daemon < 0)
            return failed("fork", "daemon");
        close(ready[0]);
        close(ready[1]);
        waitpid(pid, NULL, 0);
        printf("%d\n", daemon);
    }
    return 0;
}

static int do_fork_sleep(char **args)
{
    return fork_sleep(args, false);
}

static int do_fork_hold(char **args)
{
    return fork_sleep(args, true);
}

/* Makes orphans that exit soon. Prints how many are still zombies after a second. */
static int do_zombies(char **args)
{
    enum { MOST = 1024 };
    pid_t orphans[MOST];
    int n = atoi(args[0]), left = 0;

    if (n < 0 || n > MOST) {
        errno = EINVAL;
        return failed("zombies", args[0]);
    }
    for (int i = 0; i < n; i++) {
        int channel[2], lifeline[2];
        pid_t child;

        if (pipe(channel) != 0 || pipe(lifeline) != 0 || (child = fork()) < 0)
            return failed("fork", "child");
        if (child == 0) {
            pid_t orphan = fork();
            char byte;
            if (orphan == 0) { /* exits when its parent and the probe have closed the lifeline */
                close(lifeline[1]);
                _exit(read(lifeline[0], &byte, 1) != 0);
            }
            _exit(write(channel[1], &orphan, sizeof orphan) != sizeof orphan || orphan < 0);
        }
        if (read(channel[0], &orphans[i], sizeof *orphans) != sizeof *orphans || orphans[i] < 0)
            return failed("fork", "orphan");
        waitpid(child, NULL, 0);
        for (int end = 0; end < 2; end++) {
            close(channel[end]);
            close(lifeline[end]);
        }
    }
    for (int tries = 0; tries < 100; tries++) {
        left = 0;
        for (int i = 0; i < n; i++)
            left += kill(orphans[i], 0) == 0; /* a zombie still answers */
        if (left == 0)
            break;
        sleep_for(0.01);
    }
    printf("%d\n", left);
    return 0;
}

static int do_flood(char **args)
{
    char block[4096];
    int64_t left = atoll(args[1]);
    bool out = strcmp(args[0], "stderr") != 0, err = strcmp(args[0], "stdout") != 0;

    memset(block, 'x', sizeof block);
    while (left > 0) {
        size_t n = left < (int64_t)sizeof block ? (size_t)left : sizeof block;
        if (out && write_all(STDOUT_FILENO, block, n) != 0)
            return failed("write", "stdout");
        if (err && write_all(STDERR_FILENO, block, n) != 0)
            return failed("write", "stderr");
        left -= (int64_t)n;
    }
    return 0;
}

static int do_msgget(char **args)
{
    int id = msgget(IPC_PRIVATE, IPC_CREAT | 0600);

    (void)args;
    if (id < 0)
        return failed("msgget", "private");
    printf("%d\n", id);
    return 0;
}

static int do_sethostname(char **args)
{
    return sethostname(args[0], strlen(args[0])) == 0 ? 0 : failed("sethostname", args[0]);
}

static struct sockaddr_in loopback(const char *port)
{
    return (struct sockaddr_in){.sin_family = AF_INET,
                                .sin_port = htons((uint16_t)atoi(port)),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

static int do_listen(char **args)
{
    struct sockaddr_in address = loopback(args[0]);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    char byte;

    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) != 0 || listen(fd, 8) != 0)
        return failed("listen", args[0]);
    puts("listening");
    fflush(stdout);
    while (read(STDIN_FILENO, &byte, 1) > 0)
        ;
    return 0;
}

static int do_connect(char **args)
{
    struct sockaddr_in address = loopback(args[0]);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) != 0)
        return failed("connect", args[0]);
    puts("connected");
    return 0;
}

static void key_result(const char *name, long result)
{
    string_field(name, result < 0 ? strerrorname_np(errno) : "worked");
}

/* Reports what the probe can do with a key of the caller (keyctl(2)), and which keyrings it can
 * reach. */
static int do_keys(char **args)
{
    long key = atol(args[0]);
    char bytes[64];

    begin('{');
    number_field("session", syscall(SYS_keyctl, 0 /* GET_KEYRING_ID */, -3, 0));
    number_field("user", syscall(SYS_keyctl, 0, -4, 0));
    key_result("read", syscall(SYS_keyctl, 11 /* READ */, key, bytes, sizeof bytes));
    key_result("link", syscall(SYS_keyctl, 8 /* LINK */, key, -2 /* the process' */));
    key_result("search", syscall(SYS_keyctl, 10 /* SEARCH */, -3, "user", args[1], 0));
    key_result("request", syscall(SYS_request_key, "user", args[1], NULL, 0));
    key_result("add", syscall(SYS_add_key, "user", "own", "x", 1L, -3));
    end('}');
    return 0;
}

/* Drops its right to read files with landlock(7), then tries to read one. */
static int do_restrict(char **args)
{
    uint64_t handled = 1 << 2; /* LANDLOCK_ACCESS_FS_READ_FILE */
    long rules = syscall(444, &handled, sizeof handled, 0);

    if (rules < 0 || syscall(446, rules, 0) != 0)
        return failed("restrict", "itself");
    return do_read(args);
}

static const struct {
    const char *name;
    int n_args;
    int (*run)(char **args);
    const char *help;
} options[] = {
    {"--exit", 1, do_exit, "N: exits with status N"},
    {"--signal", 1, do_signal, "N: sends itself signal N; prints \"survived\" if it does"},
    {"--crash", 0, do_crash, "executes an illegal instruction (SIGILL, also as pid 1)"},
    {"--sleep", 1, do_sleep, "SECONDS: sleeps; fractions are fine here and below"},
    {"--write", 2, do_write, "PATH TEXT: creates or replaces the file"},
    {"--read", 1, do_read, "PATH: prints the file"},
    {"--mkdir", 1, do_mkdir, "PATH: makes the directory"},
    {"--stat", 1, do_stat, "PATH: prints its lstat(2) as JSON"},
    {"--fork-sleep", 2, do_fork_sleep, "N SECONDS: leaves N daemons, with stdio closed"},
    {"--fork-hold", 2, do_fork_hold, "N SECONDS: the same, but they keep stdio open"},
    {"--zombies", 1, do_zombies, "N: makes N orphans that exit; prints how many stay zombies"},
    {"--flood", 2, do_flood, "stdout|stderr|both BYTES: writes BYTES bytes of 'x' to each"},
    {"--keys", 2, do_keys, "SERIAL NAME: what can be done with that key, as JSON"},
    {"--restrict", 1, do_restrict, "PATH: drops the right to read files (Landlock), then reads it"},
    {"--echo", 0, do_echo, "copies stdin to stdout"},
    {"--msgget", 0, do_msgget, "makes a System V message queue; prints its id"},
    {"--sethostname", 1, do_sethostname, "NAME: changes the host name"},
    {"--listen", 1, do_listen, "PORT: on 127.0.0.1; prints \"listening\", ends with stdin"},
    {"--connect", 1, do_connect, "PORT: on 127.0.0.1; prints \"connected\""},
};

static int usage(void)
{
    fputs("usage: probe [OPTION ARG...]; without one: a report as JSON\n", stderr);
    for (size_t i = 0; i < sizeof options / sizeof *options; i++)
        fprintf(stderr, "  %s %s\n", options[i].name, options[i].help);
    return 2;
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return report(argc, argv);
    for (size_t i = 0; i < sizeof options / sizeof *options; i++)
        if (strcmp(argv[1], options[i].name) == 0 && argc == options[i].n_args + 2)
            return options[i].run(argv + 2);
    /* Words after "--" only appear in the report's argv. */
    return strcmp(argv[1], "--") == 0 ? report(argc, argv) : usage();
}
