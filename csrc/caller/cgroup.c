/* Cgroups for sandboxes: made, handed out, read, and used again. Runs in the parent, without the GIL.
 *
 * A leaf is one cgroup in each hierarchy (cgroup v1 has several) with the limits of a spec. A sandbox
 * enters it by itself before it executes its command, through fds that are opened here. When it has
 * ended, the leaf is read, and used again only after it was seen empty: no process, and no memory that
 * is charged to it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "cputime.h"
#include "spawn.h"

enum { NAME_SIZE = 16, PATH_SIZE = 128, TEXT_SIZE = 8192 };
#define MAX_TRIES 64        /* so often a leaf that is not empty is looked at */
#define RECLAIM_EACH 16     /* of them its memory is reclaimed */
#define LEFT_OVER (1 << 20) /* bytes of memory: what the kernel keeps for itself for a while */

struct waiting { /* a leaf that was not empty */
    int number, tries;
    int spent; /* not to be used again */
};

struct fns_cgroups {
    struct fns_cgroup_plan plan;
    pthread_mutex_t lock;
    int next; /* number of the next new leaf */
    int n_free, n_waiting, size;
    int removed;
    int *free;
    struct waiting *waiting;
    struct fns_cpu_watch *watch; /* NULL: the CPU time is not limited */
};

const char *fns_count_name(unsigned kind)
{
    static const char *const names[] = {
#define X(name, text) text,
        FNS_COUNT_KINDS(X)
#undef X
    };
    return kind < FNS_COUNTS ? names[kind] : "unknown";
}

/* ---- one file of a leaf ---------------------------------------------------------------------- */

