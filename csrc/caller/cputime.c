/* Kills sandboxes that have used up their CPU time. Runs in a thread of its own, in the caller.
 *
 * The kernel can limit the CPU time of one process (RLIMIT_CPU), but not that of all processes of a sandbox, and does
 * not report that a cgroup has used a certain time. So each pool of cgroups with such a limit has a thread that reads
 * their counters. It reads a counter again when the sandbox, running on all CPUs at once, could have used the rest of
 * its time, but at most every 10 ms. Once the time is used up, it kills everything in the cgroup, whether or not
 * anybody waits for the sandbox.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "shared/sys.h"
#include "spawn.h"

enum { PIDS_SIZE = 4096, MAX_ROUNDS = 64 };
#define SHORTEST_NS 10000000u /* between two reads of a counter */
#define PROCS "cgroup.procs"

struct watched { /* one cgroup */
    int number;
    int over;        /* it was killed */
    uint64_t before; /* its counter when the sandbox started */
    uint64_t next;   /* when to read the counter again: CLOCK_MONOTONIC, ns */
};

struct fns_cpu_watch {
    const struct fns_cgroup_plan *plan;
    const struct fns_cgroup_counter *counter;
    int directory; /* of the counter's hierarchy */
    uint64_t cpus;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    pthread_t thread;
    pid_t owner; /* the process that has the thread; 0: no thread */
    int stop;
    size_t n, size;
    struct watched *watched;
};

int fns_cpu_watch_open(struct fns_cpu_watch **out, const struct fns_cgroup_plan *plan)
{
    struct fns_cpu_watch *watch = calloc(1, sizeof *watch);
    pthread_condattr_t monotonic;
    long cpus = sysconf(_SC_NPROCESSORS_CONF);
    if (!watch)
        return -ENOMEM;
    watch->plan = plan;
    watch->cpus = cpus > 0 ? (uint64_t)cpus : 1;
    for (unsigned i = 0; i < plan->n_counters; i++)
        if (plan->counters[i].kind == FNS_COUNT_CPU_TIME)
            watch->counter = &plan->counters[i];
    if (!watch->counter) {
        free(watch);
        return -EINVAL;
    }
    watch->directory = plan->hierarchies[watch->counter->hierarchy].directory;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&watch->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&watch->lock, NULL);
    *out = watch;
    return 0;
}

/* Kills one process of a cgroup. Opens its pidfd first, then checks that the pid is in the cgroup: before that, the pid
 * may have been reused. */
static void kill_member(const struct fns_cpu_watch *watch, int number, int pid)
{
    char text[PIDS_SIZE] = "", line[16];
    int pidfd = fns_open_pidfd(pid);
    if (pidfd < 0)
        return;
    size_t length = (size_t)snprintf(line, sizeof line, "%d\n", pid);
    fns_cgroup_read(watch->directory, number, PROCS, text, sizeof text);
    for (const char *at = text; (at = strstr(at, line)); at += length)
        if (at == text || at[-1] == '\n') {
            fns_kill_by(pidfd);
            break;
        }
    close(pidfd);
}

/* Kills everything in a cgroup, in several rounds as its processes may fork. */
static void kill_all(const struct fns_cpu_watch *watch, int number)
{
    if (watch->plan->hierarchies[watch->counter->hierarchy].unified &&
        fns_cgroup_write(watch->directory, number, "cgroup.kill", "1") == 0)
        return; /* Linux 5.14 */
    for (int round = 0; round < MAX_ROUNDS; round++) {
        char text[PIDS_SIZE], *save = NULL;
        int n = fns_cgroup_read(watch->directory, number, PROCS, text, sizeof text);
        if (n <= 0)
            return;
        if (n == (int)sizeof text - 1 && strrchr(text, '\n'))
            *strrchr(text, '\n') = 0; /* the last one may be cut off */
        for (char *pid = strtok_r(text, "\n", &save); pid; pid = strtok_r(NULL, "\n", &save))
            kill_member(watch, number, atoi(pid));
    }
}

/* Kills a cgroup that is over the limit; otherwise sets when to check it again. */
static void look(const struct fns_cpu_watch *watch, struct watched *one, uint64_t now)
{
    uint64_t limit = watch->plan->cpu_time_ns, pause = SHORTEST_NS;
    uint64_t value = fns_cgroup_count(watch->plan, one->number, watch->counter);
    uint64_t used = value == FNS_NO_COUNT || value < one->before ? 0 : value - one->before;
    if (used >= limit) {
        one->over = 1;
        kill_all(watch, one->number);
    } else if ((limit - used) / watch->cpus > pause) {
        pause = (limit - used) / watch->cpus;
    }
    one->next = now + pause;
}

