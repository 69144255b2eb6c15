/* Functions that the files of csrc/caller/ share. They run in the caller, and are not part of the API (fastns.h). */
#ifndef FNS_SPAWN_H
#define FNS_SPAWN_H

#include <time.h>

#include "fastns.h"

struct fns_border;
struct fns_clone_args;

/* ---- fds (base.c): all are >= 3 and close-on-exec ---- */

/* Moves an fd to such a number, and closes the old one. Returns the fd, or -errno; also -errno if `fd` is negative, so
 * the result of a call that opens an fd can be passed on. */
FNS_CHECKED int fns_above_stdio(int fd);

/* fns_pipe() opens a pipe, the reading end first, with the flags of pipe2(2); fns_socket_pair() a SEQPACKET socket
 * pair. 0; or -errno, and both ends are -1. */
FNS_CHECKED int fns_pipe(int ends[2], int flags);
FNS_CHECKED int fns_socket_pair(int ends[2]);

FNS_CHECKED int fns_open_pidfd(int pid);
void fns_close_fd(int *fd); /* closes an fd that is not -1, and sets it to -1 */

/* ---- arrays, time, numbers (base.c) ---- */

/* Returns the array with room for at least n + 1 items. NULL: no memory, and the array is unchanged. */
FNS_CHECKED void *fns_grow(void *items, size_t *capacity, size_t n, size_t item_size);

struct timespec fns_timespec(uint64_t ns);

/* Returns a positive number for a request or a batch. Numbers repeat only after 2^30 calls. */
int fns_next_number(void);

/* ---- waits of a start (spawn.c) ---- */

/* How long the waits of a start may last. Each wait is a loop of steps. */
struct fns_deadline {
    uint64_t end;  /* CLOCK_MONOTONIC, ns; 0: no time limit */
    uint64_t next; /* when to call fns_set_interrupted()'s function again; 0 at first */
};

/* How long the next step may take: until the deadline's end, but at most FNS_LOOK_NS. */
struct timespec fns_step(const struct fns_deadline *deadline);

/* Whether to go on after a step. 0: yes; -ETIME: the time is over; -EINTR: the caller gives up. Asks the caller if a
 * signal has interrupted the step, and otherwise every FNS_LOOK_NS. */
FNS_CHECKED int fns_over(struct fns_deadline *deadline, int signalled);

/* The same, but when the time is over, kills the process, sets its `timed_out`, and lets the wait go on without a
 * time limit. */
FNS_CHECKED int fns_over_kills(struct fns_deadline *deadline, int signalled,
                               struct fns_process *process);

/* Waits until the sandbox has executed its command or has ended: either releases its lock on the file of `fd`. (The
 * end of file on a pipe or socket would not do: another thread may have forked a process that holds it open.) When the
 * time is over, kills `process`, as opening the command's file may block forever (a lease, a network file system), or
 * returns -ETIME if `process` is NULL. 0 or -errno; -EINTR: the caller gives up. */
FNS_CHECKED int fns_executed(int fd, struct fns_process *process, struct fns_deadline *deadline);

/* ---- the clone (spawn.c) ---- */

/* A stack with a guard page, from a small pool. NULL: no memory. */
char *fns_take_stack(void);
void fns_give_stack(char *stack);

/* Clones a process that shares the caller's memory and runs fn(arg) on such a stack, with all signals blocked. `args`:
 * the flags besides CLONE_VM and CLONE_PIDFD, and the fields that all these flags use. Returns the pid, or -errno. */
FNS_CHECKED long fns_clone_on(char *stack, struct fns_clone_args *args, int (*fn)(void *),
                              void *arg);

/* Clones a process that runs fns_border_main(border). Returns its pid when it has executed the program or has ended, or
 * -errno. `namespaces`: CLONE_NEW*. `into`: fd of the directory of its v2 cgroup; -1: the caller's. `*gave_up`: 0, or
 * why it was killed: -ETIME, -EINTR. */
