/* Runs jobs to their end, one or many at once. Runs in the caller's thread, without the GIL.
 *
 * Each job that is alive has a slot of the loop (loop.c). With a template's server, each slot also has a connection,
 * which the slot's next job reuses. A few more jobs are sent than may be alive, so that the server can start the next
 * one as soon as one ends.
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

enum { LARGE_PIPE = 1 << 20 };

/* ---- one job ------------------------------------------------------------------------------------ */

/* Makes a job's pipes. The caller's ends are non-blocking and go into job->io. The sandbox's ends go into the arguments
 * and into `theirs`, to be closed after the start. */
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
        if (job->args.transfer && fcntl(ends[0], F_SETPIPE_SZ, LARGE_PIPE) < 0)
            errno = 0; /* it is only slower */
        /* A command can open a pipe again (/dev/stderr) only if it owns the pipe. Ignore an error: the caller may lack
         * the right to change the owner. */
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

/* Refuses arguments that could exceed the sandbox's memory limit. The kernel charges their copy to the sandbox's cgroup
 * while the sandbox still shares the server's memory, and the OOM killer would end all processes that share it. */
static int check_arguments(struct fns_job *job)
{
    uint64_t most = job->server ? job->plan->args_max : 0;
    if (most == 0 || total(job->args.argv) + total(job->args.envp) <= most)
        return 0;
    fns_set_error(&job->error, FNS_STAGE_EXEC, -1, E2BIG);
    job->error.detail = FNS_DETAIL_MEMORY;
    return -E2BIG;
}

/* Sets the result of a killed sandbox, and no error. */
static void end_killed(struct fns_job *job)
{
    job->error = (struct fns_error){.op_index = -1};
    job->result.code = CLD_KILLED;
    job->result.status = SIGKILL;
    job->result.end = job->result.ended = fns_now();
}

/* Starts the sandbox in a cgroup of its own. `runs`: fns_job_finish() will reap it, otherwise the caller does. 0, or
 * -errno and job->error. */
static int start_process(struct fns_job *job, struct fns_args *args, int connection, int runs)
{
    struct fns_process *process = &job->io.process;
    uint64_t time_ns = runs && job->timeout_ns >= 0 ? (uint64_t)job->timeout_ns + 1 : 0;
    int ret = 0;
    if (job->whole)
        fns_cgroup_share(job->groups, job->whole, &job->cgroup);
    else
        ret = fns_cgroup_take(job->groups, &job->cgroup, args, &job->error);
    if (ret < 0)
        return ret;
    if (!job->server)
        ret = fns_spawn(job->plan, args, time_ns, process, &job->error);
    else if (runs)
        ret = fns_server_run(job->server, connection, args, job->share, process, &job->error);
    else
        ret = fns_server_spawn(job->server, connection, job->plan, args, process, &job->error);
    fns_cgroup_entered(&job->cgroup);
    job->result.executed = fns_now(); /* of a direct start; a server reports when */
    if (ret < 0)
        fns_cgroup_give(job->groups, &job->cgroup);
    return ret;
}

int fns_job_spawn(struct fns_job *job, int connection)
{
    struct fns_args args = job->args;
    int ret = check_arguments(job);
    return ret < 0 ? ret : start_process(job, &args, connection, 0);
}

int fns_job_start(struct fns_job *job, int connection)
{
    int theirs[3] = {-1, -1, -1};
    struct fns_args args = job->args;
    struct fns_io *io = &job->io;
    job->cgroup.number = -1;
    io->process = (struct fns_process){.pidfd = -1, .control = -1};
    io->fds[0] = io->fds[1] = io->fds[2] = -1;
    int ret = check_arguments(job);
    if (ret < 0)
        return ret;
    ret = make_pipes(job, &args, theirs);
    if (ret < 0)
        fns_set_error(&job->error, FNS_STAGE_STDIO, -1, ret);
    else
        ret = start_process(job, &args, connection, 1);
    for (int i = 0; i < 3; i++)
        fns_close_fd(&theirs[i]);
    if (ret < 0) {
        fns_io_close(io);
        job->timed_out = ret == -ETIME && io->process.timed_out;
        if (job->timed_out)
            end_killed(job);
        return ret;
    }
    io->killed = job->timed_out = io->process.timed_out;
    if (io->input_size == 0)
        fns_close_fd(&io->fds[0]);
    if (job->timeout_ns >= 0 && !io->killed)
        io->deadline = io->process.start + (uint64_t)job->timeout_ns + 1;
    return 0;
}

