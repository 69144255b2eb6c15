/* The lookup inside a root without openat2(2), for kernels that lack it.
 *
 * The test includes paths.c, to call its static functions and to instrument them, which is safe
 * because this process shares its memory with no other. For random trees and paths, the result must
 * equal the kernel's RESOLVE_IN_ROOT. Then directories move out of the root and back during
 * lookups, which must never find a directory that was not inside.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "../../csrc/program/paths.c"

#include "check.h"

/* Declared here because libc's headers conflict with the kernel's. */
extern char *mkdtemp(char *);
extern int mkdir(const char *, unsigned), symlink(const char *, const char *), chdir(const char *);
extern int close(int), rename(const char *, const char *);

static int directory(const char *path)
{
    int fd = fns_open(path, FNS_PATH_FLAGS | O_DIRECTORY);
    CHECK(fd >= 0);
    return fd;
}

static uint64_t inode(int fd)
{
    struct statx st;
    CHECK(fns_sys5(__NR_statx, fd, "", AT_EMPTY_PATH, STATX_INO, &st) == 0);
    return st.stx_ino;
}

static int oracle(int root, const char *path, int no_symlinks)
{
    struct fns_open_how how = {
        .flags = FNS_PATH_FLAGS,
        .resolve = FNS_RESOLVE_IN_ROOT | FNS_RESOLVE_NO_MAGICLINKS |
                   (no_symlinks ? FNS_RESOLVE_NO_SYMLINKS : 0),
    };
    int fd;
    do
        fd = (int)fns_sys4(__NR_openat2, root, path, &how, sizeof how);
    while (fd == -EAGAIN);
    return fd;
}

static void make_file(const char *path)
{
    int fd = (int)fns_sys4(__NR_openat, AT_FDCWD, path, O_CREAT | O_WRONLY, 0644);
    CHECK(fd >= 0);
    close(fd);
}

/* ---- compared with the kernel --------------------------------------------------------------- */

static const char *const names[] = {"a", "b", "c", "link", "loop", "file", "..", ".", "missing"};

static void random_path(char *path, int absolute)
{
    int parts = 1 + (int)random_below(6);
    *path = 0;
    if (absolute)
        strcat(path, "/");
    for (int i = 0; i < parts; i++) {
        if (i)
            strcat(path, random_below(8) ? "/" : "//");
        strcat(path, names[random_below(sizeof names / sizeof *names)]);
    }
}

static void random_tree(void)
{
    char path[256], target[256];
    for (int i = 0; i < 150; i++) {
        random_path(path + 5, 0);
        memcpy(path, "root/", 5);
        if (strstr(path, ".."))
            continue;
        switch (random_below(4)) {
        case 0:
            random_path(target, (int)random_below(2));
            symlink(target, path);
            break;
        case 1: {
            int fd = (int)fns_sys4(__NR_openat, AT_FDCWD, path, O_CREAT | O_WRONLY | O_EXCL, 0644);
            if (fd >= 0)
                close(fd);
            break;
        }
        default: mkdir(path, 0755);
        }
    }
    symlink("../../../../../../secret", "root/link");
    symlink("loop", "root/loop");
}

static void compare(int root, const char *path, int no_symlinks, int *found, int *refused)
{
    int mine = walk(root, path, no_symlinks), kernel = oracle(root, path, no_symlinks);
    if (kernel >= 0) {
        if (mine < 0 || inode(mine) != inode(kernel)) {
            fprintf(stderr, "%s: walk() gives %d, the kernel %d\n", path, mine, kernel);
            abort();
        }
        ++*found;
    } else {
        if (mine != kernel) {
            fprintf(stderr, "%s: walk() gives %d, the kernel %d\n", path, mine, kernel);
            abort();
        }
        ++*refused;
    }
    if (mine >= 0)
        close(mine);
    if (kernel >= 0)
        close(kernel);
}

static void agrees_with_the_kernel(void)
{
    int found = 0, refused = 0;
    char path[4200];
    for (int tree = 0; tree < 40; tree++) {
        char dir[] = "/tmp/fastns-walk-XXXXXX";
        CHECK(mkdtemp(dir) != NULL && chdir(dir) == 0);
        mkdir("root", 0755);
        make_file("secret");
        random_tree();
        int root = directory("root");
        for (int i = 0; i < 2000; i++) {
            random_path(path, (int)random_below(2));
            compare(root, path, (int)random_below(2), &found, &refused);
        }
        close(root);
        chdir("/");
        char command[64];
        snprintf(command, sizeof command, "rm -rf %s", dir);
        CHECK(system(command) == 0);
    }
    CHECK(found > 1000 && refused > 1000);
    printf("test_walk: %d paths found, %d refused, as the kernel does\n", found, refused);
}

