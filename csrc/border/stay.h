/* A process that holds a new user namespace until it is killed (stay.c). */
#ifndef FNS_STAY_H
#define FNS_STAY_H

struct fns_stay {
    int parent;          /* pid of the process whose thread cloned it: it ends with that thread */
    const char *inotify; /* limit on inotify instances of its namespace; NULL: none */
    int limited;         /* 1: the limit is set, or cannot be set here; -errno; 0: not yet */
};

/* The function of the clone. */
int fns_stay_main(void *stay);

#endif
