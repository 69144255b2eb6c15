/* Limits the CPU time of sandboxes (cputime.c). */
#ifndef FNS_CPUTIME_H
#define FNS_CPUTIME_H

#include "fastns.h"

/* Read a file of a cgroup, at most size - 1 bytes and a NUL: how many, or -errno. Write one: 0 or -errno. A counter,
 * or FNS_NO_COUNT. (cgroup.c) */
int fns_cgroup_read(const struct fns_cgroup_plan *plan, unsigned hierarchy, int number,
                    const char *file, char *text, size_t size);
int fns_cgroup_write(const struct fns_cgroup_plan *plan, unsigned hierarchy, int number,
                     const char *file, const char *text);
uint64_t fns_cgroup_count(const struct fns_cgroup_plan *plan, int number,
                          const struct fns_cgroup_counter *counter);

/* Watches the cgroups of a plan that has a limit and a counter of CPU time. The plan stays the caller's. */
struct fns_cpu_watch;
int fns_cpu_watch_open(struct fns_cpu_watch **watch, const struct fns_cgroup_plan *plan);

/* The cgroup may use plan->cpu_time_ns more than cgroup->before says. 0 or -errno. */
int fns_cpu_watch_add(struct fns_cpu_watch *watch, const struct fns_cgroup *cgroup);

/* Stops watching it. Whether it was killed. */
int fns_cpu_watch_remove(struct fns_cpu_watch *watch, int number);

/* Ends the thread if it has nothing to watch. */
void fns_cpu_watch_rest(struct fns_cpu_watch *watch);

/* Ends the thread in any case. In a forked process the thread is left to its owner. */
void fns_cpu_watch_close(struct fns_cpu_watch *watch);

#endif
