/* The command line of fastns-exec. */
#ifndef FNS_OPTIONS_H
#define FNS_OPTIONS_H

#include <stdint.h>

enum asked { ASKED_TO_RUN, ASKED_FOR_HELP, ASKED_FOR_VERSION };

struct options {
    enum asked asked;
    const char *plan;
    char **command;     /* NULL ends it */
    int64_t timeout_ns; /* 0: the plan's */
    int status_fd;      /* -1: none */
    char wrong[512];    /* an error; "": none */
    const char *hint;
};

/* Parses all words, even after an error, which is reported on --status-fd too. */
void read_options(char **argv, struct options *options);

void print_help(void);

#endif
