/* Memory files: for the program, for plans, for requests too large for a message. Runs in the caller.
 *
 * Until a sandbox executes its command, its /proc/self/exe is the program's file. This file is sealed and is not a file
 * of the host, so the sandbox cannot overwrite anything through it (CVE-2019-5736).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pack.h"
#include "spawn.h"

#ifndef MFD_EXEC
#define MFD_EXEC 0x0010U
#endif

enum { MAX_KEPT = 64 };         /* files: each takes one of the application's fds */
#define MAX_KEPT_SIZE (1 << 20) /* bytes: keeping a larger plan would double its memory for good */

/* A file that is made once and kept, unless the application closes its fd. */
struct fns_file {
    _Atomic(struct kept *) kept;
};

static struct {
    void *bytes;
    size_t size;
    struct fns_file file;
} program;

int fns_set_program(const void *bytes, size_t size)
{
    void *copy = malloc(size);
    if (!copy)
        return -ENOMEM;
    memcpy(copy, bytes, size);
    free(program.bytes);
    program.bytes = copy;
    program.size = size;
    return 0;
}

/* ---- memory files --------------------------------------------------------------------------- */

static int write_all(int fd, const char *data, size_t size)
{
    while (size) {
        ssize_t n = write(fd, data, size);
        if (n < 0 && errno != EINTR)
            return -errno;
        if (n > 0) {
            data += n;
            size -= (size_t)n;
        }
    }
    return 0;
}

int fns_memory_file(const char *name, const void *data, size_t size, enum fns_memory kind)
{
    const unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
    int executable = kind == FNS_PROGRAM;
    int fd = memfd_create(name, flags | (executable ? MFD_EXEC : 0));
    /* Before Linux 6.3 there is no MFD_EXEC: every memory file is executable. */
    if (fd < 0 && errno == EINVAL && executable)
        fd = memfd_create(name, flags);
    fd = fns_above_stdio(fd);
    if (fd < 0)
        return fd;
    int ret = write_all(fd, data, size);
    /* A process that executes a file it may not read is undumpable, and its memory belongs to the outer user
     * namespace (would_dump()). So a sandbox cannot look into its pid 1. */
    if (ret == 0 && executable && fchmod(fd, 0111) < 0)
        ret = -errno;
    if (ret == 0 && kind != FNS_WRITABLE &&
        fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) < 0)
        ret = -errno;
    if (ret < 0) {
        close(fd);
        return ret;
    }
    return fd;
}

/* ---- files that are kept ---------------------------------------------------------------------- */

/* Constant once it is in an fns_file, and freed only with the fns_file. So it needs no lock, which a fork could copy
 * while it is held. */
struct kept {
    int fd;
    size_t size;
    dev_t device;
    ino_t inode;
    mode_t mode;         /* a process that executes the file may own it and change this */
    struct kept *before; /* what this one replaced; NULL: nothing */
};

static atomic_int n_kept;

static int is_kept(const struct kept *kept, int fd)
{
    struct stat st;
    return fstat(fd, &st) == 0 && st.st_dev == kept->device && st.st_ino == kept->inode &&
           st.st_mode == kept->mode;
}

/* Returns an fd of a kept file, which the caller closes, and the file's size. -ENOENT: none is kept, or `file` is
 * NULL. */
static int open_kept(struct fns_file *file, size_t *size)
{
    const struct kept *kept = file ? atomic_load_explicit(&file->kept, memory_order_acquire) : NULL;
    if (!kept)
        return -ENOENT;
    /* The application may close the fd at any time, and open another file at its number. So check the fd before copying
     * it: closing a copy of another file would drop the application's record locks on that file (fcntl(2)). Then check
     * the copy. */
    int fd = is_kept(kept, kept->fd) ? fcntl(kept->fd, F_DUPFD_CLOEXEC, 3) : -1;
    if (fd >= 0 && is_kept(kept, fd)) {
        *size = kept->size;
        return fd;
    }
    fns_close_fd(&fd);
    return -ENOENT;
}

/* Keeps a file if possible; otherwise it is made again next time. */
static void keep(struct fns_file *file, int fd)
{
    struct stat st;
    struct kept *before = file ? atomic_load(&file->kept) : NULL;
    if (!file || (!before && atomic_load(&n_kept) >= MAX_KEPT))
        return;
    struct kept *kept = malloc(sizeof *kept);
    int copy = kept ? fcntl(fd, F_DUPFD_CLOEXEC, 3) : -1;
    int replaces = copy >= 0 && fstat(copy, &st) == 0 && !(before && is_kept(before, before->fd));
    if (replaces)
        *kept = (struct kept){copy, (size_t)st.st_size, st.st_dev, st.st_ino, st.st_mode, before};
    /* Another thread may have been faster. `before` may still be in use, so it is not freed. */
    if (replaces && atomic_compare_exchange_strong(&file->kept, &before, kept)) {
        if (!before)
            atomic_fetch_add(&n_kept, 1);
        return;
    }
    fns_close_fd(&copy);
    free(kept);
}

int fns_program_file(int shared)
{
    if (!program.bytes)
        return -ENOENT;
    size_t size;
    int fd = shared ? open_kept(&program.file, &size) : -1;
    if (fd < 0) {
        fd = fns_memory_file(shared ? "fastns-program" : "fastns", program.bytes, program.size,
                             FNS_PROGRAM);
        if (fd >= 0 && shared)
            keep(&program.file, fd);
    }
    return fd;
}

int fns_plan_file(const struct fns_plan *plan, size_t *size)
{
    int fd = open_kept(plan->file, size);
    if (fd >= 0)
        return fd;
    void *bytes = fns_pack_file(plan, size);
    if (!bytes)
        return -ENOMEM;
    fd = *size > UINT32_MAX ? -E2BIG : fns_memory_file("fastns-plan", bytes, *size, FNS_SEALED);
    free(bytes);
    if (fd >= 0 && *size <= MAX_KEPT_SIZE)
        keep(plan->file, fd);
    return fd;
}

struct fns_file *fns_file_new(void)
{
    return calloc(1, sizeof(struct fns_file));
}

void fns_file_free(struct fns_file *file)
{
    struct kept *kept = file ? atomic_load(&file->kept) : NULL;
    if (kept)
        atomic_fetch_sub(&n_kept, 1);
    if (kept && is_kept(kept, kept->fd))
        close(kept->fd);
    while (kept) {
        struct kept *before = kept->before;
        free(kept);
        kept = before;
    }
    free(file);
}
