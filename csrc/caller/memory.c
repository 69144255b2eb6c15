/* Memory files: the program's, which is sealed, and what is handed to it. Runs in the parent.
 *
 * What a sandbox sees as /proc/self/exe before its own command runs is such a file: nothing of the
 * host's can be opened through it, and it cannot be written (CVE-2019-5736).
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

/* A file that is made once, and may be lost. */
struct fns_file {
    _Atomic(struct fns_kept *) kept;
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

/* An fd >= 3 of the same file: 0, 1 and 2 are about to be replaced in the child. */
int fns_above_stdio(int fd)
{
    if (fd < 0 || fd > 2)
        return fd < 0 ? -errno : fd;
    int high = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    int err = errno;
    close(fd);
    return high < 0 ? -err : high;
}

int fns_both_above_stdio(int ends[2])
{
    for (int i = 0; i < 2; i++) {
        int high = fns_above_stdio(ends[i]);
        if (high < 0) {
            close(ends[1 - i]);
            return high;
        }
        ends[i] = high;
    }
    return 0;
}

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
    int fd = memfd_create(name, flags | (kind == FNS_PROGRAM ? MFD_EXEC : 0));
    if (fd < 0 && errno == EINVAL &&
        kind == FNS_PROGRAM) /* every one may be run before Linux 6.3 */
        fd = memfd_create(name, flags);
    fd = fns_above_stdio(fd);
    if (fd < 0)
        return fd;
    int ret = write_all(fd, data, size);
    /* A process that executes what it may not read is undumpable, and outside of the user namespace that
     * it is in (would_dump()): a sandbox cannot look into its pid 1. */
    if (ret == 0 && kind == FNS_PROGRAM && fchmod(fd, 0111) < 0)
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

int fns_program_file(int shared)
{
    if (!program.bytes)
        return -ENOENT;
    int fd = shared ? fns_kept_file(&program.file) : -1;
    if (fd < 0) {
        fd = fns_memory_file(shared ? "fastns-program" : "fastns", program.bytes, program.size,
                             FNS_PROGRAM);
        if (fd >= 0 && shared)
            fns_keep_file(&program.file, fd);
    }
    return fd;
}

/* ---- files that are kept ---------------------------------------------------------------------- */

/* Never changed once it is in an fns_file, and not freed while that may be read: no lock is needed, which a
 * fork could copy held. */
struct fns_kept {
    int fd;
    dev_t device;
    ino_t inode;
    mode_t mode; /* a process that executes the file may own it, and may have changed this */
    struct fns_kept *before; /* which it has replaced */
};

static int is_kept(const struct fns_kept *kept, int fd)
{
    struct stat st;
    return fstat(fd, &st) == 0 && st.st_dev == kept->device && st.st_ino == kept->inode &&
           st.st_mode == kept->mode;
}

static atomic_int n_kept; /* more of the process' fds are not taken */

int fns_kept_file(struct fns_file *file)
{
    const struct fns_kept *kept =
        file ? atomic_load_explicit(&file->kept, memory_order_acquire) : NULL;
    if (!kept)
        return -ENOENT;
    /* The application may close the fd at any time, and its number may be another file's by now. The fd is
     * checked before it is copied: closing a copy of another file drops the application's record locks on it
     * (fcntl(2)). The copy is checked once more. */
    int fd = is_kept(kept, kept->fd) ? fcntl(kept->fd, F_DUPFD_CLOEXEC, 3) : -1;
    if (fd >= 0 && is_kept(kept, fd))
        return fd;
    if (fd >= 0)
        close(fd);
    return -ENOENT;
}

void fns_keep_file(struct fns_file *file, int fd)
{
    struct stat st;
    struct fns_kept *before = file ? atomic_load(&file->kept) : NULL;
    if (!file || (!before && atomic_load(&n_kept) >= FNS_MAX_KEPT))
        return;
    struct fns_kept *kept = malloc(sizeof *kept);
    if (!kept)
        return;
    kept->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (kept->fd < 0 || fstat(kept->fd, &st) < 0) {
        if (kept->fd >= 0)
            close(kept->fd);
        free(kept);
        return; /* it is made again next time */
    }
    kept->device = st.st_dev;
    kept->inode = st.st_ino;
    kept->mode = st.st_mode;
    kept->before = before;
    /* Another thread may have been quicker. What it replaces is not freed: it may be in use. */
    if ((before && is_kept(before, before->fd)) ||
        !atomic_compare_exchange_strong(&file->kept, &before, kept)) {
        close(kept->fd);
        free(kept);
    } else if (!before) {
        atomic_fetch_add(&n_kept, 1);
    }
}

static int make_plan_file(const struct fns_plan *plan, size_t size)
{
    char *bytes = calloc(1, size);
    if (!bytes)
        return -ENOMEM;
    fns_pack_file(bytes, plan);
    int fd = fns_memory_file("fastns-plan", bytes, size, FNS_SEALED);
    free(bytes);
    return fd;
}

#define MAX_KEPT_SIZE (1 << 20) /* the file of a larger plan would double its memory for good */

int fns_plan_file(const struct fns_plan *plan, size_t *size)
{
    *size = fns_pack_file(NULL, plan);
    if (*size > UINT32_MAX)
        return -E2BIG;
    int fd = fns_kept_file(plan->file);
    if (fd < 0) {
        fd = make_plan_file(plan, *size);
        if (fd >= 0 && *size <= MAX_KEPT_SIZE)
            fns_keep_file(plan->file, fd);
    }
    return fd;
}

struct fns_file *fns_file_new(void)
{
    return calloc(1, sizeof(struct fns_file));
}

void fns_file_free(struct fns_file *file)
{
    struct fns_kept *kept = file ? atomic_load(&file->kept) : NULL;
    if (kept)
        atomic_fetch_sub(&n_kept, 1);
    if (kept && is_kept(kept, kept->fd))
        close(kept->fd);
    while (kept) {
        struct fns_kept *before = kept->before;
        free(kept);
        kept = before;
    }
    free(file);
}
