/* Resolves paths inside the root that is built. Runs in the program and in a template's sandboxes (child.h).
 *
 * Targets are resolved below the root's fd, by openat2(2) with RESOLVE_IN_ROOT, or by walk() where openat2 is
 * refused. Mounts are attached to the fd that was found. So no symbolic link, and no change of the root
 * meanwhile, can lead outside.
 */
#include "child.h"

#define MAX_DEPTH 64
#define FILE_MODE 0644
#define MAX_SYMLINKS 40  /* as the kernel (path_resolution(7)) */
#define MAX_NAME 255     /* NAME_MAX */
#define RESOLVE_TRIES 64 /* openat2(2) fails (EAGAIN) if something is renamed meanwhile */

long fns_type_in(int fd, const char *name)
{
    struct statx st;
    st.stx_mode = 0;
    long result =
        fns_sys5(__NR_statx, fd, name, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW, STATX_TYPE, &st);
    return result < 0 ? result : (long)(st.stx_mode & FNS_S_IFMT);
}

/* ---- without openat2(2) --------------------------------------------------------------------- */

struct walk {
    char rest[FNS_PATH_SIZE]; /* the path still to walk, from `at` on */
    size_t at;
    int stack[MAX_DEPTH], depth; /* fds of the directories walked; the root first */
    int links;
};

/* Reads the next name of the path. Returns its length, 0 at the end, or -ENAMETOOLONG. */
static int next_name(struct walk *walk, char name[MAX_NAME + 1])
{
    int length = 0;
    while (walk->rest[walk->at] == '/')
        walk->at++;
    while (walk->rest[walk->at] && walk->rest[walk->at] != '/') {
        if (length == MAX_NAME)
            return -ENAMETOOLONG;
        name[length++] = walk->rest[walk->at++];
    }
    name[length] = 0;
    return length;
}

static void go_up(struct walk *walk, int depth)
{
    while (walk->depth > depth)
        fns_close(walk->stack[walk->depth--]);
}

/* Puts a link's text before the rest of the path. 0 or -errno. */
static int follow(struct walk *walk, int link, int no_symlinks)
{
    char text[FNS_PATH_SIZE];
    long n = fns_sys4(__NR_readlinkat, link, "", text, sizeof text - 1);
    if (n < 0)
        return (int)n;
    if (no_symlinks || ++walk->links > MAX_SYMLINKS)
        return -ELOOP;
    size_t left = fns_length(walk->rest + walk->at) + 1;
    if ((size_t)n + left > sizeof text)
        return -ENAMETOOLONG;
    memcpy(text + n, walk->rest + walk->at, left);
    memcpy(walk->rest, text, (size_t)n + left);
    walk->at = 0;
    if (text[0] == '/')
        go_up(walk, 0);
    return 0;
}

/* Walks one name further. 0 or -errno. */
static int step(struct walk *walk, const char *name, int no_symlinks)
{
    int top = walk->stack[walk->depth];
    long type = fns_type_in(top, "");
    if (type != FNS_S_IFDIR)
        return type < 0 ? (int)type : -ENOTDIR;
    if (name[0] == '.' && !name[1])
        return 0;
    if (name[0] == '.' && name[1] == '.' && !name[2]) {
        if (walk->depth > 0)
            go_up(walk, walk->depth - 1);
        return 0;
    }
    int fd = fns_open_in(top, name, FNS_PATH_FLAGS | O_NOFOLLOW);
    if (fd < 0)
        return fd;
    type = fns_type_in(fd, "");
    if (type >= 0 && type != FNS_S_IFLNK && walk->depth + 1 < MAX_DEPTH) {
        walk->stack[++walk->depth] = fd;
        return 0;
    }
    if (type == FNS_S_IFLNK)
        type = follow(walk, fd, no_symlinks);
    else if (type >= 0)
        type = -ENAMETOOLONG;
    return fns_done_with(fd, type);
}

/* Resolves `path` below `root` one name at a time, for kernels and filters that refuse openat2. ".." goes back
 * along the fds walked, so a directory that is moved meanwhile cannot lead outside. */
static int walk(int root, const char *path, int no_symlinks)
{
    struct walk walk;
    char name[MAX_NAME + 1];
    size_t n = fns_length(path) + 1;
    if (n > sizeof walk.rest)
        return -ENAMETOOLONG;
    memcpy(walk.rest, path, n);
    walk.at = 0;
    walk.depth = walk.links = 0;
    walk.stack[0] = fns_open_in(root, ".", FNS_PATH_FLAGS | O_DIRECTORY);
    if (walk.stack[0] < 0)
        return walk.stack[0];
    int result = 0;
    while (result >= 0 && (result = next_name(&walk, name)) > 0)
        result = step(&walk, name, no_symlinks);
    if (result == 0)
        result = walk.stack[walk.depth--];
    go_up(&walk, -1);
    return result;
}

/* ---- resolution ----------------------------------------------------------------------------- */

int fns_resolve(int root, const char *path, int no_symlinks)
{
    struct fns_open_how how = {
        .flags = FNS_PATH_FLAGS,
        .resolve = FNS_RESOLVE_IN_ROOT | FNS_RESOLVE_NO_MAGICLINKS |
                   (no_symlinks ? FNS_RESOLVE_NO_SYMLINKS : 0),
    };
    int fd = -EAGAIN;
    for (int tries = 0; fd == -EAGAIN && tries < RESOLVE_TRIES; tries++)
        fd = (int)fns_sys4(__NR_openat2, root, path, &how, sizeof how);
    /* With O_PATH, EPERM does not come from openat2 but from a filter that does not know the call. */
    return fd == -ENOSYS || fd == -EPERM ? walk(root, path, no_symlinks) : fd;
}

