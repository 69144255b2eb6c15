/* A sandbox that has used up its CPU time is killed. Runs in a thread of its own, in the parent.
 *
 * The kernel limits the CPU time of a process (RLIMIT_CPU), not of all the processes of a sandbox, and
 * tells nobody when a cgroup's has passed a bound. So one thread for each plan that has such a limit
 * reads the leaves' counters: each no earlier than it can have used up what it has left, had it all the
 * CPUs to itself, and at most every 10 ms. It kills whatever is in the cgroup, whoever waits for the
 * sandbox, or nobody.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cputime.h"
#include "shared/sys.h"
#include "spawn.h"

enum { PIDS_SIZE = 4096, MAX_ROUNDS = 64 };
#define SHORTEST_NS 10000000u
#define PROCS "cgroup.procs"

struct watched {
    int number, over;
    uint64_t before; /* what its counter stood at */
    uint64_t next;   /* when it is to be looked at: CLOCK_MONOTONIC, ns */
};

struct fns_cpu_watch {
    const struct fns_cgroup_plan *plan;
    const struct fns_cgroup_counter *counter;
    uint64_t cpus;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    pthread_t thread;
    pid_t owner; /* of the thread; 0: there is none */
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
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&watch->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&watch->lock, NULL);
    *out = watch;
    return 0;
}

/* Kills one process of the leaf: by a pidfd, taken while it was seen to be in there. */
static void kill_member(const struct fns_cpu_watch *watch, int number, int pid)
{
    char text[PIDS_SIZE] = "", line[16];
    int pidfd = (int)fns_sys2(__NR_pidfd_open, pid, 0);
    if (pidfd < 0)
        return;
    size_t length = (size_t)snprintf(line, sizeof line, "%d\n", pid);
    fns_leaf_read(watch->plan, watch->counter->hierarchy, number, PROCS, text, sizeof text);
    for (const char *at = text; (at = strstr(at, line)); at += length)
        if (at == text || at[-1] == '\n') {
            fns_kill_by(pidfd);
            break;
        }
    close(pidfd);
}

/* Kills what is in a leaf, for as long as there is something that forks. */
static void kill_leaf(const struct fns_cpu_watch *watch, int number)
{
    unsigned hierarchy = watch->counter->hierarchy;
    if (watch->plan->hierarchies[hierarchy].unified &&
        fns_leaf_write(watch->plan, hierarchy, number, "cgroup.kill", "1") == 0)
        return; /* Linux 5.14 */
    for (int round = 0; round < MAX_ROUNDS; round++) {
        char text[PIDS_SIZE], *save = NULL;
        int n = fns_leaf_read(watch->plan, hierarchy, number, PROCS, text, sizeof text);
        if (n <= 0)
            return;
        if (n == (int)sizeof text - 1 && strrchr(text, '\n'))
            *strrchr(text, '\n') = 0; /* the last one may be cut off */
        for (char *pid = strtok_r(text, "\n", &save); pid; pid = strtok_r(NULL, "\n", &save))
            kill_member(watch, number, atoi(pid));
    }
}

/* Looks at one leaf, now. */
static void look(const struct fns_cpu_watch *watch, struct watched *one, uint64_t now)
{
    uint64_t limit = watch->plan->cpu_time_ns, pause = SHORTEST_NS;
    uint64_t value = fns_leaf_counter(watch->plan, one->number, watch->counter);
    uint64_t used = value == FNS_NO_COUNT || value < one->before ? 0 : value - one->before;
    if (used >= limit) {
        one->over = 1;
        kill_leaf(watch, one->number);
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
            const struct timespec until = {(time_t)(next / 1000000000u),
                                           (long)(next % 1000000000u)};
            pthread_cond_timedwait(&watch->changed, &watch->lock, &until);
        }
    }
    pthread_mutex_unlock(&watch->lock);
    return NULL;
}

/* Locked. No signal of the caller's is for this thread. */
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

int fns_cpu_watch_add(struct fns_cpu_watch *watch, const struct fns_leaf *leaf)
{
    int ret = 0;
    struct watched one = {
        .number = leaf->number,
        .before = leaf->before[watch->counter - watch->plan->counters],
        .next = fns_now() + watch->plan->cpu_time_ns / watch->cpus,
    };
    if (one.before == FNS_NO_COUNT)
        return -EIO;
    pthread_mutex_lock(&watch->lock);
    if (watch->stop)
        ret = -ENODEV;
    if (ret == 0 && watch->n == watch->size) {
        size_t size = watch->size ? 2 * watch->size : 16;
        struct watched *grown = realloc(watch->watched, size * sizeof *grown);
        ret = grown ? 0 : -ENOMEM;
        if (grown) {
            watch->watched = grown;
            watch->size = size;
        }
    }
    if (ret == 0 && !watch->owner)
        ret = start(watch);
    if (ret == 0) {
        watch->watched[watch->n++] = one;
        if (watch->n == 1) /* the others are due before it */
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

static void stop(struct fns_cpu_watch *watch, int in_use_too)
{
    if (watch->owner != getpid())
        return;
    pthread_mutex_lock(&watch->lock);
    int stops = watch->n == 0 || in_use_too;
    watch->stop |= stops;
    pthread_cond_signal(&watch->changed);
    pthread_mutex_unlock(&watch->lock);
    if (!stops)
        return;
    pthread_join(watch->thread, NULL);
    watch->owner = 0;
}

void fns_cpu_watch_rest(struct fns_cpu_watch *watch)
{
    stop(watch, 0);
}

void fns_cpu_watch_close(struct fns_cpu_watch *watch)
{
    stop(watch, 1);
    if (!watch->owner) { /* else a fork has left the thread behind, which waits here for ever */
        pthread_cond_destroy(&watch->changed);
        pthread_mutex_destroy(&watch->lock);
    }
    free(watch->watched);
    free(watch);
}
