/* The user namespace that sandboxes join as they start: made once, held by an fd. Runs in the parent.
 *
 * A namespace is there as long as a process is in it or an fd of it is open. So for a moment there is
 * a process in a new one, whose maps are written from here. It shares this process' memory, so that its
 * cost does not depend on the caller's; it sets a limit, and then does nothing. It is killed as soon as the
 * fd is open, or when the caller ends, and then holds nothing of the caller's.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "border/stay.h"
#include "shared/sys.h"
#include "spawn.h"

#define PATIENCE_MS 2000
#define FIRST_PAUSE_NS 15625
#define LAST_PAUSE_NS 1000000

/* A process in a new user namespace: its pid and pidfd, or -errno. It sends no signal as it ends, and
 * only who asks for it by __WALL reaps it. */
static long start_staying(char *stack, size_t size, struct fns_stay *stay, int *pidfd)
{
    /* Its fds are its own: one that it has open when it is killed would stay open here. */
    const uint64_t flags = FNS_CLONE_VM | FNS_CLONE_PIDFD | FNS_CLONE_NEWUSER;
    uint64_t before;
    long pid = fns_block_signals(&before);
    if (pid < 0)
        return pid;
    pid = fns_sys_clone_call(__NR_clone, (long)flags, (long)(stack + size), (long)pidfd, 0, 0,
                             fns_stay_main, stay);
    fns_restore_signals(before);
    return pid;
}

/* Waits until it has set its namespace's limits, which takes a moment. 0, or -errno. */
static int await_limits(const struct fns_stay *stay, int pidfd)
{
    struct pollfd end = {.fd = pidfd, .events = POLLIN};
    struct timespec pause = {0, FIRST_PAUSE_NS};
    int limited = 0, has_ended = 0;
    for (int tries = 0; limited == 0 && !has_ended && tries < PATIENCE_MS; tries++) {
        limited = __atomic_load_n(&stay->limited, __ATOMIC_ACQUIRE);
        if (limited == 0)
            has_ended = ppoll(&end, 1, &pause, NULL) > 0;
        if (pause.tv_nsec < LAST_PAUSE_NS)
            pause.tv_nsec *= 2;
        if (tries % 100 == 99)
            FNS_IGNORE(fns_sys4(__NR_pidfd_send_signal, pidfd, SIGCONT, 0, 0),
                       "one that is not stopped goes on");
    }
    if (limited == 0) /* set by one that has ended since */
        limited = __atomic_load_n(&stay->limited, __ATOMIC_ACQUIRE);
    return limited < 0 ? limited : limited ? 0 : -ECANCELED;
}

/* Writes the maps of a process and opens its namespace. */
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

int fns_userns_open(const char *uid_map, const char *gid_map, const char *inotify,
                    struct fns_error *error)
{
    const size_t size = 16384;
    int pidfd = -1;
    struct fns_stay stay = {.parent = getpid(), .inotify = inotify};
    *error = (struct fns_error){.op_index = -1};
    char *stack = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack == MAP_FAILED)
        return fns_set_error(error, FNS_STAGE_CLONE, -1, errno);
    long pid = start_staying(stack, size, &stay, &pidfd);
    int fd = pid < 0 ? (int)pid : open_mapped((int)pid, uid_map, gid_map);
    if (pid > 0) {
        /* If it has failed and ended, that is the cause, not that its maps cannot be written. */
        int limited =
            fd < 0 ? __atomic_load_n(&stay.limited, __ATOMIC_ACQUIRE) : await_limits(&stay, pidfd);
        if (limited < 0) {
            if (fd >= 0)
                close(fd);
            fd = limited;
        }
        fns_discard(pidfd);
    }
    munmap(stack, size);
    if (fd < 0)
        fns_set_error(error, pid < 0 ? FNS_STAGE_CLONE : FNS_STAGE_ID_MAP, -1, fd);
    return fd;
}
