/* Writing a sandbox's id maps from outside. Runs in the parent, while the sandbox waits.
 *
 * A process with CAP_SETUID writes the files itself. Others ask newuidmap and newgidmap, which check
 * /etc/subuid and /etc/subgid. The plan says which; neither stands in for the other.
 */
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
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

static int has_map(int pid, const char *file)
{
    char path[64], byte;
    snprintf(path, sizeof path, "/proc/%d/%s", pid, file);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int found = fd >= 0 && read(fd, &byte, 1) == 1;
    if (fd >= 0)
        close(fd);
    return found;
}

/* Runs `program pid inside outside count ...`, which is to write `file`, and waits for it alone. */
static int run_program(const char *program, int pid, const char *file, const char *map)
{
    char pid_text[16], *copy = strdup(map), *save = NULL;
    size_t n = 0, max = strlen(map) / 2 + 4;
    char **argv = calloc(max, sizeof *argv);
    int ret = copy && argv ? 0 : -ENOMEM, status = 0;
    if (ret == 0) {
        snprintf(pid_text, sizeof pid_text, "%d", pid);
        argv[n++] = (char *)program;
        argv[n++] = pid_text;
        for (char *word = strtok_r(copy, " \n", &save); word; word = strtok_r(NULL, " \n", &save))
            argv[n++] = word;
        pid_t child;
        ret = -posix_spawnp(&child, program, NULL, NULL, argv, environ);
        int tries = 0;
        while (ret == 0 && waitpid(child, &status, 0) < 0)
            if (errno == ECHILD || (errno != EINTR && ++tries == FNS_TRIES))
                break; /* ECHILD: the caller ignores SIGCHLD, and the status is lost */
        if (ret == 0 && (status != 0 || !has_map(pid, file)))
            ret = -EPERM; /* it has said why on stderr */
    }
    free(argv);
    free(copy);
    return ret;
}

int fns_write_id_maps(const struct fns_plan *plan, int pid, struct fns_error *error)
{
    const char *uid_map = plan->strings + plan->uid_map, *gid_map = plan->strings + plan->gid_map;
    int ret;
    if (plan->id_map == FNS_ID_MAP_PARENT) {
        ret = fns_write_map(pid, "gid_map", gid_map);
        if (ret == 0)
            ret = fns_write_map(pid, "uid_map", uid_map);
    } else {
        ret = run_program("newgidmap", pid, "gid_map", gid_map);
        if (ret == 0)
            ret = run_program("newuidmap", pid, "uid_map", uid_map);
    }
    return ret < 0 ? fns_set_error(error, FNS_STAGE_ID_MAP, -1, ret) : 0;
}
