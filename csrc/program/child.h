/* The ops of a plan, and what comes before and after them. CHILD ONLY: see child.c for what code there may do. */
#ifndef FNS_CHILD_H
#define FNS_CHILD_H

#include "shared/error.h"
#include "shared/plan.h"

/* How far the child has come; read by the parent when the child has left the shared memory. */
enum fns_progress { FNS_PROGRESS_SETUP, FNS_PROGRESS_EXEC, FNS_PROGRESS_FAILED };

struct fns_child {
    const struct fns_plan *plan;
    const struct fns_args *args;
    struct fns_error error;
    volatile uint32_t progress; /* enum fns_progress */
    int news;                   /* >= 0: locked until the command is executed, see fns_executed() */
    int entered;                /* it was cloned into the first of args->groups */
    int root, scratch;          /* fds while the root is built; -1 */
    int plain;  /* the directory of a root that is shown with other owners, as it is; -1 */
    int userns; /* the user namespace to join; 0: none */
    int sources[FNS_MAX_SOURCES];    /* detached trees, for binds to come */
    int null;                        /* a detached /dev/null, where paths lead to no other; 0 */
    int null_used;                   /* it is attached over the first file that is masked */
    unsigned n_sources, next_source; /* how many; the first that no bind has taken */
    int held;                        /* a directory that one op has looked up for the next; 0 */
    const char *held_path;           /* what it was looked up as, of so many bytes */
    size_t held_length;
    int null_device; /* the null device that masks are copies of; 0 */
    int empty;       /* the mount that masks of directories are copies of; 0 */
    int rules;       /* of Landlock: an fd between its first op and its last */
};

/* One that has come to nothing yet: the initializer of a struct fns_child. */
#define FNS_CHILD(plan_, args_, news_)                                                             \
    {                                                                                              \
        .plan = (plan_), .args = (args_), .error = {.op_index = -1}, .news = (news_), .root = -1,  \
        .scratch = -1, .plain = -1, .userns = (args_)->userns                                      \
    }

/* What is the caller's and goes through an exec: ignored signals, the personality. */
FNS_CHECKED int fns_child_begin(struct fns_child *child);

/* Runs ops first..last-1, but for the last ones. */
FNS_CHECKED int fns_child_ops(struct fns_child *child, uint32_t first, uint32_t last);

/* lo of the network namespace of an AF_INET socket. 0 or -errno. */
FNS_CHECKED int fns_loopback_up(int socket);

/* The last ops alone, for who stays and executes nothing. */
FNS_CHECKED int fns_child_last(struct fns_child *child);

/* Changes to the working directory, which has to lie inside the root. */
FNS_CHECKED int fns_child_chdir(struct fns_child *child);

/* Runs the last ops, unblocks signals and executes. Returns only on failure. */
FNS_CHECKED int fns_child_exec(struct fns_child *child);

/* Out of the caller's process group and session: kill(0) would reach the former, and TIOCSTI the
 * terminal of the latter. Not with a terminal as stdin: a shell in it needs both for its jobs. */
FNS_CHECKED int fns_child_leave_session(struct fns_child *child);

/* Writes child->error to `news`. Retried whatever the error: a failure that is not reported looks like a
 * command that has run. */
void fns_child_report(const struct fns_child *child, int news);

#endif
