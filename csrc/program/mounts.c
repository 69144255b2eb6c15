/* The ops that build the root and mount in it. Runs in the program and in a template's sandboxes (child.h). */
#include "child.h"

/* ---- trees ---------------------------------------------------------------------------------- */

/* The file `name` in the directory `fd`, or `fd` itself if `name` is "". */
struct place {
    int fd;
    const char *name;
};

/* Attaches a detached tree. */
static int attach(int tree, struct place place)
{
    return (int)fns_sys5(__NR_move_mount, tree, "", place.fd, place.name,
                         MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
}

static int attach_and_close(int tree, struct place place)
{
    return fns_done_with(tree, tree < 0 ? tree : attach(tree, place));
}

/* Makes a detached copy of what is mounted at a place. `flags`: more flags of open_tree(2). */
static int clone_tree(struct place place, int flags)
{
    return (int)fns_sys3(__NR_open_tree, place.fd, place.name,
                         FNS_OPEN_TREE_CLONE | O_CLOEXEC | AT_EMPTY_PATH | flags);
}

static int clone_fd(int fd, int recursive)
{
    return clone_tree((struct place){fd, ""}, recursive ? AT_RECURSIVE : 0);
}

static int set_attributes(int tree, int recursive, struct fns_mount_attr attr)
{
    return (int)fns_sys5(__NR_mount_setattr, tree, "",
                         AT_EMPTY_PATH | (recursive ? AT_RECURSIVE : 0), &attr, sizeof attr);
}

/* Idmaps a detached tree, all or nothing: id 0 on the disk becomes id 0 in the user namespace. EINVAL: a file
 * system cannot be idmapped. EPERM: a mount is idmapped already, or its file system belongs to another user
 * namespace (mount_setattr(2)). */
static int idmap_tree(struct fns_child *child, const struct fns_op *op, int tree)
{
    if (!(op->how & FNS_HOW_IDMAP))
        return 0;
    const struct fns_mount_attr attr = {.attr_set = MOUNT_ATTR_IDMAP,
                                        .userns_fd = (uint64_t)child->userns};
    int result = set_attributes(tree, op->how & FNS_HOW_RECURSIVE, attr);
    if ((result == -EINVAL || result == -EPERM) && (op->how & FNS_HOW_OPTIONAL))
        return 0;
    if (result < 0)
        child->error.detail = FNS_DETAIL_ID_MAP;
    return result;
}

static int mount(const char *source, const char *place, const char *type, uint64_t flags,
                 const char *options)
{
    return (int)fns_sys5(__NR_mount, source, place, type, flags, options);
}

/* mount(2) at a place below the directory `dir`. "." is `dir` itself, even if it was renamed. */
static int mount_in(int dir, const char *place, const char *source, const char *type,
                    uint64_t flags, const char *options)
{
    int result = (int)fns_sys1(__NR_fchdir, dir);
    return result < 0 ? result : mount(source, place, type, flags, options);
}

/* ---- the root ------------------------------------------------------------------------------- */

int fns_op_propagation(struct fns_child *child, const struct fns_op *op)
{
    return mount(0, "/", 0, MS_REC | op->flags, 0);
}

int fns_op_root_tree(struct fns_child *child, const struct fns_op *op)
{
    int dir = fns_open(fns_text(child, op->source), FNS_PATH_FLAGS | O_DIRECTORY);
    if (dir < 0 || !(op->how & FNS_HOW_RECURSIVE)) { /* a plain directory, for CHROOT */
        child->root = dir;
        return dir < 0 ? fns_source_failed(child, dir) : 0;
    }
    child->root = clone_fd(dir, 1);
    if (op->how & FNS_HOW_IDMAP)
        child->unmapped = dir;
    else
        fns_close(dir);
    if (child->root < 0)
        return fns_source_failed(child, child->root);
    int result = idmap_tree(child, op, child->root);
    const struct fns_mount_attr attr = {.attr_set = op->flags, .propagation = MS_PRIVATE};
    return result < 0 ? result : set_attributes(child->root, 1, attr);
}

/* Mounts a tmpfs as the op describes it, and makes its directories. Returns an fd of it, or -errno. What lies
 * on top of "/" is reached by "/..", because other absolute paths start below it. */
static int make_tmpfs(struct fns_child *child, const struct fns_op *op)
{
    const char *place = op->target ? fns_text(child, op->target) : "/";
    int result = mount("fastns", place, "tmpfs", op->flags, fns_text(child, op->type));
    if (result < 0)
        return result;
    int top = fns_open(op->target ? place : "/..", FNS_PATH_FLAGS | O_DIRECTORY);
    if (top < 0)
        return top;
    result = fns_give_to_owner(child, op, top, "");
    const char *name = fns_text(child, op->data), *end = name + op->arg;
    for (; result == 0 && name < end; name += fns_length(name) + 1) {
        result = (int)fns_sys3(__NR_mkdirat, top, name, FNS_DIRECTORY_MODE);
        if (result == 0)
            result = fns_give_to_owner(child, op, top, name);
    }
    return result < 0 ? fns_done_with(top, result) : top;
}

int fns_op_root_tmpfs(struct fns_child *child, const struct fns_op *op)
{
    int result = op->target ? (int)fns_sys1(__NR_fchdir, child->scratch) : 0;
    return child->root = result < 0 ? result : make_tmpfs(child, op);
}

int fns_op_scratch(struct fns_child *child, const struct fns_op *op)
{
    return child->scratch = make_tmpfs(child, op);
}

/* The target is in a tmpfs that this process made, so it cannot be a symbolic link. mount(2) is therefore safe,
 * and faster than attaching a detached tree. */
int fns_op_show(struct fns_child *child, const struct fns_op *op)
{
    const char *source = fns_text(child, op->source), *place = fns_text(child, op->target);
    const struct fns_mount_attr attr = {
        .attr_set = op->flags, .attr_clr = op->arg, .propagation = MS_PRIVATE};
    int result = fns_give_to_owner(child, op, child->root, place);
    if (result == 0)
        result = mount_in(child->root, place, source, 0, MS_BIND | MS_REC, 0);
    if (result == -ENOENT) /* removed since the plan was made: the directory stays empty */
        return 0;
    if (result < 0)
        return fns_source_failed(child, result);
    return (int)fns_sys5(__NR_mount_setattr, child->root, place, AT_RECURSIVE, &attr, sizeof attr);
}

/* A tree on top of "/" hides nothing, because absolute paths start below it. So no bind of a directory of the
 * caller's view can contain the new root. */
int fns_op_root_attach(struct fns_child *child, const struct fns_op *op)
{
    if (op->target)
        return attach(child->root, (struct place){child->scratch, fns_text(child, op->target)});
    int top = fns_open("/", FNS_PATH_FLAGS | O_DIRECTORY);
    return fns_done_with(top, top < 0 ? top : attach(child->root, (struct place){top, ""}));
}

/* The root's tree becomes a mount namespace, and this process enters it. The caller's mounts are not copied,
 * there is no old root to take down, and the paths of the caller's view are gone. */
int fns_op_tree_namespace(struct fns_child *child, const struct fns_op *op)
{
    int null = fns_open("/dev/null", FNS_PATH_FLAGS); /* for masks */
    int tree = fns_done_with(null, null < 0 ? null : clone_fd(null, 0));
    child->null = tree < 0 ? 0 : tree;
    int namespace =
        (int)fns_sys3(__NR_open_tree, child->root, "",
                      FNS_OPEN_TREE_NAMESPACE | O_CLOEXEC | AT_EMPTY_PATH | AT_RECURSIVE);
    int result = namespace < 0 ? namespace : (int)fns_sys2(__NR_setns, namespace, FNS_CLONE_NEWNS);
    fns_close_if_open(namespace);
    if (result < 0)
        return result;
    fns_close(child->root);
    return child->root = fns_open("/", FNS_PATH_FLAGS | O_DIRECTORY);
}

int fns_op_root_scratch(struct fns_child *child, const struct fns_op *op)
{
    fns_close_if_open(child->root);
    return child->root = (int)fns_sys3(__NR_fcntl, child->scratch, F_DUPFD_CLOEXEC, 3);
}

int fns_op_overlay(struct fns_child *child, const struct fns_op *op)
{
    int result = mount_in(child->scratch, "root", "overlay", "overlay", op->flags,
                          fns_text(child, op->data));
    if (result < 0)
        return result;
    fns_close_if_open(child->root);
    return child->root = fns_open_in(child->scratch, "root", FNS_PATH_FLAGS | O_DIRECTORY);
}

int fns_op_pivot_root(struct fns_child *child, const struct fns_op *op)
{
    int result = (int)fns_sys1(__NR_fchdir, child->root);
    /* The old root lands on top of the new one, so it needs no directory (pivot_root(2)). */
    if (result == 0)
        result = (int)fns_sys2(__NR_pivot_root, ".", ".");
    /* umount2(2) takes the topmost mount down. Where there is a scratch, it lies on top of the old root. */
    for (uint64_t i = 0; result == 0 && i < op->arg; i++)
        result = (int)fns_sys2(__NR_umount2, ".", FNS_MNT_DETACH);
    return result < 0 ? result : (int)fns_sys1(__NR_chdir, "/");
}

int fns_op_chroot(struct fns_child *child, const struct fns_op *op)
{
    int result = (int)fns_sys1(__NR_fchdir, child->root);
    if (result == 0)
        result = (int)fns_sys1(__NR_chroot, ".");
    return result < 0 ? result : (int)fns_sys1(__NR_chdir, "/");
}

/* ---- mounts and binds ----------------------------------------------------------------------- */

int fns_op_mount(struct fns_child *child, const struct fns_op *op)
{
    const char *source = fns_text(child, op->source), *type = fns_text(child, op->type);
    const char *place = fns_text(child, op->target), *options = fns_text(child, op->data);
    if (place[0] != '/') /* a directory of ROOT_TMPFS, so it cannot be a link */
        return mount_in(child->root, place, source, type, op->flags, options);
    int fd = fns_open_target(child, op, 1);
    return fns_done_with(fd, fd < 0 ? fd : mount_in(fd, ".", source, type, op->flags, options));
}

/* Idmaps a detached tree, sets its attributes and attaches it to the op's target. `clear`: the attributes to
 * clear. */
static int bind_tree(struct fns_child *child, const struct fns_op *op, int tree, uint64_t clear,
                     int directory)
{
    const struct fns_mount_attr attr = {.attr_set = op->flags,
                                        .attr_clr = clear,
                                        .propagation = op->how & FNS_HOW_SLAVE ? MS_SLAVE
                                                       : op->how & FNS_HOW_UNBINDABLE
                                                           ? MS_UNBINDABLE
                                                           : MS_PRIVATE};
    int result = idmap_tree(child, op, tree);
    if (result == 0)
        result = set_attributes(tree, op->how & FNS_HOW_RECURSIVE, attr);
    if (result < 0)
        return result;
    int target = fns_open_target(child, op, directory);
    if (target < 0)
        return target;
    long type = fns_type_in(target, "");
    if (type >= 0 && (type == FNS_S_IFDIR) != (directory != 0))
        type = -ENOTDIR; /* the kernel's EINVAL would not say why */
    return fns_done_with(target, type < 0 ? type : attach(tree, (struct place){target, ""}));
}

/* Makes a detached copy of the op's source. Returns it, or -errno. */
static int open_source(struct fns_child *child, const struct fns_op *op)
{
    int source = fns_open(fns_text(child, op->source), FNS_PATH_FLAGS);
    int tree = source < 0 ? source : clone_fd(source, op->how & FNS_HOW_RECURSIVE);
    fns_close_if_open(source);
    return tree < 0 ? fns_source_failed(child, tree) : tree;
}

int fns_op_bind_source(struct fns_child *child, const struct fns_op *op)
{
    int tree = child->n_sources < FNS_MAX_SOURCES ? open_source(child, op) : -E2BIG;
    if (tree >= 0)
        child->sources[child->n_sources++] = tree;
    return tree;
}

/* Returns the next tree that BIND_SOURCE has opened, or -EBADF. */
static int take_source(struct fns_child *child)
{
    return child->next_source < child->n_sources ? child->sources[child->next_source++] : -EBADF;
}

int fns_op_bind(struct fns_child *child, const struct fns_op *op)
{
    int tree = op->how & FNS_HOW_AHEAD ? take_source(child) : open_source(child, op);
    if (tree == -ENOENT && op->how & FNS_HOW_IF_THERE) {
        child->error.detail = FNS_DETAIL_NONE; /* open_source() has set it */
        return 0;
    }
    if (tree < 0)
        return tree;
    long type = fns_type_in(tree, "");
    if (type >= 0)
        type = bind_tree(child, op, tree, op->arg, type == FNS_S_IFDIR);
    return fns_done_with(tree, type);
}

int fns_op_device(struct fns_child *child, const struct fns_op *op)
{
    const char *name;
    int dir = fns_target_directory(child, op, &name);
    return dir < 0 ? dir : (int)fns_sys4(__NR_mknodat, dir, name, op->flags, op->arg);
}

int fns_op_symlink(struct fns_child *child, const struct fns_op *op)
{
    const char *name;
    int dir = fns_target_directory(child, op, &name);
    return dir < 0 ? dir : (int)fns_sys3(__NR_symlinkat, fns_text(child, op->source), dir, name);
}

int fns_op_directory(struct fns_child *child, const struct fns_op *op)
{
    const char *name;
    int dir = fns_target_directory(child, op, &name);
    int result = dir < 0 ? dir : (int)fns_sys3(__NR_mkdirat, dir, name, op->arg);
    return result < 0 ? result : fns_give_to_owner(child, op, dir, name);
}

/* Makes the file `name` in `dir` with the op's bytes. */
static int write_file(struct fns_child *child, const struct fns_op *op, int dir, const char *name)
{
    const char *bytes = child->plan->strings + op->data;
    int fd = fns_make_file(dir, name);
    long result = fd;
    for (uint64_t done = 0; result >= 0 && done < op->arg; done += (uint64_t)result) {
        result = fns_sys3(__NR_write, fd, bytes + done, op->arg - done);
        if (result == 0)
            result = -ENOSPC;
    }
    if (result >= 0)
        result = fns_give_to_owner(child, op, fd, "");
    return fns_done_with(fd, result);
}

int fns_op_file_bind(struct fns_child *child, const struct fns_op *op)
{
    const char *name = fns_text(child, op->source); /* unique in the scratch */
    int dir = fns_open_in(child->scratch, "files", FNS_PATH_FLAGS | O_DIRECTORY);
    int tree = dir < 0 ? dir : write_file(child, op, dir, name);
    if (tree >= 0)
        tree = clone_tree((struct place){dir, name}, 0);
    fns_close_if_open(dir);
    return fns_done_with(tree, tree < 0 ? tree : bind_tree(child, op, tree, 0, 0));
}

int fns_op_read_only(struct fns_child *child, const struct fns_op *op)
{
    const struct fns_mount_attr attr = {.attr_set = MOUNT_ATTR_RDONLY};
    if (!op->target)
        return set_attributes(child->root, 0, attr);
    int fd = fns_open_target(child, op, 1);
    return fns_done_with(fd, fd < 0 ? fd : set_attributes(fd, 0, attr));
}

/* ---- masked and read-only paths ------------------------------------------------------------- */

/* Returns a detached null device to attach over a file: the root's own, or else the caller's. */
static int null_tree(struct fns_child *child)
{
    if (child->cache.null_device)
        return clone_fd(child->cache.null_device, 0);
    int fd = fns_resolve(child->root, "dev/null", 1);
    if (fd >= 0) {
        long type = fns_type_in(fd, "");
        if (type < 0)
            return fns_done_with(fd, type);
        if (type != FNS_S_IFCHR)
            fd = fns_done_with(fd, -ENOENT);
    }
    if (fd < 0 && child->null) { /* TREE_NAMESPACE has left the caller's view behind */
        fd = (int)fns_sys3(__NR_fcntl, child->null, F_DUPFD_CLOEXEC, 3);
        /* A tree that was detached in another mount namespace cannot be copied in this one (EINVAL, since Linux
         * 6.15) until it is attached here. */
        if (!child->null_attached) {
            child->null_attached = 1;
            return fd;
        }
    }
    if (fd < 0)
        fd = fns_open("/dev/null", FNS_PATH_FLAGS);
    if (fd < 0)
        return fns_source_failed(child, fd);
    child->cache.null_device = fd;
    return clone_fd(fd, 0);
}

static int open_directory(struct place place)
{
    return fns_open_in(place.fd, place.name, FNS_PATH_FLAGS | O_NOFOLLOW | O_DIRECTORY);
}

static int mount_empty(int fd)
{
    return mount_in(fd, ".", "tmpfs", "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC,
                    "size=4k,nr_inodes=2,mode=555");
}

/* The first mask is a tmpfs. The others are copies of that mount, which cost less. */
static int mask_directory(struct fns_child *child, struct place place)
{
    if (child->cache.empty_directory)
        return attach_and_close(clone_fd(child->cache.empty_directory, 0), place);
    if (!place.name[0])
        return mount_empty(place.fd);
    int fd = open_directory(place);
    int result = fns_done_with(fd, fd < 0 ? fd : mount_empty(fd));
    if (result < 0)
        return result;
    fd = open_directory(place); /* the tmpfs now */
    if (fd >= 0)
        child->cache.empty_directory = fd;
    return fd;
}

static int mask(struct fns_child *child, struct place place, long type)
{
    return type == FNS_S_IFDIR ? mask_directory(child, place)
                               : attach_and_close(null_tree(child), place);
}

static int make_read_only(struct fns_child *child, struct place place, long type)
{
    const struct fns_mount_attr attr = {.attr_set = MOUNT_ATTR_RDONLY};
    int tree = clone_tree(place, AT_RECURSIVE | AT_SYMLINK_NOFOLLOW);
    int result = tree < 0 ? tree : set_attributes(tree, 1, attr);
    if (result >= 0)
        result = attach(tree, place);
    return fns_done_with(tree, result);
}

static int has_slash(const char *name)
{
    while (*name && *name != '/')
        name++;
    return *name == '/';
}

/* Calls `act` for each of the op's names that exists. In procfs and sysfs nobody can replace what a name refers
 * to, so `act` gets the name itself. On other file systems, and for names with a slash, `act` gets an fd of
 * what was found. */
static int for_each_name(struct fns_child *child, const struct fns_op *op,
                         int (*act)(struct fns_child *child, struct place place, long type))
{
    const char *names = child->plan->strings + op->data, *path = child->plan->strings + op->target;
    int base = fns_directory(child, path, fns_length(path), 1);
    int result = base < 0 ? base : fns_check_type(base, op->flags);
    for (uint64_t at = 0; result >= 0 && at < op->arg; at += fns_length(names + at) + 1) {
        struct place place = {base, names + at};
        if (!op->flags || has_slash(place.name))
            place = (struct place){fns_resolve(base, names + at, 1), ""};
        long type = place.fd < 0 ? place.fd : fns_type_in(place.fd, place.name);
        if (type == FNS_S_IFLNK)
            type = -ELOOP;
        if (type != -ENOENT && type != -ENOTDIR)
            result = type < 0 ? (int)type : act(child, place, type);
        if (place.fd != base)
            fns_close_if_open(place.fd);
    }
    return result;
}

int fns_op_mask(struct fns_child *child, const struct fns_op *op)
{
    if (op->source && !child->cache.empty_directory) {
        int fd = fns_resolve(child->root, fns_text(child, op->source), 1);
        if (fd < 0)
            return fns_source_failed(child, fd);
        child->cache.empty_directory = fd;
    }
    return for_each_name(child, op, mask);
}

int fns_op_read_only_paths(struct fns_child *child, const struct fns_op *op)
{
    return for_each_name(child, op, make_read_only);
}
