/* Many jobs in one call: one loop over their pipes, ends and deadlines. Runs in the caller's thread,
 * without the GIL.
 *
 * A slot for each job that is alive. What a template's server starts is asked for over the slot's
 * connection, which stays for the next job; a few more are asked for than may be alive, so that the
 * server has the next to start when one ends. The loop returns now and then, and after a signal, so that
 * the caller can look whether it is to go on.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "shared/sys.h"
#include "spawn.h"

enum { MAX_EVENTS = 256, END = 3 /* beside 0, 1 and 2: the stream that is ready */ };
enum { ATTENDED = 16 };
#define PAUSE_NS 100000000u /* how long the loop goes on by itself */
#define MAX_AHEAD 4u        /* jobs whose turn is yet to come */

struct slot {
    struct fns_job *job; /* NULL: free */
    struct fns_io io;
    int connection; /* -1: none yet */
    int ended, killed;
    int unwatched; /* its connection */
    int held;      /* it has ended, and is traced */
};

struct fns_batch {
    struct fns_job *jobs;
    size_t n_jobs, next, done;
    int spawn, epoll;
    struct fns_share share;
    unsigned n_slots, alive;
    unsigned timed;    /* of those that are alive: with a time limit */
    unsigned attended; /* the first slot to be looked at */
    int scarce;        /* fds: nothing more is asked for ahead */
    struct slot slots[];
};

static unsigned count_slots(const struct fns_job *jobs, size_t n_jobs, unsigned concurrency)
{
    if (n_jobs == 0 || !jobs[0].server)
        return concurrency;
    return concurrency + (concurrency < MAX_AHEAD ? concurrency : MAX_AHEAD);
}

static int new_number(void)
{
    static atomic_int last;
    return (atomic_fetch_add(&last, 1) & 0x3fffffff) + 1;
}

int fns_batch_open(struct fns_batch **out, struct fns_job *jobs, size_t n_jobs,
                   unsigned concurrency, int spawn)
{
    unsigned n_slots = count_slots(jobs, n_jobs, concurrency);
    struct fns_batch *batch = calloc(1, sizeof *batch + n_slots * sizeof *batch->slots);
    if (!batch)
        return -ENOMEM;
    batch->jobs = jobs;
    batch->n_jobs = n_jobs;
    batch->spawn = spawn;
    batch->n_slots = n_slots;
    batch->share = (struct fns_share){new_number(), concurrency};
    for (unsigned i = 0; i < n_slots; i++)
        batch->slots[i].connection = -1;
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    batch->epoll = fns_above_stdio(epoll);
    if (batch->epoll < 0) {
        int ret = batch->epoll;
        free(batch);
        return ret;
    }
    *out = batch;
    return 0;
}

static int watch(struct fns_batch *batch, const struct slot *slot, int fd, unsigned what)
{
    struct epoll_event event = {.events = what == 0 ? EPOLLOUT : EPOLLIN,
                                .data.u64 = (uint64_t)(slot - batch->slots) * 4 + what};
    return fd < 0 || epoll_ctl(batch->epoll, EPOLL_CTL_ADD, fd, &event) == 0 ? 0 : -errno;
}

static void unwatch(struct fns_batch *batch, int fd)
{
    if (fd >= 0)
        epoll_ctl(batch->epoll, EPOLL_CTL_DEL, fd, NULL);
}

static void disconnect(struct fns_batch *batch, struct slot *slot)
{
    unwatch(batch, slot->connection);
    slot->unwatched = 0;
    if (slot->connection >= 0)
        close(slot->connection);
    slot->connection = -1;
}

/* The slot's job has come to its end, or is brought to it. */
static void finish(struct fns_batch *batch, struct slot *slot, int late)
{
    struct fns_job *job = slot->job;
    if (!job->server)
        unwatch(batch, job->process.pidfd);
    fns_job_finish(job, &slot->io, late);
    if (slot->killed || late || !fns_job_spares(job))
        disconnect(batch, slot);
    slot->job = NULL;
    batch->alive--;
    batch->timed -= job->timeout_ns >= 0;
    batch->done++;
}

