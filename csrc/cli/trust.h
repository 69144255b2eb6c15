/* Reading a file that nobody but this user and root can have written. */
#ifndef FNS_TRUST_H
#define FNS_TRUST_H

#include <limits.h>
#include <stddef.h>
#include <sys/types.h>

struct fns_distrust {
    char path[PATH_MAX]; /* what is to blame */
    mode_t mode;
    uid_t owner;
};

/* The whole of a regular file, to be freed; *size is its size. 0; -errno; or -EPERM and `why->path` is
 * set: the file, or a directory or link on the way to it, belongs to somebody else or may be written by
 * others. */
int fns_read_trusted(const char *path, char **bytes, size_t *size, struct fns_distrust *why);

#endif
