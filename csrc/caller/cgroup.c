/* A pool of cgroups for sandboxes. Runs in the caller, without the GIL.
 *
 * A cgroup here is a set of directories, one in each hierarchy of the plan, as cgroup v1 has several. All of them have
 * the same number as their name, and the limits of the plan. A sandbox enters its cgroup before it executes its
 * command, through fds that are opened here. The counters are read after its end. A cgroup is reused only once it is
 * empty: without processes, and with hardly any memory charged to it (KEPT_BYTES).
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

#include "spawn.h"

enum {
    NAME_SIZE = 16,
    PATH_SIZE = 128,
    TEXT_SIZE = 8192,
    MAX_LOOKS = 64,       /* how often to check a cgroup that is not empty before removing it */
    RECLAIM_EACH = 16,    /* checks between two attempts to reclaim its memory */
    KEPT_BYTES = 1 << 20, /* memory that the kernel may keep in an empty cgroup for a while */
    TAKE_TRIES = 4,
};

struct waiting { /* a cgroup that was not empty */
    int number, looks;
    int unusable; /* only to be removed */
};

struct fns_cgroups {
    struct fns_cgroup_plan plan;
    pthread_mutex_t lock;
    size_t next;              /* number of the next new cgroup */
    size_t n_free, n_waiting; /* both lists have room for every number */
    size_t free_size, waiting_size;
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

/* ---- one file of a cgroup -------------------------------------------------------------------- */

static int open_file(int directory, int number, const char *file, int flags)
{
    char path[PATH_SIZE];
    snprintf(path, sizeof path, "%d/%s", number, file);
    int fd = openat(directory, path, flags | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

int fns_cgroup_write(int directory, int number, const char *file, const char *text)
{
    int fd = open_file(directory, number, file, O_WRONLY);
    if (fd < 0)
        return fd;
    ssize_t n = write(fd, text, strlen(text));
    int ret = n < 0 ? -errno : 0;
    close(fd);
    return ret;
}

int fns_cgroup_read(int directory, int number, const char *file, char *text, size_t size)
{
    int fd = open_file(directory, number, file, O_RDONLY);
    if (fd < 0)
        return fd;
    ssize_t n = read(fd, text, size - 1);
    int ret = n < 0 ? -errno : (int)n;
    close(fd);
    text[n < 0 ? 0 : n] = 0;
    return ret;
}

/* The sum of the numbers after each `key`; key "": the only number of the file. FNS_NO_COUNT: the file cannot be
 * read. */
static uint64_t read_number(int directory, int number, const char *file, const char *key)
{
    char text[TEXT_SIZE];
    size_t length = strlen(key);
    uint64_t sum = 0;
    if (fns_cgroup_read(directory, number, file, text, sizeof text) < 0)
        return FNS_NO_COUNT;
    if (!length)
        return strtoull(text, NULL, 10);
    for (const char *at = text; (at = strstr(at, key)); at += length)
        if ((at == text || at[-1] == '\n' || at[-1] == ' ') &&
            (at[length] == ' ' || at[length] == '='))
            sum += strtoull(at + length + 1, NULL, 10);
    return sum;
}

uint64_t fns_cgroup_count(const struct fns_cgroup_plan *plan, int number,
                          const struct fns_cgroup_counter *counter)
{
    uint64_t value = read_number(plan->hierarchies[counter->hierarchy].directory, number,
                                 counter->file, counter->key);
    return value == FNS_NO_COUNT ? value : value * counter->scale;
}

/* ---- one cgroup ------------------------------------------------------------------------------ */

/* Removes the directory in one hierarchy. 0; -EBUSY: it is not empty; -errno. */
static int remove_part(const struct fns_cgroups *groups, unsigned hierarchy, int number)
{
    char name[NAME_SIZE];
    snprintf(name, sizeof name, "%d", number);
    int directory = groups->plan.hierarchies[hierarchy].directory;
    return unlinkat(directory, name, AT_REMOVEDIR) < 0 ? -errno : 0;
}

static int remove_all(const struct fns_cgroups *groups, int number)
{
    int ret = 0;
    for (unsigned i = 0; i < groups->plan.n_hierarchies; i++) {
        int removed = remove_part(groups, i, number);
        if (removed < 0 && removed != -ENOENT)
            ret = removed;
    }
    return ret;
}

/* Makes the directory in one hierarchy, with its limits. 0 or -errno. */
static int make_part(const struct fns_cgroups *groups, unsigned hierarchy, int number)
{
    char name[NAME_SIZE];
    snprintf(name, sizeof name, "%d", number);
    int directory = groups->plan.hierarchies[hierarchy].directory;
    int ret = mkdirat(directory, name, 0755) < 0 ? -errno : 0;
    for (unsigned i = 0; ret == 0 && i < groups->plan.n_settings; i++) {
        const struct fns_cgroup_setting *setting = &groups->plan.settings[i];
        if (setting->hierarchy == hierarchy)
            ret = fns_cgroup_write(directory, number, setting->file, setting->value);
    }
    return ret;
}

static int make_all(const struct fns_cgroups *groups, int number)
{
    int ret = 0;
    for (unsigned i = 0; ret == 0 && i < groups->plan.n_hierarchies; i++)
        ret = make_part(groups, i, number);
    if (ret < 0)
        remove_all(groups, number);
    return ret;
}

static int has_processes(const struct fns_cgroup_hierarchy *hierarchy, int number)
{
    char byte[2];
    if (hierarchy->unified)
        return read_number(hierarchy->directory, number, "cgroup.events", "populated") != 0;
    return fns_cgroup_read(hierarchy->directory, number, "cgroup.procs", byte, sizeof byte) != 0;
}

/* Whether memory is still charged to a cgroup without processes, such as files in a tmpfs, or cached pages that its
 * sandbox was the first to read. If the file cannot be read, assumes that there is some. */
static int holds_memory(const struct fns_cgroup_plan *plan, int number)
{
    int directory = plan->hierarchies[plan->memory_hierarchy].directory;
    return read_number(directory, number, plan->memory_file, "") > KEPT_BYTES;
}

static int is_empty(const struct fns_cgroup_plan *plan, int number, int reclaim)
{
    for (unsigned i = 0; i < plan->n_hierarchies; i++)
        if (has_processes(&plan->hierarchies[i], number))
            return 0;
    if (!plan->memory_file || !holds_memory(plan, number))
        return 1;
    if (!reclaim)
        return 0;
    /* Takes milliseconds: every CPU has to release the pages that it caches. */
    fns_cgroup_write(plan->hierarchies[plan->memory_hierarchy].directory, number,
                     plan->reclaim_file, plan->reclaim_text);
    return !holds_memory(plan, number);
}

void fns_cgroup_entered(struct fns_cgroup *cgroup)
{
    for (uint32_t i = 0; i < cgroup->n_fds; i++)
        close(cgroup->fds[i]);
    cgroup->n_fds = 0;
}

/* Whether a counter of the hierarchy starts at 0 only in a new cgroup. */
static int needs_new(const struct fns_cgroup_plan *plan, unsigned hierarchy)
{
    for (unsigned i = 0; i < plan->n_counters; i++) {
        const struct fns_cgroup_counter *counter = &plan->counters[i];
        if (counter->hierarchy == hierarchy && counter->reset && !*counter->reset)
            return 1;
    }
    return 0;
}

/* Opens the files through which a sandbox enters, and resets and reads the counters. `made`: the cgroup is new. 0 or
 * -errno. */
static int prepare(const struct fns_cgroups *groups, struct fns_cgroup *cgroup, int made)
{
    const struct fns_cgroup_plan *plan = &groups->plan;
    const struct fns_cgroup_hierarchy *hierarchies = plan->hierarchies;
    int ret = 0;
    cgroup->n_fds = 0;
    for (unsigned i = 0; !made && ret >= 0 && i < plan->n_hierarchies; i++)
        if (needs_new(plan, i)) {
            ret = remove_part(groups, i, cgroup->number);
            if (ret == 0)
                ret = make_part(groups, i, cgroup->number);
        }
    for (unsigned i = 0; ret >= 0 && i < plan->n_hierarchies; i++) {
        /* A write to cgroup.procs takes a lock that stops all forks. If nobody has taken it for a while, it costs an
         * RCU grace period, some 16 ms. A process that moves its only thread through "tasks" does not need the lock. */
        const char *file = hierarchies[i].unified ? "cgroup.procs" : "tasks";
        ret = fns_above_stdio(open_file(hierarchies[i].directory, cgroup->number, file, O_WRONLY));
        if (ret >= 0)
            cgroup->fds[cgroup->n_fds++] = ret;
    }
    cgroup->clone_into = (uint32_t)hierarchies[0].unified;
    if (ret >= 0 && hierarchies[0].unified) {
        ret = fns_above_stdio(
            open_file(hierarchies[0].directory, cgroup->number, "", O_RDONLY | O_DIRECTORY));
        if (ret >= 0)
            cgroup->fds[cgroup->n_fds++] = ret;
    }
    for (unsigned i = 0; ret >= 0 && i < plan->n_counters; i++) {
        const struct fns_cgroup_counter *counter = &plan->counters[i];
        if (counter->reset && *counter->reset)
            fns_cgroup_write(hierarchies[counter->hierarchy].directory, cgroup->number,
                             counter->file, counter->reset);
        cgroup->before[i] = fns_cgroup_count(plan, cgroup->number, counter);
    }
    return ret < 0 ? ret : 0;
}

/* ---- the pool -------------------------------------------------------------------------------- */

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

/* Makes room for one more number in each list. The lock is held. 0 or -ENOMEM. */
static int grow(struct fns_cgroups *groups)
{
    int *free = fns_grow(groups->free, &groups->free_size, groups->next, sizeof *free);
    if (!free)
        return -ENOMEM;
    groups->free = free;
    struct waiting *waiting =
        fns_grow(groups->waiting, &groups->waiting_size, groups->next, sizeof *waiting);
    if (!waiting)
        return -ENOMEM;
    groups->waiting = waiting;
    return 0;
}

/* Puts a cgroup into the list of free ones, or into that of waiting ones. */
static void put_back(struct fns_cgroups *groups, struct waiting group, int empty)
{
    pthread_mutex_lock(&groups->lock);
    if (empty)
        groups->free[groups->n_free++] = group.number;
    else
        groups->waiting[groups->n_waiting++] = group;
    pthread_mutex_unlock(&groups->lock);
}

/* Checks the cgroup that has waited longest. Returns its number if it is empty, otherwise -1; then puts it back, or
 * removes it after MAX_LOOKS checks. */
static int take_waiting(struct fns_cgroups *groups)
{
    struct waiting group = {.number = -1};
    pthread_mutex_lock(&groups->lock);
    if (groups->n_waiting) {
        group = groups->waiting[0];
        groups->n_waiting--;
        memmove(groups->waiting, groups->waiting + 1, groups->n_waiting * sizeof *groups->waiting);
    }
    pthread_mutex_unlock(&groups->lock);
    if (group.number < 0)
        return -1;
    group.looks++;
    if (!group.unusable && is_empty(&groups->plan, group.number, group.looks % RECLAIM_EACH == 0))
        return group.number;
    int removes = group.unusable || group.looks >= MAX_LOOKS;
    if (!removes || remove_all(groups, group.number) < 0)
        put_back(groups, group, 0);
    return -1;
}

/* Returns the number of an empty cgroup, or -errno. `*made`: there was none, so it is new. */
static int take_number(struct fns_cgroups *groups, int *made)
{
    int number = take_waiting(groups), ret = 0;
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
            number = (int)groups->next++;
        *made = ret == 0;
    }
    pthread_mutex_unlock(&groups->lock);
    if (*made)
        ret = make_all(groups, number); /* a number that failed is not used again */
    return ret < 0 ? ret : number;
}

int fns_cgroup_take(struct fns_cgroups *groups, struct fns_cgroup *cgroup, struct fns_args *args,
                    struct fns_error *error)
{
    int ret = -EBUSY, made;
    cgroup->number = -1;
    cgroup->n_fds = cgroup->shared = 0;
    if (!groups)
        return 0;
    /* EBUSY: it looked empty but could not be recreated. */
    for (int tries = 0; ret == -EBUSY && tries < TAKE_TRIES; tries++) {
        ret = cgroup->number = take_number(groups, &made);
        if (ret < 0)
            break;
        ret = prepare(groups, cgroup, made);
        if (ret == 0 && groups->watch)
            ret = fns_cpu_watch_add(groups->watch, cgroup);
        if (ret < 0) {
            fns_cgroup_entered(cgroup);
            put_back(groups, (struct waiting){.number = cgroup->number}, 0);
        }
    }
    if (ret < 0) {
        cgroup->number = -1;
        return fns_set_error(error, FNS_STAGE_CGROUP, -1, ret);
    }
    args->groups = cgroup->fds;
    args->n_groups = cgroup->n_fds;
    args->clone_into = cgroup->clone_into;
    return 0;
}

static int is_a_cause(unsigned kind)
{
    return kind == FNS_COUNT_OOM_KILLS || kind == FNS_COUNT_PIDS_REFUSED;
}

void fns_cgroup_share(struct fns_cgroups *groups, const struct fns_cgroup *whole,
                      struct fns_cgroup *cgroup)
{
    const struct fns_cgroup_plan *plan = &groups->plan;
    cgroup->number = whole->number;
    cgroup->n_fds = 0;
    cgroup->shared = 1;
    for (unsigned i = 0; i < plan->n_counters; i++)
        if (is_a_cause(plan->counters[i].kind))
            cgroup->before[i] = fns_cgroup_count(plan, whole->number, &plan->counters[i]);
}

static uint64_t count(const struct fns_cgroups *groups, int number,
                      const struct fns_cgroup_counter *counter, uint64_t before)
{
    uint64_t value = fns_cgroup_count(&groups->plan, number, counter);
    if (value == FNS_NO_COUNT || before == FNS_NO_COUNT)
        return FNS_NO_COUNT;
    if (!counter->peak)
        return value - before;
    /* A peak that cannot be reset is certainly this sandbox's only if it has risen. */
    return counter->reset || value > before ? value : FNS_NO_COUNT;
}

void fns_cgroup_give(struct fns_cgroups *groups, struct fns_cgroup *cgroup)
{
    fns_cgroup_entered(cgroup);
    if (!groups || cgroup->number < 0)
        return;
    for (int kind = 0; kind < FNS_COUNTS; kind++)
        cgroup->counts[kind] = FNS_NO_COUNT;
    int over = 0;
    if (groups->watch && cgroup->shared)
        cgroup->counts[FNS_COUNT_CPU_TIME_OVER] =
            (uint64_t)fns_cpu_watch_is_over(groups->watch, cgroup->number);
    if (groups->watch && !cgroup->shared) { /* before the number is used again */
        over = fns_cpu_watch_remove(groups->watch, cgroup->number);
        cgroup->counts[FNS_COUNT_CPU_TIME_OVER] = (uint64_t)over;
    }
    for (unsigned i = 0; i < groups->plan.n_counters; i++) {
        const struct fns_cgroup_counter *counter = &groups->plan.counters[i];
        if (!cgroup->shared || is_a_cause(counter->kind))
            cgroup->counts[counter->kind] =
                count(groups, cgroup->number, counter, cgroup->before[i]);
    }
    /* Never reuse a cgroup after a write to its cgroup.kill. Linux counts these writes, and kills a process cloned into
     * the cgroup if the count differs from that of the parent's cgroup. */
    if (!cgroup->shared && (!over || remove_all(groups, cgroup->number) < 0)) {
        int empty = !over && is_empty(&groups->plan, cgroup->number, 0);
        put_back(groups, (struct waiting){.number = cgroup->number, .unusable = over}, empty);
    }
    cgroup->number = -1;
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
        fns_cpu_watch_stop(groups->watch, 0);
    for (int number = 0; number < (int)groups->next; number++) {
        int ret = remove_all(groups, number);
        while (ret < 0 && fns_now() < end) {
            nanosleep(&pause, NULL);
            ret = remove_all(groups, number);
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
