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

/* Checks that a plan's codes and stages are known, that its offsets and data are inside its strings, and that its
 * options fit each other. A checked plan is trusted. -EINVAL, and the index of the bad op (-1: no op is at fault). */
int fns_plan_check(const struct fns_plan *plan, int *bad_op);

/* Sets the program (program/main.c) to a copy of these bytes. Call it once, before the first spawn. */
int fns_set_program(const void *bytes, size_t size);

/* Returns the paths to try for a command: the command itself if it has a slash, otherwise its name in each directory.
 * The list ends with NULL and is one block, which the caller frees. NULL: no memory. */
char **fns_command_paths(const char *command, char *const *directories);

/* Makes a plan->file, in which the plan's first start may keep a memory file of the plan for later starts. NULL: no
 * memory. Free it only while no start of the plan is under way. */
struct fns_file *fns_file_new(void);
void fns_file_free(struct fns_file *file);

/* Makes a user namespace with these id maps, which are lines of "inside outside count\n". `inotify` limits its inotify
 * instances; NULL: no limit. Returns an fd >= 3 of the namespace, or -errno and `error`. */
int fns_userns_open(const char *uid_map, const char *gid_map, const char *inotify,
                    struct fns_error *error);

/* Returns an fd of the user namespace that maps its first `count` ids to those from `uid` and `gid` on outside. The
 * first call makes the namespace with fns_userns_open(), as does a call after the application has closed the fd. The
 * caller must not close the fd. -errno and `error` on failure. One thread at a time. */
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
    uint64_t scale;         /* the number read is multiplied by this */
    uint32_t peak;          /* a maximum, not a sum */
    /* The text that resets the counter when written to the file. "": no text does, so each sandbox gets a new cgroup in
     * this hierarchy. NULL: the counter is not reset. */
    const char *reset;
};

/* How the cgroups of sandboxes are made and read. The pointers belong to the caller, and must outlive the pool. */
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
    int shared; /* by the commands of a container; it is the container's to give back */
    uint32_t n_fds, clone_into;
    int fds[FNS_MAX_GROUPS];
    uint64_t before[FNS_COUNTS]; /* the plan's counters before the start */
    uint64_t counts[FNS_COUNTS]; /* by kind; set by fns_cgroup_give() */
};

/* A pool of cgroups. Any number of threads may use it, but a forked process must not. fns_cgroups_remove() removes the
 * directories, and retries those in use for at most `patience_ms`; -EBUSY: some are left. The pool makes no cgroup
 * after that. Call fns_cgroups_close() once all cgroups have been given back. */
struct fns_cgroups;
int fns_cgroups_open(struct fns_cgroups **groups, const struct fns_cgroup_plan *plan);
int fns_cgroups_remove(struct fns_cgroups *groups, unsigned patience_ms);
void fns_cgroups_close(struct fns_cgroups *groups);

/* fns_cgroup_take() takes a cgroup for one sandbox, and sets the arguments with which the sandbox enters it. `groups`
 * NULL: no cgroup. 0, or -errno and `error`. Call fns_cgroup_entered() when the start has ended: it closes the fds.
 * Call fns_cgroup_give() when the sandbox has been reaped or its start has failed: it reads the counters. */
int fns_cgroup_take(struct fns_cgroups *groups, struct fns_cgroup *cgroup, struct fns_args *args,
                    struct fns_error *error);
void fns_cgroup_entered(struct fns_cgroup *cgroup);
/* Instead of fns_cgroup_take(), for a command of a container, whose cgroup is `whole`. Of the command's counts, only those
 * are known that may be the cause of its end. */
void fns_cgroup_share(struct fns_cgroups *groups, const struct fns_cgroup *whole,
                      struct fns_cgroup *cgroup);
void fns_cgroup_give(struct fns_cgroups *groups, struct fns_cgroup *cgroup);

/* After fns_cgroup_give(): whether the CPU time was used up, and so everything in the cgroup was killed. */
static inline int fns_is_over(const struct fns_cgroup *cgroup)
{
    return cgroup->counts[FNS_COUNT_CPU_TIME_OVER] == 1;
}

