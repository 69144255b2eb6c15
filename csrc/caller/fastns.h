/* The public C API, including everything that the Python binding declares.
 *
 * Unless said otherwise, a function returns 0 on success and -errno on failure, and a `struct fns_error` then says
 * which step failed. Nothing here prints, exits or needs the GIL. Any number of threads may use a plan at
 * once; an fns_process, fns_io or fns_job belongs to one thread at a time.
 */
#ifndef FASTNS_H
#define FASTNS_H

#include <stdint.h>
#include <sys/resource.h>

#include "shared/error.h"
#include "shared/plan.h"

/* The names of a stage and of an op code, as users see them. Static storage. */
const char *fns_stage_name(unsigned stage);
const char *fns_op_name(unsigned code);

/* Fills `error`; `err` may be negative. Returns -errno. */
int fns_set_error(struct fns_error *error, enum fns_stage stage, int op_index, int err);

/* Checks a plan, which is trusted from then on: known codes and stages, offsets and data inside the strings,
 * options that fit each other. -EINVAL, and the index of the bad op (-1: the fault is not in an op). */
int fns_plan_check(const struct fns_plan *plan, int *bad_op);

/* Sets the bytes of the program without libc (program/main.c), which are copied. Once, before the first spawn. */
int fns_set_program(const void *bytes, size_t size);

/* The paths to try for a command, ending with NULL: the command itself if it has a slash, else its name in each
 * directory. One block, to be freed; NULL: no memory. */
char **fns_command_paths(const char *command, char *const *directories);

/* For plan->file: holds the plan's bytes in a memory file, which the plan's first start makes. NULL: no memory. Free
 * it only when no start of the plan is under way. */
struct fns_file *fns_file_new(void);
void fns_file_free(struct fns_file *file);

/* Makes a user namespace with these maps, lines of "inside outside count\n". `inotify`: limit on its inotify
 * instances; NULL: none. An fd >= 3 of it, or -errno and `error`. */
int fns_userns_open(const char *uid_map, const char *gid_map, const char *inotify,
                    struct fns_error *error);

/* This process's user namespace in which id 0 is `uid` and `gid` outside, and `count` ids follow each. The first call
 * makes it by fns_userns_open(), as does a call after the application has closed the fd. The fd, which is not the
 * caller's to close, or -errno and `error`. One thread at a time. */
int fns_userns_of_range(uint32_t uid, uint32_t gid, uint64_t count, const char *inotify,
                        struct fns_error *error);

/* ---- cgroups for sandboxes (cgroup.c) ---- */

#define FNS_COUNT_KINDS(X)                                                                         \
    X(OOM_KILLS, "oom_kills")                                                                      \
    X(PIDS_REFUSED, "pids_refused")   /* forks that pids.max refused */                            \
    X(CPU_TIME, "cpu_time")           /* ns */                                                     \
    X(CPU_TIME_OVER, "cpu_time_over") /* 1: killed because it had used up plan->cpu_time_ns */     \
    X(MEMORY_PEAK, "memory_peak")     /* bytes */                                                  \
    X(PIDS_PEAK, "pids_peak")                                                                      \
    X(IO_READ, "io_read") /* bytes */                                                              \
    X(IO_WRITE, "io_write")

enum fns_count {
#define X(name, text) FNS_COUNT_##name,
    FNS_COUNT_KINDS(X)
#undef X
        FNS_COUNTS
};

/* The name of a count. Static storage. */
const char *fns_count_name(unsigned kind);

#define FNS_NO_COUNT UINT64_MAX /* not known */

struct fns_cgroup_hierarchy {
    int directory; /* fd of the parent of the sandboxes' cgroups */
    int unified;   /* cgroup v2, which must be the first hierarchy */
};

struct fns_cgroup_setting {
    uint32_t hierarchy; /* index */
    const char *file, *value;
};

struct fns_cgroup_counter {
    uint32_t kind, hierarchy;
    const char *file, *key; /* key "": the file is one number */
    uint64_t scale;         /* a factor */
    uint32_t peak;          /* a maximum, not a sum */
    /* The text that resets the file; "": none does, so each sandbox gets a new cgroup in this hierarchy; NULL: the
     * counter cannot be reset. */
    const char *reset;
};

