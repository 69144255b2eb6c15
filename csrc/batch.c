/* Many sandboxes in one call: worker threads over an array of jobs. Runs in the parent, without the
 * GIL.
 *
 * Each worker takes the next job, spawns it and, unless the batch only spawns, sees it to its end
 * before it takes another: as many sandboxes are alive as there are workers. Workers block all
 * signals, so that these reach the thread that waits in fns_batch_wait() and can stop the batch.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "spawn.h"

struct fns_batch {
    struct fns_job *jobs;
    size_t n_jobs;
    enum fns_batch_mode mode;
    atomic_size_t next;
    atomic_uint working; /* workers that have not ended */
    atomic_int stopped;
    int stop, done; /* eventfds: told to stop; all workers ended */
    unsigned n_threads;
    pthread_t threads[];
};

static int pipe_above_stdio(int ends[2])
{
    if (pipe2(ends, O_CLOEXEC) < 0)
        return -errno;
    for (int i = 0; i < 2; i++) {
        if (ends[i] > 2)
            continue;
        int high = fcntl(ends[i], F_DUPFD_CLOEXEC, 3), err = errno;
        if (high < 0) {
            close(ends[0]);
            close(ends[1]);
            return -err;
        }
        close(ends[i]);
        ends[i] = high;
    }
    return 0;
}

/* Makes a job's pipes: the caller's ends into io, the child's into the arguments. */
static int make_pipes(struct fns_io *io, const struct fns_job *job, enum fns_batch_mode mode,
                      struct fns_args *args, int theirs[3])
{
    for (int i = 0; i < 3; i++) {
        int ends[2], ret;
        if (i == 0 ? !job->input : mode != FNS_BATCH_CAPTURE)
            continue;
        ret = pipe_above_stdio(ends);
        if (ret < 0)
            return ret;
        io->fds[i] = ends[i == 0];
        theirs[i] = args->stdio[i] = ends[i != 0];
    }
    return 0;
}

/* Gives back what a buffer has grown beyond its content: there may be thousands of jobs. */
static struct fns_buffer shrunk(struct fns_buffer buffer)
{
    if (buffer.size == 0) {
        fns_buffer_free(&buffer);
    } else if (buffer.size < buffer.capacity) {
        char *data = realloc(buffer.data, buffer.size);
        if (data)
            buffer = (struct fns_buffer){data, buffer.size, buffer.size};
    }
    return buffer;
}

/* By fns_spawn(), or by the job's server over the worker's connection (-1: none yet). */
static int start_job(struct fns_job *job, const struct fns_args *args, int *connection)
{
    if (!job->server)
        return fns_spawn(job->plan, args, &job->process, &job->error);
    int ret = *connection;
    if (ret < 0)
        ret = *connection = fns_server_connect(job->server);
    if (ret >= 0)
        ret = fns_server_spawn(*connection, job->plan, args, &job->process, &job->error);
    else
        fns_set_error(&job->error, FNS_STAGE_HELPER, -1, ret == -EPIPE ? ECANCELED : -ret);
    return ret;
}

/* The connection stays with a sandbox that is not reaped, and is closed when it may be of no use. */
static void after_job(const struct fns_batch *batch, const struct fns_job *job, int *connection)
{
    int started = job->process.pid > 0;
    if (*connection < 0 || (!job->error.stage && batch->mode != FNS_BATCH_SPAWN))
        return;
    if (job->error.stage || !started)
        close(*connection);
    *connection = -1;
}

