/* User namespaces that sandboxes join: made once, held by an fd. Runs in the caller.
 *
 * A user namespace exists as long as a process is in it or an fd of it is open. So a process is cloned into a new
 * one, its maps are written from here, and the fd is opened. The process shares this one's memory, so that its cost
 * does not grow with that; it sets one limit and does nothing else (border/stay.c). It is killed as soon as
 * the fd is open, or when the caller ends.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "border/border.h"
#include "shared/sys.h"
#include "spawn.h"

enum { MAX_PAUSES = 2000, CONTINUE_EACH = 100 };
#define FIRST_PAUSE_NS 15625
#define LAST_PAUSE_NS 1000000

/* Waits until the process has set its namespace's limit, which takes a moment. 0, or -errno. */
static int await_limit(const struct fns_stay *stay, int pidfd)
{
    struct pollfd end = {.fd = pidfd, .events = POLLIN};
    struct timespec pause = {0, FIRST_PAUSE_NS};
    int limited = 0, has_ended = 0;
    for (int tries = 1; limited == 0 && !has_ended && tries <= MAX_PAUSES; tries++) {
        limited = __atomic_load_n(&stay->limited, __ATOMIC_ACQUIRE);
        if (limited == 0)
            has_ended = ppoll(&end, 1, &pause, NULL) > 0;
        if (pause.tv_nsec < LAST_PAUSE_NS)
            pause.tv_nsec *= 2;
        if (tries % CONTINUE_EACH == 0)
            FNS_IGNORE(fns_sys4(__NR_pidfd_send_signal, pidfd, SIGCONT, 0, 0), "it may have ended");
    }
    if (limited == 0) /* set just before its end */
        limited = __atomic_load_n(&stay->limited, __ATOMIC_ACQUIRE);
    return limited < 0 ? limited : limited ? 0 : -ECANCELED;
}

/* Writes the maps of a process and opens its namespace: an fd, or -errno. */
static int open_mapped(int pid, const char *uid_map, const char *gid_map)
{
    char path[64];
    int ret = fns_write_map(pid, "gid_map", gid_map);
    if (ret == 0)
        ret = fns_write_map(pid, "uid_map", uid_map);
    if (ret < 0)
        return ret;
    snprintf(path, sizeof path, "/proc/%d/ns/user", pid);
    ret = (int)fns_sys4(__NR_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
    return ret < 0 ? ret : fns_above_stdio(ret);
}

int fns_userns_open(const char *uid_map, const char *gid_map, const char *inotify,
                    struct fns_error *error)
{
    int pidfd = -1, fd;
    struct fns_stay stay = {.parent = getpid(), .inotify = inotify};
    /* No exit signal; only a wait with __WALL reaps it. Its fds are its own: one that it has open when it is
     * killed would otherwise stay open here. */
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
    /* If the process has failed, that is the cause, not that its maps could not be written after its end. */
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

int fns_can_idmap(const char *path, int recursive, int userns)
{
    const int flags = recursive ? AT_RECURSIVE : 0;
    struct fns_mount_attr attr = {.attr_set = FNS_MOUNT_ATTR_IDMAP, .userns_fd = (uint64_t)userns};
    long tree = fns_sys3(__NR_open_tree, AT_FDCWD, path, FNS_OPEN_TREE_CLONE | O_CLOEXEC | flags);
    if (tree < 0)
        return (int)tree;
    long ret = fns_sys5(__NR_mount_setattr, tree, "", AT_EMPTY_PATH | flags, &attr, sizeof attr);
    fns_close((int)tree);
    return (int)ret;
}
