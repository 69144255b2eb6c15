/* What the files of csrc/caller/ share among themselves. */
#ifndef FNS_SPAWN_H
#define FNS_SPAWN_H

#include <time.h>

#include "fastns.h"

struct fns_border;
struct fns_clone_args;

/* ---- fds (base.c): all are >= 3 and close-on-exec ---- */

/* The same file at such a number; the old fd is closed. A negative `fd` stands for errno. An fd, or -errno. */
FNS_CHECKED int fns_above_stdio(int fd);

/* A pipe: the reading end first; flags: as pipe2(2). A SEQPACKET socket pair. 0; or -errno, and both ends are -1. */
FNS_CHECKED int fns_pipe(int ends[2], int flags);
FNS_CHECKED int fns_socket_pair(int ends[2]);

FNS_CHECKED int fns_open_pidfd(int pid);
void fns_close_fd(int *fd); /* unless it is -1, which it is afterwards */

/* ---- arrays, time, numbers (base.c) ---- */

/* The array, with room for one more item after `n`; NULL: no memory, and the array is unchanged. */
FNS_CHECKED void *fns_grow(void *items, size_t *capacity, size_t n, size_t item_size);

struct timespec fns_timespec(uint64_t ns);

/* A number above 0 that nothing else in this process has got lately: for requests and batches. */
int fns_next_number(void);

/* ---- waits of a start (spawn.c) ---- */

/* How long they may last. */
struct fns_deadline {
    uint64_t end;  /* CLOCK_MONOTONIC, ns; 0: no time limit */
    uint64_t next; /* when to ask fns_set_interrupted()'s function again; 0 at first */
};

/* How long the next step may take: to the end, at most FNS_LOOK_NS. */
struct timespec fns_step(const struct fns_deadline *deadline);

/* Whether to go on after a step. 0: yes; -ETIME: the time is over; -EINTR: the caller gives up. The caller is asked
 * when a signal has interrupted the step, and otherwise every FNS_LOOK_NS. */
FNS_CHECKED int fns_over(struct fns_deadline *deadline, int signalled);

/* The same, but a process whose time is over is killed and `timed_out`, and the wait goes on without a limit. */
FNS_CHECKED int fns_over_kills(struct fns_deadline *deadline, int signalled,
                               struct fns_process *process);

/* Waits until the sandbox loses its lock on the file of `fd`, as it has executed its command or has ended. (The
 * end of a pipe or socket is no sign: another thread may have forked a process that holds it open.) 0 or -errno;
 * -EINTR: the caller gives up. A `process` is killed when its time is over, as opening the command's file may
 * block for ever (a lease, a network file system); NULL: it is not. */
FNS_CHECKED int fns_executed(int fd, struct fns_process *process, struct fns_deadline *deadline);

/* ---- the clone (spawn.c) ---- */

/* A stack with a guard page. NULL: no memory. */
char *fns_take_stack(void);
void fns_give_stack(char *stack);

/* Clones a process that shares the caller's memory and runs `fn` on such a stack, with all signals blocked.
 * `args`: flags besides CLONE_VM and CLONE_PIDFD, and what these flags use. Its pid, or -errno. */
FNS_CHECKED long fns_clone_on(char *stack, struct fns_clone_args *args, int (*fn)(void *),
                              void *arg);

/* Clones a process that runs fns_border_main(border). Returns its pid when it has executed the program or has ended, or
 * -errno. `namespaces`: CLONE_NEW*. `into`: directory of a v2 cgroup for it; -1: none. `*gave_up`: 0, or why it
 * was killed: -ETIME, -EINTR. */
FNS_CHECKED long fns_clone(struct fns_border *border, uint64_t namespaces, int into,
                           struct fns_deadline *deadline, int *pidfd, int *gave_up);

/* ---- memory files (memory.c) ---- */

/* A memory file with these bytes: an fd, or -errno. FNS_SEALED: nobody can change it; FNS_PROGRAM: nobody can change or
 * read it, but all can execute it. */
enum fns_memory { FNS_WRITABLE, FNS_SEALED, FNS_PROGRAM };
int fns_memory_file(const char *name, const void *data, size_t size, enum fns_memory kind);

/* The program, and a plan as struct fns_packed_plan, in such a file. The caller closes it. `shared`: one that all
 * sandboxes may have. */
int fns_program_file(int shared);
int fns_plan_file(const struct fns_plan *plan, size_t *size);

/* ---- cgroups (cgroup.c), and the limit on their CPU time (cputime.c) ---- */

/* Read a file of a cgroup, at most size - 1 bytes and a NUL: how many, or -errno. Write one: 0 or -errno. A counter,
 * or FNS_NO_COUNT. `directory`: of its hierarchy. */
int fns_cgroup_read(int directory, int number, const char *file, char *text, size_t size);
int fns_cgroup_write(int directory, int number, const char *file, const char *text);
uint64_t fns_cgroup_count(const struct fns_cgroup_plan *plan, int number,
                          const struct fns_cgroup_counter *counter);

/* For a plan with a limit and a counter of CPU time, which stays the caller's. */
struct fns_cpu_watch;
int fns_cpu_watch_open(struct fns_cpu_watch **watch, const struct fns_cgroup_plan *plan);

/* The cgroup may use plan->cpu_time_ns more than cgroup->before says. 0 or -errno. */
int fns_cpu_watch_add(struct fns_cpu_watch *watch, const struct fns_cgroup *cgroup);

/* Stops watching a cgroup. Whether it was killed. */
int fns_cpu_watch_remove(struct fns_cpu_watch *watch, int number);

/* Ends the thread, unless it has something to watch and `force` is 0. In a forked process the thread is left to its
 * owner. fns_cpu_watch_close() also frees the watch. */
void fns_cpu_watch_stop(struct fns_cpu_watch *watch, int force);
void fns_cpu_watch_close(struct fns_cpu_watch *watch);

/* ---- others ---- */

/* Sets `error` to what another process reports, if its numbers are in range. Returns -errno. */
int fns_believe_error(const struct fns_plan *plan, const struct fns_error *said,
                      struct fns_error *error);

/* Call it when a wait for a template's server has lasted a while. Continues a stopped server, or with `kill` kills
 * it. 1: it was stopped. */
int fns_server_rouse(int pidfd, int kill);

/* Blocks these signals, a bit each, in the calling thread: 0 or -errno. Restores the mask as it was `before`. */
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
