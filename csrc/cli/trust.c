/* Reads a file if only this user and root can have written it. Runs in fastns-exec.
 *
 * Follows the path name by name, and checks each directory before it looks up a name there: whoever may write to a
 * directory on the path can replace the file. In a sticky directory such as /tmp, others can only add names. So one may
 * contain a directory on the path, but not the file itself.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli.h"

enum { MAX_LINKS = 40 }; /* as many as the kernel follows */

struct walk {
    int at; /* O_PATH fd of the directory reached, and finally of the file */
    int links;
    uid_t user;
    struct fns_distrust *why;
};

static int blame(struct walk *walk, const char *name, const struct stat *about)
{
    char link[32];
    struct fns_distrust *why = walk->why;
    snprintf(link, sizeof link, "/proc/self/fd/%d", walk->at);
    ssize_t n = readlink(link, why->path, sizeof why->path - 1);
    size_t used = n < 0 ? 0 : (size_t)n;
    why->path[used] = 0;
    if (*name)
        snprintf(why->path + used, sizeof why->path - used, "%s%s", used > 1 ? "/" : "", name);
    why->mode = about->st_mode & 07777;
    why->owner = about->st_uid;
    return -EPERM;
}

static int is_ours(const struct walk *walk, const struct stat *about)
{
    return about->st_uid == walk->user || about->st_uid == 0;
}

/* -EPERM: others can replace a name in the directory reached; 0: they cannot; -errno. `names_directory`: the name is
 * that of a directory. */
static int check_directory(struct walk *walk, int names_directory)
{
    struct stat about;
    if (fstat(walk->at, &about) < 0)
        return -errno;
    if (!S_ISDIR(about.st_mode))
        return -ENOTDIR;
    int open = (about.st_mode & 022) && !((about.st_mode & S_ISVTX) && names_directory);
    return open || !is_ours(walk, &about) ? blame(walk, "", &about) : 0;
}

static int move_to(struct walk *walk, int fd)
{
    if (walk->at >= 0)
        close(walk->at);
    walk->at = fd;
    return fd < 0 ? -errno : 0;
}

static int follow(struct walk *walk, const char *path);

/* Goes from walk->at to `name`, and checks who may change it. 0 or -errno. */
static int step(struct walk *walk, const char *name)
{
    char target[PATH_MAX];
    struct stat about;
    int fd = openat(walk->at, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    int ret = fd < 0 || fstat(fd, &about) < 0 ? -errno : 0;
    if (ret == 0)
        ret = check_directory(walk, S_ISDIR(about.st_mode));
    if (ret == 0 && !S_ISDIR(about.st_mode) && !is_ours(walk, &about))
        ret = blame(walk, name, &about);
    if (ret < 0 || !S_ISLNK(about.st_mode)) {
        if (ret == 0)
            return move_to(walk, fd);
        if (fd >= 0)
            close(fd);
        return ret;
    }
    ssize_t n = readlinkat(fd, "", target, sizeof target - 1);
    ret = n < 0 ? -errno : ++walk->links > MAX_LINKS ? -ELOOP : 0;
    close(fd);
    if (ret < 0)
        return ret;
    target[n] = 0;
    return follow(walk, target);
}

static int follow(struct walk *walk, const char *path)
{
    char name[NAME_MAX + 1];
    int ret = 0;
    if (*path == '/')
        ret = move_to(walk, open("/", O_PATH | O_DIRECTORY | O_CLOEXEC));
    while (ret == 0 && *(path += strspn(path, "/"))) {
        size_t size = strcspn(path, "/");
        if (size > NAME_MAX)
            return -ENAMETOOLONG;
        memcpy(name, path, size);
        name[size] = 0;
        path += size;
        ret = step(walk, name);
    }
    return ret;
}

/* Reads `size` bytes. Only the file's owner or root can have changed its size since. */
static int read_all(int fd, size_t size, char **bytes)
{
    size_t done = 0;
    *bytes = malloc(size + 1);
    if (!*bytes)
        return -ENOMEM;
    while (done < size) {
        ssize_t n = read(fd, *bytes + done, size - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            int ret = n < 0 ? -errno : -EIO;
            free(*bytes);
            return ret;
        }
        done += (size_t)n;
    }
    return 0;
}

int fns_read_trusted(const char *path, char **bytes, size_t *size, struct fns_distrust *why)
{
    char link[32];
    struct stat about;
    struct walk walk = {.at = -1, .user = geteuid(), .why = why};
    why->path[0] = 0;
    int ret = *path ? move_to(&walk, open(".", O_PATH | O_DIRECTORY | O_CLOEXEC)) : -ENOENT;
    if (ret == 0)
        ret = follow(&walk, path);
    if (ret == 0 && fstat(walk.at, &about) < 0)
        ret = -errno;
    if (ret == 0 && !S_ISREG(about.st_mode))
        ret = S_ISDIR(about.st_mode) ? -EISDIR : -EINVAL;
    if (ret == 0 && (about.st_mode & 022))
        ret = blame(&walk, "", &about);
    snprintf(link, sizeof link, "/proc/self/fd/%d", walk.at);
    int fd = ret == 0 ? open(link, O_RDONLY | O_CLOEXEC) : -1;
    if (ret == 0 && fd < 0)
        ret = -errno;
    if (ret == 0) {
        *size = (size_t)about.st_size;
        ret = read_all(fd, *size, bytes);
    }
    if (fd >= 0)
        close(fd);
    if (walk.at >= 0)
        close(walk.at);
    return ret;
}