/* Returns how many bytes of `path` are its directory; the rest is its last name. */
static size_t directory_length(const char *path)
{
    size_t n = fns_length(path);
    while (n > 0 && path[n - 1] != '/')
        n--;
    return n;
}

/* Resolves the first n bytes of `path`. */
static int resolve_part(int root, const char *path, size_t n, int no_symlinks)
{
    char part[FNS_PATH_SIZE];
    if (n >= sizeof part)
        return -ENAMETOOLONG;
    memcpy(part, path, n);
    part[n] = 0;
    return fns_resolve(root, n ? part : "/", no_symlinks);
}

/* Opens the directory of `path`, and sets `name` to the last name of `path`. */
static int resolve_directory(int root, const char *path, const char **name)
{
    size_t n = directory_length(path);
    *name = path + n;
    return resolve_part(root, path, n, 0);
}

void fns_drop_cache(struct fns_child *child)
{
    const int fds[] = {child->cache.directory, child->cache.null_device,
                       child->cache.empty_directory};
    for (unsigned i = 0; i < sizeof fds / sizeof *fds; i++)
        if (fds[i])
            fns_close(fds[i]);
    child->cache.directory = child->cache.null_device = child->cache.empty_directory = 0;
}

int fns_directory(struct fns_child *child, const char *path, size_t n, int no_symlinks)
{
    int cached = child->cache.directory && child->cache.length == n;
    for (size_t i = 0; cached && i < n; i++)
        cached = child->cache.path[i] == path[i];
    if (cached)
        return child->cache.directory;
    int fd = resolve_part(child->root, path, n, no_symlinks);
    if (fd < 0)
        return fd;
    if (child->cache.directory)
        fns_close(child->cache.directory);
    child->cache.directory = fd;
    child->cache.path = path;
    child->cache.length = n;
    return fd;
}

int fns_target_directory(struct fns_child *child, const struct fns_op *op, const char **name)
{
    const char *path = child->plan->strings + op->target;
    size_t n = directory_length(path);
    *name = path + n;
    return fns_directory(child, path, n, 0);
}

/* ---- missing targets ------------------------------------------------------------------------ */

int fns_give_to_owner(const struct fns_child *child, const struct fns_op *op, int dir,
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
    return fns_sys5(__NR_statx, fd, "", AT_EMPTY_PATH, STATX_INO, &a) >= 0 &&
           fns_sys5(__NR_statx, other, "", AT_EMPTY_PATH, STATX_INO, &b) >= 0 &&
           a.stx_ino == b.stx_ino && a.stx_dev_major == b.stx_dev_major &&
           a.stx_dev_minor == b.stx_dev_minor;
}

int fns_make_file(int dir, const char *name)
{
    return (int)fns_sys4(__NR_openat, dir, name,
                         O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW | O_CLOEXEC, FILE_MODE);
}

/* Makes a directory or an empty file. 0 or -errno. */
static int make(int dir, const char *name, int directory)
{
    if (directory)
        return (int)fns_sys3(__NR_mkdirat, dir, name, FNS_DIRECTORY_MODE);
    int fd = fns_make_file(dir, name);
    return fns_done_with(fd, fd < 0 ? fd : 0);
}

/* Makes `path`. If an idmapped mount leaves the caller's ids unmapped (EOVERFLOW), makes it in the same
 * directory, opened without the idmap. 0 or -errno. */
static int make_target(struct fns_child *child, const struct fns_op *op, const char *path,
                       int directory)
{
    const char *name;
    int dir = resolve_directory(child->root, path, &name);
    int result = dir < 0 ? dir : make(dir, name, directory);
    if (result == 0) {
        result = fns_give_to_owner(child, op, dir, name);
    } else if (result == -EOVERFLOW && child->unmapped >= 0) {
        int unmapped = resolve_directory(child->unmapped, path, &name);
        if (unmapped >= 0 && is_same(unmapped, dir))
            result = make(unmapped, name, directory);
        fns_close_if_open(unmapped);
    }
    return fns_done_with(dir, result);
}

/* Makes the missing directories above `path`. 0 or -errno. */
static int make_directories_above(struct fns_child *child, const struct fns_op *op,
                                  const char *path)
{
    char prefix[FNS_PATH_SIZE];
    size_t n = fns_length(path);
    if (n >= sizeof prefix)
        return -ENAMETOOLONG;
    for (size_t i = 1; i < n; i++) {
        if (path[i] != '/')
            continue;
        memcpy(prefix, path, i);
        prefix[i] = 0;
        int result = fns_resolve(child->root, prefix, 0);
        fns_close_if_open(result);
        if (result == -ENOENT)
            result = make_target(child, op, prefix, 1);
        if (result < 0)
            return result;
    }
    return 0;
}

int fns_open_target(struct fns_child *child, const struct fns_op *op, int directory)
{
    const char *path = child->plan->strings + op->target;
    int no_symlinks = (op->how & FNS_HOW_NO_SYMLINKS) != 0;
    int fd = fns_resolve(child->root, path, no_symlinks);
    if (fd != -ENOENT || !(op->how & FNS_HOW_CREATE))
        return fd;
    int result = make_directories_above(child, op, path);
    if (result == 0)
        result = make_target(child, op, path, directory);
    return result < 0 ? result : fns_resolve(child->root, path, no_symlinks);
}
