/* What the kernel and this process can do, and two more system calls of namespaces. Runs in the caller. */
#define _GNU_SOURCE
#include <sys/prctl.h>
#include <unistd.h>

#include "fastns.h"
#include "shared/sys.h"

int fns_is_dumpable(void)
{
    long result = fns_sys5(__NR_prctl, PR_GET_DUMPABLE, 0, 0, 0, 0);
    return result < 0 ? (int)result : result == 1;
}

int fns_capabilities(uint64_t *effective)
{
    struct {
        uint32_t version;
        int pid;
    } header = {0x20080522 /* _LINUX_CAPABILITY_VERSION_3 */, 0};
    struct {
        uint32_t effective, permitted, inheritable;
    } data[2] = {{0, 0, 0}, {0, 0, 0}};
    int result = (int)fns_sys2(__NR_capget, &header, data);
    *effective = data[0].effective | (uint64_t)data[1].effective << 32;
    return result;
}

int fns_landlock_abi(void)
{
    return (int)fns_sys3(__NR_landlock_create_ruleset, 0, 0,
                         1 /* LANDLOCK_CREATE_RULESET_VERSION */);
}

int fns_has_tree_namespaces(void)
{
    int fd = (int)fns_sys3(__NR_open_tree, AT_FDCWD, "/", FNS_OPEN_TREE_NAMESPACE | O_CLOEXEC);
    if (fd >= 0)
        close(fd);
    return fd >= 0 || fd == -EPERM;
}

int fns_unshare(uint64_t flags)
{
    return (int)fns_sys1(__NR_unshare, flags);
}

int fns_setns(int fd, uint64_t flags)
{
    return (int)fns_sys2(__NR_setns, fd, flags);
}