/* How the cgroups of sandboxes are made and read. The pointers stay the caller's and must outlive the pool. */
struct fns_cgroup_plan {
    struct fns_cgroup_hierarchy hierarchies[FNS_MAX_HIERARCHIES];
    const struct fns_cgroup_setting *settings;
    const struct fns_cgroup_counter *counters;
    uint32_t n_hierarchies, n_settings, n_counters; /* counters: at most one of each kind */
    uint32_t memory_hierarchy;
    const char *memory_file;                 /* bytes charged now; NULL: memory is not counted */
    const char *reclaim_file, *reclaim_text; /* file and text that reclaim memory */
    uint64_t cpu_time_ns; /* a sandbox whose CPU_TIME reaches this is killed; 0: no limit */
};

/* One sandbox's cgroups. */
struct fns_cgroup {
    int number; /* -1: none */
    uint32_t n_fds, clone_into;
    int fds[FNS_MAX_GROUPS];
    uint64_t before[FNS_COUNTS]; /* the plan's counters before the start */
    uint64_t counts[FNS_COUNTS]; /* by kind; set by fns_cgroup_give() */
};

/* A pool of cgroups, for any number of threads, but not for a forked process. fns_cgroups_remove(): removes the
 * directories, and retries those in use for at most `patience_ms`; -EBUSY: some are left. No cgroup is made after it.
 * fns_cgroups_close(): once all cgroups have been given back. */
struct fns_cgroups;
int fns_cgroups_open(struct fns_cgroups **groups, const struct fns_cgroup_plan *plan);
int fns_cgroups_remove(struct fns_cgroups *groups, unsigned patience_ms);
void fns_cgroups_close(struct fns_cgroups *groups);

/* fns_cgroup_take(): a cgroup for one sandbox, and the arguments with which the sandbox enters it; `groups` NULL:
 * none. 0, or -errno and `error`. fns_cgroup_entered(): when the start has ended. fns_cgroup_give(): when the
 * sandbox has been reaped, or its start has failed. */
int fns_cgroup_take(struct fns_cgroups *groups, struct fns_cgroup *cgroup, struct fns_args *args,
                    struct fns_error *error);
void fns_cgroup_entered(struct fns_cgroup *cgroup);
void fns_cgroup_give(struct fns_cgroups *groups, struct fns_cgroup *cgroup);

struct fns_result {
    int code;   /* CLD_EXITED, CLD_KILLED or CLD_DUMPED */
    int status; /* exit code or signal number */
    struct rusage usage;
    uint64_t end; /* CLOCK_MONOTONIC, ns */
    int lost;     /* errno: a reaper could not report how the command ended; 0: it could */
};

/* A sandbox. */
struct fns_process {
    int served; /* a child of a template's server, from fns_server_spawn() */
    int remote; /* the same, from fns_server_run(): without pid and pidfd, its end comes over the connection */
    int server; /* with either: the server's pidfd, which the server keeps */
    int number; /* with `served`: its number in the server; with `remote`: the request's number */
    int pid;
    int pidfd; /* closed by the caller after fns_reap(); with `served`: -1 if few fds were free */
    int control; /* where a reaper reports the command's end; with `remote`: the connection; -1: none */
    int timed_out;  /* killed because its time was over before its command ran */
    uint64_t start; /* CLOCK_MONOTONIC, ns, before the clone */
    /* KiB: the sandbox's ru_maxrss is never lower. A process that shares memory inherits the caller's peak at its
     * exec (exec_mmap()). */
    long rss_floor;
};

/* A start that waits calls `interrupted` in its own thread after each signal, and every FNS_LOOK_NS. If that returns
 * nonzero, the caller gives up: the start ends what it has begun and fails with -EINTR. */
void fns_set_interrupted(int (*interrupted)(void));

/* How long to wait: not at all; until it is done; until it is done or the caller gives up. */
enum fns_patience { FNS_AT_ONCE, FNS_PATIENT, FNS_MAY_GIVE_UP };

/* Starts one sandbox. Returns when its command has been executed or the start has failed; a failure leaves nothing, no
 * process, fd or mapping. -EINTR: the caller gives up. `time_ns` (0: no limit): a sandbox that has not executed its
 * command in this time is killed, and returned as started, with process->timed_out. -ETIME, also with
 * process->timed_out: the time was over before there was a sandbox. */
int fns_spawn(const struct fns_plan *plan, const struct fns_args *args, uint64_t time_ns,
              struct fns_process *process, struct fns_error *error);

/* Starts a template's server, from a plan with FNS_PLAN_SERVER. `null`: an fd >= 3 of /dev/null; `userns`: as in
 * fns_args. The server and all its sandboxes end when the caller ends or the control socket is closed. */