struct fns_result {
    int code;   /* CLD_EXITED, CLD_KILLED or CLD_DUMPED */
    int status; /* exit code or signal number */
    struct rusage usage;
    uint64_t queued; /* ns that the job waited in a template's server for its turn */
    uint64_t executed,
        ended;    /* when the command was executed, and had ended: CLOCK_MONOTONIC, ns */
    uint64_t end; /* when it was reaped */
    int reused;   /* from a template's server: its room had served before */
    int lost;     /* errno: a reaper could not report how the command ended; 0: it could */
};

/* A sandbox. */
struct fns_process {
    int served; /* a child of a template's server, from fns_server_spawn() */
    int remote; /* the same, from fns_server_run(): no pid or pidfd; its end is reported over `control` */
    int server; /* with `served` or `remote`: the server's pidfd, which the server's fns_process owns */
    int number; /* with `served`: its number in the server; with `remote`: the request's number */
    int pid;
    int pidfd; /* closed by the caller after fns_reap(); with `served`: -1 if few fds were free */
    int control; /* where a reaper reports the command's end; with `remote`: the connection; -1: none */
    int timed_out;  /* killed because its time was over before its command ran */
    uint64_t start; /* CLOCK_MONOTONIC, ns, before the clone */
    /* KiB. The sandbox's ru_maxrss is never lower: a process that shares the caller's memory inherits the caller's peak
     * at its exec (exec_mmap()). */
    long rss_floor;
};

/* Sets the function that a waiting start calls, in its own thread, after each signal and every FNS_LOOK_NS. If the
 * function returns nonzero, the caller gives up: the start ends what it has begun and fails with -EINTR. */
void fns_set_interrupted(int (*interrupted)(void));

/* How long to wait: not at all; until it is done; until it is done or the caller gives up. */
enum fns_patience { FNS_AT_ONCE, FNS_PATIENT, FNS_MAY_GIVE_UP };

/* Starts one sandbox. Returns when its command has been executed or the start has failed. A failed start leaves no
 * process, fd or mapping behind. -EINTR: the caller gives up. A sandbox that has not executed its command within
 * `time_ns` (0: no limit) is killed; it is then returned as started, with process->timed_out set. -ETIME, also with
 * process->timed_out set: the time was over before there was a sandbox. */
int fns_spawn(const struct fns_plan *plan, const struct fns_args *args, uint64_t time_ns,
              struct fns_process *process, struct fns_error *error);

/* Starts the server of a template or a container, from a plan with FNS_PLAN_SERVER. `null`: an fd >= 3 of /dev/null;
 * `userns`: as in fns_args. The server enters a cgroup of `groups`, which the caller gives back after its end (NULL: it
 * enters none). The server and all its sandboxes end when the caller ends or the control socket is closed. */
int fns_server_start(const struct fns_plan *plan, int null, int userns, struct fns_cgroups *groups,
                     struct fns_cgroup *cgroup, struct fns_process *server,
                     struct fns_error *error);
void fns_server_stop(const struct fns_process *server); /* its fds stay open for other threads */
void fns_server_close(struct fns_process *server);

/* Opens a connection, which serves one sandbox at a time. Returns its socket; -EPIPE: the server is gone; -EINTR: the
 * caller gives up; -errno. */
int fns_server_connect(const struct fns_process *server, enum fns_patience patience);

/* Closes a connection, even if a forked process has it open too: its room ends. */
void fns_server_disconnect(int connection);

/* Like fns_spawn(), but the server starts the sandbox. -EPIPE: the connection's other end was closed, and nothing was
 * started; -ECANCELED: the server was killed, and every sandbox with it. After an error with FNS_DETAIL_BROKEN the
 * connection cannot be used again. After any other error it can be used again at once. */
int fns_server_spawn(const struct fns_process *server, int connection,
                     const struct fns_plan *sandbox, const struct fns_args *args,
                     struct fns_process *process, struct fns_error *error);

/* Waits for the end of a sandbox from fns_server_spawn(), and reaps it. -ECANCELED: the server is gone. */
int fns_server_reap(int connection, const struct fns_process *process, struct fns_result *result);

/* Kills such a sandbox, then acts as fns_server_reap(). In a container it kills all that the command has started. */
int fns_server_kill(int connection, const struct fns_process *process, struct fns_result *result);