/* Frees the unused part of a buffer, as there may be thousands of jobs. */
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
    if (process->remote)
        return fns_server_end(process, job->plan, &job->result, &job->error);
    int ret = fns_reap(process, &job->result);
    if (ret < 0)
        fns_set_error(&job->error, FNS_STAGE_WAIT, -1, ret);
    else if (job->result.lost)
        ret = fns_set_error(&job->error, FNS_STAGE_INIT, -1, job->result.lost);
    if (ret < 0 && ret != -ECHILD && !job->result.lost)
        fns_end(process->pidfd);
    fns_close_fd(&process->pidfd);
    fns_close_fd(&process->control);
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
    job->result.ended = fns_now(); /* as above */
    fns_io_close(io);
    int reaped = reap(job);
    fns_cgroup_give(job->groups, &job->cgroup);
    /* BROKEN: the server did not reply and was killed, and the sandbox with it. */
    if (reaped < 0 && io->killed &&
        (job->error.detail == FNS_DETAIL_KILLED || job->error.detail == FNS_DETAIL_BROKEN)) {
        end_killed(job);
        reaped = 0;
    }
    if (reaped < 0 && job->whole && fns_is_over(&job->cgroup)) {
        io->killed = 1; /* with its container */
        end_killed(job);
        reaped = 0;
    }
    if (io->failed) /* why the sandbox was killed */
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
           !job->io.process.remote;
}

/* ---- a batch ------------------------------------------------------------------------------------ */

#define MAX_AHEAD 4u /* jobs queued in the server */

struct slot {
    struct fns_job *job; /* NULL: the slot is free */
    int connection;      /* 0: none yet */
};

struct fns_batch {
    struct fns_job *jobs;
    size_t n_jobs, next, done;
    int spawn;
    struct fns_share share;
    unsigned alive;
    unsigned timed; /* how many of these have a time limit */
    int scarce;     /* few fds are free: no more jobs are sent ahead */
    struct fns_loop loop;
    struct slot slots[];
};

static unsigned count_slots(const struct fns_job *jobs, size_t n_jobs, unsigned concurrency,
                            int spawn)
{
    /* A room takes its requests itself, so none wait in the server. */
    int queues = n_jobs && jobs[0].server && !(jobs[0].plan->options & FNS_PLAN_ROOMS);
    unsigned ahead = queues ? concurrency : 0;
    size_t n = concurrency + (ahead < MAX_AHEAD ? ahead : MAX_AHEAD);
    return spawn ? 1 : (unsigned)(n < n_jobs ? n : n_jobs);
}

int fns_batch_open(struct fns_batch **out, struct fns_job *jobs, size_t n_jobs,
                   unsigned concurrency, int spawn)
{
    unsigned n_slots = count_slots(jobs, n_jobs, concurrency, spawn);
    struct fns_batch *batch = calloc(1, sizeof *batch + n_slots * sizeof *batch->slots);
    int ret = batch ? fns_loop_open(&batch->loop, n_slots) : -ENOMEM;
    if (ret < 0) {
        free(batch);
        return ret;
    }
    batch->jobs = jobs;
    batch->n_jobs = n_jobs;
    batch->spawn = spawn;
    batch->share = (struct fns_share){fns_next_number(), concurrency};
    *out = batch;
    return 0;
}

static void disconnect(struct fns_batch *batch, unsigned slot)
{
    int connection = batch->slots[slot].connection;
    fns_loop_remove(&batch->loop, slot, 0);
    if (connection && connection != batch->jobs[0].connection)
        fns_server_disconnect(connection);
    batch->slots[slot].connection = 0;
}

static int connect_slot(struct fns_batch *batch, unsigned slot, struct fns_job *job)
{
    int *connection = &batch->slots[slot].connection;
    if (!job->server || *connection)
        return 0;
    int ret = job->connection ? job->connection : fns_server_connect(job->server, FNS_MAY_GIVE_UP);
    if (ret < 0)
        return fns_set_error(&job->error, FNS_STAGE_HELPER, -1, ret == -EPIPE ? ECANCELED : ret);
    *connection = ret;
    return 0;
}

/* Finishes the slot's job, which has ended or was killed. */
static void finish(struct fns_batch *batch, unsigned slot)
{
    struct fns_job *job = batch->slots[slot].job;
    fns_loop_remove(&batch->loop, slot, job->server != NULL);
    fns_job_finish(job);
    if (!fns_job_spares(job))
        disconnect(batch, slot);
    batch->slots[slot].job = NULL;
    batch->alive--;
    batch->timed -= job->timeout_ns >= 0;
    batch->done++;
}

