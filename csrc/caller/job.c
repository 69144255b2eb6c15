/* A command run to its end: its pipes, its start, its reaping. Runs in the caller, without the GIL.
 *
 * What lies between start and end is the loop's (loop.c).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "loop.h"
#include "spawn.h"

/* Makes a job's pipes: the caller's ends, which do not block, go into its io, the sandbox's into the arguments. */
static int make_pipes(struct fns_job *job, struct fns_args *args, int theirs[3])
{
    for (int i = 0; i < 3; i++) {
        int ends[2], ret;
        if (!(job->pipes & (1u << i)))
            continue;
        ret = fns_open_pipe(ends);
        if (ret < 0)
            return ret;
        job->io.fds[i] = ends[i == 0];
        theirs[i] = args->stdio[i] = ends[i != 0];
        if (fcntl(job->io.fds[i], F_SETFL, O_NONBLOCK) < 0)
            return -errno;
        /* Or the command could not open it again (/dev/stderr). Where the caller may not, it stays so. */
        if ((job->plan->pipe_uid || job->plan->pipe_gid) &&
            fchown(ends[0], job->plan->pipe_uid, job->plan->pipe_gid) < 0)
            errno = 0;
    }
    if (job->pipes & FNS_PIPE_JOINED)
        args->stdio[2] = args->stdio[1] >= 0 ? args->stdio[1] : 1;
    return 0;
}

static size_t total(char *const *texts)
{
    size_t size = 0;
    for (; *texts; texts++)
        size += strlen(*texts) + 1;
    return size;
}

/* The kernel copies the arguments into memory charged to the sandbox's cgroup while the sandbox still shares
 * the server's memory. Out of memory there, it would kill all who share it: the server and its sandboxes. */
static int check_arguments(struct fns_job *job)
{
    uint64_t most = job->server ? job->plan->args_max : 0;
    if (most == 0 || total(job->args.argv) + total(job->args.envp) <= most)
        return 0;
    fns_set_error(&job->error, FNS_STAGE_EXEC, -1, E2BIG);
    job->error.detail = FNS_DETAIL_MEMORY;
    return -E2BIG;
}

/* Not an error: the job has ended like one that was killed. */
static void end_killed(struct fns_job *job)
{
    job->error = (struct fns_error){.op_index = -1};
    job->result.code = CLD_KILLED;
    job->result.status = SIGKILL;
    job->result.end = fns_now();
}

/* The part of a job that begins anew with each start. */
static void reset(struct fns_job *job)
{
    struct fns_io *io = &job->io;
    job->cgroup.number = -1;
    io->process = (struct fns_process){.pidfd = -1, .control = -1};
    io->fds[0] = io->fds[1] = io->fds[2] = -1;
}

static int start_process(struct fns_job *job, const struct fns_args *args, int connection)
{
    if (job->server)
        return fns_server_run(job->server, connection, args, job->share, &job->io.process,
                              &job->error);
    return fns_spawn(job->plan, args, job->timeout_ns < 0 ? 0 : (uint64_t)job->timeout_ns + 1,
                     &job->io.process, &job->error);
}

int fns_job_start(struct fns_job *job, int connection)
{
    int theirs[3] = {-1, -1, -1};
    struct fns_args args = job->args;
    struct fns_io *io = &job->io;
    reset(job);
    int ret = check_arguments(job);
    if (ret < 0)
        return ret;
    ret = make_pipes(job, &args, theirs);
    if (ret < 0)
        fns_set_error(&job->error, FNS_STAGE_STDIO, -1, ret);
    else
        ret = fns_cgroup_take(job->groups, &job->cgroup, &args, &job->error);
    if (ret == 0)
        ret = start_process(job, &args, connection);
    for (int i = 0; i < 3; i++)
        if (theirs[i] >= 0)
            close(theirs[i]);
    fns_cgroup_entered(&job->cgroup);
    if (ret < 0) {
        fns_cgroup_give(job->groups, &job->cgroup);
        fns_io_close(io);
    }
    if (ret == -ETIME && io->process.late) { /* before its command ran */
        job->timed_out = 1;
        end_killed(job);
    }
    if (ret < 0)
        return ret;
    if (io->input_size == 0)
        fns_io_close_end(io, 0);
    io->killed = job->timed_out = io->process.late;
    if (job->timeout_ns >= 0 && !io->killed)
        io->deadline = io->process.start + (uint64_t)job->timeout_ns + 1;
    return 0;
}

