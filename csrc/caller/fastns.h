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

#include "shared/error.h"
#include "shared/plan.h"

/* Name of a stage, as a person sees it. Static storage. */
const char *fns_stage_name(unsigned stage);

/* Name of an op code: the enum's, in lower case. Static storage. */
const char *fns_op_name(unsigned code);

/* Fills `error`; returns -err, so that a failing function can return it. */
int fns_set_error(struct fns_error *error, enum fns_stage stage, int op_index, int err);

/* Checks a plan once, after which it is trusted: known codes and stages, offsets inside the arena,
 * data lengths inside it, options that fit each other. -EINVAL and `*bad_op` (-1: not one op). */
int fns_plan_check(const struct fns_plan *plan, int *bad_op);

/* The program without libc (program.c), by its bytes. Copied; set once, before the first spawn. */
int fns_set_program(const void *bytes, size_t size);

/* The paths to try for a command, then NULL: itself if it has a slash, else its name in each directory. One
 * block, to be freed; NULL: no memory. */
char **fns_command_paths(const char *command, char *const *directories);

/* For plan->file: a plan's bytes, made at its first start, are kept in a file. NULL: no memory. Freed when no
 * start of the plan is under way. */
struct fns_file *fns_file_new(void);
void fns_file_free(struct fns_file *file);

/* A new user namespace with these maps, "inside outside count\n" lines of the caller's ids: an fd >= 3
 * of it, or -errno and `error`. The caller's threads, memory and credentials stay as they are. */
int fns_userns_open(const char *uid_map, const char *gid_map, const char *inotify,
                    struct fns_error *error);

/* The user namespace of this process in which 0 is `uid` and `gid` outside, and `count` ids follow each: made
 * as by fns_userns_open() by the first call, and again when its fd was closed since. The fd is not the
 * caller's to close; -errno and `error`. One thread at a time. */
int fns_userns_of_range(uint32_t uid, uint32_t gid, uint64_t count, const char *inotify,
                        struct fns_error *error);

/* ---- cgroups for sandboxes (cgroup.c) ---- */

/* What they count. */
#define FNS_COUNT_KINDS(X)                                                                         \
    X(OOM_KILLS, "oom_kills")                                                                      \
    X(PIDS_REFUSED, "pids_refused")   /* forks that pids.max refused */                            \
    X(CPU_TIME, "cpu_time")           /* ns */                                                     \
    X(CPU_TIME_OVER, "cpu_time_over") /* 1: killed here, for it had used up plan->cpu_time_ns */   \
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

/* Name of one of them. Static storage. */
const char *fns_count_name(unsigned kind);

#define FNS_NO_COUNT UINT64_MAX

struct fns_cgroup_hierarchy {
    int directory; /* of the cgroup that the leaves are made in */
    int unified;   /* cgroup v2: the first of them, if it is there */
};

struct fns_cgroup_setting {
    uint32_t hierarchy; /* index */
    const char *file, *value;
};

struct fns_cgroup_counter {
    uint32_t kind, hierarchy;
    const char *file, *key; /* key "": the file is one number */
    uint64_t scale;
    uint32_t peak;
    /* What is written to begin anew; "": it does in a new cgroup, which is made for each sandbox where
     * there is but this controller; NULL: it does not. */
    const char *reset;
};

/* What a leaf is. The pointers stay the caller's, and must outlive the cgroups. */
struct fns_cgroup_plan {
    struct fns_cgroup_hierarchy hierarchies[FNS_MAX_HIERARCHIES];
    const struct fns_cgroup_setting *settings;
    const struct fns_cgroup_counter *counters;
    uint32_t n_hierarchies, n_settings, n_counters; /* counters: one of each kind at most */
    uint32_t memory_hierarchy;
    const char *memory_file; /* bytes charged now; NULL: memory is not counted */
    const char *reclaim_file, *reclaim_text;
    uint64_t
        cpu_time_ns; /* of each sandbox, which is killed at that, by the CPU_TIME counter; 0: any */
};