static void *run(void *argument)
{
    struct fns_cpu_watch *watch = argument;
    pthread_mutex_lock(&watch->lock);
    while (!watch->stop) {
        uint64_t next = UINT64_MAX, now = fns_now();
        for (size_t i = 0; i < watch->n; i++) {
            if (watch->watched[i].next <= now)
                look(watch, &watch->watched[i], now);
            if (watch->watched[i].next < next)
                next = watch->watched[i].next;
        }
        if (next == UINT64_MAX) {
            pthread_cond_wait(&watch->changed, &watch->lock);
        } else {
            const struct timespec until = fns_timespec(next);
            pthread_cond_timedwait(&watch->changed, &watch->lock, &until);
        }
    }
    pthread_mutex_unlock(&watch->lock);
    return NULL;
}

/* Starts the thread, with all signals blocked. The lock is held. 0 or -errno. */
static int start(struct fns_cpu_watch *watch)
{
    sigset_t all, before;
    sigfillset(&all);
    int ret = pthread_sigmask(SIG_SETMASK, &all, &before);
    if (ret)
        return -ret;
    ret = pthread_create(&watch->thread, NULL, run, watch);
    for (int tries = 0; pthread_sigmask(SIG_SETMASK, &before, NULL) && tries < FNS_TRIES; tries++)
        ;
    if (ret == 0)
        watch->owner = getpid();
    return -ret;
}

int fns_cpu_watch_add(struct fns_cpu_watch *watch, const struct fns_cgroup *cgroup)
{
    struct watched one = {
        .number = cgroup->number,
        .before = cgroup->before[watch->counter - watch->plan->counters],
        .next = fns_now() + watch->plan->cpu_time_ns / watch->cpus,
    };
    if (one.before == FNS_NO_COUNT)
        return -EIO;
    pthread_mutex_lock(&watch->lock);
    int ret = watch->stop ? -ENODEV : 0;
    struct watched *grown = fns_grow(watch->watched, &watch->size, watch->n, sizeof *grown);
    if (grown)
        watch->watched = grown;
    else
        ret = -ENOMEM;
    if (ret == 0 && !watch->owner)
        ret = start(watch);
    if (ret == 0) {
        watch->watched[watch->n++] = one;
        if (watch->n == 1) /* otherwise the thread wakes earlier, for another cgroup */
            pthread_cond_signal(&watch->changed);
    }
    pthread_mutex_unlock(&watch->lock);
    return ret;
}

int fns_cpu_watch_remove(struct fns_cpu_watch *watch, int number)
{
    int over = 0;
    pthread_mutex_lock(&watch->lock);
    for (size_t i = 0; i < watch->n; i++)
        if (watch->watched[i].number == number) {
            over = watch->watched[i].over;
            watch->watched[i] = watch->watched[--watch->n];
            break;
        }
    pthread_mutex_unlock(&watch->lock);
    return over;
}

int fns_cpu_watch_is_over(struct fns_cpu_watch *watch, int number)
{
    int over = 0;
    pthread_mutex_lock(&watch->lock);
    for (size_t i = 0; i < watch->n; i++)
        if (watch->watched[i].number == number)
            over = watch->watched[i].over;
    pthread_mutex_unlock(&watch->lock);
    return over;
}

void fns_cpu_watch_stop(struct fns_cpu_watch *watch, int force)
{
    if (watch->owner != getpid())
        return;
    pthread_mutex_lock(&watch->lock);
    int stops = watch->n == 0 || force;
    watch->stop |= stops;
    pthread_cond_signal(&watch->changed);
    pthread_mutex_unlock(&watch->lock);
    if (!stops)
        return;
    pthread_join(watch->thread, NULL);
    watch->owner = 0;
}

void fns_cpu_watch_close(struct fns_cpu_watch *watch)
{
    fns_cpu_watch_stop(watch, 1);
    /* In a forked process, the condition still counts the thread as waiting, and destroying it could block. */
    if (!watch->owner) {
        pthread_cond_destroy(&watch->changed);
        pthread_mutex_destroy(&watch->lock);
    }
    free(watch->watched);
    free(watch);
}
