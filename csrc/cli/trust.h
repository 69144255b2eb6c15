/* Reads a file that nobody but this user and root can have written. */
#ifndef FNS_TRUST_H
#define FNS_TRUST_H

#include <limits.h>
#include <stddef.h>
#include <sys/types.h>

struct fns_distrust {
    char path[PATH_MAX]; /* which is not trusted */
    mode_t mode;
    uid_t owner;
};

/* Reads the whole of a regular file, to be freed. 0; -errno; -EPERM with why->path: this file, directory or link on
 * the way belongs to another user, or others may write to it. */
int fns_read_trusted(const char *path, char **bytes, size_t *size, struct fns_distrust *why);

#endif