/* One sandbox's cgroups. */
struct fns_leaf {
    int number; /* -1: none */
    uint32_t n_fds, clone_into;
    int fds[FNS_MAX_GROUPS];
    uint64_t before[FNS_COUNTS]; /* by index in the plan's counters */
    uint64_t counts[FNS_COUNTS]; /* by kind, once it was given back */
};

/* Any number of threads may use them; a forked process must not. fns_cgroups_close(): all leaves
 * were given back. fns_cgroups_remove(): removes the directories, of which those in use are tried again
 * for at most `patience_ms`; -EBUSY: some are left. No leaf is made from then on. */
struct fns_cgroups;
int fns_cgroups_open(struct fns_cgroups **groups, const struct fns_cgroup_plan *plan);
int fns_cgroups_remove(struct fns_cgroups *groups, unsigned patience_ms);
void fns_cgroups_close(struct fns_cgroups *groups);

/* A leaf for one sandbox, and the arguments to enter it; without `groups`: none. 0, or -errno and
 * `error`. fns_leaf_entered(): once the sandbox has started. fns_leaf_give(): once it was reaped, or
 * has not started; leaf->counts are FNS_NO_COUNT where a count is not known. */
int fns_leaf_take(struct fns_cgroups *groups, struct fns_leaf *leaf, struct fns_args *args,
                  struct fns_error *error);
void fns_leaf_entered(struct fns_leaf *leaf);
void fns_leaf_give(struct fns_cgroups *groups, struct fns_leaf *leaf);

struct fns_result {
    int code;   /* CLD_EXITED, CLD_KILLED or CLD_DUMPED */
    int status; /* exit code or signal number */
    struct rusage usage;
    uint64_t end; /* CLOCK_MONOTONIC, ns */
    int lost;     /* errno: a reaper could not tell how the command has ended; 0: it is known */
};

struct fns_process {
    int pid;
    int pidfd;      /* owned by the caller: close it after fns_reap(); -1 with `served`: fds were
                       scarce, see fns_server_look() */
    int control;    /* -1, or the socket a reaper reports the command's status on: close it */
    int served;     /* a server's child */
    int quiet;      /* the same, by fns_server_run(): no pid and pidfd, control is the connection */
    int server;     /* of both: the server's pidfd, which is not its own */
    int number;     /* its number there, or that of what was asked */
    uint64_t start; /* CLOCK_MONOTONIC, ns, before the clone */
    long rss_floor; /* KiB; what the kernel's ru_maxrss of the sandbox starts from: a child that
                        shares memory takes the caller's peak over at its exec (exec_mmap()) */
    int late;       /* killed as its time was over before its program was running */
};

/* A start that waits calls `interrupted` after each signal, and regularly without one, in its own thread. If
 * that returns other than 0, the start ends what it has begun and fails with -EINTR. */
void fns_set_interrupted(int (*interrupted)(void));

/* How long a wait may take: it is none; until what it waits for is there; or no longer than the caller
 * wants it (`interrupted`). */
enum fns_patience { FNS_AT_ONCE, FNS_PATIENT, FNS_MAY_GIVE_UP };

/* Starts one sandbox and returns when its program is running (exec has succeeded) or the start has
 * failed, in which case nothing is left: no process, fd or mapping. -EINTR: the caller gives up.
 * `time_ns`: a sandbox whose program is not running so long after its start is killed, and returned as if
 * it was; 0: never. -ETIME and process->late: its time was over before there was a sandbox. */
int fns_spawn(const struct fns_plan *plan, const struct fns_args *args, uint64_t time_ns,
              struct fns_process *process, struct fns_error *error);

/* A template: starts the server of a plan with FNS_PLAN_SERVER. `null`: an fd >= 3 of /dev/null;
 * `userns`: as in fns_args. The server and all its sandboxes end when the caller does, or its control
 * socket is closed. */
int fns_server_start(const struct fns_plan *plan, int null, int userns, struct fns_process *server,
                     struct fns_error *error);
void fns_server_stop(const struct fns_process *server); /* its fds stay, for who still uses them */
void fns_server_close(struct fns_process *server);

