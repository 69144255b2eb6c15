/* What the files of csrc/caller/ share among themselves. */
#ifndef FNS_SPAWN_H
#define FNS_SPAWN_H

#include <time.h>

#include "fastns.h"

struct fns_border;
struct fns_clone_args;

/* ---- fds (fd.c): all are >= 3 and close-on-exec ---- */

/* The same file at such a number; the old fd is closed. A negative `fd` stands for errno. An fd, or -errno. */
FNS_CHECKED int fns_above_stdio(int fd);

/* A pipe: the reading end first; flags: as pipe2(2). A SEQPACKET socket pair. 0; or -errno, and both ends are -1. */
FNS_CHECKED int fns_pipe(int ends[2], int flags);
FNS_CHECKED int fns_socket_pair(int ends[2]);

FNS_CHECKED int fns_open_pidfd(int pid);
void fns_close_fd(int *fd); /* if it is one; it is -1 then */

/* ---- waits of a start (spawn.c) ---- */

/* How long they may go on. */
struct fns_deadline {
    uint64_t end;  /* CLOCK_MONOTONIC, ns; 0: no time limit */
    uint64_t next; /* when to ask fns_set_interrupted()'s function again; 0 at first */
};

/* How long the next step may take: to the end, at most FNS_LOOK_NS. */
struct timespec fns_step(const struct fns_deadline *deadline);

/* Whether to go on after a step. 0: yes; -ETIME: the time is over; -EINTR: the caller gives up. The caller is asked
 * after a signal has interrupted the step, and otherwise every FNS_LOOK_NS. */
FNS_CHECKED int fns_over(struct fns_deadline *deadline, int signalled);

/* The same, but when its time is over the process is killed and `late`, and the wait goes on without an end. */
FNS_CHECKED int fns_over_kills(struct fns_deadline *deadline, int signalled,
                               struct fns_process *process);

/* Waits until the sandbox that holds a lock on the file of `fd` gives it up, because it has executed its command or
 * has ended. (The end of a pipe or socket does not tell: another thread may have forked a process that holds it
 * open.) 0 or -errno; -EINTR: the caller gives up. A `process` is killed when its time is over: to open the
 * command's file may block for ever (a lease, a network file system). NULL: that is not done. */
FNS_CHECKED int fns_executed(int fd, struct fns_process *process, struct fns_deadline *deadline);

/* ---- the clone (spawn.c) ---- */

/* A stack with a guard page. NULL: no memory. */
char *fns_take_stack(void);
void fns_give_stack(char *stack);

/* A clone that shares memory with the caller, by fns_clone_call(), on such a stack and with all signals blocked.
 * `args`: flags besides CLONE_VM and CLONE_PIDFD, and what these flags use. Its pid, or -errno. */
FNS_CHECKED long fns_clone_on(char *stack, struct fns_clone_args *args, int (*fn)(void *),
                              void *arg);

/* Such a clone that runs fns_border_main(border). Returns its pid when it has executed the program or has ended, or
 * -errno. `namespaces`: CLONE_NEW*. `into`: directory of a v2 cgroup for it; -1: none. `*gave_up`: 0, or why it
 * was killed: -ETIME, -EINTR. */
FNS_CHECKED long fns_clone(struct fns_border *border, uint64_t namespaces, int into,
                           struct fns_deadline *deadline, int *pidfd, int *gave_up);

/* ---- memory files (memory.c) ---- */

/* A memory file with these bytes: an fd, or -errno. FNS_SEALED: nobody can change it; FNS_PROGRAM: nor read it, but
 * execute it. */
enum fns_memory { FNS_WRITABLE, FNS_SEALED, FNS_PROGRAM };
int fns_memory_file(const char *name, const void *data, size_t size, enum fns_memory kind);

/* The program as such a file; `shared`: the one that is kept. The caller closes it. */
int fns_program_file(int shared);

/* A plan as struct fns_packed_plan, likewise. */
int fns_plan_file(const struct fns_plan *plan, size_t *size);

/* ---- others ---- */

/* Sets `error` to what another process reports, if its numbers can be used as indices. Returns -errno. */
int fns_believe_error(const struct fns_plan *plan, const struct fns_error *said,
                      struct fns_error *error);

/* Called when a wait for a template's server has lasted a while. Continues the server if it is stopped, or
 * with `kill` kills it. 1: it was stopped. */
int fns_server_rouse(int pidfd, int kill);

/* Blocks all signals of the calling thread, or one more; 0 or -errno. Restores the mask as it was `before`. */
FNS_CHECKED long fns_block_signals(uint64_t *before);
FNS_CHECKED long fns_block_signal(int signal, uint64_t *before);
void fns_restore_signals(uint64_t before);

/* Sends SIGKILL by a pidfd; kills and reaps; the same, and closes the pidfd. */
void fns_kill_by(int pidfd);
void fns_end(int pidfd);
void fns_discard(int pidfd);

/* Writes a map file of a process: "uid_map", "gid_map". 0 or -errno. */
FNS_CHECKED int fns_write_map(int pid, const char *file, const char *map);

#endif