FNS_CHECKED long fns_clone(struct fns_border *border, uint64_t namespaces, int into,
                           struct fns_deadline *deadline, int *pidfd, int *gave_up);

/* ---- memory files (memory.c) ---- */

/* A memory file with these bytes: an fd, or -errno. FNS_SEALED: nobody can change it; FNS_PROGRAM: nobody can change or
 * read it, but all can execute it. */
enum fns_memory { FNS_WRITABLE, FNS_SEALED, FNS_PROGRAM };
int fns_memory_file(const char *name, const void *data, size_t size, enum fns_memory kind);

/* These return the program, and a plan as struct fns_packed_plan, in such a file, which the caller closes. `shared`:
 * the file may be the one that other sandboxes have. */
int fns_program_file(int shared);
int fns_plan_file(const struct fns_plan *plan, size_t *size);

/* ---- cgroups (cgroup.c), and the limit on their CPU time (cputime.c) ---- */

/* fns_cgroup_read() reads at most size - 1 bytes of a cgroup's file and appends a NUL: how many, or -errno.
 * fns_cgroup_write() writes to one: 0 or -errno. `directory`: the one of the hierarchy. fns_cgroup_count() reads a
 * counter: its value, or FNS_NO_COUNT. */
int fns_cgroup_read(int directory, int number, const char *file, char *text, size_t size);
int fns_cgroup_write(int directory, int number, const char *file, const char *text);
uint64_t fns_cgroup_count(const struct fns_cgroup_plan *plan, int number,
                          const struct fns_cgroup_counter *counter);

/* Makes a watch for a plan that has a limit on CPU time and a counter of it. The plan must outlive the watch. 0 or
 * -errno. */
struct fns_cpu_watch;
int fns_cpu_watch_open(struct fns_cpu_watch **watch, const struct fns_cgroup_plan *plan);

/* Watches a cgroup, and kills its processes when they have used plan->cpu_time_ns since cgroup->before. 0 or -errno. */
int fns_cpu_watch_add(struct fns_cpu_watch *watch, const struct fns_cgroup *cgroup);

/* Stops watching a cgroup. Returns whether its processes were killed. */
int fns_cpu_watch_remove(struct fns_cpu_watch *watch, int number);

/* Whether a cgroup was killed. */
int fns_cpu_watch_is_over(struct fns_cpu_watch *watch, int number);

/* Ends the thread, unless `force` is 0 and it still watches a cgroup. In a forked process, which does not have the
 * thread, does nothing. fns_cpu_watch_close() does the same as with `force`, and frees the watch. */
void fns_cpu_watch_stop(struct fns_cpu_watch *watch, int force);
void fns_cpu_watch_close(struct fns_cpu_watch *watch);

/* ---- others ---- */

/* Sets `error` to what another process reports, or to EPROTO if a number in that is out of range. Returns -errno. */
int fns_believe_error(const struct fns_plan *plan, const struct fns_error *said,
                      struct fns_error *error);

/* Call it when a wait for a template's server has lasted a while. Continues a stopped server, or with `kill` kills
 * it. 1: it was stopped. */
int fns_server_rouse(int pidfd, int kill);

/* fns_block_signals() blocks these signals, a bit each, in the calling thread: 0 or -errno. fns_restore_signals() sets
 * the mask back to what it was before. */
FNS_CHECKED long fns_block_signals(uint64_t mask, uint64_t *before);
void fns_restore_signals(uint64_t before);

/* fns_kill_by() sends SIGKILL; fns_end() also reaps; fns_discard() also closes the pidfd. */
void fns_kill_by(int pidfd);
void fns_end(int pidfd);
void fns_discard(int pidfd);

/* Writes the id maps of `pid` as plan->id_map says. `end`: when to give up, CLOCK_MONOTONIC, ns; 0: never. -ETIME,
 * -EINTR: as in fns_spawn(). */
FNS_CHECKED int fns_write_id_maps(const struct fns_plan *plan, int pid, uint64_t end,
                                  struct fns_error *error);

#endif