static void run_job(struct fns_batch *batch, struct fns_job *job, int *connection)
{
    int theirs[3] = {-1, -1, -1}, ret = 0;
    struct fns_args args = job->args;
    struct fns_io io = {.process = {.pidfd = -1, .control = -1},
                        .fds = {-1, -1, -1},
                        .input = job->input,
                        .input_size = job->input_size,
                        .stop = batch->stop};
    if (batch->mode != FNS_BATCH_SPAWN)
        ret = make_pipes(&io, job, batch->mode, &args, theirs);
    if (ret < 0)
        fns_set_error(&job->error, FNS_STAGE_STDIO, -1, ret);
    else
        ret = start_job(job, &args, connection);
    for (int i = 0; i < 3; i++)
        if (theirs[i] >= 0)
            close(theirs[i]);
    if (ret < 0 || batch->mode == FNS_BATCH_SPAWN) {
        fns_io_close(&io);
        return;
    }
    io.process = job->process;
    if (job->timeout_ns >= 0)
        io.deadline = job->process.start + (uint64_t)job->timeout_ns + 1;
    do
        ret = fns_io_run(&io);
    while (ret == -EINTR);
    if (ret != FNS_IO_DONE) {
        job->timed_out = ret == FNS_IO_TIMEOUT;
        fns_kill_all(job->plan, &job->process);
        fns_io_finish(&io);
        if (ret < 0)
            fns_set_error(&job->error, FNS_STAGE_WAIT, -1, ret);
    }
    job->output[0] = shrunk(io.output[0]);
    job->output[1] = shrunk(io.output[1]);
    fns_io_close(&io);
    ret = fns_reap(&job->process, &job->result);
    if (ret < 0)
        fns_set_error(&job->error, ret == -ECANCELED ? FNS_STAGE_HELPER : FNS_STAGE_WAIT, -1, ret);
    close(job->process.pidfd);
    if (job->process.control >= 0 && !job->process.served)
        close(job->process.control);
    job->process.pidfd = job->process.control = -1;
}

static void *work(void *arg)
{
    struct fns_batch *batch = arg;
    int connection = -1; /* to a template's server, for one job after the other */
    while (!atomic_load(&batch->stopped)) {
        size_t i = atomic_fetch_add(&batch->next, 1);
        if (i >= batch->n_jobs)
            break;
        run_job(batch, &batch->jobs[i], &connection);
        after_job(batch, &batch->jobs[i], &connection);
        batch->jobs[i].finished = 1;
    }
    if (connection >= 0)
        close(connection);
    if (atomic_fetch_sub(&batch->working, 1) == 1)
        eventfd_write(batch->done, 1);
    return NULL;
}

static void free_batch(struct fns_batch *batch)
{
    if (batch->stop >= 0)
        close(batch->stop);
    if (batch->done >= 0)
        close(batch->done);
    free(batch);
}

int fns_batch_start(struct fns_batch **out, struct fns_job *jobs, size_t n_jobs, unsigned threads,
                    enum fns_batch_mode mode)
{
    struct fns_batch *batch = calloc(1, sizeof *batch + threads * sizeof *batch->threads);
    if (!batch)
        return -ENOMEM;
    batch->jobs = jobs;
    batch->n_jobs = n_jobs;
    batch->mode = mode;
    batch->stop = eventfd(0, EFD_CLOEXEC);
    batch->done = eventfd(0, EFD_CLOEXEC);
    int ret = batch->stop < 0 || batch->done < 0 ? -errno : 0;
    sigset_t all, before;
    sigfillset(&all);
    atomic_store(&batch->working,
                 1); /* this call's share: nobody is last before all have started */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (ret == 0 && batch->n_threads < threads) {
        atomic_fetch_add(&batch->working, 1);
        ret = -pthread_create(&batch->threads[batch->n_threads], NULL, work, batch);
        if (ret < 0)
            atomic_fetch_sub(&batch->working, 1);
        else
            batch->n_threads++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (ret < 0) {
        fns_batch_stop(batch);
        fns_batch_join(batch);
        return ret;
    }
    if (atomic_fetch_sub(&batch->working, 1) == 1)
        eventfd_write(batch->done, 1);
    *out = batch;
    return 0;
}

int fns_batch_wait(struct fns_batch *batch, int timeout_ms)
{
    struct pollfd fd = {.fd = batch->done, .events = POLLIN};
    int n = poll(&fd, 1, timeout_ms);
    return n < 0 ? -errno : n;
}

void fns_batch_stop(struct fns_batch *batch)
{
    atomic_store(&batch->stopped, 1);
    if (batch->stop >= 0)
        eventfd_write(batch->stop, 1);
}

void fns_batch_join(struct fns_batch *batch)
{
    for (unsigned i = 0; i < batch->n_threads; i++)
        pthread_join(batch->threads[i], NULL);
    free_batch(batch);
}
