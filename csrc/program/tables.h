/* The tables of a server: slots, sandboxes, batches (tables.c). */
#ifndef FNS_TABLES_H
#define FNS_TABLES_H

#include "sandbox.h"

enum { FNS_MAX_PID = 1 << 22 /* PID_MAX_LIMIT */ };

/* Maps the tables. 0 or -errno. */
FNS_CHECKED int fns_open_tables(void);

/* A slot that no sandbox is in, and no request waits in. 0: none, and `error` is -errno. */
struct fns_slot *fns_take_slot(long *error);

/* A new sandbox with a plan and a user namespace to join (0: none); 0: there are too many. */
struct fns_sandbox *fns_new_sandbox(const struct fns_plan *plan, int userns);

/* Frees it, and lets go of what it has. */
void fns_free_sandbox(struct fns_sandbox *sandbox);

/* Its index, which is what a connection has, and the way back. */
int fns_index_of(const struct fns_sandbox *sandbox);
struct fns_sandbox *fns_sandbox_at(int index);

/* Enters the pid of its process. */
void fns_set_pid(struct fns_sandbox *sandbox, int pid);

/* The sandbox with a pid, or with a number that was reported; 0: there is none. */
struct fns_sandbox *fns_find_pid(int pid);
struct fns_sandbox *fns_find_number(int number);

/* The list of sandboxes whose end somebody waits for: the newest, 0 if it is empty; the one before. */
void fns_watch_sandbox(struct fns_sandbox *sandbox);
void fns_unwatch_sandbox(struct fns_sandbox *sandbox);
struct fns_sandbox *fns_newest_watched(void);
struct fns_sandbox *fns_older_watched(const struct fns_sandbox *sandbox);

/* Whether a batch has as many sandboxes alive as it may. */
int fns_is_full(struct fns_share share);

/* Counts one more (1) or one less (-1). 0; -EAGAIN: there are too many batches. */
int fns_count_alive(int batch, int step);

#endif
