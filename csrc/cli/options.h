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
    char wrong[512];    /* what is wrong with the words; "": nothing */
    const char *hint;
};

/* Reads the words, to their end even if one is wrong: --status-fd tells of that too. */
void read_options(char **argv, struct options *options);

void print_help(void);

#endif