/* fns_server_run() requests a sandbox without waiting for its start, and sets process->remote. The connection becomes
 * readable when the sandbox has ended or could not be started. Then fns_server_end() returns 0, or fails like
 * fns_server_spawn(). After fns_kill_all() of such a process, its connection cannot be used again. */
int fns_server_run(const struct fns_process *server, int connection, const struct fns_args *args,
                   struct fns_share share, struct fns_process *process, struct fns_error *error);
int fns_server_end(struct fns_process *process, const struct fns_plan *sandbox,
                   struct fns_result *result, struct fns_error *error);

/* Whether a sandbox of the server is alive. 1: it is, and `*pidfd` refers to it, which the caller closes; 0: it has
 * ended; -errno, for example if no fd is free. */
int fns_server_look(int connection, const struct fns_process *process, int *pidfd);

int fns_server_stats(const struct fns_process *server, int connection, struct fns_stats *stats);

/* Asks the server to make sandboxes ahead for the requests on this connection. After an fns_server_spawn(), close the
 * connection and park on another. */
int fns_server_park(int connection);

/* The fd that becomes readable when the sandbox ends; -1: it was reaped. */
int fns_end_fd(const struct fns_process *process);

/* A wait returns this often, so that the caller can check for signals: a signal that came before the wait, or to
 * another thread, does not interrupt it. */
enum { FNS_LOOK_NS = 100000000 };

/* Waits until the sandbox has ended, at most `timeout_ns` (-1: no limit). Does not reap it. 1: it has ended; 0: the
 * time is over; -EINTR: a signal may have come, call again. */
int fns_wait(const struct fns_process *process, int64_t timeout_ns);

/* Call it after each -EINTR of a wait. Reaps threads that made this process their tracer (PTRACE_TRACEME): otherwise
 * the sandbox would never end. Continues a stopped server. `killed`: the sandbox was killed, so kills a stopped server,
 * and any process that keeps the sandbox from ending by tracing it. */
void fns_attend(const struct fns_process *process, int killed);

/* Reaps a sandbox that was not started by a server. -EAGAIN: it has not ended; -ECHILD: another part of this process
 * has reaped it. */
int fns_reap(const struct fns_process *process, struct fns_result *result);

int fns_kill(const struct fns_process *process, int signal);

/* Kills every process of a sandbox that has not been reaped. Without a pid namespace of its own, kills its first
 * process and that process's descendants, but not a daemon whose parent has ended. */
int fns_kill_all(const struct fns_plan *plan, const struct fns_process *process);

uint64_t fns_now(void); /* CLOCK_MONOTONIC, ns */

/* The bytes read from a stream. */
struct fns_buffer {
    char *data;
    size_t size, capacity;
    uint64_t dropped; /* bytes over the limit */
};
void fns_buffer_free(struct fns_buffer *buffer);

/* A sandbox to wait for, and its pipes. An fd is -1 if there is no pipe, or once it was closed at the end of its
 * stream. */
struct fns_io {
    struct fns_process process;
    int fds[3]; /* the caller's ends of stdin, stdout, stderr */
    const char *input;
    size_t input_size, input_done;
    size_t limit;      /* bytes kept of each of stdout and stderr; 0: all */
    int capped;        /* kill a sandbox that writes more than that */
    uint64_t deadline; /* CLOCK_MONOTONIC, ns; 0: none */
    struct fns_buffer output[2];
    int over; /* it is capped, and has written more than `limit` */

    /* For the loop (loop.c). */
    int killed; /* by this process: do not wait for the ends of its pipes */
    int ended;  /* it can be reaped */
    int failed; /* -errno of a pipe; 0: none */
    /* When to check again whether a tracer still keeps the sandbox from ending; 0: none does. */
    uint64_t recheck;
};
enum fns_io_state { FNS_IO_DONE, FNS_IO_TIMEOUT, FNS_IO_OVER, FNS_IO_RUNS };

/* Makes the pipes non-blocking, once before the first fns_io_run(). */
void fns_io_prepare(struct fns_io *io);

/* Feeds and drains the pipes until the sandbox has ended and all its output is read, or until it exceeds a limit.
 * Returns an fns_io_state other than RUNS; -EINTR: a signal may have come, call again; -errno. */
int fns_io_run(struct fns_io *io);

