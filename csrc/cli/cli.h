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
    struct fns_result result; /* with `has_result`, like `wall_time` */
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

/* Records an error, unless another one was recorded before. (report.c) */
__attribute__((format(printf, 3, 4))) void fail(struct outcome *outcome, const char *hint,
                                                const char *form, ...);

/* Sets the message for a failed start, worded like that of SpawnError. */
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

/* Reads a regular file if only this user and root can have written it. The caller frees the bytes. 0; -errno; -EPERM
 * with why->path set: this file, directory or link belongs to another user, or others may write to it. (trust.c) */
int fns_read_trusted(const char *path, char **bytes, size_t *size, struct fns_distrust *why);

/* Runs a command to its end. `outcome` says how it ended, or why it did not start. `timeout_ns` 0: the plan's.
 * (run.c) */
void fns_run_plan(const struct fns_planfile *file, char **command, int64_t timeout_ns,
                  struct outcome *outcome);

#endif