int fns_job_spawn(struct fns_job *job, int connection)
{
    struct fns_args args = job->args;
    int ret = check_arguments(job);
    if (ret < 0)
        return ret;
    ret = fns_cgroup_take(job->groups, &job->cgroup, &args, &job->error);
    if (ret < 0)
        return ret;
    if (job->server)
        ret = fns_server_spawn(job->server, connection, job->plan, &args, &job->io.process,
                               &job->error);
    else
        ret = fns_spawn(job->plan, &args, 0, &job->io.process, &job->error);
    fns_cgroup_entered(&job->cgroup);
    if (ret < 0)
        fns_cgroup_give(job->groups, &job->cgroup);
    return ret;
}

/* Frees what a buffer has beyond its content: there may be thousands of jobs. */
static void shrink(struct fns_buffer *buffer)
{
    if (buffer->size == 0) {
        free(buffer->data);
        buffer->data = NULL;
        buffer->capacity = 0;
    } else if (buffer->size < buffer->capacity) {
        char *data = realloc(buffer->data, buffer->size);
        buffer->data = data ? data : buffer->data;
        buffer->capacity = data ? buffer->size : buffer->capacity;
    }
}

static int reap(struct fns_job *job)
{
    struct fns_process *process = &job->io.process;
    if (process->quiet)
        return fns_server_end(process, job->plan, &job->result, &job->error);
    int ret = fns_reap(process, &job->result);
    if (ret < 0)
        fns_set_error(&job->error, FNS_STAGE_WAIT, -1, ret);
    else if (job->result.lost)
        ret = fns_set_error(&job->error, FNS_STAGE_INIT, -1, job->result.lost);
    if (ret < 0 && ret != -ECHILD && !job->result.lost)
        fns_discard(process->pidfd);
    else
        close(process->pidfd);
    if (process->control >= 0)
        close(process->control);
    process->pidfd = process->control = -1;
    return ret;
}

void fns_job_kill(struct fns_job *job)
{
    job->io.killed = 1;
    job->io.deadline = 0;
    fns_kill_all(job->plan, &job->io.process);
}

void fns_job_finish(struct fns_job *job)
{
    struct fns_io *io = &job->io;
    int ret = io->killed ? fns_io_finish(io) : 0;
    fns_io_close(io);
    int reaped = reap(job);
    fns_cgroup_give(job->groups, &job->cgroup);
    /* BROKEN: killed together with the server, which did not answer. */
    if (reaped < 0 && io->killed &&
        (job->error.detail == FNS_DETAIL_KILLED || job->error.detail == FNS_DETAIL_BROKEN)) {
        end_killed(job);
        reaped = 0;
    }
    if (io->failed) /* this counts, not how the sandbox ended that was killed for it */
        fns_set_error(&job->error, FNS_STAGE_STDIO, -1, io->failed);
    else if (reaped == 0 && ret < 0)
        fns_set_error(&job->error, FNS_STAGE_STDIO, -1, ret);
    shrink(&io->output[0]);
    shrink(&io->output[1]);
}

int fns_job_spares(const struct fns_job *job)
{
    return !job->io.killed && job->error.detail != FNS_DETAIL_BROKEN;
}

int fns_job_unsent(const struct fns_job *job)
{
    return job->error.detail == FNS_DETAIL_BROKEN && job->error.err == ECANCELED &&
           !job->io.process.quiet;
}