static int connect_slot(struct fns_batch *batch, struct slot *slot, struct fns_job *job)
{
    if (!job->server || slot->connection >= 0)
        return 0;
    int ret = fns_server_connect(job->server, FNS_MAY_GIVE_UP);
    if (ret >= 0) {
        slot->connection = ret;
        ret = watch(batch, slot, ret, END);
    }
    if (ret < 0) {
        disconnect(batch, slot);
        fns_set_error(&job->error, FNS_STAGE_HELPER, -1, ret == -EPIPE ? ECANCELED : -ret);
    }
    return ret < 0 ? ret : 0;
}

static void start(struct fns_batch *batch, struct slot *slot, struct fns_job *job)
{
    int ret = connect_slot(batch, slot, job);
    job->share = batch->share;
    if (ret == 0)
        ret = fns_job_start(job, &slot->io, slot->connection);
    if (ret < 0 && !fns_job_spares(job))
        disconnect(batch, slot);
    if (ret < 0 && batch->alive >= batch->share.most &&
        (job->error.err == EMFILE || job->error.err == ENFILE)) { /* its turn has not come */
        job->error = (struct fns_error){.op_index = -1};
        batch->scarce = 1;
        batch->next--;
        return;
    }
    if (ret < 0) {
        batch->done++;
        return;
    }
    slot->job = job;
    slot->ended = slot->held = 0;
    slot->killed = job->timed_out = job->process.late;
    if (job->process.late)
        slot->io.deadline = 0;
    batch->alive++;
    batch->timed += job->timeout_ns >= 0;
    fns_io_prepare(&slot->io);
    slot->io.epoll = batch->epoll;
    for (unsigned i = 0; ret == 0 && i < 3; i++)
        ret = watch(batch, slot, slot->io.fds[i], i);
    if (ret == 0 && (!job->server || slot->unwatched))
        ret = watch(batch, slot, fns_end_fd(&job->process), END);
    slot->unwatched = 0;
    if (ret < 0) {
        finish(batch, slot, 1);
        fns_set_error(&job->error, FNS_STAGE_STDIO, -1, ret);
    }
}

/* Whether the next job may be asked for now. One that has a time limit is not asked for ahead, for its
 * time begins now, nor is one ahead of which the server could hear that. */
static int may_ask(const struct fns_batch *batch)
{
    if (batch->next == batch->n_jobs)
        return 0;
    int ahead = !batch->scarce && batch->timed == 0 && batch->jobs[batch->next].timeout_ns < 0;
    return batch->alive < batch->share.most || ahead;
}

static void start_some(struct fns_batch *batch, uint64_t until)
{
    for (unsigned i = 0; i < batch->n_slots && may_ask(batch); i++)
        while (!batch->slots[i].job && may_ask(batch) && fns_now() < until)
            start(batch, &batch->slots[i], &batch->jobs[batch->next++]);
}

/* All has been read, and it has ended; or it was killed, and what it left behind does not count. */
static void look_for_end(struct fns_batch *batch, struct slot *slot)
{
    if (slot->ended && (slot->killed || (slot->io.fds[1] < 0 && slot->io.fds[2] < 0))) {
        if (slot->killed)
            fns_io_finish(&slot->io);
        finish(batch, slot, 0);
    } else if (slot->ended && !slot->unwatched) { /* not to be told again */
        unwatch(batch, fns_end_fd(&slot->io.process));
        slot->unwatched = slot->job->server != NULL;
    }
}

/* For a limit on time or output, of which the first one counts. */
static void kill_slot(struct slot *slot)
{
    slot->killed = 1;
    slot->io.deadline = 0;
    fns_kill_all(slot->job->plan, &slot->job->process);
}

static void act(struct fns_batch *batch, uint64_t data)
{
    struct slot *slot = &batch->slots[data / 4];
    int what = (int)(data % 4), ret = 0;
    if (!slot->job || (what == END && slot->ended))
        return;
    if (what == END && !fns_reapable(&slot->job->process)) {
        slot->held = 1;
        unwatch(batch, fns_end_fd(&slot->job->process));
        return;
    }
    if (what == END) {
        slot->ended = 1;
        slot->io.input_done = slot->io.input_size;
        ret = fns_io_move(&slot->io, 0);
    } else {
        ret = fns_io_move(&slot->io, what);
    }
    if (ret < 0) {
        struct fns_job *job = slot->job;
        finish(batch, slot, 1);
        fns_set_error(&job->error, FNS_STAGE_STDIO, -1, ret);
    } else {
        if (slot->io.over && !slot->killed)
            kill_slot(slot);
        look_for_end(batch, slot);
    }
}

