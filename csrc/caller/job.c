/* A command run to its end: pipes, the start, the reaping. Runs in the parent, without the GIL.
 *
 * What lies between start and end, the io, is fns_io_run()'s for one job and a batch's own loop for
 * many (batch.c).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "spawn.h"

/* Makes a job's pipes: the caller's ends into io, the child's into the arguments. */
static int make_pipes(const struct fns_job *job, struct fns_io *io, struct fns_args *args,
                      int theirs[3])
{
    for (int i = 0; i < 3; i++) {
        int ends[2], ret;
        if (!(job->pipes & (1u << i)))
            continue;
        ret = fns_open_pipe(ends);
        if (ret < 0)
            return ret;
        /* Or who runs there could not open it anew (/dev/stderr). Done as far as the caller may. */
        if ((job->plan->pipe_uid || job->plan->pipe_gid) &&
            fchown(ends[0], job->plan->pipe_uid, job->plan->pipe_gid) < 0)
            errno = 0;
        io->fds[i] = ends[i == 0];
        theirs[i] = args->stdio[i] = ends[i != 0];
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

/* No error: it ends like one that was killed. */
static void end_killed(struct fns_job *job)
{
    job->error = (struct fns_error){.op_index = -1};
    job->result.code = CLD_KILLED;
    job->result.status = SIGKILL;
    job->result.end = fns_now();
}

int fns_job_start(struct fns_job *job, struct fns_io *io, int connection)
{
    int theirs[3] = {-1, -1, -1};
    struct fns_args args = job->args;
    job->leaf.number = -1;
    *io = (struct fns_io){.process = {.pidfd = -1, .control = -1},
                          .fds = {-1, -1, -1},
                          .input = job->input,
                          .input_size = job->input_size,
                          .limit = job->limit,
                          .capped = job->capped};
    int ret = check_arguments(job);
    if (ret < 0)
        return ret;
    ret = make_pipes(job, io, &args, theirs);
    if (ret < 0)
        fns_set_error(&job->error, FNS_STAGE_STDIO, -1, ret);
    else
        ret = fns_leaf_take(job->groups, &job->leaf, &args, &job->error);
    if (ret < 0)
        ;
    else if (job->server)
        ret =
            fns_server_run(job->server, connection, &args, job->share, &job->process, &job->error);
    else
        ret = fns_spawn(job->plan, &args, job->timeout_ns < 0 ? 0 : (uint64_t)job->timeout_ns + 1,
                        &job->process, &job->error);
    for (int i = 0; i < 3; i++)
        if (theirs[i] >= 0)
            close(theirs[i]);
    fns_leaf_entered(&job->leaf);
    if (ret < 0) {
        fns_leaf_give(job->groups, &job->leaf);
        fns_io_close(io);
        if (ret == -ETIME && job->process.late) { /* before its command ran */
            job->timed_out = 1;
            end_killed(job);
        }
        return ret;
    }
    io->process = job->process;
    if (job->timeout_ns >= 0)
        io->deadline = job->process.start + (uint64_t)job->timeout_ns + 1;
    return 0;
}

int fns_job_spawn(struct fns_job *job, int connection)
{
    struct fns_args args = job->args;
    int ret = check_arguments(job);
    if (ret < 0)
        return ret;
    ret = fns_leaf_take(job->groups, &job->leaf, &args, &job->error);
    if (ret < 0)
        return ret;
    if (job->server)
        ret =
            fns_server_spawn(job->server, connection, job->plan, &args, &job->process, &job->error);
    else
        ret = fns_spawn(job->plan, &args, 0, &job->process, &job->error);
    fns_leaf_entered(&job->leaf);
    if (ret < 0)
        fns_leaf_give(job->groups, &job->leaf);
    return ret;
}

/* Gives back what a buffer has grown beyond its content: there may be thousands of jobs. */
static struct fns_buffer shrunk(struct fns_buffer buffer)
{
    if (buffer.size == 0) {
        fns_buffer_free(&buffer);
    } else if (buffer.size < buffer.capacity) {
        char *data = realloc(buffer.data, buffer.size);
        if (data) {
            buffer.data = data;
            buffer.capacity = buffer.size;
        }
    }
    return buffer;
}

static int reap(struct fns_job *job)
{
    struct fns_process *process = &job->process;
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

int fns_job_finish(struct fns_job *job, struct fns_io *io, int late)
{
    int ret = 0;
    if (late) {
        fns_kill_all(job->plan, &job->process);
        ret = fns_io_finish(io);
    }
    fns_io_close(io);
    int reaped = reap(job);
    job->over = io->over;
    fns_leaf_give(job->groups, &job->leaf);
    /* BROKEN: killed together with the server, which did not answer. */
    if (reaped < 0 && (job->timed_out || job->over) &&
        (job->error.detail == FNS_DETAIL_KILLED || job->error.detail == FNS_DETAIL_BROKEN)) {
        end_killed(job);
        reaped = 0;
    }
    if (reaped == 0 && ret < 0)
        fns_set_error(&job->error, FNS_STAGE_STDIO, -1, ret);
    for (int i = 0; i < 2; i++)
        job->output[i] = shrunk(io->output[i]);
    return reaped < 0 ? reaped : ret;
}

int fns_job_spares(const struct fns_job *job)
{
    return !job->timed_out && !job->over && job->error.detail != FNS_DETAIL_BROKEN;
}
