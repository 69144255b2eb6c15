/* The ops of a plan, one function each. CHILD ONLY.
 *
 * Runs in the program (program.c), in memory of its own, and in the sandboxes of a template's server
 * (sandbox.c), which share the server's memory. Therefore: raw system calls only; no heap, no locks, no
 * errno or other TLS, no libc function but memcpy and memset, no writes but to this stack and to
 * `struct fns_child`. tests/sandbox/test_child_rule.py compares the symbols of the object file with that
 * list. Nothing is decided here: each op of the plan is one small function, and the first that fails
 * ends the child.
 *
 * Mount targets are resolved below the root's fd (openat2 with RESOLVE_IN_ROOT, or walk() where the
 * kernel refuses openat2), and mounts are attached to the fd that was found: a root full of symbolic
 * links, or one that changes meanwhile, cannot lead outside.
 */
#include "child.h"

#include "shared/sys.h"

#define PATH_SIZE 4096
#define MAX_DEPTH 64
#define MAX_LINKS 40

/* The two libc functions gcc may call of its own accord. */
void *memcpy(void *restrict to, const void *restrict from, size_t size);

#define O_PATH_FLAGS (O_PATH | O_CLOEXEC)

static int at_fdcwd_open(const char *path, int flags)
{
    return (int)fns_sys4(__NR_openat, AT_FDCWD, path, flags, 0);
}

static void close_fd(int fd)
{
    if (fd >= 0)
        fns_close(fd);
}

/* The type of what `name` is in `fd`, links not followed, or with "" of `fd` itself; -errno. */
static long type_in(int fd, const char *name)
{
    struct statx st;
    st.stx_mode = 0;
    long result =
        fns_sys5(__NR_statx, fd, name, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW, STATX_TYPE, &st);
    return result < 0 ? result : (long)(st.stx_mode & FNS_S_IFMT);
}

/* ---- paths inside the root ------------------------------------------------------------------ */

/* Resolves `path` below `root` by hand, a component at a time and never through a name twice, for
 * kernels or filters without openat2. ".." goes back along the fds walked, so that a directory moved
 * meanwhile cannot lead out (openat2(2), RESOLVE_IN_ROOT). */
static int walk(int root, const char *path, int no_symlinks)
{
    char rest[PATH_SIZE], link[PATH_SIZE];
    int stack[MAX_DEPTH], depth = 0, links = 0;
    size_t at = 0, n = fns_length(path);
    if (n >= PATH_SIZE)
        return -ENAMETOOLONG;
    memcpy(rest, path, n + 1);
    stack[0] = (int)fns_sys4(__NR_openat, root, ".", O_PATH_FLAGS | O_DIRECTORY, 0);
    if (stack[0] < 0)
        return stack[0];
    int result = 0;
    for (;;) {
        char name[256];
        size_t len = 0;
        while (rest[at] == '/')
            at++;
        if (!rest[at])
            break;
        while (rest[at] && rest[at] != '/') {
            if (len == sizeof name - 1) {
                result = -ENAMETOOLONG;
                goto out;
            }
            name[len++] = rest[at++];
        }
        name[len] = 0;
        long type = type_in(stack[depth], "");
        if (type != FNS_S_IFDIR) {
            result = type < 0 ? (int)type : -ENOTDIR;
            goto out;
        }
        if (len == 1 && name[0] == '.')
            continue;
        if (len == 2 && name[0] == '.' && name[1] == '.') {
            if (depth > 0)
                close_fd(stack[depth--]);
            continue;
        }
        int fd = (int)fns_sys4(__NR_openat, stack[depth], name, O_PATH_FLAGS | O_NOFOLLOW, 0);
        if (fd < 0) {
            result = fd;
            goto out;
        }
        type = type_in(fd, "");
        if (type != FNS_S_IFLNK) {
            if (type < 0 || depth + 1 == MAX_DEPTH) {
                close_fd(fd);
                result = type < 0 ? (int)type : -ENAMETOOLONG;
                goto out;
            }
            stack[++depth] = fd;
            continue;
        }
        long got = fns_sys4(__NR_readlinkat, fd, "", link, PATH_SIZE - 1);
        close_fd(fd);
        if (got < 0 || no_symlinks || ++links > MAX_LINKS) {
            result = got < 0 ? (int)got : -ELOOP;
            goto out;
        }
        size_t left = fns_length(rest + at);
        if ((size_t)got + left + 1 > PATH_SIZE) {
            result = -ENAMETOOLONG;
            goto out;
        }
        memcpy(link + got, rest + at, left + 1);
        memcpy(rest, link, (size_t)got + left + 1);
        at = 0;
        if (rest[0] == '/')
            while (depth > 0)
                close_fd(stack[depth--]);
    }
    result = stack[depth--];
out:
    while (depth >= 0)
        close_fd(stack[depth--]);
    return result;
}

/* An O_PATH fd of `path` inside `root`, or -errno. */
static int resolve(int root, const char *path, int no_symlinks)
{
    struct fns_open_how how = {
        .flags = O_PATH_FLAGS,
        .resolve = FNS_RESOLVE_IN_ROOT | FNS_RESOLVE_NO_MAGICLINKS |
                   (no_symlinks ? FNS_RESOLVE_NO_SYMLINKS : 0),
    };
    int fd;
    /* EAGAIN: something was renamed while ".." was resolved; the kernel asks to try again. */
    for (int tries = 0; tries < 64; tries++) {
        fd = (int)fns_sys4(__NR_openat2, root, path, &how, sizeof how);
        if (fd != -EAGAIN)
            break;
    }
    /* EPERM cannot come from openat2 with O_PATH: a filter that answers EPERM for unknown calls. */
    if (fd == -ENOSYS || fd == -EPERM)
        return walk(root, path, no_symlinks);
    return fd;
}

/* How much of `path` is its parent directory; the rest is its last name. */
static size_t parent_length(const char *path)
{
    size_t n = fns_length(path);
    while (n > 0 && path[n - 1] != '/')
        n--;
    return n;
}

/* As resolve(), of the first n bytes of `path`. */
static int resolve_part(int root, const char *path, size_t n, int no_symlinks)
{
    char part[PATH_SIZE];
    if (n >= PATH_SIZE)
        return -ENAMETOOLONG;
    memcpy(part, path, n);
    part[n] = 0;
    return resolve(root, n ? part : "/", no_symlinks);
}

/* Splits `path` into an fd of its parent directory and its last name. */
static int resolve_parent(int root, const char *path, const char **name)
{
    size_t n = parent_length(path);
    *name = path + n;
    return resolve_part(root, path, n, 0);
}

/* What ops next to each other look up is looked up once: run_op() lets go of it before others. */
static void let_go(struct fns_child *child)
{
    if (child->held)
        close_fd(child->held);
    if (child->null_device)
        close_fd(child->null_device);
    if (child->empty)
        close_fd(child->empty);
    child->held = child->null_device = child->empty = 0;
}

/* As resolve_part() in the root; not to be closed. */
static int hold(struct fns_child *child, const char *path, size_t n, int no_symlinks)
{
    size_t same = 0;
    while (child->held && same < n && same < child->held_length &&
           child->held_path[same] == path[same])
        same++;
    if (child->held && same == n && same == child->held_length)
        return child->held;
    int fd = resolve_part(child->root, path, n, no_symlinks);
    if (fd < 0)
        return fd;
    if (child->held)
        close_fd(child->held);
    child->held = fd;
    child->held_path = path;
    child->held_length = n;
    return fd;
}

