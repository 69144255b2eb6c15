/* The state of a process that carries out a plan, and the functions it calls.
 *
 * This code runs in the program, which owns its memory, and in the sandboxes of a template's server, which share
 * the server's memory. Therefore: raw system calls only; no heap, no locks, no errno or other TLS, no libc
 * function except memcpy and memset, and no writes except to the stack and to `struct fns_child`.
 * tests/sandbox/test_child_rule.py checks the object files.
 */
#ifndef FNS_CHILD_H
#define FNS_CHILD_H

#include "linux.h"
#include "shared/error.h"
#include "shared/plan.h"
#include "shared/sys.h"

/* How far a start has come. A template's server reads it once the sandbox has left the server's memory. */
enum fns_progress { FNS_PROGRESS_SETUP, FNS_PROGRESS_EXEC, FNS_PROGRESS_FAILED };

struct fns_child {
    const struct fns_plan *plan;
    const struct fns_args *args;
    struct fns_error error;
    volatile uint32_t progress; /* enum fns_progress */
    uint64_t executed;          /* when the command was executed; fns_clock() */
    int status;        /* the status pipe, locked until the exec (fns_executed()); -1: none */
    int entered;       /* it was cloned into the first cgroup of args->groups */
    int root;          /* fd of the root that is built; -1: none */
    int scratch;       /* fd of the scratch tmpfs; -1: none */
    int keeps_scratch; /* fns_run_ops() leaves it open */
    int unmapped;      /* fd of the root's directory without the idmap; -1: not idmapped */
    int userns;        /* fd of the user namespace to join; 0: none */
    int ruleset;       /* fd of the Landlock ruleset, from LANDLOCK to LANDLOCK_RESTRICT */
    int null;          /* fd of a detached /dev/null, if the caller's is out of reach; 0: none */
    int null_attached; /* `null` itself is attached over a masked file */
    int sources[FNS_MAX_SOURCES];    /* fds of detached trees, from BIND_SOURCE */
    unsigned n_sources, next_source; /* how many; index of the next one to use */
    /* Fds that adjacent ops share (fns_drop_cache()); 0: none. */
    struct {
        int directory; /* the directory resolved last: the first `length` bytes of `path` */
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

/* gcc may emit calls to these; main.c defines them. */
void *memcpy(void *restrict to, const void *restrict from, size_t size);
void *memset(void *to, int byte, size_t size);

#define FNS_PATH_SIZE 4096 /* PATH_MAX */
#define FNS_PATH_FLAGS (O_PATH | O_CLOEXEC)
#define FNS_DIRECTORY_MODE 0755

/* CLOCK_MONOTONIC, ns. */
FNS_INLINE uint64_t fns_clock(void)
{
    uint64_t time[2] = {0, 0};
    FNS_IGNORE(fns_sys2(__NR_clock_gettime, FNS_CLOCK_MONOTONIC, time), "this clock always exists");
    return time[0] * FNS_NS + time[1];
}

/* A text of the plan; 0: the field is not set. */
FNS_INLINE const char *fns_text(const struct fns_child *child, uint32_t offset)
{
    return offset ? child->plan->strings + offset : 0;
}

FNS_INLINE FNS_CHECKED int fns_open_in(int dir, const char *name, int flags)
{
    return (int)fns_sys4(__NR_openat, dir, name, flags, 0);
}

/* Opens a path of the caller's view. */
FNS_INLINE FNS_CHECKED int fns_open(const char *path, int flags)
{
    return fns_open_in(AT_FDCWD, path, flags);
}

FNS_INLINE void fns_close_if_open(int fd)
{
    if (fd >= 0)
        fns_close(fd);
}

/* Closes an fd unless it is negative, and returns the result of its last use. */
FNS_INLINE FNS_CHECKED int fns_done_with(int fd, long result)
{
    fns_close_if_open(fd);
    return (int)result;
}

/* Returns `result`, and notes that the op's source is at fault. */
FNS_INLINE int fns_source_failed(struct fns_child *child, int result)
{
    child->error.detail = FNS_DETAIL_SOURCE;
    return result;
}

/* Records `result` (-errno) as the failure of the start, and returns it. */
FNS_INLINE int fns_child_failed(struct fns_child *child, enum fns_stage stage, long result)
{
    child->error.stage = (uint16_t)stage;
    child->error.err = (int)-result;
    child->progress = FNS_PROGRESS_FAILED;
    return (int)result;
}

/* ---- ops (ops.c), and the function of each: 0 or more, or -errno ------------------------------ */

#define FNS_OP(code, name, ...)                                                                    \
    FNS_CHECKED int fns_op_##name(struct fns_child *child, const struct fns_op *op);
#include "shared/ops.def"

/* Runs the ops from `first` to before `end`, except the last ops, and closes the fds of the root. 0, or -errno
 * with child->error set. */
FNS_CHECKED int fns_run_ops(struct fns_child *child, uint32_t first, uint32_t end);

/* Runs one op, without what fns_run_ops() does around them. */
FNS_CHECKED int fns_run_one(struct fns_child *child, uint32_t index);

/* Runs the last ops (FNS_OP_LAST): just before the exec in the process that executes the command, or in a
 * template's server before it serves. */
FNS_CHECKED int fns_run_last_ops(struct fns_child *child);

/* Brings up lo in the current network namespace (identity.c). Returns a socket of that namespace, or -errno. */
FNS_CHECKED int fns_loopback_up(void);

/* ---- around the ops (command.c): 0, or -errno with child->error set --------------------------- */

/* Resets the caller's settings that survive an exec: ignored signals and the personality. */
FNS_CHECKED int fns_reset_process(struct fns_child *child);

/* Leaves the caller's session and process group, because kill(0) reaches the whole group, and TIOCSTI types
 * into the session's terminal. Does nothing if stdin is a terminal: a shell needs both for its jobs. */
FNS_CHECKED int fns_leave_session(struct fns_child *child);

/* Changes to the working directory, which must lie inside the root. */
FNS_CHECKED int fns_change_directory(struct fns_child *child);

/* Runs the last ops, unblocks signals and executes the command. Returns only on failure. fns_execute_command() leaves
 * the last ops out. */
void fns_execute(struct fns_child *child);
void fns_execute_command(struct fns_child *child);

/* Closes all fds from 3 on except these (0: none). 0 or -errno. */
FNS_CHECKED int fns_close_but(int a, int b, int c);

/* ---- paths inside the root that is built (paths.c): an O_PATH fd, or -errno ------------------- */

/* The type (FNS_S_IF*) of `name` in the directory `fd`, or of `fd` if `name` is "". Does not follow a link. */
FNS_CHECKED long fns_type_in(int fd, const char *name);

/* Resolves `path` below `root`. No link and no race can lead outside. */
FNS_CHECKED int fns_resolve(int root, const char *path, int no_symlinks);

/* Open the directory that is the first n bytes of `path`, or the one that holds the op's target, whose last
 * name is returned in `name`. The cache owns the fd: do not close it. */
FNS_CHECKED int fns_directory(struct fns_child *child, const char *path, size_t n, int no_symlinks);
FNS_CHECKED int fns_target_directory(struct fns_child *child, const struct fns_op *op,
                                     const char **name);

/* Opens the op's target. With CREATE, makes a missing one as a directory or an empty file. */
FNS_CHECKED int fns_open_target(struct fns_child *child, const struct fns_op *op, int directory);

/* Makes an empty file. Returns an fd to write to it, or -errno. */
FNS_CHECKED int fns_make_file(int dir, const char *name);

/* If the op has OWNED, gives `name` in `dir`, or `dir` itself if `name` is "", to the sandbox's owner. 0 or
 * -errno. */
FNS_CHECKED int fns_give_to_owner(const struct fns_child *child, const struct fns_op *op, int dir,
                                  const char *name);

/* Closes the fds that adjacent ops share. Needed before an op that may mount over them. */
void fns_drop_cache(struct fns_child *child);

#endif
