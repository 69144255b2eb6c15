/* The user namespaces with a range of ids that this process keeps. Runs in the caller.
 *
 * Sandboxes of one range join one namespace, held by an fd. The fd is a number in a program that may close it,
 * or open another file at it; both are noticed, and the namespace is made anew.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "spawn.h"

struct range {
    struct range *next;
    uint32_t uid, gid;
    uint64_t count;
    int fd;
    struct stat file;
};

static struct range *ranges;

static struct range *range_of(uint32_t uid, uint32_t gid, uint64_t count)
{
    struct range *range = ranges;
    while (range && (range->uid != uid || range->gid != gid || range->count != count))
        range = range->next;
    if (range)
        return range;
    range = calloc(1, sizeof *range);
    if (!range)
        return NULL;
    *range = (struct range){.next = ranges, .uid = uid, .gid = gid, .count = count, .fd = -1};
    return ranges = range;
}

/* 1: its fd still is the namespace; 0: it is not; -errno. */
static int is_open(const struct range *range)
{
    struct stat now;
    if (range->fd < 0)
        return 0;
    if (fstat(range->fd, &now) < 0)
        return errno == EBADF ? 0 : -errno;
    return now.st_ino == range->file.st_ino && now.st_dev == range->file.st_dev;
}

int fns_userns_of_range(uint32_t uid, uint32_t gid, uint64_t count, const char *inotify,
                        struct fns_error *error)
{
    char uid_map[64], gid_map[64];
    struct range *range = range_of(uid, gid, count);
    int ret = range ? is_open(range) : -ENOMEM;
    if (ret < 0)
        return fns_set_error(error, FNS_STAGE_CLONE, -1, ret);
    if (ret)
        return range->fd;
    snprintf(uid_map, sizeof uid_map, "0 %" PRIu32 " %" PRIu64 "\n", uid, count);
    snprintf(gid_map, sizeof gid_map, "0 %" PRIu32 " %" PRIu64 "\n", gid, count);
    range->fd = fns_userns_open(uid_map, gid_map, inotify, error);
    if (range->fd >= 0 && fstat(range->fd, &range->file) < 0)
        range->file = (struct stat){0}; /* closed by another thread: the next call makes it anew */
    return range->fd;
}