int fns_server_start(const struct fns_plan *plan, int null, int userns, struct fns_process *server,
                     struct fns_error *error);
void fns_server_stop(const struct fns_process *server); /* its fds stay open for other threads */
void fns_server_close(struct fns_process *server);

/* A connection, which serves one sandbox at a time: a socket; -EPIPE: the server is gone; -EINTR: the caller gives
 * up; -errno. */
int fns_server_connect(const struct fns_process *server, enum fns_patience patience);

/* As fns_spawn(), by a server. FNS_DETAIL_BROKEN: the connection is of no more use. -EPIPE: its other end was closed,
 * and nothing was started; -ECANCELED: the server was killed, and every sandbox with it. After any other error the
 * connection can be used again at once. */
int fns_server_spawn(const struct fns_process *server, int connection,
                     const struct fns_plan *sandbox, const struct fns_args *args,
                     struct fns_process *process, struct fns_error *error);

/* Waits for the end of a sandbox from fns_server_spawn(), and reaps it. -ECANCELED: the server is gone. */
int fns_server_reap(int connection, const struct fns_process *process, struct fns_result *result);

/* Requests a sandbox without waiting for its start: `process` is `remote`. The connection becomes readable when the
 * sandbox has ended or could not be started; fns_server_end() then returns 0, or as fns_server_spawn(). After
 * fns_kill_all() of such a process the connection is of no more use. */
int fns_server_run(const struct fns_process *server, int connection, const struct fns_args *args,
                   struct fns_share share, struct fns_process *process, struct fns_error *error);
int fns_server_end(struct fns_process *process, const struct fns_plan *sandbox,
                   struct fns_result *result, struct fns_error *error);

/* Whether a sandbox of the server is alive: 1, with a pidfd of it, which the caller closes; 0: it has ended;
 * -errno, also where no fd is free. */
int fns_server_look(int connection, const struct fns_process *process, int *pidfd);

/* The state of the server's pool of network namespaces. */
int fns_server_pool(const struct fns_process *server, int connection, struct fns_pool_state *state);

/* Asks for sandboxes made ahead, for this connection's requests. After fns_server_spawn() close it, and park
 * another. */
int fns_server_park(int connection);

/* The fd that becomes readable when the sandbox ends; -1: it was reaped. */
int fns_end_fd(const struct fns_process *process);

/* How often a wait returns so that the caller can look for signals: one that came before the wait, or to another
 * thread, does not interrupt it. */
enum { FNS_LOOK_NS = 100000000 };

/* Waits until the sandbox has ended, at most `timeout_ns` (-1: for ever). 1: it has; 0: the time is over;
 * -EINTR: a signal may have come, call again. Does not reap. */
int fns_wait(const struct fns_process *process, int64_t timeout_ns);

/* To be called after each -EINTR of a wait. Reaps threads that made this process their tracer (PTRACE_TRACEME), without
 * which the sandbox would never end; continues a stopped server. `killed`: the sandbox was killed; kills a process that
 * keeps it from ending by tracing it. */
void fns_attend(const struct fns_process *process, int killed);

/* Reaps an ended sandbox that no server started. -EAGAIN: it has not ended; -ECHILD: another part of the
 * process has reaped it. */
int fns_reap(const struct fns_process *process, struct fns_result *result);

int fns_kill(const struct fns_process *process, int signal);

/* Kills every process of a sandbox that was not reaped: through its pid namespace or, if it has none of its own,
 * the first process and its descendants (but not a daemon whose parent has ended). */
int fns_kill_all(const struct fns_plan *plan, const struct fns_process *process);

uint64_t fns_now(void); /* CLOCK_MONOTONIC, ns */

/* The bytes read from a stream. */
struct fns_buffer {
    char *data;
    size_t size, capacity;
    uint64_t dropped; /* bytes over the limit */
};
void fns_buffer_free(struct fns_buffer *buffer);

/* A sandbox to wait for, and its pipes. An fd is -1 where there is no pipe; at the end of its stream it is closed
 * and set to -1. */
struct fns_io {
    struct fns_process process;
    int fds[3]; /* the caller's ends of stdin, stdout, stderr */
    const char *input;
    size_t input_size, input_done;
    size_t limit;      /* bytes kept of each of stdout and stderr; 0: all */
    int capped;        /* kill a sandbox that writes more than that */
    uint64_t deadline; /* CLOCK_MONOTONIC, ns; 0: none */
    struct fns_buffer output[2];
    int over; /* it is capped, and has written more */

