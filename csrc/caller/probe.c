/* Finds out what the kernel and this process can do. Runs in the caller. */
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
    struct fns_capabilities sets;
    long result = fns_capget(&sets);
    *effective = sets.effective;
    return (int)result;
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
