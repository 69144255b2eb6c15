/* What the parent's files of a spawn share among themselves. */
#ifndef FNS_SPAWN_H
#define FNS_SPAWN_H

#include "child.h"
#include "fastns.h"

/* Starts fns_child_main(child) by a clone that shares memory, on a stack of its own. Returns when the child
 * has executed: its pid; or -errno, and `error` is set and the child discarded. `namespaces`: CLONE_NEW*.
 * `end`: when to give up with -ETIME, on the clock of fns_now(); 0: never. -EINTR: the caller gives up. */
FNS_CHECKED long fns_run_child(struct fns_child *child, uint64_t namespaces, uint64_t end,
                               int *pidfd, struct fns_error *error);

/* The deadline of a start that begins now and may take `time_ns`; 0: none. */
static inline uint64_t fns_end_of(const struct fns_process *process, uint64_t time_ns)
{
    return time_ns ? process->start + time_ns : 0;
}

/* Waits until a sandbox that has locked `fd`'s file gives it up: it has executed its command, which
 * closes its fd, or has ended. The end of a pipe or socket would not do as the news: another thread
 * may have forked a process that holds it open for as long as it lives. 0 or -errno; -EINTR: the caller
 * gives up. `time_ns`: kills it so long after its start, because opening a command may block for ever (a
 * lease, a network file system); 0: never, and `process` may be NULL. */
FNS_CHECKED int fns_executed(int fd, struct fns_process *process, uint64_t time_ns);

/* For waits in a start: whether the caller gives up (fns_set_interrupted()). Asks if a signal interrupted the
 * wait, and otherwise once in FNS_LOOK_NS. `*next`: when to ask next; 0 to begin with. */
int fns_interrupted(uint64_t *next, int signalled);

/* Called when a wait for a template's server has lasted a while. Continues the server if it is stopped, or
 * with `kill` kills it. 1: it was stopped. */
int fns_server_rouse(int pidfd, int kill);

/* ns of `time_ns` that are left since the start of a process, at most 999999999; 0: none. */
int fns_time_left(const struct fns_process *process, uint64_t time_ns);

/* What of `time_ns` is left since the start of a process, at most an int of ns; -1: no end is set. One
 * whose time is over is killed by this, once, and has no end from then on. */
int fns_keep_time(struct fns_process *process, uint64_t time_ns);

/* Sets to->keep to from->keep, from->groups and `fds`, ascending; the caller frees it. 0 or -ENOMEM. */
FNS_CHECKED int fns_keep_more(struct fns_args *to, const struct fns_args *from, const int *fds,
                              int n_fds);

/* An fd >= 3 of the same file (0, 1 and 2 are about to be replaced in the child), or -errno; a
 * negative `fd` stands for errno. Closes the one it replaces. */
FNS_CHECKED int fns_above_stdio(int fd);

/* The same for the two ends of a pipe or socket pair; both are closed on failure. 0 or -errno. */
FNS_CHECKED int fns_both_above_stdio(int ends[2]);

#ifndef MFD_EXEC
#define MFD_EXEC 0x0010U
#endif

/* A memory file with these bytes, close-on-exec, >= 3, or -errno; MFD_EXEC: a sealed one. */
int fns_memory_file(const void *data, size_t size, unsigned exec_flag);

/* A plan and its arguments as such a file: struct fns_request. */
int fns_request_file(const struct fns_plan *plan, const struct fns_args *args);

/* The arguments of one spawn from a template, to be freed; NULL: no memory. */
struct fns_ask *fns_pack_ask(const struct fns_args *args);

/* One of the programs as such a file. */
int fns_program_file(enum fns_program which);

/* Sets `error` to what another process says of itself, as far as that can be: its numbers are used
 * as indices later. Returns -errno. */
int fns_believe_error(const struct fns_plan *plan, const struct fns_error *said,
                      struct fns_error *error);

/* Block all signals of the calling thread, 0 or -errno; unblock those that were not blocked before. */
FNS_CHECKED long fns_block_signals(uint64_t *before);
FNS_CHECKED long fns_block_signal(int signal, uint64_t *before);
void fns_restore_signals(uint64_t before);

/* Sends SIGKILL by a pidfd. */
void fns_kill_by(int pidfd);

/* Ends a process that is of no use any more, reaps it and closes its pidfd. */
void fns_discard(int pidfd);

/* What a sandbox that has locked the pipe `news` says once it has given the lock up: nothing when it
 * has executed its command, or was killed. `time_ns`: of fns_executed(). 0, or -errno and `error`. */
FNS_CHECKED int fns_hear_exec(const struct fns_plan *plan, int news, struct fns_process *process,
                              uint64_t time_ns, struct fns_error *error);

/* The steps of fns_io_run(): once, before the first; whenever fds[which] is ready. 0 or -errno. */
void fns_io_prepare(struct fns_io *io);
FNS_CHECKED int fns_io_move(struct fns_io *io, int which);

/* Writes a map file of a process: "uid_map", "gid_map". 0 or -errno. */
FNS_CHECKED int fns_write_map(int pid, const char *file, const char *map);

/* fns_spawn() for a plan with FNS_PLAN_STAGED (staged.c). */
int fns_spawn_staged(const struct fns_plan *plan, const struct fns_args *args, uint64_t time_ns,
                     struct fns_process *process, struct fns_error *error);

#endif
