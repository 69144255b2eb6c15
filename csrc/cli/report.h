/* The output of fastns-exec itself: errors on stderr, and at the end one JSON object on --status-fd. */
#ifndef FNS_REPORT_H
#define FNS_REPORT_H

#include "caller/fastns.h"

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
    int signal;                      /* 0: none */
    const struct fns_result *result; /* NULL: nothing has run */
    double wall_time;                /* seconds, with `result` */
    int truncated;                   /* whether a limit has cut off the output */
    /* With cause "failed": */
    const char *stage; /* NULL: none */
    int op_index;      /* with `stage`; -1: no op */
    int err;           /* 0: none */
    const char *path;  /* NULL: none */
    char message[1024];
};

/* Prints one line to stderr, and a second one for the hint; NULL or "": none. */
void complain(const char *message, const char *hint);

/* Sets the message for a failed start, in the words of SpawnError. */
void word_error(struct outcome *outcome);

/* Writes the outcome as one line of JSON. */
void write_status(int fd, const struct outcome *outcome);

#endif