/* ---- bounds --------------------------------------------------------------------------------- */

static void keeps_to_its_buffers(void)
{
    char dir[] = "/tmp/fastns-walk-XXXXXX", path[2 * FNS_PATH_SIZE];
    CHECK(mkdtemp(dir) != NULL && chdir(dir) == 0);
    mkdir("root", 0755);
    int root = directory("root"), before = open_fds();
    for (size_t n = FNS_PATH_SIZE - 3; n < FNS_PATH_SIZE + 3; n++) { /* long paths */
        memset(path, '/', n);
        path[n] = 0;
        int fd = walk(root, path, 0);
        CHECK_EQUAL(fd < 0 ? fd : 0, n < FNS_PATH_SIZE ? 0 : -ENAMETOOLONG);
        if (fd >= 0)
            close(fd);
    }
    for (size_t n = 253; n < 260; n++) { /* long names */
        memset(path, 'x', n);
        path[n] = 0;
        CHECK_EQUAL(walk(root, path, 0), n < 256 ? -ENOENT : -ENAMETOOLONG);
    }
    /* A link's target and the rest of the path are too long together. */
    memset(path, '/', 3000);
    strcpy(path + 3000, ".");
    CHECK(symlink(path, "root/long") == 0);
    strcpy(path, "long");
    memset(path + 4, '/', 2000);
    path[2004] = 0;
    CHECK_EQUAL(walk(root, path, 0), -ENAMETOOLONG);
    /* Deeper than the stack of fds. */
    chdir("root");
    for (int i = 0; i < MAX_DEPTH + 2; i++) {
        CHECK(mkdir("d", 0755) == 0 && chdir("d") == 0);
        strcpy(path + 2 * i, "d/");
    }
    path[2 * (MAX_DEPTH - 1)] = 0;
    int fd = walk(root, path, 0);
    CHECK(fd >= 0);
    close(fd);
    path[2 * (MAX_DEPTH - 1)] = 'd';
    CHECK_EQUAL(walk(root, path, 0), -ENAMETOOLONG);
    CHECK_EQUAL(open_fds(), before);
    close(root);
    chdir("/");
    char command[64];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    CHECK(system(command) == 0);
}

/* ---- while the tree changes ----------------------------------------------------------------- */

static atomic_int stop;

static void *move_about(void *arg)
{
    (void)arg;
    while (!stop) {
        rename("root/a/b", "outside/b");
        rename("outside/b", "root/a/b");
    }
    return NULL;
}

static void never_leaves_the_root(void)
{
    char dir[] = "/tmp/fastns-walk-XXXXXX";
    pthread_t mover;
    int found = 0, missed = 0;
    CHECK(mkdtemp(dir) != NULL && chdir(dir) == 0);
    mkdir("root", 0755);
    mkdir("root/a", 0755);
    mkdir("root/a/b", 0755);
    mkdir("root/a/b/c", 0755);
    mkdir("root/secret", 0755); /* the target of "../../.." inside */
    mkdir("outside", 0755);
    mkdir("secret", 0755);
    mkdir("outside/secret", 0755);
    symlink("../../../../../secret", "root/a/b/c/up");
    int root = directory("root"), fd = directory("root/secret");
    uint64_t allowed = inode(fd);
    close(fd);
    CHECK(pthread_create(&mover, NULL, move_about, NULL) == 0);
    static const char *const paths[] = {"a/b/c/../../../secret", "a/b/../../../secret", "a/b/c/up",
                                        "/a/b/c/../../../../../../secret"};
    for (int i = 0; i < 100000; i++) {
        fd = walk(root, paths[i % 4], 0);
        if (fd >= 0) {
            CHECK(inode(fd) == allowed);
            close(fd);
            found++;
        } else {
            CHECK_EQUAL(fd, -ENOENT);
            missed++;
        }
    }
    stop = 1;
    pthread_join(mover, NULL);
    CHECK(found > 0 && missed > 0); /* otherwise nothing has moved */
    close(root);
    chdir("/");
    char command[64];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    CHECK(system(command) == 0);
}

int main(void)
{
    int before = open_fds();
    keeps_to_its_buffers();
    agrees_with_the_kernel();
    never_leaves_the_root();
    CHECK_EQUAL(open_fds(), before);
    return 0;
}