/* A connection for one sandbox at a time; -EPIPE: the server is gone; -EINTR: the caller gives up;
 * -errno. */
int fns_server_connect(const struct fns_process *server, enum fns_patience patience);

/* As fns_spawn(), by a server. With FNS_DETAIL_BROKEN the connection is of no use any more: -EPIPE: its
 * other end was closed, and nothing was started; -ECANCELED: the server was killed meanwhile, and what
 * it started with it. After any other error it may be used again at once. */
int fns_server_spawn(const struct fns_process *server, int connection,
                     const struct fns_plan *sandbox, const struct fns_args *args,
                     struct fns_process *process, struct fns_error *error);

/* Reaps what fns_server_spawn() has started; waits for its end. -ECANCELED: the server is gone. */
int fns_server_reap(int connection, const struct fns_process *process, struct fns_result *result);

/* Asks for a sandbox and does not wait for its start: `process` is quiet, has no pid, and its
 * connection becomes readable when it has ended or could not be started. Then fns_server_end() says
 * how: 0, or the errors of a spawn. Killed by fns_kill_all(), after which the connection is of no use. */
int fns_server_run(const struct fns_process *server, int connection, const struct fns_args *args,
                   struct fns_share share, struct fns_process *process, struct fns_error *error);
int fns_server_end(struct fns_process *process, const struct fns_plan *sandbox,
                   struct fns_result *result, struct fns_error *error);

/* Looks whether a sandbox of the server is alive: 1, with a pidfd of it, which is the caller's to close;
 * 0: it has ended; -errno, -EMFILE too. */
int fns_server_look(int connection, const struct fns_process *process, int *pidfd);

int fns_server_pool(const struct fns_process *server, int connection, struct fns_pool_state *state);

/* From now on a sandbox is made ahead for what this connection is asked: to run or to spawn. After a
 * spawn close it, and park another. */
int fns_server_park(int connection);

/* Writes the id maps of `pid` from outside, as plan->id_map says. */
int fns_write_id_maps(const struct fns_plan *plan, int pid, uint64_t end, struct fns_error *error);

/* The fd that becomes readable when the sandbox ends; -1: it was reaped. */
int fns_end_fd(const struct fns_process *process);

/* How long a wait goes on without looking for signals: one that came while the sandbox was started, or
 * to another thread, interrupts no wait. */
enum { FNS_LOOK_NS = 100000000 };

/* Waits until the sandbox has ended, at most `timeout_ns` (-1: for ever). 1: ended; 0: the time is
 * over; -EINTR: a signal may have come, call again. Does not reap. */
int fns_wait(const struct fns_process *process, int64_t timeout_ns);

/* Whether a sandbox whose end was told can be reaped: not while another process traces it. */
int fns_reapable(const struct fns_process *process);

/* For who waits, at each -EINTR: reaps threads that have made this process their tracer
 * (PTRACE_TRACEME), without which the sandbox does not end. `killed`: the sandbox is to be no more, and a
 * process that traces what has ended of it, and so keeps it, is killed. */
void fns_attend(const struct fns_process *process, int killed);

/* Reaps an ended sandbox that is no server's. -EAGAIN: it has not ended; -ECHILD: somebody else reaped
 * it. */
int fns_reap(const struct fns_process *process, struct fns_result *result);

int fns_kill(const struct fns_process *process, int signal);

/* Kills every process of a sandbox that is not reaped: with its pid namespace, or, without one of
 * its own, the first process and all that descend from it (not a daemon whose parent has ended). */
int fns_kill_all(const struct fns_plan *plan, const struct fns_process *process);
uint64_t fns_now(void);

/* What came out of a stream. */
struct fns_buffer {
    char *data;
    size_t size, capacity;
    uint64_t dropped; /* bytes beyond the limit: read, and not kept */
};
void fns_buffer_free(struct fns_buffer *buffer);

/* Feeds and drains a sandbox's pipes until they are at their end and it has ended. fds are -1 when
 * not used, and are closed (and set to -1) as they reach their end. */
