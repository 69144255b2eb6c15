/* What the files of fastns-exec share. */
#ifndef FNS_CLI_H
#define FNS_CLI_H

#include <limits.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "planfile.h"

enum {
    EXIT_TIMEOUT = 124,
    EXIT_FAILED = 125,
    EXIT_NOT_EXECUTABLE = 126,
    EXIT_NOT_FOUND = 127,
};

/* How a run ended, with the fields of Outcome in fastns/cli/run.py. */
struct outcome {
    int exit_code;
    const char *cause;
    int signal;               /* 0: none */
    int has_result;           /* 0: no command has run */
    struct fns_result result; /* with `has_result`, as `wall_time` */
    double wall_time;         /* seconds */
    int truncated;            /* whether a limit cut off the output */
    /* With cause "failed": */
    const char *stage; /* NULL: none */
    int op_index;      /* with `stage`; -1: no op */
    int err;           /* 0: none */
    const char *path;  /* NULL: none */
    char message[1024];
    const char *hint; /* NULL or "": none */
};

/* Records an error. The first one counts. (report.c) */
__attribute__((format(printf, 3, 4))) void fail(struct outcome *outcome, const char *hint,
                                                const char *form, ...);

/* Words the message for a failed start as SpawnError does. */
void word_error(struct outcome *outcome);

/* Prints one line to stderr, and another for the hint; NULL or "": none. */
void complain(const char *message, const char *hint);

/* Writes the outcome as one line of JSON. */
void write_status(int fd, const struct outcome *outcome);

struct fns_distrust {
    char path[PATH_MAX]; /* the file, directory or link that is not trusted */
    mode_t mode;
    uid_t owner;
};

/* Reads the whole of a regular file, to be freed, if only this user and root can have written it. 0; -errno; -EPERM
 * with why->path: it, or a directory or link on its path, is another user's or may be written by others. (trust.c) */
int fns_read_trusted(const char *path, char **bytes, size_t *size, struct fns_distrust *why);

/* Runs a command to its end. `outcome` says how it ended, or why it did not start. `timeout_ns` 0: the plan's.
 * (run.c) */
void fns_run_plan(const struct fns_planfile *file, char **command, int64_t timeout_ns,
                  struct outcome *outcome);

#endif
