/* What the parent's files of a spawn share among themselves. */
#ifndef FNS_SPAWN_H
#define FNS_SPAWN_H

#include "fastns.h"

struct fns_border;

/* Starts fns_border_main(border) by a clone that shares memory, on a stack of its own. Returns when the child
 * has executed the program or has ended: its pid, or -errno. `namespaces`: CLONE_NEW*. `into`: the directory
 * of a cgroup for it, of v2; -1: none. `end`: when to give up, on the clock of fns_now(); 0: never. `*gave_up`:
 * 0; -ETIME; -EINTR: the caller gives up; then it was killed. */
FNS_CHECKED long fns_clone(struct fns_border *border, uint64_t namespaces, int into, uint64_t end,
                           int *pidfd, int *gave_up);

/* Whether a clone can be into a cgroup, as far as is known. */
int fns_clones_into_cgroups(void);

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

/* An fd >= 3 of the same file (0, 1 and 2 are about to be replaced in the child), or -errno; a
 * negative `fd` stands for errno. Closes the one it replaces. */
FNS_CHECKED int fns_above_stdio(int fd);

/* The same for the two ends of a pipe or socket pair; both are closed on failure. 0 or -errno. */
FNS_CHECKED int fns_both_above_stdio(int ends[2]);

/* A memory file with these bytes, close-on-exec, >= 3, or -errno. FNS_SEALED: nobody can change it;
 * FNS_PROGRAM: nor read it, but execute it. */
enum fns_memory { FNS_WRITABLE, FNS_SEALED, FNS_PROGRAM };
int fns_memory_file(const char *name, const void *data, size_t size, enum fns_memory kind);

/* An fd of a file that is kept, which is the caller's to close; -ENOENT: there is none, or no longer. `file`
 * NULL: none is. To keep one is tried; there are FNS_MAX_KEPT at most. */
enum { FNS_MAX_KEPT = 64 };
int fns_kept_file(struct fns_file *file);
void fns_keep_file(struct fns_file *file, int fd);

/* The program as such a file; `shared`: the one that is kept. The caller closes it. */
int fns_program_file(int shared);

/* A plan as struct fns_packed_plan, likewise. */
int fns_plan_file(const struct fns_plan *plan, size_t *size);

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

/* The steps of fns_io_run(): once, before the first; whenever fds[which] is ready. 0 or -errno. */
void fns_io_prepare(struct fns_io *io);
FNS_CHECKED int fns_io_move(struct fns_io *io, int which);

/* Writes a map file of a process: "uid_map", "gid_map". 0 or -errno. */
FNS_CHECKED int fns_write_map(int pid, const char *file, const char *map);

#endif