struct fns_io {
    struct fns_process process;
    int fds[3]; /* the caller's ends of stdin, stdout, stderr */
    const char *input;
    size_t input_size, input_done;
    size_t limit; /* bytes kept of each of stdout and stderr; 0: all */
    int capped;   /* over the limit it is to be ended */
    int over;     /* it is capped, and over the limit */
    struct fns_buffer output[2];
    uint64_t deadline; /* CLOCK_MONOTONIC, ns; 0: none */
    int epoll;         /* what watches the fds, and forgets one before it is closed; 0: nothing */
};
enum fns_io_state { FNS_IO_DONE, FNS_IO_TIMEOUT, FNS_IO_OVER };

/* One of fns_io_state, or -EINTR where a signal may have come (call again to go on), or -errno. */
int fns_io_run(struct fns_io *io);

/* After a kill: takes what is in the pipes without waiting for their end, closes them, waits for
 * the process to end. */
int fns_io_finish(struct fns_io *io);
void fns_io_close(struct fns_io *io);

/* A pipe, /dev/null: close-on-exec, at numbers that no stream of a child has. -errno on failure. */
int fns_open_pipe(int ends[2]);
int fns_open_null(void);

/* Which streams of a job are pipes to and from the caller. */
enum fns_pipes {
    FNS_PIPE_STDIN = 1,
    FNS_PIPE_STDOUT = 2,
    FNS_PIPE_STDERR = 4,
    FNS_PIPE_JOINED = 8 /* stderr is wherever stdout is */
};

/* A command to be run to its end: what goes in, then what came out. */
struct fns_job {
    const struct fns_plan *plan;
    const struct fns_process *server; /* of a template, whose plan->sandbox it is; NULL: none */
    struct fns_cgroups *groups;       /* NULL: none */
    struct fns_args args;
    unsigned pipes; /* enum fns_pipes bits */
    const char *input;
    size_t input_size;
    size_t limit;       /* as in fns_io */
    int capped;         /* as in fns_io */
    int64_t timeout_ns; /* -1: none */
    struct fns_share share;

    struct fns_error error; /* stage NONE: it ran */
    struct fns_process process;
    struct fns_result result;
    struct fns_leaf leaf;
    struct fns_buffer output[2];
    int timed_out;
    int over; /* as in fns_io */
};

/* Starts a job, by its server over `connection`; io then is to be run to its end. 0, or -errno and
 * job->error; -EPIPE: the server was gone, and nothing was started. -ETIME and no error: the job's time
 * was over before there was a sandbox; it is finished, as one that was killed for that. */
int fns_job_start(struct fns_job *job, struct fns_io *io, int connection);

/* Starts a job as a process of its own, which is reaped and whose leaf is given back by the caller. 0,
 * or -errno and job->error. */
int fns_job_spawn(struct fns_job *job, int connection);

/* After its io has come to its end: reaps, and moves the results into the job. `late`: it ran out of
 * time, is over its limit, or is to be stopped: killed first. 0, or -errno and job->error. */
int fns_job_finish(struct fns_job *job, struct fns_io *io, int late);

/* Whether the connection of a finished job may be used for another one. */
int fns_job_spares(const struct fns_job *job);

/* Many jobs at once, at most `concurrency` alive, by one loop in the calling thread. `spawn`: they are
 * only started. The jobs have one server, or none has; they stay the caller's and must outlive the
 * batch. */
struct fns_batch;
int fns_batch_open(struct fns_batch **batch, struct fns_job *jobs, size_t n_jobs,
                   unsigned concurrency, int spawn);
/* 1: every job is finished; 0: some time has passed; -EINTR: a signal came (call again to go on). */
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

/* Whether open_tree(2) makes mount namespaces here: Linux 7.0. Asked of the kernel. */
int fns_has_tree_namespaces(void);

/* Whether a bind of `path` can be shown through a user namespace: 0 or -errno. Tried on a copy that nobody
 * sees. */
int fns_can_idmap(const char *path, int recursive, int userns);

/* unshare(2) and setns(2) for the calling thread. */
int fns_unshare(uint64_t flags);
int fns_setns(int fd, uint64_t flags);

#endif