/* As resolve_parent(); not to be closed. */
static int hold_parent(struct fns_child *child, const struct fns_op *op, const char **name)
{
    const char *path = child->plan->strings + op->target;
    size_t n = parent_length(path);
    *name = path + n;
    return hold(child, path, n, 0);
}

/* What was made as the caller becomes the sandbox's own, where the op says so. */
static int give_away(const struct fns_child *child, const struct fns_op *op, int dir,
                     const char *name)
{
    const struct fns_plan *plan = child->plan;
    if (!(op->how & FNS_HOW_OWNED))
        return 0;
    return (int)fns_sys5(__NR_fchownat, dir, name, plan->owner_uid, plan->owner_gid,
                         AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH);
}

static int is_same(int fd, int other)
{
    struct statx a, b;
    if (fns_sys5(__NR_statx, fd, "", AT_EMPTY_PATH, STATX_INO, &a) < 0 ||
        fns_sys5(__NR_statx, other, "", AT_EMPTY_PATH, STATX_INO, &b) < 0)
        return 0;
    return a.stx_ino == b.stx_ino && a.stx_dev_major == b.stx_dev_major &&
           a.stx_dev_minor == b.stx_dev_minor;
}

/* Makes one directory, or file, at `path`, whose parent directory is `dir`. Where owners are shown
 * through a user namespace the caller is nobody (EOVERFLOW): there it is made in the same directory
 * as it is without that. */
