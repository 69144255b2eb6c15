/* A pool of cgroups for sandboxes. Runs in the caller, without the GIL.
 *
 * What a sandbox gets is called one cgroup here, but is one in each hierarchy of the plan: cgroup v1 has several.
 * They have one number, which is also their directories' name, and the limits of a spec. A sandbox enters its
 * cgroup before it executes its command, through fds that are opened here. After its end the counters are read.
 * The cgroup is used again only when it has been seen empty: without a process, and without memory charged to it.
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

enum {
    NAME_SIZE = 16,
    PATH_SIZE = 128,
    TEXT_SIZE = 8192,
    MAX_LOOKS = 64,       /* at a cgroup that is not empty; then it is removed */
    RECLAIM_EACH = 16,    /* looks: then its memory is reclaimed */
    KEPT_BYTES = 1 << 20, /* of memory, which the kernel may keep in an empty cgroup for a while */
    TAKE_TRIES = 4,
};

struct waiting { /* a cgroup that was not empty */
    int number, looks;
    int spent; /* not to be used again */
};

struct fns_cgroups {
    struct fns_cgroup_plan plan;
    pthread_mutex_t lock;
    int next;                    /* number of the next new cgroup */
    int n_free, n_waiting, size; /* size: of both lists */
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

static int open_file(const struct fns_cgroup_plan *plan, unsigned hierarchy, int number,
                     const char *file, int flags)
{
    char path[PATH_SIZE];
    snprintf(path, sizeof path, "%d/%s", number, file);
    int fd = openat(plan->hierarchies[hierarchy].directory, path, flags | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

int fns_cgroup_write(const struct fns_cgroup_plan *plan, unsigned hierarchy, int number,
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

int fns_cgroup_read(const struct fns_cgroup_plan *plan, unsigned hierarchy, int number,
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

/* The sum of the numbers behind each `key`; key "": the only number of the file. 0 or -errno. */
static int read_number(const struct fns_cgroup_plan *plan, unsigned hierarchy, int number,
                       const char *file, const char *key, uint64_t *value)
{
    char text[TEXT_SIZE];
    size_t length = strlen(key);
    int ret = fns_cgroup_read(plan, hierarchy, number, file, text, sizeof text);
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

/* ---- one cgroup ------------------------------------------------------------------------------ */

/* What a cgroup is in one hierarchy. 0; -EBUSY: it is not empty; -errno. */
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

/* The same, made, with its limits. */
static int make_part(const struct fns_cgroups *groups, unsigned hierarchy, int number)
{
    char name[NAME_SIZE];
    snprintf(name, sizeof name, "%d", number);
    int ret = mkdirat(groups->plan.hierarchies[hierarchy].directory, name, 0755) < 0 ? -errno : 0;
    for (unsigned i = 0; ret == 0 && i < groups->plan.n_settings; i++) {
        const struct fns_cgroup_setting *setting = &groups->plan.settings[i];
        if (setting->hierarchy == hierarchy)
            ret = fns_cgroup_write(&groups->plan, hierarchy, number, setting->file, setting->value);
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

static int has_processes(const struct fns_cgroups *groups, unsigned hierarchy, int number)
{
    uint64_t populated;
    char first[2];
    if (groups->plan.hierarchies[hierarchy].unified)
        return read_number(&groups->plan, hierarchy, number, "cgroup.events", "populated",
                           &populated) < 0 ||
               populated;
    return fns_cgroup_read(&groups->plan, hierarchy, number, "cgroup.procs", first, sizeof first) !=
           0;
}

/* Such as files in a tmpfs, or pages of the cache that it was the first to read. */
static int holds_memory(const struct fns_cgroups *groups, int number)
{
    uint64_t used;
    const struct fns_cgroup_plan *plan = &groups->plan;
    return read_number(plan, plan->memory_hierarchy, number, plan->memory_file, "", &used) < 0 ||
           used > KEPT_BYTES;
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
    /* Takes milliseconds: every CPU gives up the pages that it holds. */
    fns_cgroup_write(plan, plan->memory_hierarchy, number, plan->reclaim_file, plan->reclaim_text);
    return !holds_memory(groups, number);
}

uint64_t fns_cgroup_count(const struct fns_cgroup_plan *plan, int number,
                          const struct fns_cgroup_counter *counter)
{
    uint64_t value;
    if (read_number(plan, counter->hierarchy, number, counter->file, counter->key, &value) < 0)
        return FNS_NO_COUNT;
    return value * counter->scale;
}

static void close_fds(struct fns_cgroup *cgroup)
{
    for (uint32_t i = 0; i < cgroup->n_fds; i++)
        close(cgroup->fds[i]);
    cgroup->n_fds = 0;
}

static int renew_part(const struct fns_cgroups *groups, unsigned hierarchy, int number)
{
    int ret = remove_part(groups, hierarchy, number);
    return ret < 0 ? ret : make_part(groups, hierarchy, number);
}

/* Whether a counter begins at 0 only in a new cgroup. */
static int needs_new(const struct fns_cgroup_plan *plan, unsigned hierarchy)
{
    for (unsigned i = 0; i < plan->n_counters; i++) {
        const struct fns_cgroup_counter *counter = &plan->counters[i];
        if (counter->hierarchy == hierarchy && counter->reset && !*counter->reset)
            return 1;
    }
    return 0;
}

/* Opens the files by which a sandbox enters, and reads the counters. `made`: it is new. 0 or -errno. */
static int prepare(const struct fns_cgroups *groups, struct fns_cgroup *cgroup, int made)
{
    const struct fns_cgroup_plan *plan = &groups->plan;
    int ret = 0;
    cgroup->n_fds = 0;
    for (unsigned i = 0; !made && ret >= 0 && i < plan->n_hierarchies; i++)
        if (needs_new(plan, i))
            ret = renew_part(groups, i, cgroup->number);
    for (unsigned i = 0; ret >= 0 && i < plan->n_hierarchies; i++) {
        /* Writing to cgroup.procs takes a lock against all forks. If nobody has for a while, that waits for an RCU
         * grace period, some 16 ms. A process that moves its only thread, by "tasks", does not take it. */
        const char *file = plan->hierarchies[i].unified ? "cgroup.procs" : "tasks";
        ret = fns_above_stdio(open_file(plan, i, cgroup->number, file, O_WRONLY));
        if (ret >= 0)
            cgroup->fds[cgroup->n_fds++] = ret;
    }
    cgroup->clone_into = 0;
    if (ret >= 0 && plan->hierarchies[0].unified) {
        ret = fns_above_stdio(open_file(plan, 0, cgroup->number, "", O_RDONLY | O_DIRECTORY));
        if (ret >= 0)
            cgroup->fds[cgroup->n_fds++] = ret;
        cgroup->clone_into = 1;
    }
    for (unsigned i = 0; ret >= 0 && i < plan->n_counters; i++) {
        const struct fns_cgroup_counter *counter = &plan->counters[i];
        if (counter->reset && *counter->reset)
            fns_cgroup_write(plan, counter->hierarchy, cgroup->number, counter->file,
                             counter->reset);
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

/* Space for one more number in each list. The lock is held. 0 or -ENOMEM. */
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

/* `empty`: it may be used again; otherwise it waits. */
static void put_back(struct fns_cgroups *groups, struct waiting group, int empty)
{
    pthread_mutex_lock(&groups->lock);
    if (empty)
        groups->free[groups->n_free++] = group.number;
    else
        groups->waiting[groups->n_waiting++] = group;
    pthread_mutex_unlock(&groups->lock);
}

/* Looks at the cgroup that has waited longest: its number if it is empty by now, or -1. One that does not get
 * empty is removed. */
static int take_waiting(struct fns_cgroups *groups)
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
    first.looks++;
    if (!first.spent && is_empty(groups, first.number, first.looks % RECLAIM_EACH == 0))
        return first.number;
    int is_useless = first.spent || first.looks >= MAX_LOOKS;
    if (!is_useless || remove_all(groups, first.number) < 0)
        put_back(groups, first, 0);
    return -1;
}

/* The number of an empty cgroup, which is made if there is none; or -errno. */
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
            number = groups->next++;
        *made = ret == 0;
    }
    pthread_mutex_unlock(&groups->lock);
    if (*made)
        ret = make_all(groups, number); /* the number of a failure is not used again */
    return ret < 0 ? ret : number;
}

int fns_cgroup_take(struct fns_cgroups *groups, struct fns_cgroup *cgroup, struct fns_args *args,
                    struct fns_error *error)
{
    int ret = -EBUSY, made;
    cgroup->number = -1;
    cgroup->n_fds = 0;
    if (!groups)
        return 0;
    /* EBUSY: it looked empty but could not be made anew. */
    for (int tries = 0; ret == -EBUSY && tries < TAKE_TRIES; tries++) {
        ret = cgroup->number = take_number(groups, &made);
        if (ret < 0)
            break;
        ret = prepare(groups, cgroup, made);
        if (ret == 0 && groups->watch)
            ret = fns_cpu_watch_add(groups->watch, cgroup);
        if (ret < 0)
            close_fds(cgroup);
        if (ret < 0)
            put_back(groups, (struct waiting){.number = cgroup->number}, 0);
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

void fns_cgroup_entered(struct fns_cgroup *cgroup)
{
    close_fds(cgroup);
}

static uint64_t count(const struct fns_cgroups *groups, int number,
                      const struct fns_cgroup_counter *counter, uint64_t before)
{
    uint64_t value = fns_cgroup_count(&groups->plan, number, counter);
    if (value == FNS_NO_COUNT || before == FNS_NO_COUNT)
        return FNS_NO_COUNT;
    if (!counter->peak)
        return value - before;
    /* A peak that cannot be reset is this sandbox's if it is higher than before. */
    return counter->reset || value > before ? value : FNS_NO_COUNT;
}

void fns_cgroup_give(struct fns_cgroups *groups, struct fns_cgroup *cgroup)
{
    close_fds(cgroup);
    if (!groups || cgroup->number < 0)
        return;
    for (int kind = 0; kind < FNS_COUNTS; kind++)
        cgroup->counts[kind] = FNS_NO_COUNT;
    int spent = 0;
    if (groups->watch) { /* before the number is used again */
        spent = fns_cpu_watch_remove(groups->watch, cgroup->number);
        cgroup->counts[FNS_COUNT_CPU_TIME_OVER] = (uint64_t)spent;
    }
    for (unsigned i = 0; i < groups->plan.n_counters; i++) {
        const struct fns_cgroup_counter *counter = &groups->plan.counters[i];
        cgroup->counts[counter->kind] = count(groups, cgroup->number, counter, cgroup->before[i]);
    }
    /* After a write to its cgroup.kill, Linux kills whatever is cloned into a cgroup: it compares the number of such
     * writes to this cgroup and to that of the process that clones. */
    if (!spent || remove_all(groups, cgroup->number) < 0) {
        int empty = !spent && is_empty(groups, cgroup->number, 0);
        put_back(groups, (struct waiting){.number = cgroup->number, .spent = spent}, empty);
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
        fns_cpu_watch_rest(groups->watch);
    for (int number = 0; number < groups->next; number++) {
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
