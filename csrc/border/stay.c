/* A process that keeps a new user namespace alive while the caller writes its id maps and opens it
 * (caller/userns.c). It also sets the namespace's limit on inotify instances. Runs in the caller's memory
 * (border.c).
 */
#include "border.h"

#include "shared/sys.h"

/* 1, or -errno. Sets no limit where /proc/sys is missing or not writable. */
static int limit_inotify(const char *limit)
{
    int result = (int)fns_sys4(__NR_openat, AT_FDCWD, "/proc/sys/user/max_inotify_instances",
                               O_WRONLY | O_CLOEXEC, 0);
    if (result >= 0)
        result = fns_write_text(result, 0, limit);
    return result >= 0 || fns_is_out_of_reach(result) ? 1 : result;
}

int fns_stay_main(void *arg)
{
    struct fns_stay *stay = arg;
    /* The signal comes when the thread that cloned this process ends. That thread waits for this process, so it
     * ends first only if the whole caller does. */
    long result = fns_prctl(PR_SET_PDEATHSIG, FNS_SIGKILL, 0);
    int limited = result < 0 ? (int)result : stay->inotify ? limit_inotify(stay->inotify) : 1;
    __atomic_store_n(&stay->limited, limited, __ATOMIC_RELEASE);
    while (result == 0 && fns_sys0(__NR_getppid) == stay->parent)
        FNS_IGNORE(fns_sys4(__NR_ppoll, 0, 0, 0, 0), "the parent is checked again");
    return 0;
}
