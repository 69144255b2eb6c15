/* Writes a sandbox's id maps from outside. Runs in the caller, while the sandbox waits.
 *
 * A caller with CAP_SETUID writes the files itself. Others run newuidmap and newgidmap, which check /etc/subuid
 * and /etc/subgid. The plan says which; neither replaces the other.
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

/* A map file of a process: an fd, or -errno. */
static int open_map(int pid, const char *file, int flags)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", pid, file);
    int fd = open(path, flags | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

int fns_write_map(int pid, const char *file, const char *map)
{
    int fd = open_map(pid, file, O_WRONLY);
    if (fd < 0)
        return fd;
    ssize_t n = write(fd, map, strlen(map)); /* the kernel takes a map in one write only */
    int ret = n < 0 ? -errno : 0;
    close(fd);
    return ret;
}

/* 0: the map is written; -EPERM: it is empty; -errno. */
static int check_map(int pid, const char *file)
{
    char byte;
    int fd = open_map(pid, file, O_RDONLY);
    if (fd < 0)
        return fd;
    ssize_t n = read(fd, &byte, 1);
    int ret = n < 0 ? -errno : n ? 0 : -EPERM;
    close(fd);
    return ret;
}

/* Where PATH has a program: paths, then NULL, in one block to be freed. NULL: no memory. */
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
        if (size) { /* an empty part would be the working directory */
            *place++ = text;
            text += sprintf(text, "%.*s/%s", (int)size, path, program) + 1;
        }
        path += size + (path[size] == ':');
    }
    if (places)
        *place = NULL;
    return places;
}

/* Waits for the end of a program, and kills it if the wait fails. 0; -EPERM: it failed; -ECANCELED: it was killed;
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
        return process->late ? -ETIME : -ECANCELED; /* late: killed by fns_spawn() */
    return info.si_status ? -EPERM : 0;             /* it has said why on stderr */
}

/* Runs `program pid inside outside count ...`, which is to write `file`. 0, or as await_program(). */
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
            ret = await_program(&process, end);
    }
    if (ret == 0)
        ret = check_map(pid, file);
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
