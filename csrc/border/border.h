/* What runs in the caller's memory: a start from its clone to the exec of the program, and a process that keeps
 * a new user namespace alive. */
#ifndef FNS_BORDER_H
#define FNS_BORDER_H

#include "shared/error.h"
#include "shared/plan.h"

struct fns_border {
    const struct fns_plan *plan;
    const struct fns_args *args; /* the program's argv, envp, stdio and keep */
    int program;                 /* the program's file */
    int status;                  /* the writing end of the status pipe */
};

/* Entry point of a start's clone. Returns only on failure, with the exit status. */
int fns_border_main(void *border);

/* Copies an fd to a number from 3 on that is not in args->keep. Returns it, or -errno. */
FNS_CHECKED int fns_move_away(const struct fns_args *args, int fd);

/* Puts args->stdio in place and closes all other fds except args->keep. `same`: an fd of args->keep that stays
 * close-on-exec; -1: none. 0, or -errno and `stage`. */
FNS_CHECKED int fns_place_fds(const struct fns_args *args, int same, enum fns_stage *stage);

struct fns_stay {
    int parent;          /* pid of the process that cloned it */
    const char *inotify; /* limit on inotify instances of its namespace; NULL: none */
    int limited;         /* 0: not yet; 1: the limit is set, or cannot be set here; -errno */
};

/* stay.c: entry point of a process that keeps a new user namespace alive until it is killed, or its parent
 * ends. */
int fns_stay_main(void *stay);

#endif