/* Finishes or kills the slot's job if its state asks for it. */
static void settle(struct fns_batch *batch, unsigned slot)
{
    struct fns_job *job = batch->slots[slot].job;
    int state = fns_io_state(&job->io, batch->loop.now);
    if (state == FNS_IO_RUNS)
        return;
    if (state != FNS_IO_DONE) {
        job->timed_out |= state == FNS_IO_TIMEOUT;
        fns_job_kill(job);
    }
    if (state < 0 || fns_io_state(&job->io, batch->loop.now) == FNS_IO_DONE)
        finish(batch, slot);
}

static void start(struct fns_batch *batch, unsigned slot, struct fns_job *job)
{
    int ret = connect_slot(batch, slot, job);
    job->share = batch->share;
    if (ret == 0)
        ret = fns_job_start(job, batch->slots[slot].connection);
    if (ret < 0 && !fns_job_spares(job))
        disconnect(batch, slot);
    if (ret < 0 && batch->alive >= batch->share.most &&
        (job->error.err == EMFILE || job->error.err == ENFILE)) { /* sent ahead: retry it later */
        job->error = (struct fns_error){.op_index = -1};
        batch->scarce = 1;
        batch->next--;
        return;
    }
    if (ret < 0) {
        batch->done++;
        return;
    }
    batch->slots[slot].job = job;
    batch->alive++;
    batch->timed += job->timeout_ns >= 0;
    ret = fns_loop_add(&batch->loop, slot, &job->io);
    if (ret < 0) {
        job->io.failed = ret;
        settle(batch, slot);
    }
}

/* Whether the next job may be sent now. A job with a time limit is never sent ahead, as its clock would start at once.
 * While one is alive, no other job is sent ahead either, as the server could receive that one first. */
static int may_send(const struct fns_batch *batch)
{
    if (batch->next == batch->n_jobs)
        return 0;
    int ahead = !batch->scarce && batch->timed == 0 && batch->jobs[batch->next].timeout_ns < 0;
    return batch->alive < batch->share.most || ahead;
}

static void start_some(struct fns_batch *batch, uint64_t until)
{
    for (unsigned i = 0; i < batch->loop.n_slots && may_send(batch); i++)
        while (!batch->slots[i].job && may_send(batch) && fns_now() < until)
            start(batch, i, &batch->jobs[batch->next++]);
}

static int run(struct fns_batch *batch)
{
    uint64_t until = fns_now() + FNS_LOOK_NS;
    while (batch->done < batch->n_jobs) {
        start_some(batch, until);
        int ret = fns_now() >= until ? -EINTR
                  : batch->alive     ? fns_loop_turn(&batch->loop, until)
                                     : 0;
        if (ret < 0) {
            fns_loop_attend(&batch->loop);
            return ret == -EINTR ? 0 : ret;
        }
        for (unsigned i = 0; i < batch->loop.n_slots; i++) {
            if (batch->loop.watches[i].touched && batch->slots[i].job)
                settle(batch, i);
            batch->loop.watches[i].touched = 0;
        }
    }
    return 1;
}

static int spawn(struct fns_batch *batch)
{
    uint64_t until = fns_now() + FNS_LOOK_NS;
    for (; batch->next < batch->n_jobs; batch->next++, batch->done++) {
        struct fns_job *job = &batch->jobs[batch->next];
        if (fns_now() >= until)
            return 0;
        if (connect_slot(batch, 0, job) == 0) {
            fns_job_spawn(job, batch->slots[0].connection);
            if (!fns_job_spares(job))
                disconnect(batch, 0);
        }
    }
    return 1;
}

int fns_batch_run(struct fns_batch *batch)
{
    return batch->spawn ? spawn(batch) : run(batch);
}

size_t fns_batch_done(const struct fns_batch *batch)
{
    return batch->done;
}

int fns_batch_give(struct fns_batch *batch, int connection)
{
    for (unsigned i = 0; i < batch->loop.n_slots; i++)
        if (!batch->slots[i].connection) {
            batch->slots[i].connection = connection;
            return 0;
        }
    return -ENOSPC;
}

int fns_batch_take(struct fns_batch *batch)
{
    for (unsigned i = 0; i < batch->loop.n_slots; i++) {
        int connection = batch->slots[i].connection;
        if (batch->slots[i].job || !connection || connection == batch->jobs[0].connection)
            continue;
        fns_loop_remove(&batch->loop, i, 0);
        batch->slots[i].connection = 0;
        return connection;
    }
    return -1;
}

void fns_batch_close(struct fns_batch *batch)
{
    for (unsigned i = 0; i < batch->loop.n_slots; i++)
        if (batch->slots[i].job)
            fns_job_kill(batch->slots[i].job);
    for (unsigned i = 0; i < batch->loop.n_slots; i++) {
        if (batch->slots[i].job)
            finish(batch, i);
        disconnect(batch, i);
    }
    fns_loop_close(&batch->loop);
    free(batch);
}
