/* What fastns-exec says: errors on stderr, and at the end one JSON object for --status-fd. */
#ifndef FNS_REPORT_H
#define FNS_REPORT_H

#include "caller/fastns.h"

enum {
    EXIT_TIMEOUT = 124,
    EXIT_FAILED = 125,
    EXIT_NOT_EXECUTABLE = 126,
    EXIT_NOT_FOUND = 127,
};

/* How a run ended, as Outcome in fastns/cli/run.py has it. */
struct outcome {
    int exit_code;
    const char *cause;
    int signal;                      /* 0: none */
    const struct fns_result *result; /* NULL: nothing has run */
    double wall_time;                /* seconds, with `result` */
    int truncated;                   /* whether a limit has cut the output off */
    /* Of a failure. */
    const char *stage; /* NULL: none */
    int op_index;      /* with `stage`; -1: no op */
    int err;           /* 0: none */
    const char *path;  /* NULL: none */
    char message[1024];
};

/* One line on stderr, and the hint in a second one if there is one. */
void complain(const char *message, const char *hint);

/* The message of a failed start, as SpawnError words it. */
void word_error(struct outcome *outcome);

/* Writes the outcome as one line of JSON. */
void write_status(int fd, const struct outcome *outcome);

#endif
