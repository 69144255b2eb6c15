/* One start or one sandbox of a template, as the code sees it that carries out its plan.
 *
 * That code runs in the program, in memory of its own, and in the sandboxes of a template's server, which
 * share the server's memory. Therefore: raw system calls only; no heap, no locks, no errno or other TLS,
 * no libc function but memcpy and memset, and no writes but to the stack and to `struct fns_child`.
 * tests/sandbox/test_child_rule.py checks the object files.
 */
#ifndef FNS_CHILD_H
#define FNS_CHILD_H

#include "shared/error.h"
#include "shared/plan.h"
#include "shared/sys.h"

/* How far a sandbox has come. A template's server reads it when the sandbox has left its memory. */
enum fns_progress { FNS_PROGRESS_SETUP, FNS_PROGRESS_EXEC, FNS_PROGRESS_FAILED };

struct fns_child {
    const struct fns_plan *plan;
    const struct fns_args *args;
    struct fns_error error;
    volatile uint32_t progress; /* enum fns_progress */
    int status;        /* the status pipe, locked until the exec (fns_executed()); -1: none */
    int entered;       /* it was cloned into the first of args->groups */
    int root;          /* fd of the root that is built; -1 */
    int scratch;       /* fd of the scratch tmpfs; -1 */
    int unmapped;      /* fd of the root's directory without the idmap; -1: not idmapped */
    int userns;        /* fd of the user namespace to join; 0: none */
    int ruleset;       /* fd of the Landlock ruleset, from LANDLOCK to LANDLOCK_RESTRICT */
    int null;          /* fd of a detached /dev/null, where no path leads to another; 0: none */
    int null_attached; /* `null` lies over the first masked file */
    int sources[FNS_MAX_SOURCES];    /* fds of detached trees, from BIND_SOURCE */
    unsigned n_sources, next_source; /* how many; the next that a BIND takes */
    /* What adjacent ops share (fns_drop_cache()); fds, 0: none. */
    struct {
        int directory; /* the last directory resolved, as the first `length` bytes of `path` */
        const char *path;
        size_t length;
        int null_device;     /* the source of masks of files */
        int empty_directory; /* the source of masks of directories */
    } cache;
};

/* The initializer of a struct fns_child before its first op. */
#define FNS_CHILD(plan_, args_, status_)                                                           \
    {                                                                                              \
        .plan = (plan_), .args = (args_), .error = {.op_index = -1}, .status = (status_),          \
        .root = -1, .scratch = -1, .unmapped = -1, .userns = (args_)->userns                       \
    }

/* The functions of the ops: 0 or more, or -errno. */
#define FNS_OP(code, name, ...)                                                                    \
    FNS_CHECKED int fns_op_##name(struct fns_child *child, const struct fns_op *op);
#include "shared/ops.def"

/* gcc may call these of its own accord; runtime.h defines them. */
void *memcpy(void *restrict to, const void *restrict from, size_t size);
void *memset(void *to, int byte, size_t size);

#define FNS_PATH_SIZE 4096 /* PATH_MAX */
#define FNS_PATH_FLAGS (O_PATH | O_CLOEXEC)

/* A text of the plan; 0: the field is not given. */
FNS_INLINE const char *fns_text(const struct fns_child *child, uint32_t offset)
{
    return offset ? child->plan->strings + offset : 0;
}

/* Opens a path of the caller's view. */
FNS_INLINE FNS_CHECKED int fns_open(const char *path, int flags)
{
    return (int)fns_sys4(__NR_openat, AT_FDCWD, path, flags, 0);
}

FNS_INLINE void fns_close_if_open(int fd)
{
    if (fd >= 0)
        fns_close(fd);
}

/* Returns `result`, and notes that the op's source is at fault. */
FNS_INLINE int fns_source_failed(struct fns_child *child, int result)
{
    child->error.detail = FNS_DETAIL_SOURCE;
    return result;
}

/* Returns `result`, -errno, which fails the start. */
FNS_INLINE int fns_child_failed(struct fns_child *child, enum fns_stage stage, int op_index,
                                long result)
{
    child->error.stage = (uint16_t)stage;
    child->error.op_index = op_index;
    child->error.err = (int)-result;
    child->progress = FNS_PROGRESS_FAILED;
    return (int)result;
}

#endif
