/* Paths inside the root that is built (paths.c). Fds are O_PATH; results are an fd, or -errno. */
#ifndef FNS_PATHS_H
#define FNS_PATHS_H

#include "child.h"

/* The type (FNS_S_IF*) of `name` in the directory `fd`, of a link itself; of `fd` if `name` is "". */
FNS_CHECKED long fns_type_in(int fd, const char *name);

/* Resolves `path` below `root`, so that no link and no race leads outside. */
FNS_CHECKED int fns_resolve(int root, const char *path, int no_symlinks);

/* The directory that is the first n bytes of `path`, or that holds the op's target, whose last name is
 * `name`. From the cache: not to be closed. */
FNS_CHECKED int fns_directory(struct fns_child *child, const char *path, size_t n, int no_symlinks);
FNS_CHECKED int fns_target_directory(struct fns_child *child, const struct fns_op *op,
                                     const char **name);

/* The op's target, which is made as an empty file or a directory if CREATE says so. */
FNS_CHECKED int fns_open_target(struct fns_child *child, const struct fns_op *op, int directory);

/* With OWNED: gives `name` in `dir`, or `dir` itself if `name` is "", to the sandbox's owner. */
FNS_CHECKED int fns_give_to_owner(const struct fns_child *child, const struct fns_op *op, int dir,
                                  const char *name);

/* Closes what adjacent ops share. Needed before an op that may mount over it. */
void fns_drop_cache(struct fns_child *child);

#endif