/* After a kill: waits for the end of the sandbox, reads what is in the pipes, and closes them. */
int fns_io_finish(struct fns_io *io);
void fns_io_close(struct fns_io *io);

/* These open a pipe and /dev/null. The fds are >= 3 and close-on-exec. 0 for a pipe, the fd of /dev/null; -errno. */
int fns_open_pipe(int ends[2]);
int fns_open_null(void);

/* Which streams of a job are pipes to and from the caller. */
enum fns_pipes {
    FNS_PIPE_STDIN = 1,
    FNS_PIPE_STDOUT = 2,
    FNS_PIPE_STDERR = 4,
    FNS_PIPE_JOINED = 8 /* stderr goes where stdout goes */
};

/* A command to run to its end: first what the caller sets, then the results. */
struct fns_job {
    const struct fns_plan *plan;
    const struct fns_process *server; /* a template's, whose plan->sandbox is `plan`; NULL: none */
    struct fns_cgroups *groups;       /* NULL: none */
    const struct fns_cgroup *whole;   /* a container's, which its commands share; NULL: none */
    struct fns_args args;
    unsigned pipes;     /* enum fns_pipes bits */
    int connection;     /* for a batch's only job: to the server, closed by the caller; 0: none */
    int64_t timeout_ns; /* -1: none */
    struct fns_share share;
    struct fns_io io; /* the caller sets input, limit and capped */

    struct fns_error error; /* stage NONE: it ran */
    struct fns_result result;
    struct fns_cgroup cgroup;
    int timed_out;
};

/* These run a job in three steps. fns_job_start() starts it, over `connection` if it has a server. 0, or -errno and
 * job->error. -ETIME without an error: its time was over before there was a sandbox; the job is finished, as if it had
 * been killed. fns_job_kill() kills a running job. fns_job_finish(), called once the sandbox has ended or was killed,
 * reaps it, closes its pipes and sets the job's results. */
int fns_job_start(struct fns_job *job, int connection);
void fns_job_kill(struct fns_job *job);
void fns_job_finish(struct fns_job *job);

/* Starts a job's sandbox in the same way, but without pipes or a time limit. The caller reaps the sandbox and gives its
 * cgroup back. 0, or -errno and job->error. */
int fns_job_spawn(struct fns_job *job, int connection);

/* Whether another job may use the connection of a finished one. */
int fns_job_spares(const struct fns_job *job);

/* Whether a job's server was gone before the job was sent. If so, another server can run the job. */
int fns_job_unsent(const struct fns_job *job);

/* Runs jobs in the calling thread, at most `concurrency` at once. `spawn`: only starts them. All jobs have the same
 * server, or none has one. The caller owns the jobs, which must outlive the batch. */
struct fns_batch;
int fns_batch_open(struct fns_batch **batch, struct fns_job *jobs, size_t n_jobs,
                   unsigned concurrency, int spawn);
/* 1: every job is finished; 0: call again, a signal may have come; -errno. */
int fns_batch_run(struct fns_batch *batch);
/* How many are finished. */
size_t fns_batch_done(const struct fns_batch *batch);
/* For a template with rooms, each of which has its connection. fns_batch_give() lets the batch use an idle one before
 * it opens others: 0, or -ENOSPC if it has enough. fns_batch_take() takes one back that is idle again: a connection, or
 * -1 if there is none. */
int fns_batch_give(struct fns_batch *batch, int connection);
int fns_batch_take(struct fns_batch *batch);
/* Kills and reaps what it runs, closes its connections, and frees the batch. */
void fns_batch_close(struct fns_batch *batch);

/* The calling thread's effective capabilities, a bit each (capabilities(7)). */
int fns_capabilities(uint64_t *effective);

/* Whether this process owns its files in /proc (PR_GET_DUMPABLE, prctl(2)): 1 or 0; -errno. */
int fns_is_dumpable(void);

/* The kernel's Landlock ABI version. -errno: it has none, or the call is refused. */
int fns_landlock_abi(void);

/* Whether open_tree(2) makes mount namespaces here (Linux 7.0). */
int fns_has_tree_namespaces(void);

/* Whether a bind of `path` can be idmapped to a user namespace: 0 or -errno. Tries it on a detached copy. */
int fns_can_idmap(const char *path, int recursive, int userns);

#endif
