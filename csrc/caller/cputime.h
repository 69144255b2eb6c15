/* The limit of a sandbox's CPU time: see cputime.c. Parent only. */
#ifndef FNS_CPUTIME_H
#define FNS_CPUTIME_H

#include "fastns.h"

/* A file of a leaf, at most size - 1 bytes and a NUL: how many, or -errno. The same written: 0 or
 * -errno. What a counter stands at, or FNS_NO_COUNT. (cgroup.c) */
int fns_leaf_read(const struct fns_cgroup_plan *plan, unsigned hierarchy, int number,
                  const char *file, char *text, size_t size);
int fns_leaf_write(const struct fns_cgroup_plan *plan, unsigned hierarchy, int number,
                   const char *file, const char *text);
uint64_t fns_leaf_counter(const struct fns_cgroup_plan *plan, int number,
                          const struct fns_cgroup_counter *counter);

/* Watches leaves of a plan that limits the CPU time and counts it. The plan stays the caller's. */
struct fns_cpu_watch;
int fns_cpu_watch_open(struct fns_cpu_watch **watch, const struct fns_cgroup_plan *plan);

/* Beyond what leaf->before says, the leaf may use plan->cpu_time_ns. 0 or -errno. */
int fns_cpu_watch_add(struct fns_cpu_watch *watch, const struct fns_leaf *leaf);

/* No more. Whether it was killed for what it used. */
int fns_cpu_watch_remove(struct fns_cpu_watch *watch, int number);

/* Ends the thread if it has nothing to watch. */
void fns_cpu_watch_rest(struct fns_cpu_watch *watch);

/* The same, whatever it watches. In a process that was forked, the thread is the other one's. */
void fns_cpu_watch_close(struct fns_cpu_watch *watch);

#endif
