/* Writing a sandbox's id maps from outside. Runs in the parent, while the sandbox waits.
 *
 * A process with CAP_SETUID writes the files itself. Others ask newuidmap and newgidmap, which check
 * /etc/subuid and /etc/subgid. The plan says which; neither stands in for the other.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "spawn.h"

extern char **environ;

int fns_write_map(int pid, const char *file, const char *map)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", pid, file);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    ssize_t n = write(fd, map, strlen(map)); /* the kernel takes a map in one write only */
    int ret = n < 0 ? -errno : 0;
    close(fd);
    return ret;
}

/* 1: the map is written; 0: it is empty; -errno. */
static int has_map(int pid, const char *file)
{
    char path[64], byte;
    snprintf(path, sizeof path, "/proc/%d/%s", pid, file);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    ssize_t n = read(fd, &byte, 1);
    int ret = n < 0 ? -errno : (int)n;
    close(fd);
    return ret;
}

/* The paths of `program` that PATH allows, then NULL, in one block for the caller to free. */
static char **places_of(const char *program)
{
    const char *path = getenv("PATH") ? getenv("PATH") : "/usr/bin:/bin";
    size_t n = 2, length = strlen(program);
    for (const char *at = path; *at; at++)
        n += *at == ':';
    char **places = malloc(n * (sizeof *places + length + 2) + strlen(path)), **place = places;
    char *text = (char *)(places + n);
    while (places && *path) {
        size_t size = strcspn(path, ":");
        if (size) { /* an empty one would be the working directory */
            *place++ = text;
            text += sprintf(text, "%.*s/%s", (int)size, path, program) + 1;
        }
        path += size + (path[size] == ':');
    }
    if (places)
        *place = NULL;
    return places;
}

/* Waits for the end of a program: 0; -EPERM: it failed; -ECANCELED: it was killed; -ETIME: its time is
 * over; -EINTR: the caller gives up; -errno. In any case it no longer runs then. */
static int await_program(int pidfd, uint64_t end)
{
    uint64_t next = 0, now;
    int ret = 0, ready = 0;
    while (ret == 0 && ready == 0) {
        struct pollfd fd = {.fd = pidfd, .events = POLLIN};
        int ms = FNS_LOOK_NS / 1000000;
        now = fns_now();
        if (end && now >= end)
            ret = -ETIME;
        else if (end && end - now < FNS_LOOK_NS)
            ms = (int)((end - now) / 1000000) + 1;
        if (ret == 0 && (ready = poll(&fd, 1, ms)) < 0 && errno != EINTR)
            ret = -errno;
        else if (ret == 0 && ready <= 0 && fns_interrupted(&next, ready < 0))
            ret = -EINTR;
        if (ready < 0)
            ready = 0;
    }
    siginfo_t info = {.si_code = CLD_EXITED};
    if (ret == 0 && waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED) < 0 && errno != ECHILD)
        ret = -errno; /* ECHILD: the caller ignores SIGCHLD, and the status is lost */
    if (ret < 0) {
        fns_discard(pidfd);
        return ret;
    }
    close(pidfd);
    if (info.si_code != CLD_EXITED)
        return -ECANCELED;
    return info.si_status ? -EPERM : 0; /* it has said why on stderr */
}

/* Runs `program pid inside outside count ...`, which is to write `file`, and waits for it alone. */
static int run_program(const char *program, int pid, const char *file, const char *map,
                       uint64_t end)
{
    static const struct fns_plan nothing = {.strings = "", .n_strings = 1};
    char pid_text[16], *copy = strdup(map), *save = NULL, **places = places_of(program);
    size_t n = 0, max = strlen(map) / 2 + 4;
    char **argv = calloc(max, sizeof *argv);
    int ret = copy && argv && places ? 0 : -ENOMEM;
    if (ret == 0) {
        snprintf(pid_text, sizeof pid_text, "%d", pid);
        argv[n++] = (char *)program;
        argv[n++] = pid_text;
        for (char *word = strtok_r(copy, " \n", &save); word; word = strtok_r(NULL, " \n", &save))
            argv[n++] = word;
        const struct fns_args args = {
            .argv = argv, .envp = environ, .paths = places, .stdio = {-1, -1, -1}};
        struct fns_process process;
        struct fns_error error;
        uint64_t now = fns_now();
        ret = end && now >= end ? -ETIME
                                : fns_spawn(&nothing, &args, end ? end - now : 0, &process, &error);
        if (ret == 0)
            ret = await_program(process.pidfd, end);
    }
    if (ret == 0) {
        ret = has_map(pid, file);
        ret = ret == 0 ? -EPERM : ret < 0 ? ret : 0;
    }
    free(places);
    free(argv);
    free(copy);
    return ret;
}

int fns_write_id_maps(const struct fns_plan *plan, int pid, uint64_t end, struct fns_error *error)
{
    const char *uid_map = plan->strings + plan->uid_map, *gid_map = plan->strings + plan->gid_map;
    int ret;
    if (plan->id_map == FNS_ID_MAP_PARENT) {
        ret = fns_write_map(pid, "gid_map", gid_map);
        if (ret == 0)
            ret = fns_write_map(pid, "uid_map", uid_map);
    } else {
        ret = run_program("newgidmap", pid, "gid_map", gid_map, end);
        if (ret == 0)
            ret = run_program("newuidmap", pid, "uid_map", uid_map, end);
    }
    return ret < 0 ? fns_set_error(error, FNS_STAGE_ID_MAP, -1, ret) : 0;
}