static int make_one(struct fns_child *child, const struct fns_op *op, int dir, const char *path,
                    const char *name, int directory)
{
    int result;
    if (directory)
        result = (int)fns_sys3(__NR_mkdirat, dir, name, 0755);
    else
        result = (int)fns_sys4(__NR_openat, dir, name,
                               O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (!directory)
        close_fd(result);
    if (result >= 0)
        return give_away(child, op, dir, name);
    if (result != -EOVERFLOW || child->plain < 0)
        return result;
    int plain = resolve_parent(child->plain, path, &name);
    if (plain >= 0 && is_same(plain, dir)) {
        struct fns_op none = {.how = 0};
        int before = child->plain;
        child->plain = -1;
        result = make_one(child, &none, plain, path, name, directory);
        child->plain = before;
    }
    close_fd(plain);
    return result;
}

/* Makes the directories above `path` that are missing; 0 or -errno. */
static int make_parents(struct fns_child *child, const struct fns_op *op, const char *path)
{
    char prefix[PATH_SIZE];
    int root = child->root;
    size_t n = fns_length(path);
    if (n >= PATH_SIZE)
        return -ENAMETOOLONG;
    for (size_t i = 1; i < n; i++) {
        if (path[i] != '/')
            continue;
        memcpy(prefix, path, i);
        prefix[i] = 0;
        int fd = resolve(root, prefix, 0);
        if (fd == -ENOENT) {
            const char *name;
            int parent = resolve_parent(root, prefix, &name);
            if (parent < 0)
                return parent;
            fd = make_one(child, op, parent, prefix, name, 1);
            close_fd(parent);
        } else {
            close_fd(fd);
        }
        if (fd < 0)
            return fd;
    }
    return 0;
}

/* Makes `path` as an empty file or a directory. */
static int make_target(struct fns_child *child, const struct fns_op *op, const char *path,
                       int directory)
{
    const char *name;
    int result = make_parents(child, op, path);
    if (result < 0)
        return result;
    int parent = resolve_parent(child->root, path, &name);
    if (parent < 0)
        return parent;
    result = make_one(child, op, parent, path, name, directory);
    close_fd(parent);
    return result < 0 ? result : 0;
}

/* The fd of a mount target, made if the op says so. */
static int open_target(struct fns_child *child, const struct fns_op *op, int directory)
{
    const char *path = child->plan->strings + op->target;
    int no_symlinks = (op->how & FNS_HOW_NO_SYMLINKS) != 0;
    int fd = resolve(child->root, path, no_symlinks);
    if (fd == -ENOENT && (op->how & FNS_HOW_CREATE)) {
        fd = make_target(child, op, path, directory);
        if (fd == 0)
            fd = resolve(child->root, path, no_symlinks);
    }
    return fd;
}

/* ---- mounts --------------------------------------------------------------------------------- */

static int attach(int tree, int target)
{
    return (int)fns_sys5(__NR_move_mount, tree, "", target, "",
                         FNS_MOVE_MOUNT_F_EMPTY_PATH | FNS_MOVE_MOUNT_T_EMPTY_PATH);
}

/* Attaches a tree on top of "/". Paths of the caller's view start below it, so that they do not see
 * it; a bind of the directory the root came from would, were it attached there. */
static int attach_on_top(int tree)
{
    int top = at_fdcwd_open("/", O_PATH_FLAGS | O_DIRECTORY);
    if (top < 0)
        return top;
    int result = attach(tree, top);
    close_fd(top);
    return result;
}

/* A detached copy of what is mounted at `fd`. */
static int clone_tree(int fd, int recursive)
{
    return (int)fns_sys3(__NR_open_tree, fd, "",
                         FNS_OPEN_TREE_CLONE | O_CLOEXEC | AT_EMPTY_PATH |
                             (recursive ? AT_RECURSIVE : 0));
}

static int set_attr(int tree, int recursive, uint64_t set, uint64_t clear, uint64_t propagation)
{
    struct fns_mount_attr attr = {.attr_set = set, .attr_clr = clear, .propagation = propagation};
    return (int)fns_sys5(__NR_mount_setattr, tree, "",
                         AT_EMPTY_PATH | (recursive ? AT_RECURSIVE : 0), &attr, sizeof attr);
}

/* Idmaps a detached tree: id 0 on the disk is id 0 in the user namespace. All of it or nothing. EINVAL: a
 * file system cannot be idmapped. EPERM: a mount is idmapped already, or its file system belongs to another
 * user namespace (mount_setattr(2)). */
static int show_owners(struct fns_child *child, const struct fns_op *op, int tree)
{
    struct fns_mount_attr attr = {.attr_set = FNS_MOUNT_ATTR_IDMAP,
                                  .userns_fd = (uint64_t)child->userns};
    if (!(op->how & FNS_HOW_IDMAP))
        return 0;
    int recursive = op->how & FNS_HOW_RECURSIVE ? AT_RECURSIVE : 0;
    int result =
        (int)fns_sys5(__NR_mount_setattr, tree, "", AT_EMPTY_PATH | recursive, &attr, sizeof attr);
    if ((result == -EINVAL || result == -EPERM) && (op->how & FNS_HOW_OPTIONAL))
        return 0;
    if (result < 0)
        child->error.detail = FNS_DETAIL_ID_MAP;
    return result;
}

/* mount(2) on the directory behind an fd: "." is that directory, whatever its name is by now. */
static int mount_at(int fd, const char *source, const char *type, uint64_t flags, const char *data)
{
    int result = (int)fns_sys1(__NR_fchdir, fd);
    if (result == 0)
        result = (int)fns_sys5(__NR_mount, source, ".", type, flags, data);
    return result;
}

static const char *text(const struct fns_child *child, uint32_t offset)
{
    return offset ? child->plan->strings + offset : 0;
}

static int source_failed(struct fns_child *child, int result)
{
    child->error.detail = FNS_DETAIL_SOURCE;
    return result;
}

static int op_setns(struct fns_child *child, const struct fns_op *op)
{
    /* O_NONBLOCK: a fifo would wait for somebody who writes to it. */
    int fd = at_fdcwd_open(text(child, op->source), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return source_failed(child, fd);
    if (op->how & FNS_HOW_OPEN) {
        child->userns = fd;
        if ((uint64_t)fns_sys2(__NR_ioctl, fd, 0xb703 /* NS_GET_NSTYPE */) == op->flags)
            return 0;
        return source_failed(child, -EINVAL);
    }
    int result = (int)fns_sys2(__NR_setns, fd, op->flags);
    close_fd(fd);
    return result < 0 ? source_failed(child, result) : 0;
}

/* Runs in a process of its own: joins the user namespace, makes namespaces there, reports the result over
 * `socket`, and keeps them alive until the other end is closed. */
static _Noreturn void make_namespaces(int userns, uint64_t flags, int socket)
{
    char byte;
    long result = fns_sys2(__NR_setns, userns, FNS_CLONE_NEWUSER);
    if (result >= 0)
        result = fns_sys1(__NR_unshare, flags);
    int reported = 0;
    for (int tries = 0; !reported && tries < FNS_TRIES; tries++)
        reported = fns_write(socket, &result, sizeof result) == sizeof result;
    for (int tries = 0; reported && tries < FNS_TRIES; tries++)
        if (fns_read(socket, &byte, sizeof byte) == 0)
            break;
    for (;;)
        FNS_IGNORE(fns_sys1(__NR_exit_group, 0), "does not return");
}

/* Joins the namespaces that make_namespaces() has reported as made. Before its report that process may be in
 * the host's, and setns(2) by its pidfd would succeed and change nothing. Its stop or exit proves nothing. */
static long join_made(struct fns_child *child, int pidfd, int socket, uint64_t flags)
{
    long made, got = fns_read(socket, &made, sizeof made);
    if (got < 0)
        return got;
    if (got != sizeof made) { /* it was killed */
        child->error.detail = FNS_DETAIL_KILLED;
        return -ECANCELED;
    }
    if (made >= 0)
        made = fns_sys2(__NR_setns, pidfd, flags);
    return made == -ESRCH ? -ECANCELED : made; /* killed since */
}

/* Kills and reaps a child, whatever its exit signal. */
static long end_child(int pidfd)
{
    int info[32]; /* siginfo_t */
    long result = fns_sys4(__NR_pidfd_send_signal, pidfd, FNS_SIGKILL, 0, 0);
    if (result < 0)
        return result;
    do
        result = fns_sys5(__NR_waitid, 3 /* P_PIDFD */, pidfd, info,
                          4 | 0x40000000 /* WEXITED|__WALL */, 0);
    while (result == -EINTR);
    return result;
}

/* Makes namespaces that belong to the sandbox's user namespace, so that its capabilities count in them. Only
 * a process inside it can, and this one has to stay outside until its mounts are done. So a child makes them,
 * and this process joins them with the rights that it has over both. */
static int op_own_namespaces(struct fns_child *child, const struct fns_op *op)
{
    int ends[2], pidfd = -1;
    long result =
        fns_sys4(__NR_socketpair, 1 /* AF_UNIX */, 5 | O_CLOEXEC /* SOCK_SEQPACKET */, 0, ends);
    if (result < 0)
        return (int)result;
    long pid = fns_sys5(__NR_clone, FNS_CLONE_PIDFD, 0, &pidfd, 0, 0);
    if (pid == 0) {
        close_fd(ends[0]);
        make_namespaces(child->userns, op->flags, ends[1]);
    }
    close_fd(ends[1]); /* so that we read end of file when the child ends */
    result = pid < 0 ? pid : join_made(child, pidfd, ends[0], op->flags);
    close_fd(ends[0]);
    if (pid < 0)
        return (int)result;
    long ended = end_child(pidfd);
    close_fd(pidfd);
    return (int)(result < 0 ? result : ended);
}

static int op_unshare(struct fns_child *child, const struct fns_op *op)
{
    (void)child;
    return (int)fns_sys1(__NR_unshare, op->flags);
}

static int op_write(struct fns_child *child, const struct fns_op *op)
{
    const char *data = text(child, op->data);
    long size = (long)fns_length(data);
    int fd = at_fdcwd_open(text(child, op->target), O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return fns_is_out_of_reach(fd) && op->how & FNS_HOW_OPTIONAL ? 0 : fd;
    long result = fns_check_type(fd, op->flags);
    if (result >= 0)
        result = fns_sys3(__NR_write, fd, data, size);
    close_fd(fd);
    return result == size ? 0 : result < 0 ? (int)result : -EIO;
}

static int op_propagation(struct fns_child *child, const struct fns_op *op)
{
    (void)child;
    return (int)fns_sys5(__NR_mount, 0, "/", 0, FNS_MS_REC | op->flags, 0);
}

static int op_root_tree(struct fns_child *child, const struct fns_op *op)
{
    int dir = at_fdcwd_open(text(child, op->source), O_PATH_FLAGS | O_DIRECTORY);
    if (dir < 0 || !(op->how & FNS_HOW_RECURSIVE)) { /* a plain directory, to chroot into */
        child->root = dir;
        return dir < 0 ? source_failed(child, dir) : 0;
    }
    child->root = clone_tree(dir, 1);
    if (op->how & FNS_HOW_IDMAP)
        child->plain = dir;
    else
        close_fd(dir);
    if (child->root < 0)
        return source_failed(child, child->root);
    int result = show_owners(child, op, child->root);
    return result < 0 ? result : set_attr(child->root, 1, op->flags, 0, FNS_MS_PRIVATE);
}

/* Mounts a tmpfs as SCRATCH and ROOT_TMPFS describe it, and makes its directories; an fd of it, or -errno. A
 * mount on "/" is reached by "/.."; paths that begin with "/" lead beneath it. */
static int make_tmpfs(struct fns_child *child, const struct fns_op *op)
{
    const char *place = op->target ? text(child, op->target) : "/";
    int result =
        (int)fns_sys5(__NR_mount, "fastns", place, "tmpfs", op->flags, text(child, op->type));
    if (result < 0)
        return result;
    int top = at_fdcwd_open(op->target ? place : "/..", O_PATH_FLAGS | O_DIRECTORY);
    if (top < 0)
        return top;
    result = give_away(child, op, top, "");
    const char *name = text(child, op->data), *end = name + op->arg;
    for (; result == 0 && name < end; name += fns_length(name) + 1) {
        result = (int)fns_sys3(__NR_mkdirat, top, name, 0755);
        if (result == 0)
            result = give_away(child, op, top, name);
    }
    if (result < 0)
        close_fd(top);
    return result < 0 ? result : top;
}

/* Binds a directory of the host, or of the root itself, to an empty one of the root. This process made that root, a tmpfs, so nobody
 * can have put a link there; and mount(2) takes half the time of a detached tree. */
static int op_show(struct fns_child *child, const struct fns_op *op)
{
    const char *source = text(child, op->source), *place = text(child, op->target);
    struct fns_mount_attr attr = {
        .attr_set = op->flags, .attr_clr = op->arg, .propagation = FNS_MS_PRIVATE};
    int result = (int)fns_sys1(__NR_fchdir, child->root);
    if (result == 0)
        result = give_away(child, op, child->root, place);
    if (result == 0)
        result = (int)fns_sys5(__NR_mount, source, place, 0, 4096 | FNS_MS_REC /* MS_BIND */, 0);
    if (result == -ENOENT) /* gone since the plan was made: leaves an empty directory */
        return 0;
    if (result < 0)
        return source_failed(child, result);
    return (int)fns_sys5(__NR_mount_setattr, child->root, place, AT_RECURSIVE, &attr, sizeof attr);
}

static int op_root_tmpfs(struct fns_child *child, const struct fns_op *op)
{
    int result = op->target ? (int)fns_sys1(__NR_fchdir, child->scratch) : 0;
    if (result == 0)
        result = make_tmpfs(child, op);
    child->root = result;
    return result < 0 ? result : 0;
}

static int op_scratch(struct fns_child *child, const struct fns_op *op)
{
    child->scratch = make_tmpfs(child, op);
    return child->scratch < 0 ? child->scratch : 0;
}

static int op_root_attach(struct fns_child *child, const struct fns_op *op)
{
    if (!op->target)
        return attach_on_top(child->root);
    return (int)fns_sys5(__NR_move_mount, child->root, "", child->scratch, text(child, op->target),
                         FNS_MOVE_MOUNT_F_EMPTY_PATH);
}

/* The root's tree becomes a mount namespace, and this process enters it: nothing of the caller's table
 * is copied, and there is no old root to take down. The paths of the caller's view are gone then. */
static int op_tree_namespace(struct fns_child *child, const struct fns_op *op)
{
    (void)op;
    int null = at_fdcwd_open("/dev/null", O_PATH_FLAGS); /* for masks */
    int tree = null < 0 ? null : clone_tree(null, 0);
    child->null = tree < 0 ? 0 : tree;
    close_fd(null);
    int space = (int)fns_sys3(__NR_open_tree, child->root, "",
                              FNS_OPEN_TREE_NAMESPACE | O_CLOEXEC | AT_EMPTY_PATH | AT_RECURSIVE);
    if (space < 0)
        return space;
    int result = (int)fns_sys2(__NR_setns, space, FNS_CLONE_NEWNS);
    close_fd(space);
    if (result < 0)
        return result;
    close_fd(child->root);
    child->root = at_fdcwd_open("/", O_PATH_FLAGS | O_DIRECTORY);
    return child->root < 0 ? child->root : 0;
}

static int op_root_scratch(struct fns_child *child, const struct fns_op *op)
{
    (void)op;
    close_fd(child->root);
    child->root = (int)fns_sys3(__NR_fcntl, child->scratch, F_DUPFD_CLOEXEC, 3);
    return child->root < 0 ? child->root : 0;
}

static int op_overlay(struct fns_child *child, const struct fns_op *op)
{
    int result = (int)fns_sys1(__NR_fchdir, child->scratch);
    if (result == 0)
        result = (int)fns_sys5(__NR_mount, "overlay", "root", "overlay", op->flags,
                               text(child, op->data));
    if (result < 0)
        return result;
    close_fd(child->root);
    child->root = (int)fns_sys4(__NR_openat, child->scratch, "root", O_PATH_FLAGS | O_DIRECTORY, 0);
    return child->root < 0 ? child->root : 0;
}

/* A target that does not begin with "/" is a directory of ROOT_TMPFS, which this process made: no link can be
 * there. */
static int op_mount(struct fns_child *child, const struct fns_op *op)
{
    const char *place = text(child, op->target);
    if (place[0] != '/') {
        int entered = (int)fns_sys1(__NR_fchdir, child->root);
        return entered < 0 ? entered
                           : (int)fns_sys5(__NR_mount, text(child, op->source), place,
                                           text(child, op->type), op->flags, text(child, op->data));
    }
    int fd = open_target(child, op, 1);
    if (fd < 0)
        return fd;
    int result = mount_at(fd, text(child, op->source), text(child, op->type), op->flags,
                          text(child, op->data));
    close_fd(fd);
    return result;
}

static int bind_tree(struct fns_child *child, const struct fns_op *op, int tree, uint64_t set,
                     uint64_t clear, int directory)
{
    uint64_t propagation = op->how & FNS_HOW_SLAVE        ? FNS_MS_SLAVE
                           : op->how & FNS_HOW_UNBINDABLE ? FNS_MS_UNBINDABLE
                                                          : FNS_MS_PRIVATE;
    int result = show_owners(child, op, tree);
    if (result == 0)
        result = set_attr(tree, op->how & FNS_HOW_RECURSIVE, set, clear, propagation);
    if (result < 0)
        return result;
    int target = open_target(child, op, directory);
    if (target < 0)
        return target;
    long type = type_in(target, "");
    if (type < 0)
        result = (int)type;
    else if ((type == FNS_S_IFDIR) != (directory != 0))
        result = -ENOTDIR; /* the kernel says EINVAL, which explains nothing */
    else
        result = attach(tree, target);
    close_fd(target);
    return result;
}

/* A detached copy of what the op's source is, or -errno. */
static int open_source(struct fns_child *child, const struct fns_op *op)
{
    int source = at_fdcwd_open(text(child, op->source), O_PATH_FLAGS);
    if (source < 0)
        return source_failed(child, source);
    int tree = clone_tree(source, op->how & FNS_HOW_RECURSIVE);
    close_fd(source);
    return tree < 0 ? source_failed(child, tree) : tree;
}

static int op_bind_source(struct fns_child *child, const struct fns_op *op)
{
    int tree = child->n_sources < FNS_MAX_SOURCES ? open_source(child, op) : -E2BIG;
    if (tree >= 0)
        child->sources[child->n_sources++] = tree;
    return tree < 0 ? tree : 0;
}

/* The next that BIND_SOURCE has opened. */
static int take_source(struct fns_child *child)
{
    return child->next_source < child->n_sources ? child->sources[child->next_source++] : -EBADF;
}

static int op_bind(struct fns_child *child, const struct fns_op *op)
{
    int tree = op->how & FNS_HOW_AHEAD ? take_source(child) : open_source(child, op);
    if (tree == -ENOENT && op->how & FNS_HOW_IF_THERE) {
        child->error.detail = FNS_DETAIL_NONE; /* or the next error would be one of its source */
        return 0;
    }
    if (tree < 0)
        return tree;
    long type = type_in(tree, "");
    int result = (int)type;
    if (type >= 0)
        result = bind_tree(child, op, tree, op->flags, op->arg, type == FNS_S_IFDIR);
    close_fd(tree);
    return result;
}

static int op_device(struct fns_child *child, const struct fns_op *op)
{
    const char *name;
    int parent = hold_parent(child, op, &name);
    if (parent < 0)
        return parent;
    return (int)fns_sys4(__NR_mknodat, parent, name, op->flags, op->arg);
}

static int op_symlink(struct fns_child *child, const struct fns_op *op)
{
    const char *name;
    int parent = hold_parent(child, op, &name);
    if (parent < 0)
        return parent;
    return (int)fns_sys3(__NR_symlinkat, text(child, op->source), parent, name);
}

/* Creates `name` in `dir` with the op's bytes. */
static int write_file(struct fns_child *child, const struct fns_op *op, int dir, const char *name)
{
    const char *data = child->plan->strings + op->data;
    uint64_t done = 0;
    int fd = (int)fns_sys4(__NR_openat, dir, name,
                           O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (fd < 0)
        return fd;
    while (done < op->arg) {
        long n = fns_sys3(__NR_write, fd, data + done, op->arg - done);
        if (n <= 0) {
            close_fd(fd);
            return n < 0 ? (int)n : -ENOSPC;
        }
        done += (uint64_t)n;
    }
    int result = give_away(child, op, fd, "");
    close_fd(fd);
    return result;
}

static int op_file_bind(struct fns_child *child, const struct fns_op *op)
{
    const char *name = text(child, op->source); /* decided by the parent: unique in the scratch */
    int dir = (int)fns_sys4(__NR_openat, child->scratch, "files", O_PATH_FLAGS | O_DIRECTORY, 0);
    if (dir < 0)
        return dir;
    int result = write_file(child, op, dir, name);
    int tree = -1;
    if (result == 0)
        tree = (int)fns_sys3(__NR_open_tree, dir, name, FNS_OPEN_TREE_CLONE | O_CLOEXEC);
    close_fd(dir);
    if (result < 0 || tree < 0)
        return result < 0 ? result : tree;
    result = bind_tree(child, op, tree, op->flags, 0, 0); /* arg is a size here */
    close_fd(tree);
    return result;
}

static int op_directory(struct fns_child *child, const struct fns_op *op)
{
    const char *name;
    int parent = hold_parent(child, op, &name);
    if (parent < 0)
        return parent;
    int result = (int)fns_sys3(__NR_mkdirat, parent, name, op->arg);
    if (result == 0)
        result = give_away(child, op, parent, name);
    return result;
}

static int op_read_only(struct fns_child *child, const struct fns_op *op)
{
    int fd = op->target ? open_target(child, op, 1) : child->root;
    int result = fd < 0 ? fd : set_attr(fd, 0, FNS_MOUNT_ATTR_RDONLY, 0, 0);
    if (op->target)
        close_fd(fd);
    return result;
}

/* A detached null device to put over a file: the root's own or, where there is none, the caller's. */
static int null_tree(struct fns_child *child)
{
    int fd = child->null_device ? child->null_device : resolve(child->root, "dev/null", 1);
    long type = fd >= 0 && !child->null_device ? type_in(fd, "") : FNS_S_IFCHR;
    if (type != FNS_S_IFCHR) {
        close_fd(fd);
        if (type < 0)
            return (int)type;
        fd = -ENOENT;
    }
    if (fd < 0 && child->null) { /* the caller's view is gone */
        fd = (int)fns_sys3(__NR_fcntl, child->null, F_DUPFD_CLOEXEC, 3);
        /* Detached in another mount namespace, it cannot be copied in this one (EINVAL, since Linux
         * 6.15) before it is attached here. */
        if (!child->null_used) {
            child->null_used = 1;
            return fd;
        }
    }
    if (fd < 0)
        fd = at_fdcwd_open("/dev/null", O_PATH_FLAGS);
    if (fd < 0)
        return source_failed(child, fd);
    child->null_device = fd;
    return clone_tree(fd, 0);
}

/* What `name` is in the directory `fd`, or with "" what `fd` is. */
struct place {
    int fd;
    const char *name;
};

static int attach_at(int tree, struct place place)
{
    return (int)fns_sys5(__NR_move_mount, tree, "", place.fd, place.name,
                         FNS_MOVE_MOUNT_F_EMPTY_PATH | FNS_MOVE_MOUNT_T_EMPTY_PATH);
}

static int open_directory(struct place place)
{
    return (int)fns_sys4(__NR_openat, place.fd, place.name, O_PATH_FLAGS | O_NOFOLLOW | O_DIRECTORY,
                         0);
}

/* A tmpfs for the first; the others are copies of that mount, which cost half as much. */
static int mask_directory(struct fns_child *child, struct place place)
{
    const uint64_t flags = 1 | 2 | 4 | 8; /* MS_RDONLY|NOSUID|NODEV|NOEXEC */
    if (child->empty) {
        int tree = clone_tree(child->empty, 0);
        int result = tree < 0 ? tree : attach_at(tree, place);
        close_fd(tree);
        return result;
    }
    if (!place.name[0])
        return mount_at(place.fd, "tmpfs", "tmpfs", flags, "size=4k,nr_inodes=2,mode=555");
    int fd = open_directory(place);
    if (fd < 0)
        return fd;
    int result = mount_at(fd, "tmpfs", "tmpfs", flags, "size=4k,nr_inodes=2,mode=555");
    close_fd(fd);
    if (result < 0)
        return result;
    fd = open_directory(place); /* now what is mounted there */
    if (fd < 0)
        return fd;
    child->empty = fd;
    return 0;
}

static int mask(struct fns_child *child, struct place place, long type)
{
    if (type == FNS_S_IFDIR)
        return mask_directory(child, place);
    int tree = null_tree(child);
    int result = tree < 0 ? tree : attach_at(tree, place);
    close_fd(tree);
    return result;
}

static int make_read_only(struct fns_child *child, struct place place, long type)
{
    (void)child;
    (void)type;
    int tree = (int)fns_sys3(__NR_open_tree, place.fd, place.name,
                             FNS_OPEN_TREE_CLONE | O_CLOEXEC | AT_EMPTY_PATH | AT_RECURSIVE |
                                 AT_SYMLINK_NOFOLLOW);
    int result = tree;
    if (tree >= 0)
        result = set_attr(tree, 1, FNS_MOUNT_ATTR_RDONLY, 0, 0);
    if (result >= 0)
        result = attach_at(tree, place);
    close_fd(tree);
    return result;
}

static int has_slash(const char *name)
{
    while (*name && *name != '/')
        name++;
    return *name == '/';
}

/* Whatever an op says of the names below its target, done to each that is there. The target is held:
 * no name is looked up through a path that may change. Where it is known to be procfs or sysfs, a
 * name in it stays what it is; below that, and elsewhere, what was found is held as well. */
static int at_names(struct fns_child *child, const struct fns_op *op,
                    int (*act)(struct fns_child *child, struct place place, long type))
{
    const char *names = child->plan->strings + op->data, *path = child->plan->strings + op->target;
    int base = hold(child, path, fns_length(path), 1);
    int result = base < 0 ? base : fns_check_type(base, op->flags);
    for (uint64_t at = 0; result >= 0 && at < op->arg; at += fns_length(names + at) + 1) {
        struct place place = {base, names + at};
        if (!op->flags || has_slash(place.name))
            place = (struct place){resolve(base, names + at, 1), ""};
        long type = place.fd < 0 ? place.fd : type_in(place.fd, place.name);
        if (type == -ENOENT || type == -ENOTDIR)
            continue;
        if (type == FNS_S_IFLNK)
            type = -ELOOP;
        result = type < 0 ? (int)type : act(child, place, type);
        if (place.fd != base)
            close_fd(place.fd);
    }
    return result < 0 ? result : 0;
}

static int op_pivot_root(struct fns_child *child, const struct fns_op *op)
{
    int result = (int)fns_sys1(__NR_fchdir, child->root);
    /* The old root lands on top of the new one: no directory for it is needed (pivot_root(2)). */
    if (result == 0)
        result = (int)fns_sys2(__NR_pivot_root, ".", ".");
    /* umount2 takes what is topmost: the scratch, where there is one, lies on top of the old root. */
    for (uint64_t i = 0; result == 0 && i < op->arg; i++)
        result = (int)fns_sys2(__NR_umount2, ".", FNS_MNT_DETACH);
    if (result == 0)
        result = (int)fns_sys1(__NR_chdir, "/");
    return result;
}

static int op_chroot(struct fns_child *child, const struct fns_op *op)
{
    (void)op;
    int result = (int)fns_sys1(__NR_fchdir, child->root);
    if (result == 0)
        result = (int)fns_sys1(__NR_chroot, ".");
    if (result == 0)
        result = (int)fns_sys1(__NR_chdir, "/");
    return result;
}

/* ---- identity, limits, ids ------------------------------------------------------------------ */

static int op_hostname(struct fns_child *child, const struct fns_op *op)
{
    const char *name = text(child, op->data);
    return (int)fns_sys2(__NR_sethostname, name, fns_length(name));
}

static int op_domainname(struct fns_child *child, const struct fns_op *op)
{
    const char *name = text(child, op->data);
    return (int)fns_sys2(__NR_setdomainname, name, fns_length(name));
}

int fns_loopback_up(int socket)
{
    struct {
        char name[16];
        short flags;
        char rest[22];
    } request = {.name = "lo"};
    int result = (int)fns_sys3(__NR_ioctl, socket, 0x8913 /* SIOCGIFFLAGS */, &request);
    if (result < 0)
        return result;
    request.flags |= 1 /* IFF_UP */;
    return (int)fns_sys3(__NR_ioctl, socket, 0x8914 /* SIOCSIFFLAGS */, &request);
}

static int op_loopback(struct fns_child *child, const struct fns_op *op)
{
    (void)child;
    (void)op;
    int fd = (int)fns_sys3(__NR_socket, 2 /* AF_INET */, 2 /* SOCK_DGRAM */ | O_CLOEXEC, 0);
    if (fd < 0)
        return fd;
    int result = fns_loopback_up(fd);
    close_fd(fd);
    return result;
}

static int op_keyring(struct fns_child *child, const struct fns_op *op)
{
    (void)child;
    int result = (int)fns_sys2(__NR_keyctl, 1 /* KEYCTL_JOIN_SESSION_KEYRING */, 0);
    /* Without such calls (ENOSYS), or where a filter refuses them to this process (EPERM), the command
     * cannot make any either. */
    if (result == -ENOSYS || result == -EPERM || (result == -EDQUOT && op->how & FNS_HOW_OPTIONAL))
        return 0;
    if (result >= 0 && op->how & FNS_HOW_SEALED)
        result = (int)fns_sys3(__NR_keyctl, 5 /* KEYCTL_SETPERM */, result, 0);
    return result < 0 ? result : 0;
}

static int op_cgroup(struct fns_child *child, const struct fns_op *op)
{
    const struct fns_args *args = child->args;
    uint32_t n = args->n_groups - args->clone_into;
    long result = args->n_groups ? 0 : -EINVAL; /* never without the limits that were asked for */
    for (uint32_t i = (uint32_t)child->entered; result >= 0 && i < n; i++)
        result = fns_sys3(__NR_write, args->groups[i], "0", 1);
    for (uint32_t i = 0; i < args->n_groups; i++)
        close_fd(args->groups[i]);
    /* Made by the clone, its root would be the cgroup of who cloned. */
    if (result >= 0 && op->flags)
        result = fns_sys1(__NR_unshare, op->flags);
    return result < 0 ? (int)result : 0;
}

/* The kernel counts some resources per user, over all of its processes: a sandbox with half of the
 * caller's limit leaves the other half. */
static uint64_t share_of(uint64_t limit, uint64_t least)
{
    if (limit / 2 >= least)
        return limit / 2;
    return limit < least ? limit : least;
}

static int op_rlimit(struct fns_child *child, const struct fns_op *op)
{
    uint64_t limits[2], has[2] = {0, 0};
    int result = 0;
    memcpy(limits, child->plan->strings + op->data, sizeof limits);
    if (op->how & FNS_HOW_SHARE) {
        result = (int)fns_sys4(__NR_prlimit64, 0, op->flags, 0, has);
        uint64_t share = share_of(has[0], op->arg);
        for (int i = 0; i < 2; i++)
            limits[i] = limits[i] < share ? limits[i] : share;
    }
    if (result >= 0)
        result = (int)fns_sys4(__NR_prlimit64, 0, op->flags, limits, 0);
    /* It is done without only where the hard limit is lower already, and may not be raised. */
    if (result == -EPERM && op->how & FNS_HOW_OPTIONAL &&
        fns_sys4(__NR_prlimit64, 0, op->flags, 0, has) >= 0 && has[1] < limits[1])
        result = 0;
    return result;
}

static int op_umask(struct fns_child *child, const struct fns_op *op)
{
    (void)child;
    int before = (int)fns_sys1(__NR_umask, op->arg);
    return before < 0 ? before : 0;
}

/* Gives all rights in that namespace, the bounding set's among them: what is given up is given up
 * after it. */
static int op_join_user(struct fns_child *child, const struct fns_op *op)
{
    int result = (int)fns_sys2(__NR_setns, child->userns, FNS_CLONE_NEWUSER);
    close_fd(child->userns);
    child->userns = -1;
    return result < 0 && op->source ? source_failed(child, result) : result;
}

static int op_setgroups(struct fns_child *child, const struct fns_op *op)
{
    uint32_t groups[64]; /* the arena is not aligned */
    if (op->arg > sizeof groups / sizeof *groups)
        return -EINVAL;
    memcpy(groups, child->plan->strings + op->data, op->arg * sizeof *groups);
    return (int)fns_sys2(__NR_setgroups, op->arg, groups);
}

static int op_setgid(struct fns_child *child, const struct fns_op *op)
{
    (void)child;
    return (int)fns_sys3(__NR_setresgid, op->arg, op->arg, op->arg);
}

static int op_setuid(struct fns_child *child, const struct fns_op *op)
{
    (void)child;
    return (int)fns_sys3(__NR_setresuid, op->arg, op->arg, op->arg);
}

static int op_bounding(struct fns_child *child, const struct fns_op *op)
{
    (void)child;
    for (unsigned cap = 0; cap < 64; cap++) {
        long result = 0;
        if (!(op->arg >> cap & 1))
            result = fns_sys5(__NR_prctl, 24 /* PR_CAPBSET_DROP */, cap, 0, 0, 0);
        if (result == -EINVAL) /* the kernel has no more */
            break;
        /* Who may not drop any may have none to drop. */
        if (result < 0 && fns_sys5(__NR_prctl, 23 /* PR_CAPBSET_READ */, cap, 0, 0, 0) != 0)
            return (int)result;
    }
    /* A change of ids would take those away that stay; cleared by the exec. */
    int keep = op->arg || op->how & FNS_HOW_KEEP;
    return keep ? (int)fns_sys5(__NR_prctl, 8 /* PR_SET_KEEPCAPS */, 1, 0, 0, 0) : 0;
}

struct capability_header {
    uint32_t version;
    int pid;
};
#define CAPABILITY_HEADER                                                                          \
    {                                                                                              \
        0x20080522 /* _LINUX_CAPABILITY_VERSION_3 */, 0                                            \
    }

static int op_capabilities(struct fns_child *child, const struct fns_op *op)
{
    (void)child;
    const struct capability_header header = CAPABILITY_HEADER;
    const uint32_t low = (uint32_t)op->arg, high = (uint32_t)(op->arg >> 32);
    uint32_t sets[6] = {low, low, low, high, high, high};
    long result = fns_sys5(__NR_prctl, 47 /* PR_CAP_AMBIENT */, 4 /* CLEAR_ALL */, 0, 0, 0);
    if (result >= 0)
        result = fns_sys2(__NR_capset, &header, sets);
    /* A program executed by anyone but uid 0 has what is ambient, and no more. */
    for (unsigned cap = 0; result >= 0 && cap < 64; cap++)
        if (op->arg >> cap & 1)
            result = fns_sys5(__NR_prctl, 47, 2 /* PR_CAP_AMBIENT_RAISE */, cap, 0, 0);
    return result < 0 ? (int)result : 0;
}

/* After the ids, whose change would undo it (commit_creds()). A caller that has ended before has left
 * its end of what the news are for. */
static int op_parent_death(struct fns_child *child, const struct fns_op *op)
{
    struct {
        int fd;
        short events, revents;
    } news = {.fd = child->news};
    const int64_t at_once[2] = {0, 0};
    (void)op;
    int result = (int)fns_sys5(__NR_prctl, 1 /* PR_SET_PDEATHSIG */, FNS_SIGKILL, 0, 0, 0);
    if (result == 0)
        result = (int)fns_sys5(__NR_ppoll, &news, 1, at_once, 0, FNS_SIGSET_SIZE);
    return result > 0 ? -ECANCELED /* POLLERR, POLLHUP: nobody reads there */ : result;
}

static int op_no_new_privileges(struct fns_child *child, const struct fns_op *op)
{
    (void)child;
    (void)op;
    return (int)fns_sys5(__NR_prctl, 38 /* PR_SET_NO_NEW_PRIVS */, 1, 0, 0, 0);
}

/* What a change of ids has left permitted only, is in effect again. */
static int raise_kept(void)
{
    const struct capability_header header = CAPABILITY_HEADER;
    uint32_t sets[6]; /* effective, permitted, inheritable; low words first */
    int result = (int)fns_sys2(__NR_capget, &header, sets);
    sets[0] = sets[1];
    sets[3] = sets[4];
    return result < 0 ? result : (int)fns_sys2(__NR_capset, &header, sets);
}

/* ---- Landlock (landlock(7)) ------------------------------------------------------------------ */

static int op_landlock(struct fns_child *child, const struct fns_op *op)
{
    const struct {
        uint64_t files, network, scoped;
    } handled = {op->flags, 0, op->arg};
    /* A kernel that knows fewer fields takes a size of more only if the rest is zero. */
    child->rules = (int)fns_sys3(__NR_landlock_create_ruleset, &handled, sizeof handled, 0);
    return child->rules < 0 ? child->rules : 0;
}

static int op_landlock_path(struct fns_child *child, const struct fns_op *op)
{
    int top = at_fdcwd_open("/", O_PATH_FLAGS | O_DIRECTORY);
    if (top < 0)
        return top;
    int fd = resolve(top, text(child, op->target), 0);
    close_fd(top);
    if (fd < 0)
        return fd;
    long type = type_in(fd, "");
    const struct {
        uint64_t allowed;
        int parent;
    } __attribute__((packed)) rule = {type == FNS_S_IFDIR ? op->flags : op->arg, fd};
    int result = (int)type;
    if (type >= 0)
        result = (int)fns_sys4(__NR_landlock_add_rule, child->rules,
                               1 /* LANDLOCK_RULE_PATH_BENEATH */, &rule, 0);
    close_fd(fd);
    return result;
}

static int op_landlock_restrict(struct fns_child *child, const struct fns_op *op)
{
    int result = op->how & FNS_HOW_KEEP ? raise_kept() : 0;
    if (result >= 0)
        result = (int)fns_sys2(__NR_landlock_restrict_self, child->rules, 0);
    close_fd(child->rules);
    return result;
}

static int op_seccomp(struct fns_child *child, const struct fns_op *op)
{
    int kept = op->how & FNS_HOW_KEEP ? raise_kept() : 0;
    if (kept < 0)
        return kept;
    const struct {
        uint16_t size;
        const void *filter;
    } program = {(uint16_t)op->arg, child->plan->strings + op->data};
    return (int)fns_sys3(__NR_seccomp, 1 /* SECCOMP_SET_MODE_FILTER */, op->flags, &program);
}

/* Whether it may use what the op before it has looked up: none of these mounts anything over that. */
static int goes_on(const struct fns_op *op)
{
    return op->code == FNS_OP_DEVICE || op->code == FNS_OP_SYMLINK ||
           op->code == FNS_OP_DIRECTORY || op->code == FNS_OP_MASK ||
           op->code == FNS_OP_READ_ONLY_PATHS;
}

static int run_op(struct fns_child *child, const struct fns_op *op)
{
    /* A switch, not a table of functions: a table would need relocations, and so a linker that has
     * run, which the program does not have. */
    if (!goes_on(op))
        let_go(child);
    switch ((enum fns_op_code)op->code) {
    case FNS_OP_SETNS: return op_setns(child, op);
    case FNS_OP_OWN_NAMESPACES: return op_own_namespaces(child, op);
    case FNS_OP_WRITE: return op_write(child, op);
    case FNS_OP_PROPAGATION: return op_propagation(child, op);
    case FNS_OP_ROOT_TREE: return op_root_tree(child, op);
    case FNS_OP_ROOT_TMPFS: return op_root_tmpfs(child, op);
    case FNS_OP_SHOW: return op_show(child, op);
    case FNS_OP_SCRATCH: return op_scratch(child, op);
    case FNS_OP_TREE_NAMESPACE: return op_tree_namespace(child, op);
    case FNS_OP_BIND_SOURCE: return op_bind_source(child, op);
    case FNS_OP_ROOT_ATTACH: return op_root_attach(child, op);
    case FNS_OP_ROOT_SCRATCH: return op_root_scratch(child, op);
    case FNS_OP_OVERLAY: return op_overlay(child, op);
    case FNS_OP_MOUNT: return op_mount(child, op);
    case FNS_OP_BIND: return op_bind(child, op);
    case FNS_OP_DEVICE: return op_device(child, op);
    case FNS_OP_SYMLINK: return op_symlink(child, op);
    case FNS_OP_FILE_BIND: return op_file_bind(child, op);
    case FNS_OP_DIRECTORY: return op_directory(child, op);
    case FNS_OP_READ_ONLY: return op_read_only(child, op);
    case FNS_OP_MASK: return at_names(child, op, mask);
    case FNS_OP_READ_ONLY_PATHS: return at_names(child, op, make_read_only);
    case FNS_OP_PIVOT_ROOT: return op_pivot_root(child, op);
    case FNS_OP_CHROOT: return op_chroot(child, op);
    case FNS_OP_HOSTNAME: return op_hostname(child, op);
    case FNS_OP_DOMAINNAME: return op_domainname(child, op);
    case FNS_OP_LOOPBACK: return op_loopback(child, op);
    case FNS_OP_KEYRING: return op_keyring(child, op);
    case FNS_OP_CGROUP: return op_cgroup(child, op);
    case FNS_OP_RLIMIT: return op_rlimit(child, op);
    case FNS_OP_UMASK: return op_umask(child, op);
    case FNS_OP_JOIN_USER: return op_join_user(child, op);
    case FNS_OP_UNSHARE: return op_unshare(child, op);
    case FNS_OP_SETGROUPS: return op_setgroups(child, op);
    case FNS_OP_SETGID: return op_setgid(child, op);
    case FNS_OP_SETUID: return op_setuid(child, op);
    case FNS_OP_PARENT_DEATH: return op_parent_death(child, op);
    case FNS_OP_BOUNDING: return op_bounding(child, op);
    case FNS_OP_CAPABILITIES: return op_capabilities(child, op);
    case FNS_OP_NO_NEW_PRIVILEGES: return op_no_new_privileges(child, op);
    case FNS_OP_LANDLOCK: return op_landlock(child, op);
    case FNS_OP_LANDLOCK_PATH: return op_landlock_path(child, op);
    case FNS_OP_LANDLOCK_RESTRICT: return op_landlock_restrict(child, op);
    case FNS_OP_SECCOMP: return op_seccomp(child, op);
    case FNS_OP_COUNT: break;
    }
    return -EINVAL;
}

/* ---- the order of things -------------------------------------------------------------------- */

static int fail(struct fns_child *child, enum fns_stage stage, int op_index, int result)
{
    child->error.stage = (uint16_t)stage;
    child->error.op_index = op_index;
    child->error.err = -result;
    child->progress = FNS_PROGRESS_FAILED;
    return result;
}

static int run_ops(struct fns_child *child, uint32_t first, uint32_t last)
{
    for (uint32_t i = first; i < last; i++) {
        const struct fns_op *op = &child->plan->ops[i];
        int result = run_op(child, op);
        if (result < 0)
            return fail(child, (enum fns_stage)op->stage, (int)i, result);
    }
    return 0;
}

/* Where the last ops begin. */
static uint32_t last_ops(const struct fns_plan *plan)
{
    uint32_t n = plan->n_ops;
    while (n > 0 && plan->ops[n - 1].code >= FNS_OP_LAST)
        n--;
    return n;
}

int fns_child_ops(struct fns_child *child, uint32_t first, uint32_t last)
{
    uint32_t end = last_ops(child->plan);
    /* Modes of what is made are the plan's, not the caller's umask's. */
    int result = (int)fns_sys1(__NR_umask, 0);
    if (result < 0)
        return fail(child, FNS_STAGE_UMASK, -1, result);
    result = run_ops(child, first, last < end ? last : end);
    if (result < 0)
        return result;
    /* Not close-on-exec's business: a command may not see them even for an instant. */
    let_go(child);
    close_fd(child->root);
    close_fd(child->scratch);
    close_fd(child->plain);
    child->root = child->scratch = child->plain = -1;
    return 0;
}

/* Changes directory and makes sure it lies inside the root: a magic link of a passed fd can lead
 * out, and getcwd(2) then does not start with "/". */
static int change_directory(const char *path)
{
    char cwd[PATH_SIZE];
    int result = (int)fns_sys1(__NR_chdir, path);
    if (result < 0)
        return result;
    result = (int)fns_sys2(__NR_getcwd, cwd, sizeof cwd);
    if (result < 0)
        return result;
    return cwd[0] == '/' ? 0 : -ENOENT;
}

static int execute(struct fns_child *child)
{
    const struct fns_args *args = child->args;
    int denied = 0, result = -ENOENT;
    for (char *const *path = args->paths; *path; path++) {
        /* ETXTBSY: another thread's child may hold a writing fd until its own close or exec. */
        for (int tries = 0; tries < 50; tries++) {
            const int64_t pause[2] = {0, 1000000};
            result = (int)fns_sys3(__NR_execve, *path, args->argv, args->envp);
            if (result != -ETXTBSY)
                break;
            FNS_IGNORE(fns_sys2(__NR_nanosleep, pause, 0), "it is tried again the sooner");
        }
        if (result == -EACCES)
            denied = 1;
        else if (result == -ENOENT && fns_sys4(__NR_faccessat, AT_FDCWD, *path, 0, 0) == 0)
            child->error.detail = FNS_DETAIL_FOUND;
        else if (result == -ENOENT || result == -ENOTDIR)
            continue;
        if (result != -EACCES)
            return result;
    }
    return denied ? -EACCES : result;
}

int fns_child_last(struct fns_child *child)
{
    return run_ops(child, last_ops(child->plan), child->plan->n_ops);
}

int fns_child_chdir(struct fns_child *child)
{
    int result = child->args->cwd ? change_directory(child->args->cwd) : 0;
    return result < 0 ? fail(child, FNS_STAGE_CHDIR, -1, result) : 0;
}

int fns_child_exec(struct fns_child *child)
{
    const uint64_t none = 0;
    int last = fns_child_last(child);
    if (last < 0)
        return last;
    child->progress =
        FNS_PROGRESS_EXEC; /* whom a signal ends from here on, it ends as the command */
    /* Until here it was deaf, so that a signal to the whole process group cannot end it between two steps. */
    int result = (int)fns_sys4(__NR_rt_sigprocmask, FNS_SIG_SETMASK, &none, 0, FNS_SIGSET_SIZE);
    if (result < 0)
        return fail(child, FNS_STAGE_SIGNALS, -1, result);
    return fail(child, FNS_STAGE_EXEC, -1, execute(child));
}

int fns_child_leave_session(struct fns_child *child)
{
    char attributes[64]; /* struct termios of the kernel */
    if (fns_sys3(__NR_ioctl, 0, 0x5401 /* TCGETS */, attributes) >= 0)
        return 0;
    int result = (int)fns_sys0(__NR_setsid);
    return result < 0 ? fail(child, FNS_STAGE_SESSION, -1, result) : 0;
}

void fns_child_report(const struct fns_child *child, int news)
{
    for (int tries = 0; tries < FNS_TRIES; tries++)
        if (fns_write(news, &child->error, sizeof child->error) >= 0)
            return;
}

/* The exec of the program has left what the caller ignores ignored. */
static int reset_signals(struct fns_child *child)
{
    /* struct sigaction of the kernel: handler, flags, restorer, mask; zero is SIG_DFL. */
    uint64_t action[4] = {0, 0, 0, 0};
    for (int sig = 1; sig <= 64; sig++) {
        if (sig == FNS_SIGKILL || sig == FNS_SIGSTOP)
            continue;
        long result = fns_sys4(__NR_rt_sigaction, sig, action, 0, FNS_SIGSET_SIZE);
        if (result < 0)
            return fail(child, FNS_STAGE_SIGNALS, -1, (int)result);
    }
    return 0;
}

/* The caller's personality (setarch(8)) is not for the sandbox: it may turn off random addresses, say. */
static int reset_personality(struct fns_child *child)
{
    int result = (int)fns_sys1(__NR_personality, 0);
    /* A filter around the caller may refuse changes. 0xffffffff only queries (personality(2)). */
    if (result < 0 && fns_sys1(__NR_personality, 0xffffffff) != 0)
        return fail(child, FNS_STAGE_PERSONALITY, -1, result);
    return 0;
}

int fns_child_begin(struct fns_child *child)
{
    int result = reset_signals(child);
    return result < 0 ? result : reset_personality(child);
}
