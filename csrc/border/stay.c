/* A process that only holds a new user namespace. BORDER: it runs in the caller's memory (border.c).
 *
 * It exists so that its id maps and its namespace's limit can be written (userns.c).
 */
#include "stay.h"

#include "shared/sys.h"

/* 1, or -errno. Where /proc or /proc/sys is missing or cannot be written there is no limit. */
static int limit_inotify(const char *limit)
{
    int fd = (int)fns_sys4(__NR_openat, AT_FDCWD, "/proc/sys/user/max_inotify_instances",
                           O_WRONLY | O_CLOEXEC, 0);
    long result = fd;
    if (fd >= 0) {
        result = fns_sys3(__NR_write, fd, limit, fns_length(limit));
        fns_close(fd);
    }
    return result >= 0 || fns_is_out_of_reach(result) ? 1 : (int)result;
}

int fns_stay_main(void *arg)
{
    struct fns_stay *stay = arg;
    /* The thread that cloned it waits for it now, so that thread's end is the caller's end. */
    long result = fns_sys5(__NR_prctl, 1 /* PR_SET_PDEATHSIG */, FNS_SIGKILL, 0, 0, 0);
    int limited = result < 0 ? (int)result : stay->inotify ? limit_inotify(stay->inotify) : 1;
    __atomic_store_n(&stay->limited, limited, __ATOMIC_RELEASE);
    while (result == 0 && fns_sys0(__NR_getppid) == stay->parent)
        FNS_IGNORE(fns_sys4(__NR_ppoll, 0, 0, 0, 0), "it looks again whether it is needed");
    return 0;
}
