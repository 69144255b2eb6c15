/* The public C API: the only header the Python binding declares.
 *
 * Every function returns 0 or a count on success and -errno on failure; where a `struct fns_error`
 * is taken, it then says which step failed. Nothing here prints, exits or needs the GIL. A plan may
 * be used by any number of threads at once; an fns_process or fns_io belongs to one at a time.
 */
#ifndef FASTNS_H
#define FASTNS_H

#include <stdint.h>
#include <sys/resource.h>

#include "error.h"
#include "plan.h"

/* Name of a stage, as a person sees it. Static storage. */
const char *fns_stage_name(unsigned stage);

/* Name of an op code: the enum's, in lower case. Static storage. */
const char *fns_op_name(unsigned code);

/* Fills `error`; returns -err, so that a failing function can return it. */
int fns_set_error(struct fns_error *error, enum fns_stage stage, int op_index, int err);

/* Checks a plan once, after which it is trusted: known codes and stages, offsets inside the arena,
 * data lengths inside it, options that fit each other. -EINVAL and `*bad_op` (-1: not one op). */
int fns_plan_check(const struct fns_plan *plan, int *bad_op);

/* The two programs without libc, by their bytes: exec.c's for direct plans, helper.c's for staged
 * ones. Copied; set each once, before the first spawn. */
enum fns_program { FNS_PROGRAM_EXEC, FNS_PROGRAM_HELPER, FNS_PROGRAM_COUNT };
int fns_set_program(enum fns_program which, const void *bytes, size_t size);

struct fns_process {
    int pid;
    int pidfd;         /* owned by the caller: close it after fns_reap() */
    int control;       /* -1, or the socket a reaper reports the command's status on: close it */
    int served;        /* a server's child: control is the connection to it */
    uint64_t start;    /* CLOCK_MONOTONIC, ns, before the clone */
    long rss_floor;    /* KiB; what the kernel's ru_maxrss of the sandbox starts from: a child that
                        shares memory takes the caller's peak over at its exec (exec_mmap()) */
    int ended, status; /* with a reaper, when the command ended before the start was over: how
                          (CLD_*, 0: it did not), and its exit code or signal */
};

/* Starts one sandbox and returns when its program is running (exec has succeeded) or the start has
 * failed, in which case nothing is left: no process, fd or mapping. Blocks all signals of the
 * calling thread meanwhile. */
int fns_spawn(const struct fns_plan *plan, const struct fns_args *args, struct fns_process *process,
              struct fns_error *error);

/* A template: starts the server of a plan with FNS_PLAN_SERVER. `null`: an fd >= 3 of /dev/null. The
 * server and all its sandboxes end when the caller does, or its control socket is closed. */
int fns_server_start(const struct fns_plan *plan, int null, struct fns_process *server,
                     struct fns_error *error);
void fns_server_stop(struct fns_process *server);

/* A connection for one sandbox at a time; -EPIPE: the server is gone; -errno. Closing it ends its
 * sandbox. */
int fns_server_connect(const struct fns_process *server);

/* As fns_spawn(), by a server. -EPIPE: the server was gone, and nothing was started; -ECANCELED: it was
 * killed meanwhile, and what it started with it. After these, -EPROTO, -EMFILE and -EBADF the
 * connection is of no use any more. Else it may be used again, at once after a failure, or once the
 * sandbox is reaped. */
int fns_server_spawn(int connection, const struct fns_plan *sandbox, const struct fns_args *args,
                     struct fns_process *process, struct fns_error *error);

/* Writes the id maps of `pid` from outside, as plan->id_map says. */
int fns_write_id_maps(const struct fns_plan *plan, int pid, struct fns_error *error);

struct fns_result {
    int code;   /* CLD_EXITED, CLD_KILLED or CLD_DUMPED */
    int status; /* exit code or signal number */
    struct rusage usage;
    uint64_t end; /* CLOCK_MONOTONIC, ns */
};

/* Waits until the sandbox has ended, at most `timeout_ns` (-1: for ever). 1: ended; 0: the time is
 * over; -EINTR: a signal came. Does not reap. */
int fns_wait(const struct fns_process *process, int64_t timeout_ns);

/* Reaps an ended sandbox. -EAGAIN: it has not ended; -ECHILD: somebody else reaped it; -ECANCELED: its
 * server is gone, and it with it. */
int fns_reap(const struct fns_process *process, struct fns_result *result);

int fns_kill(const struct fns_process *process, int signal);

/* Kills every process of a sandbox that is not reaped: with its pid namespace, or, without one of
 * its own, the first process and all that descend from it (not a daemon whose parent has ended). */
int fns_kill_all(const struct fns_plan *plan, const struct fns_process *process);
uint64_t fns_now(void);

struct fns_buffer {
    char *data;
    size_t size, capacity;
};
void fns_buffer_free(struct fns_buffer *buffer);

/* Feeds and drains a sandbox's pipes until they are at their end and it has ended. fds are -1 when
 * not used, and are closed (and set to -1) as they reach their end. */
struct fns_io {
    struct fns_process process;
    int fds[3]; /* the caller's ends of stdin, stdout, stderr */
    const char *input;
    size_t input_size, input_done;
    struct fns_buffer output[2];
    uint64_t deadline; /* CLOCK_MONOTONIC, ns; 0: none */
    int stop;          /* an fd that becomes readable when the loop shall stop; -1: none */
};
enum fns_io_state { FNS_IO_DONE, FNS_IO_TIMEOUT, FNS_IO_STOPPED };

/* One of fns_io_state, or -EINTR after a signal (call again to go on), or -errno. */
int fns_io_run(struct fns_io *io);

/* After a kill: takes what is in the pipes without waiting for their end, closes them, waits for
 * the process to end. */
int fns_io_finish(struct fns_io *io);
void fns_io_close(struct fns_io *io);

/* One job of a batch: what goes in, then what came out. */
struct fns_job {
    const struct fns_plan *plan;
    const struct fns_process *server; /* of a template, whose plan->sandbox it is; NULL: none */
    struct fns_args args;
    const char *input;
    size_t input_size;
    int64_t timeout_ns; /* -1: none */

    struct fns_error error; /* stage NONE: it ran */
    struct fns_process process;
    struct fns_result result;
    struct fns_buffer output[2];
    int timed_out, finished;
};

enum fns_batch_mode { FNS_BATCH_SPAWN, FNS_BATCH_RUN, FNS_BATCH_CAPTURE };

struct fns_batch;
/* Starts `threads` workers on the jobs; the jobs stay the caller's and must outlive the batch. */
int fns_batch_start(struct fns_batch **batch, struct fns_job *jobs, size_t n_jobs, unsigned threads,
                    enum fns_batch_mode mode);
/* 1 when every job is finished, 0 after `timeout_ms`, -EINTR after a signal. */
int fns_batch_wait(struct fns_batch *batch, int timeout_ms);
/* Kills and reaps what runs, starts nothing more. */
void fns_batch_stop(struct fns_batch *batch);
/* Joins the workers and frees the batch. */
void fns_batch_join(struct fns_batch *batch);

/* The calling thread's effective capabilities, a bit each (capabilities(7)). */
uint64_t fns_capabilities(void);

/* unshare(2) and setns(2) for the calling thread. */
int fns_unshare(uint64_t flags);
int fns_setns(int fd, uint64_t flags);

#endif