/* Whether it has ended, though this loop has not come to look since: another's start, or what Python does
 * with a result, may take longer than its time. */
static int has_ended(const struct slot *slot)
{
    struct pollfd end = {.fd = fns_end_fd(&slot->job->process), .events = POLLIN};
    return !slot->ended && !slot->held && poll(&end, 1, 0) == 1 &&
           fns_reapable(&slot->job->process);
}

/* Kills what is over its time; how long until the next is, at most PAUSE_NS. */
static uint64_t keep_time(struct fns_batch *batch)
{
    uint64_t now = fns_now(), next = now + PAUSE_NS;
    for (unsigned i = 0; i < batch->n_slots; i++) {
        struct slot *slot = &batch->slots[i];
        if (!slot->job || !slot->io.deadline)
            continue;
        if (slot->io.deadline > now) {
            next = slot->io.deadline < next ? slot->io.deadline : next;
            continue;
        }
        if (has_ended(slot)) {
            slot->io.deadline = now + PAUSE_NS; /* what it has written is still to be read */
            act(batch, (uint64_t)i * 4 + END);
            continue;
        }
        slot->job->timed_out = 1;
        kill_slot(slot);
        look_for_end(batch, slot);
    }
    return next - now;
}

/* Those whose end nobody tells; a few of them each time, as it takes a look at all their threads. */
static void attend(struct fns_batch *batch)
{
    for (unsigned i = 0; i < batch->n_slots; i++) {
        struct slot *slot = &batch->slots[i];
        if (slot->job && (i + batch->n_slots - batch->attended) % batch->n_slots < ATTENDED)
            fns_attend(&slot->job->process, slot->killed);
        if (slot->job && slot->held && fns_reapable(&slot->job->process))
            act(batch, (uint64_t)i * 4 + END);
    }
    batch->attended = (batch->attended + ATTENDED) % batch->n_slots;
}

/* At most `ns`. How many, or -errno. */
static long await_events(const struct fns_batch *batch, struct epoll_event *events, uint64_t ns)
{
    const struct timespec time = {0, (long)ns};
    long n = fns_sys6(__NR_epoll_pwait2, batch->epoll, (long)events, MAX_EVENTS, (long)&time, 0, 0);
    /* EPERM: from the filter of an old container, its answer to any call that it does not know. */
    if (n == -ENOSYS || n == -EPERM)
        n = fns_sys6(__NR_epoll_pwait, batch->epoll, (long)events, MAX_EVENTS,
                     (long)(ns / 1000000 + 1), 0, 0);
    return n;
}

static int run(struct fns_batch *batch)
{
    struct epoll_event events[MAX_EVENTS];
    uint64_t until = fns_now() + PAUSE_NS;
    attend(batch);
    while (batch->done < batch->n_jobs) {
        start_some(batch, until);
        if (fns_now() >= until)
            return 0;
        if (batch->alive == 0)
            continue;
        long n = await_events(batch, events, keep_time(batch));
        if (n < 0)
            return (int)n;
        for (long i = 0; i < n; i++)
            act(batch, events[i].data.u64);
    }
    return 1;
}

static int spawn(struct fns_batch *batch)
{
    uint64_t until = fns_now() + PAUSE_NS;
    struct slot *slot = &batch->slots[0];
    for (; batch->next < batch->n_jobs; batch->next++, batch->done++) {
        struct fns_job *job = &batch->jobs[batch->next];
        if (fns_now() >= until)
            return 0;
        if (connect_slot(batch, slot, job) == 0) {
            fns_job_spawn(job, slot->connection);
            if (!fns_job_spares(job))
                disconnect(batch, slot);
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
    for (unsigned i = 0; i < batch->n_slots; i++)
        if (batch->slots[i].job)
            fns_kill_all(batch->slots[i].job->plan, &batch->slots[i].job->process);
    for (unsigned i = 0; i < batch->n_slots; i++) {
        if (batch->slots[i].job)
            finish(batch, &batch->slots[i], 1);
        disconnect(batch, &batch->slots[i]);
    }
    close(batch->epoll);
    free(batch);
}
