/* Jobs run to their end, many at once or one. Runs in the caller's thread, without the GIL.
 *
 * Each job that is alive has a slot of the loop (loop.c). With a template's server, the slot has a connection,
 * which the next job uses again; and a few more jobs than may be alive are sent, so that the server has the
 * next to start when one ends.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "loop.h"
#include "spawn.h"

#define MAX_AHEAD 4u /* jobs that wait in the server */

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
    unsigned timed; /* of those that are alive: with a time limit */
    int scarce;     /* fds: no more jobs are sent ahead */
    struct fns_loop loop;
    struct fns_watch *watches;
    struct slot slots[];
};

static unsigned count_slots(const struct fns_job *jobs, size_t n_jobs, unsigned concurrency,
                            int spawn)
{
    unsigned ahead = n_jobs && jobs[0].server ? concurrency : 0;
    size_t n = concurrency + (ahead < MAX_AHEAD ? ahead : MAX_AHEAD);
    return spawn ? 1 : (unsigned)(n < n_jobs ? n : n_jobs);
}

static int new_number(void)
{
    static atomic_int last;
    return (atomic_fetch_add(&last, 1) & 0x3fffffff) + 1;
}

int fns_batch_open(struct fns_batch **out, struct fns_job *jobs, size_t n_jobs,
                   unsigned concurrency, int spawn)
{
    unsigned n_slots = count_slots(jobs, n_jobs, concurrency, spawn);
    struct fns_batch *batch = calloc(1, sizeof *batch + n_slots * sizeof *batch->slots);
    struct fns_watch *watches = calloc(n_slots, sizeof *watches);
    int ret = batch && watches ? fns_loop_open(&batch->loop, watches, n_slots) : -ENOMEM;
    if (ret < 0) {
        free(watches);
        free(batch);
        return ret;
    }
    batch->jobs = jobs;
    batch->n_jobs = n_jobs;
    batch->spawn = spawn;
    batch->share = (struct fns_share){new_number(), concurrency};
    batch->watches = watches;
    *out = batch;
    return 0;
}

static void disconnect(struct fns_batch *batch, unsigned slot)
{
    int connection = batch->slots[slot].connection;
    fns_loop_remove(&batch->loop, slot, 0);
    if (connection && connection != batch->jobs[0].connection)
        close(connection);
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

/* The slot's job has ended, or was killed. */
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

/* Finishes the slot's job, or kills it, if there is a reason to. */
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
        (job->error.err == EMFILE || job->error.err == ENFILE)) { /* it was sent ahead: later */
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

/* Whether the next job may be sent now. One with a time limit is not sent ahead, as its time begins now; nor is
 * one together with it, which the server could hear of first. */
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
            if (batch->watches[i].touched && batch->slots[i].job)
                settle(batch, i);
            batch->watches[i].touched = 0;
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
    free(batch->watches);
    free(batch);
}
