/* User namespaces: the id maps of sandboxes, and namespaces that sandboxes join. Runs in the caller.
 *
 * A sandbox's maps are written while it waits. A caller with CAP_SETUID writes the files itself. Others run newuidmap
 * and newgidmap, which check /etc/subuid and /etc/subgid. The plan says which; there is no fallback.
 *
 * A namespace to join is made once, and exists as long as a process is in it or an fd of it is open. To make one, the
 * caller clones a process into a new namespace, writes the process's id maps and opens the fd. The process shares the
 * caller's memory, so its cost does not grow with that memory. It sets one limit and does nothing else
 * (border/stay.c). It is killed as soon as the fd is open, or when the caller ends.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "border/border.h"
#include "shared/sys.h"
#include "spawn.h"

/* ---- id maps ------------------------------------------------------------------------------------ */

extern char **environ;

/* Opens a file of a process in /proc: an fd, or -errno. */
static int open_proc(int pid, const char *file, int flags)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", pid, file);
    return (int)fns_sys4(__NR_openat, AT_FDCWD, path, flags | O_CLOEXEC, 0);
}

/* The kernel accepts a map only as a single write. */
static int write_map(int pid, const char *file, const char *map)
{
    int fd = open_proc(pid, file, O_WRONLY);
    return fd < 0 ? fd : fns_write_text(fd, 0, map);
}

static int write_maps(int pid, const char *uid_map, const char *gid_map)
{
    int ret = write_map(pid, "gid_map", gid_map);
    return ret < 0 ? ret : write_map(pid, "uid_map", uid_map);
}

/* 0: the map has been written; -EPERM: it is empty; -errno. */
static int check_map(int pid, const char *file)
{
    char byte;
    int fd = open_proc(pid, file, O_RDONLY);
    if (fd < 0)
        return fd;
    ssize_t n = read(fd, &byte, 1);
    int ret = n < 0 ? -errno : n ? 0 : -EPERM;
    close(fd);
    return ret;
}

/* Waits for the end of a program; kills it if the wait fails. 0; -EPERM: it failed; -ECANCELED: it was killed;
 * -ETIME: its time is over; -EINTR: the caller gives up; -errno. */
static int await_program(const struct fns_process *process, uint64_t end)
{
    const int pidfd = process->pidfd;
    struct pollfd fd = {.fd = pidfd, .events = POLLIN};
    struct fns_deadline deadline = {.end = end};
    int ret = 0, ready = 0;
    while (ret == 0 && ready <= 0) {
        const struct timespec time = fns_step(&deadline);
        ready = ppoll(&fd, 1, &time, NULL);
        if (ready < 0 && errno != EINTR)
            ret = -errno;
        else if (ready <= 0)
            ret = fns_over(&deadline, ready < 0);
    }
    siginfo_t info = {.si_code = CLD_EXITED};
    if (ret == 0 && waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED) < 0 && errno != ECHILD)
        ret = -errno; /* ECHILD: SIGCHLD is ignored, and the status is lost */
    if (ret < 0) {
        fns_discard(pidfd);
        return ret;
    }
    close(pidfd);
    if (info.si_code != CLD_EXITED)
        return process->timed_out ? -ETIME : -ECANCELED; /* fns_spawn() sets timed_out */
    return info.si_status ? -EPERM : 0;                  /* it has printed why on stderr */
}

/* Splits a text in place, and appends its words to a list that ends with NULL. */
static void add_words(char **words, char *text, const char *separators)
{
    char *save = NULL;
    while (*words)
        words++;
    for (char *word = strtok_r(text, separators, &save); word;
         word = strtok_r(NULL, separators, &save))
        *words++ = word;
}

/* Runs `program pid inside outside count ...`, and checks that it has written `file`. 0, or as await_program(). */
static int run_program(const char *program, int pid, const char *file, const char *map,
                       uint64_t end)
{
    static const struct fns_plan nothing = {.strings = "", .n_strings = 1};
    const char *path = getenv("PATH") ? getenv("PATH") : "/usr/bin:/bin";
    char pid_text[16], *map_copy = strdup(map), *path_copy = strdup(path);
    char **argv = calloc(strlen(map) / 2 + 4, sizeof *argv), **paths = NULL;
    char **directories = calloc(strlen(path) / 2 + 2, sizeof *directories);
    int ret = map_copy && path_copy && argv && directories ? 0 : -ENOMEM;
    if (ret == 0) {
        snprintf(pid_text, sizeof pid_text, "%d", pid);
        argv[0] = (char *)program;
        argv[1] = pid_text;
        add_words(argv, map_copy, " \n");
        add_words(directories, path_copy, ":"); /* skips empty parts, which would be "." */
        paths = fns_command_paths(program, directories);
        ret = paths ? 0 : -ENOMEM;
    }
    if (ret == 0) {
        const struct fns_args args = {
            .argv = argv, .envp = environ, .paths = paths, .stdio = {-1, -1, -1}};
        struct fns_process process;
        struct fns_error error;
        uint64_t now = fns_now();
        ret = end && now >= end ? -ETIME
                                : fns_spawn(&nothing, &args, end ? end - now : 0, &process, &error);
        if (ret == 0)
            ret = await_program(&process, end);
    }
    if (ret == 0)
        ret = check_map(pid, file);
    free(paths);
    free(directories);
    free(argv);
    free(path_copy);
    free(map_copy);
    return ret;
}

int fns_write_id_maps(const struct fns_plan *plan, int pid, uint64_t end, struct fns_error *error)
{
    const char *uid_map = plan->strings + plan->uid_map, *gid_map = plan->strings + plan->gid_map;
    int ret;
    if (plan->id_map == FNS_ID_MAP_PARENT) {
        ret = write_maps(pid, uid_map, gid_map);
    } else {
        ret = run_program("newgidmap", pid, "gid_map", gid_map, end);
        if (ret == 0)
            ret = run_program("newuidmap", pid, "uid_map", uid_map, end);
    }
    return ret < 0 ? fns_set_error(error, FNS_STAGE_ID_MAP, -1, ret) : 0;
}

