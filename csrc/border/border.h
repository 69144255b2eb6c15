/* What runs in the caller's memory: the part of a start from the clone to the exec of the program, and a
 * process that only holds a user namespace. */
#ifndef FNS_BORDER_H
#define FNS_BORDER_H

#include "shared/error.h"
#include "shared/plan.h"

struct fns_border {
    const struct fns_plan *plan;
    const struct fns_args *args; /* of the program: argv, envp, stdio, keep */
    int program;                 /* the program's file */
    int status;                  /* the writing end of the status pipe */
};

/* The function of a start's clone. Returns the exit status of a start that has failed. */
int fns_border_main(void *border);

/* Puts args->stdio in place and closes all other fds but args->keep. `same`: one of these that stays
 * close-on-exec; -1: none. 0, or -errno and `stage`. */
FNS_CHECKED int fns_place_fds(const struct fns_args *args, int same, enum fns_stage *stage);

struct fns_stay {
    int parent;          /* pid of the process whose thread cloned it: it ends with that thread */
    const char *inotify; /* limit on inotify instances of its namespace; NULL: none */
    int limited;         /* 1: the limit is set, or cannot be set here; -errno; 0: not yet */
};

/* stay.c: the function of a clone that holds a new user namespace until it is killed. */
int fns_stay_main(void *stay);

#endif