    /* For the loop (loop.c). */
    int killed; /* by this process: do not wait for the ends of its pipes */
    int ended;  /* it can be reaped */
    int failed; /* -errno of a pipe */
    uint64_t
        recheck; /* when to look again at a sandbox that a tracer keeps from ending; 0: none does */
};
enum fns_io_state { FNS_IO_DONE, FNS_IO_TIMEOUT, FNS_IO_OVER, FNS_IO_RUNS };

/* Makes the pipes non-blocking, once before the first fns_io_run(). */
void fns_io_prepare(struct fns_io *io);

/* Feeds and drains the pipes until the sandbox has ended and they are at their ends. An fns_io_state, but not
 * RUNS; -EINTR: a signal may have come, call again; -errno. */
int fns_io_run(struct fns_io *io);

/* After a kill: waits for the end of the sandbox, reads what is in the pipes, and closes them. */
int fns_io_finish(struct fns_io *io);
void fns_io_close(struct fns_io *io);

/* Open a pipe, and /dev/null: fds >= 3, close-on-exec. 0 or the fd; -errno. */
int fns_open_pipe(int ends[2]);
int fns_open_null(void);

/* Which streams of a job are pipes to and from the caller. */
enum fns_pipes {
    FNS_PIPE_STDIN = 1,
    FNS_PIPE_STDOUT = 2,
    FNS_PIPE_STDERR = 4,
    FNS_PIPE_JOINED = 8 /* stderr goes where stdout goes */
};

/* A command to run to its end: what goes in, then what came out. */
struct fns_job {
    const struct fns_plan *plan;
    const struct fns_process *server; /* of a template, whose plan->sandbox it is; NULL: none */
    struct fns_cgroups *groups;       /* NULL: none */
    struct fns_args args;
    unsigned pipes;     /* enum fns_pipes bits */
    int connection;     /* of a batch's only job: to its server, and still the caller's; 0: none */
    int64_t timeout_ns; /* -1: none */
    struct fns_share share;
    struct fns_io io; /* the caller sets input, limit and capped */

    struct fns_error error; /* stage NONE: it ran */
    struct fns_result result;
    struct fns_cgroup cgroup;
    int timed_out;
};

/* These run a job in three steps. fns_job_start(): over `connection` if it has a server; 0, or -errno and
 * job->error; -ETIME without an error: its time was over before there was a sandbox, and it is finished as if it
 * had been killed. fns_job_kill(): while it runs. fns_job_finish(): once its sandbox has ended or was killed:
 * reaps it, closes its pipes, sets the job's results. */
int fns_job_start(struct fns_job *job, int connection);
void fns_job_kill(struct fns_job *job);
void fns_job_finish(struct fns_job *job);

/* Only starts a job's sandbox, in the same way, without pipes or a time limit. The caller reaps it and gives back its
 * cgroup. 0, or -errno and job->error. */
int fns_job_spawn(struct fns_job *job, int connection);

/* Whether another job may use the connection of a finished one. */
int fns_job_spares(const struct fns_job *job);

/* Whether its server was gone before the job was sent: another server can run it. */
int fns_job_unsent(const struct fns_job *job);

/* Runs jobs in the calling thread, at most `concurrency` at once. `spawn`: only starts them. All jobs have the
 * same server, or none. They stay the caller's and must outlive the batch. */
struct fns_batch;
int fns_batch_open(struct fns_batch **batch, struct fns_job *jobs, size_t n_jobs,
                   unsigned concurrency, int spawn);
/* 1: every job is finished; 0: call again, a signal may have come; -errno. */
int fns_batch_run(struct fns_batch *batch);
/* How many are finished. */
size_t fns_batch_done(const struct fns_batch *batch);
/* Kills and reaps what it runs, and frees the batch. */
void fns_batch_close(struct fns_batch *batch);

/* The calling thread's effective capabilities, a bit each (capabilities(7)). */
int fns_capabilities(uint64_t *effective);

/* Whether this process's files in /proc are its own (PR_GET_DUMPABLE, prctl(2)): 1 or 0; -errno. */
int fns_is_dumpable(void);

/* The version of Landlock that the kernel has, or -errno: it has none, or does not say. */
int fns_landlock_abi(void);

/* Whether open_tree(2) makes mount namespaces here (Linux 7.0). */
int fns_has_tree_namespaces(void);

/* Whether a bind of `path` can be idmapped to a user namespace: 0 or -errno. Tried on a detached copy. */
int fns_can_idmap(const char *path, int recursive, int userns);

#endif