static int open_file(const struct fns_cgroup_plan *plan, unsigned hierarchy, int number,
                     const char *file, int flags)
{
    char path[PATH_SIZE];
    snprintf(path, sizeof path, "%d/%s", number, file);
    int fd = openat(plan->hierarchies[hierarchy].directory, path, flags | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

int fns_leaf_write(const struct fns_cgroup_plan *plan, unsigned hierarchy, int number,
                   const char *file, const char *text)
{
    int fd = open_file(plan, hierarchy, number, file, O_WRONLY);
    if (fd < 0)
        return fd;
    ssize_t n = write(fd, text, strlen(text));
    int ret = n < 0 ? -errno : 0;
    close(fd);
    return ret;
}

int fns_leaf_read(const struct fns_cgroup_plan *plan, unsigned hierarchy, int number,
                  const char *file, char *text, size_t size)
{
    int fd = open_file(plan, hierarchy, number, file, O_RDONLY);
    if (fd < 0)
        return fd;
    ssize_t n = read(fd, text, size - 1);
    int ret = n < 0 ? -errno : (int)n;
    close(fd);
    text[n < 0 ? 0 : n] = 0;
    return ret;
}

/* The sum of the numbers that follow `key`, or the file's only one without a key. 0 or -errno. */
static int read_number(const struct fns_cgroup_plan *plan, unsigned hierarchy, int number,
                       const char *file, const char *key, uint64_t *value)
{
    char text[TEXT_SIZE];
    size_t length = strlen(key);
    int ret = fns_leaf_read(plan, hierarchy, number, file, text, sizeof text);
    if (ret < 0)
        return ret;
    *value = 0;
    if (!length) {
        *value = strtoull(text, NULL, 10);
        return 0;
    }
    for (const char *at = text; (at = strstr(at, key)); at += length)
        if ((at == text || at[-1] == '\n' || at[-1] == ' ') &&
            (at[length] == ' ' || at[length] == '='))
            *value += strtoull(at + length + 1, NULL, 10);
    return 0;
}

/* ---- a leaf ---------------------------------------------------------------------------------- */

/* The leaf's cgroup in one hierarchy. 0; -EBUSY: there is something in it still; -errno. */
static int remove_part(const struct fns_cgroups *groups, unsigned hierarchy, int number)
{
    char name[NAME_SIZE];
    snprintf(name, sizeof name, "%d", number);
    int directory = groups->plan.hierarchies[hierarchy].directory;
    return unlinkat(directory, name, AT_REMOVEDIR) < 0 ? -errno : 0;
}

static int remove_leaf(const struct fns_cgroups *groups, int number)
{
    int ret = 0;
    for (unsigned i = 0; i < groups->plan.n_hierarchies; i++) {
        int removed = remove_part(groups, i, number);
        if (removed < 0 && removed != -ENOENT)
            ret = removed;
    }
    return ret;
}

/* With its limits. */
static int make_part(const struct fns_cgroups *groups, unsigned hierarchy, int number)
{
    char name[NAME_SIZE];
    snprintf(name, sizeof name, "%d", number);
    int ret = mkdirat(groups->plan.hierarchies[hierarchy].directory, name, 0755) < 0 ? -errno : 0;
    for (unsigned i = 0; ret == 0 && i < groups->plan.n_settings; i++) {
        const struct fns_cgroup_setting *setting = &groups->plan.settings[i];
        if (setting->hierarchy == hierarchy)
            ret = fns_leaf_write(&groups->plan, hierarchy, number, setting->file, setting->value);
    }
    return ret;
}

static int make_leaf(const struct fns_cgroups *groups, int number)
{
    int ret = 0;
    for (unsigned i = 0; ret == 0 && i < groups->plan.n_hierarchies; i++)
        ret = make_part(groups, i, number);
    if (ret < 0)
        remove_leaf(groups, number);
    return ret;
}

static int has_processes(const struct fns_cgroups *groups, unsigned hierarchy, int number)
{
    uint64_t populated;
    char first[2];
    if (groups->plan.hierarchies[hierarchy].unified)
        return read_number(&groups->plan, hierarchy, number, "cgroup.events", "populated",
                           &populated) < 0 ||
               populated;
    return fns_leaf_read(&groups->plan, hierarchy, number, "cgroup.procs", first, sizeof first) !=
           0;
}

/* Files of its own, or pages that it was the first to read. */
static int holds_memory(const struct fns_cgroups *groups, int number)
{
    uint64_t used;
    const struct fns_cgroup_plan *plan = &groups->plan;
    return read_number(plan, plan->memory_hierarchy, number, plan->memory_file, "", &used) < 0 ||
           used > LEFT_OVER;
}

static int is_empty(const struct fns_cgroups *groups, int number, int reclaim)
{
    const struct fns_cgroup_plan *plan = &groups->plan;
    for (unsigned i = 0; i < plan->n_hierarchies; i++)
        if (has_processes(groups, i, number))
            return 0;
    if (!plan->memory_file || !holds_memory(groups, number))
        return 1;
    if (!reclaim)
        return 0;
    /* Milliseconds: for every CPU to give up what it holds. */
    fns_leaf_write(plan, plan->memory_hierarchy, number, plan->reclaim_file, plan->reclaim_text);
    return !holds_memory(groups, number);
}

uint64_t fns_leaf_counter(const struct fns_cgroup_plan *plan, int number,
                          const struct fns_cgroup_counter *counter)
{
    uint64_t value;
    if (read_number(plan, counter->hierarchy, number, counter->file, counter->key, &value) < 0)
        return FNS_NO_COUNT;
    return value * counter->scale;
}

static void close_fds(struct fns_leaf *leaf)
{
    for (uint32_t i = 0; i < leaf->n_fds; i++)
        close(leaf->fds[i]);
    leaf->n_fds = 0;
}

static int renew_part(const struct fns_cgroups *groups, unsigned hierarchy, int number)
{
    int ret = remove_part(groups, hierarchy, number);
    return ret < 0 ? ret : make_part(groups, hierarchy, number);
}

/* Whether a counter of it begins anew with a new cgroup only. */
static int begins_anew(const struct fns_cgroup_plan *plan, unsigned hierarchy)
{
    for (unsigned i = 0; i < plan->n_counters; i++) {
        const struct fns_cgroup_counter *counter = &plan->counters[i];
        if (counter->hierarchy == hierarchy && counter->reset && !*counter->reset)
            return 1;
    }
    return 0;
}

/* Opens what a sandbox enters by, and reads where the counters stand. 0 or -errno. */
static int prepare_leaf(const struct fns_cgroups *groups, struct fns_leaf *leaf, int made)
{
    const struct fns_cgroup_plan *plan = &groups->plan;
    int ret = 0;
    leaf->n_fds = 0;
    for (unsigned i = 0; !made && ret >= 0 && i < plan->n_hierarchies; i++)
        if (begins_anew(plan, i))
            ret = renew_part(groups, i, leaf->number);
    for (unsigned i = 0; ret >= 0 && i < plan->n_hierarchies; i++) {
        /* A process that moves its only thread by "tasks" takes no lock against all forks, the taking
         * of which waits for an RCU grace period, some 16 ms, once nobody has for a while. */
        const char *file = plan->hierarchies[i].unified ? "cgroup.procs" : "tasks";
        ret = fns_above_stdio(open_file(plan, i, leaf->number, file, O_WRONLY));
        if (ret >= 0)
            leaf->fds[leaf->n_fds++] = ret;
    }
    leaf->clone_into = 0;
    if (ret >= 0 && plan->hierarchies[0].unified) {
        ret = fns_above_stdio(open_file(plan, 0, leaf->number, "", O_RDONLY | O_DIRECTORY));
        if (ret >= 0)
            leaf->fds[leaf->n_fds++] = ret;
        leaf->clone_into = 1;
    }
    if (ret < 0) {
        close_fds(leaf);
        return ret;
    }
    for (unsigned i = 0; i < plan->n_counters; i++) {
        const struct fns_cgroup_counter *counter = &plan->counters[i];
        if (counter->reset && *counter->reset)
            fns_leaf_write(plan, counter->hierarchy, leaf->number, counter->file, counter->reset);
        leaf->before[i] = fns_leaf_counter(plan, leaf->number, counter);
    }
    return 0;
}

/* ---- all of them ----------------------------------------------------------------------------- */

int fns_cgroups_open(struct fns_cgroups **out, const struct fns_cgroup_plan *plan)
{
    struct fns_cgroups *groups = calloc(1, sizeof *groups);
    if (!groups)
        return -ENOMEM;
    groups->plan = *plan;
    int ret = plan->cpu_time_ns ? fns_cpu_watch_open(&groups->watch, &groups->plan) : 0;
    if (ret < 0) {
        free(groups);
        return ret;
    }
    pthread_mutex_init(&groups->lock, NULL);
    *out = groups;
    return 0;
}

/* Room for one more number in each list. Locked. */
static int grow(struct fns_cgroups *groups)
{
    int size = groups->size ? 2 * groups->size : 16;
    if (groups->next < groups->size)
        return 0;
    int *numbers = realloc(groups->free, (size_t)size * sizeof *numbers);
    if (!numbers)
        return -ENOMEM;
    groups->free = numbers;
    struct waiting *waiting = realloc(groups->waiting, (size_t)size * sizeof *waiting);
    if (!waiting)
        return -ENOMEM;
    groups->waiting = waiting;
    groups->size = size;
    return 0;
}

/* `empty`: it may be used again, else it waits. */
static void put_back(struct fns_cgroups *groups, struct waiting leaf, int empty)
{
    pthread_mutex_lock(&groups->lock);
    if (empty)
        groups->free[groups->n_free++] = leaf.number;
    else
        groups->waiting[groups->n_waiting++] = leaf;
    pthread_mutex_unlock(&groups->lock);
}

/* One that has waited may be empty by now; who never gets empty is let go of. A number, or -1. */
static int look_at_waiting(struct fns_cgroups *groups)
{
    struct waiting first = {.number = -1};
    pthread_mutex_lock(&groups->lock);
    if (groups->n_waiting) {
        first = groups->waiting[0];
        groups->n_waiting--;
        memmove(groups->waiting, groups->waiting + 1,
                (size_t)groups->n_waiting * sizeof *groups->waiting);
    }
    pthread_mutex_unlock(&groups->lock);
    if (first.number < 0)
        return -1;
    first.tries++;
    if (first.spent) {
        if (remove_leaf(groups, first.number) < 0)
            put_back(groups, first, 0);
        return -1;
    }
    if (is_empty(groups, first.number, first.tries % RECLAIM_EACH == 0))
        return first.number;
    if (first.tries >= MAX_TRIES && remove_leaf(groups, first.number) == 0)
        return -1;
    put_back(groups, first, 0);
    return -1;
}

/* A number, of a new one if there is no other; or -errno. */
static int take_number(struct fns_cgroups *groups, int *made)
{
    int number = look_at_waiting(groups), ret = 0;
    *made = 0;
    if (number >= 0)
        return number;
    pthread_mutex_lock(&groups->lock);
    if (groups->removed) {
        ret = -ENODEV;
    } else if (groups->n_free) {
        number = groups->free[--groups->n_free];
    } else {
        ret = grow(groups);
        if (ret == 0)
            number = groups->next++;
        *made = ret == 0;
    }
    pthread_mutex_unlock(&groups->lock);
    if (*made)
        ret = make_leaf(groups, number); /* fails: its number is not used again */
    return ret < 0 ? ret : number;
}

/* Its CPU time is limited from now on. 0 or -errno. */
static int watch_leaf(struct fns_cgroups *groups, struct fns_leaf *leaf)
{
    int ret = fns_cpu_watch_add(groups->watch, leaf);
    if (ret < 0)
        close_fds(leaf);
    return ret;
}

int fns_leaf_take(struct fns_cgroups *groups, struct fns_leaf *leaf, struct fns_args *args,
                  struct fns_error *error)
{
    int ret = -EBUSY, made;
    leaf->number = -1;
    leaf->n_fds = 0;
    if (!groups)
        return 0;
    /* EBUSY: what was seen empty could not be made anew. */
    for (int tries = 0; ret == -EBUSY && tries < 4; tries++) {
        ret = leaf->number = take_number(groups, &made);
        if (ret < 0)
            break;
        ret = prepare_leaf(groups, leaf, made);
        if (ret == 0 && groups->watch)
            ret = watch_leaf(groups, leaf);
        if (ret < 0)
            put_back(groups, (struct waiting){.number = leaf->number}, 0);
    }
    if (ret < 0) {
        leaf->number = -1;
        return fns_set_error(error, FNS_STAGE_CGROUP, -1, ret);
    }
    args->groups = leaf->fds;
    args->n_groups = leaf->n_fds;
    args->clone_into = leaf->clone_into;
    return 0;
}

void fns_leaf_entered(struct fns_leaf *leaf)
{
    close_fds(leaf);
}

static uint64_t count(const struct fns_cgroups *groups, int number,
                      const struct fns_cgroup_counter *counter, uint64_t before)
{
    uint64_t value = fns_leaf_counter(&groups->plan, number, counter);
    if (value == FNS_NO_COUNT || before == FNS_NO_COUNT)
        return FNS_NO_COUNT;
    if (!counter->peak)
        return value - before;
    /* A peak that cannot be reset is this sandbox's when it is higher than all before. */
    return counter->reset || value > before ? value : FNS_NO_COUNT;
}

void fns_leaf_give(struct fns_cgroups *groups, struct fns_leaf *leaf)
{
    close_fds(leaf);
    if (!groups || leaf->number < 0)
        return;
    for (int kind = 0; kind < FNS_COUNTS; kind++)
        leaf->counts[kind] = FNS_NO_COUNT;
    int spent = 0;
    if (groups->watch) { /* before another may have its number */
        spent = fns_cpu_watch_remove(groups->watch, leaf->number);
        leaf->counts[FNS_COUNT_CPU_TIME_OVER] = (uint64_t)spent;
    }
    for (unsigned i = 0; i < groups->plan.n_counters; i++) {
        const struct fns_cgroup_counter *counter = &groups->plan.counters[i];
        leaf->counts[counter->kind] = count(groups, leaf->number, counter, leaf->before[i]);
    }
    /* Once cgroup.kill was written to it, whatever is cloned into a cgroup is killed at once: Linux
     * compares how often with how often that was done to the cgroup of who clones. */
    if (!spent || remove_leaf(groups, leaf->number) < 0) {
        int empty = !spent && is_empty(groups, leaf->number, 0);
        put_back(groups, (struct waiting){.number = leaf->number, .spent = spent}, empty);
    }
    leaf->number = -1;
}

int fns_cgroups_remove(struct fns_cgroups *groups, unsigned patience_ms)
{
    const struct timespec pause = {0, 1000000};
    const uint64_t end = fns_now() + patience_ms * 1000000ull;
    int left = 0;
    pthread_mutex_lock(&groups->lock);
    groups->removed = 1;
    pthread_mutex_unlock(&groups->lock);
    if (groups->watch)
        fns_cpu_watch_rest(groups->watch);
    for (int number = 0; number < groups->next; number++) {
        int ret = remove_leaf(groups, number);
        while (ret < 0 && fns_now() < end) {
            nanosleep(&pause, NULL);
            ret = remove_leaf(groups, number);
        }
        left |= ret < 0;
    }
    return left ? -EBUSY : 0;
}

void fns_cgroups_close(struct fns_cgroups *groups)
{
    if (groups->watch)
        fns_cpu_watch_close(groups->watch);
    pthread_mutex_destroy(&groups->lock);
    free(groups->free);
    free(groups->waiting);
    free(groups);
}