/* ---- a namespace to join ------------------------------------------------------------------------ */

enum { MAX_PAUSES = 2000, CONTINUE_EACH = 100 };
#define FIRST_PAUSE_NS 15625
#define LAST_PAUSE_NS 1000000

/* Waits until the process has set its namespace's limit, which takes a moment. 0, or -errno. */
static int await_limit(const struct fns_stay *stay, int pidfd)
{
    struct pollfd end = {.fd = pidfd, .events = POLLIN};
    struct timespec pause = {0, FIRST_PAUSE_NS};
    int limited = __atomic_load_n(&stay->limited, __ATOMIC_ACQUIRE), has_ended = 0;
    for (int tries = 1; limited == 0 && !has_ended && tries <= MAX_PAUSES; tries++) {
        has_ended = ppoll(&end, 1, &pause, NULL) > 0;
        /* Loaded after the poll: the process may set it just before its end. */
        limited = __atomic_load_n(&stay->limited, __ATOMIC_ACQUIRE);
        if (pause.tv_nsec < LAST_PAUSE_NS)
            pause.tv_nsec *= 2;
        if (tries % CONTINUE_EACH == 0)
            FNS_IGNORE(fns_sys4(__NR_pidfd_send_signal, pidfd, SIGCONT, 0, 0), "it may have ended");
    }
    return limited < 0 ? limited : limited ? 0 : -ECANCELED;
}

/* Writes the maps of a process and opens its namespace: an fd, or -errno. */
static int open_mapped(int pid, const char *uid_map, const char *gid_map)
{
    int ret = write_maps(pid, uid_map, gid_map);
    if (ret == 0)
        ret = open_proc(pid, "ns/user", O_RDONLY);
    return ret < 0 ? ret : fns_above_stdio(ret);
}

int fns_userns_open(const char *uid_map, const char *gid_map, const char *inotify,
                    struct fns_error *error)
{
    int pidfd = -1, fd;
    struct fns_stay stay = {.parent = getpid(), .inotify = inotify};
    /* No exit signal, so only a wait with __WALL reaps it. No CLONE_FILES: an fd that it has open when it is
     * killed would stay open here. */
    struct fns_clone_args args = {.flags = FNS_CLONE_NEWUSER, .pidfd = (uintptr_t)&pidfd};
    *error = (struct fns_error){.op_index = -1};
    char *stack = fns_take_stack();
    if (!stack)
        return fns_set_error(error, FNS_STAGE_CLONE, -1, ENOMEM);
    long pid = fns_clone_on(stack, &args, fns_stay_main, &stay);
    if (pid < 0) {
        fns_give_stack(stack);
        return fns_set_error(error, FNS_STAGE_CLONE, -1, (int)pid);
    }
    fd = open_mapped((int)pid, uid_map, gid_map);
    /* If the process has failed, report that, not that its maps could not be written after its end. */
    int limited =
        fd < 0 ? __atomic_load_n(&stay.limited, __ATOMIC_ACQUIRE) : await_limit(&stay, pidfd);
    if (limited < 0) {
        fns_close_fd(&fd);
        fd = limited;
    }
    fns_discard(pidfd);
    fns_give_stack(stack);
    return fd < 0 ? fns_set_error(error, FNS_STAGE_ID_MAP, -1, fd) : fd;
}

/* ---- ranges ----------------------------------------------------------------------------------- */

/* All sandboxes of a range join one namespace. The application may close its fd, or open another file at that number:
 * the next call notices either, and makes a new namespace. */
struct range {
    struct range *next;
    uint32_t uid, gid;
    uint64_t count;
    int fd;
    struct stat file;
};

static struct range *ranges;

static struct range *range_of(uint32_t uid, uint32_t gid, uint64_t count)
{
    struct range *range = ranges;
    while (range && (range->uid != uid || range->gid != gid || range->count != count))
        range = range->next;
    if (range)
        return range;
    range = calloc(1, sizeof *range);
    if (!range)
        return NULL;
    *range = (struct range){.next = ranges, .uid = uid, .gid = gid, .count = count, .fd = -1};
    return ranges = range;
}

/* 1: the fd still refers to the namespace; 0: it does not; -errno. */
static int is_open(const struct range *range)
{
    struct stat now;
    if (range->fd < 0)
        return 0;
    if (fstat(range->fd, &now) < 0)
        return errno == EBADF ? 0 : -errno;
    return now.st_ino == range->file.st_ino && now.st_dev == range->file.st_dev;
}

int fns_userns_of_range(uint32_t uid, uint32_t gid, uint64_t count, const char *inotify,
                        struct fns_error *error)
{
    char uid_map[64], gid_map[64];
    struct range *range = range_of(uid, gid, count);
    int ret = range ? is_open(range) : -ENOMEM;
    if (ret < 0)
        return fns_set_error(error, FNS_STAGE_CLONE, -1, ret);
    if (ret)
        return range->fd;
    snprintf(uid_map, sizeof uid_map, "0 %" PRIu32 " %" PRIu64 "\n", uid, count);
    snprintf(gid_map, sizeof gid_map, "0 %" PRIu32 " %" PRIu64 "\n", gid, count);
    range->fd = fns_userns_open(uid_map, gid_map, inotify, error);
    if (range->fd >= 0 && fstat(range->fd, &range->file) < 0)
        range->file = (struct stat){0}; /* closed by another thread: the next call remakes it */
    return range->fd;
}
