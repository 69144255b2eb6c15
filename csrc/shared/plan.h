/* The plan: what a child has to do, decided beforehand.
 *
 * Used by: parent, child and helper. A plan is const after fns_plan_check() and shared by any number
 * of threads. It holds no pointers in its ops, only offsets into one string arena, so that the bytes
 * can be handed to another process as they are.
 */
#ifndef FNS_PLAN_H
#define FNS_PLAN_H

#include <stddef.h>
#include <stdint.h>

/* One op is one step of the child. Columns: code, what `source`, `target`, `type`, `data`, `flags`
 * and `arg` mean. child.c has one small function for each. */
#define FNS_OPS(X)                                                                                            \
    X(SETNS, "setns") /* source: namespace file; flags: CLONE_NEW*; how: OPEN */                              \
    X(OWN_NAMESPACES,                                                                                         \
      "own_namespaces") /* flags: CLONE_NEW*, made in the namespace of JOIN_USER */                           \
    X(WRITE, "write")   /* target: file in the caller's view; data: text; flags: as MASK's */                 \
    X(PROPAGATION, "propagation") /* flags: MS_PRIVATE or MS_SLAVE, for every mount */                        \
    X(ROOT_TREE, "root_tree")     /* source: rootfs; flags: MOUNT_ATTR_* for the whole tree */                \
    X(ROOT_TMPFS, "root_tmpfs")   /* as SCRATCH, but the root; target: in the scratch, if given */            \
    X(SHOW,                                                                                                   \
      "show") /* source: a directory of the host or, relative, of the root; target: of the root; flags,     \
                  * arg: MOUNT_ATTR_* set, cleared */ \
    X(TREE_NAMESPACE, "tree_namespace") /* a mount namespace that holds the root alone, entered */            \
    X(BIND_SOURCE, "bind_source")       /* source: of the next BIND with AHEAD; how: RECURSIVE */             \
    /* a throw-away tmpfs, to hold layers and files; type, flags: its options, MS_*; target: where it   \
     * is mounted, or 0: on top of "/"; data, arg: names of its directories, as MASK's */     \
    X(SCRATCH, "scratch")                                                                                     \
    X(ROOT_ATTACH, "root_attach")   /* target: directory of the scratch, or 0: on top of "/" */               \
    X(ROOT_SCRATCH, "root_scratch") /* the scratch itself is the root that is built */                        \
    X(OVERLAY, "overlay")           /* data: overlay options, relative to the scratch */                      \
    X(MOUNT, "mount") /* type, source, data, flags: as mount(2); target: in the root, or of it */             \
    X(BIND, "bind")   /* source: in the caller's view; flags, arg: MOUNT_ATTR_* set, cleared */               \
    X(DEVICE, "device")   /* target; flags: mode with S_IFCHR; arg: device number */                          \
    X(SYMLINK, "symlink") /* source: text; target */                                                          \
    X(FILE_BIND,                                                                                              \
      "file_bind") /* source: name in the scratch; data, arg: bytes, how many; target; flags: set */          \
    X(DIRECTORY, "directory") /* target: a directory made; arg: mode */                                       \
    X(READ_ONLY, "read_only") /* the root mount alone, or the one at target, becomes read-only */             \
    /* target: where the names in data are looked up; arg: bytes of those, a NUL after each; flags:  \
     * the file system that has to be there (f_type, statfs(2)) or 0. Missing ones are left out. */        \
    X(MASK, "mask")                       /* a directory becomes empty, a file /dev/null */                   \
    X(READ_ONLY_PATHS, "read_only_paths") /* with all below them */                                           \
    X(PIVOT_ROOT, "pivot_root") /* arg: how many mounts, one on the other, the old root was */                \
    X(CHROOT, "chroot")                                                                                       \
    X(HOSTNAME, "hostname")     /* data */                                                                    \
    X(DOMAINNAME, "domainname") /* data */                                                                    \
    X(LOOPBACK, "loopback")     /* lo up */                                                                   \
    X(KEYRING, "keyring")       /* a session keyring of its own; how: SEALED, OPTIONAL */                     \
    X(CGROUP, "cgroup")         /* enters args->groups; flags: CLONE_NEWCGROUP, made then */                  \
    X(RLIMIT, "rlimit") /* flags: resource; data: struct rlimit64; arg: least of a SHARE */                   \
    X(UMASK, "umask")   /* arg */                                                                             \
    X(JOIN_USER,                                                                                              \
      "join_user")          /* the user namespace of args->userns; the later ops are done in it */            \
    X(UNSHARE, "unshare")   /* flags: CLONE_NEW* */                                                           \
    X(BOUNDING, "bounding") /* arg: those that stay, a bit each; how: KEEP */                                 \
    X(SETGROUPS, "setgroups")       /* data: gid_t array; arg: how many */                                    \
    X(SETGID, "setgid")             /* arg */                                                                 \
    X(SETUID, "setuid")             /* arg */                                                                 \
    X(PARENT_DEATH, "parent_death") /* killed when the thread ends that started it */                         \
    /* The last ones, done right before the exec, by the process that executes. */                            \
    X(CAPABILITIES, "capabilities") /* arg: all it has, in every set, a bit each */                           \
    X(NO_NEW_PRIVILEGES, "no_new_privileges")                                                                 \
    X(LANDLOCK, "landlock") /* flags, arg: LANDLOCK_ACCESS_FS_*, _SCOPE_* that are restricted */              \
    X(LANDLOCK_PATH,                                                                                          \
      "landlock_path") /* target; flags, arg: allowed if it is a directory, or not */                         \
    X(LANDLOCK_RESTRICT, "landlock_restrict") /* from here on; how: KEEP */                                   \
    X(SECCOMP,                                                                                                \
      "seccomp") /* data: struct sock_filter array; arg: how many; flags: seccomp(2)'s; how: KEEP */

/* The first of the last ops. */
#define FNS_OP_LAST FNS_OP_CAPABILITIES

enum fns_op_code {
#define X(name, text) FNS_OP_##name,
    FNS_OPS(X)
#undef X
        FNS_OP_COUNT
};

/* How many mounts the old root may be: itself, and a scratch on top. */
#define FNS_MAX_OLD_ROOTS 2

/* How many binds may have their source opened ahead. */
#define FNS_MAX_SOURCES 16

enum fns_how {
    FNS_HOW_CREATE = 1,      /* make a missing target */
    FNS_HOW_NO_SYMLINKS = 2, /* the target's path may hold no symbolic link */
    FNS_HOW_RECURSIVE = 4,   /* with everything mounted below the source */
    FNS_HOW_SLAVE = 8,       /* propagation of the bind: slave instead of private */
    FNS_HOW_UNBINDABLE = 16,
    FNS_HOW_KEEP = 32,   /* capabilities, over a change of ids; of a filter: loaded with them */
    FNS_HOW_IDMAP = 64,  /* the tree's owners are seen through the user namespace of args->userns */
    FNS_HOW_OPEN = 256,  /* a user namespace, opened now, for JOIN_USER */
    FNS_HOW_OWNED = 128, /* what is made for it belongs to plan->owner_uid and owner_gid */
    FNS_HOW_SEALED = 512,    /* of a keyring: nobody may look into it */
    FNS_HOW_OPTIONAL = 1024, /* of a keyring, a limit, IDMAP, write: without it where none is had */
    FNS_HOW_SHARE = 8192, /* of a limit: at most half of that in force, but at least `arg` of it */
    FNS_HOW_IF_THERE = 16384, /* of a bind: left out where its source is missing */
    FNS_HOW_AHEAD = 4096,     /* of a bind: its source is the next one of BIND_SOURCE */
};

struct fns_op {
    uint16_t code, stage; /* stage: reported if the op fails */
    uint32_t how;         /* enum fns_how bits */
    uint64_t flags, arg;
    uint32_t source, target, type, data; /* offsets into the strings; 0: none */
};

enum fns_plan_option {
    FNS_PLAN_HOP = 1,    /* the program clones the sandbox, once it has run the early ops */
    FNS_PLAN_INIT = 2,   /* a reaper is pid 1, the command its child */
    FNS_PLAN_SERVER = 4, /* it stays and starts sandboxes, see template.c */
    FNS_PLAN_MAPS_FIRST =
        8, /* FNS_ID_MAP_SELF: its maps are written before the program is executed */
    FNS_PLAN_OWN_MEMORY = 16, /* no cgroup is entered before the program is executed */
};

enum fns_id_map {
    FNS_ID_MAP_NONE,
    FNS_ID_MAP_SELF,      /* WRITE ops in the plan, of stage ID_MAP, one after the other */
    FNS_ID_MAP_PARENT,    /* the parent writes the map files */
    FNS_ID_MAP_NEWUIDMAP, /* newuidmap and newgidmap write them */
    FNS_ID_MAP_RANGE,     /* a namespace that is there already is joined: JOIN_USER */
};

struct fns_plan {
    const struct fns_op *ops;
    const char *strings; /* starts and ends with NUL, so that offset 0 is free and all are closed */
    uint32_t n_ops, n_strings;
    uint32_t n_early;          /* FNS_PLAN_HOP: the first n_early ops come before its clone: joined
                         namespaces that decide what the clone makes */
    uint32_t options;          /* enum fns_plan_option bits */
    uint32_t id_map;           /* enum fns_id_map */
    uint32_t uid_map, gid_map; /* offsets of "inside outside count\n" lines, for the parent */
    uint64_t clone_flags;      /* CLONE_NEW* */
    const struct fns_plan *sandbox; /* FNS_PLAN_SERVER: what is done for each sandbox */
    uint32_t netns_pool; /* of such a sandbox: network namespaces made ahead, one for each */
    uint32_t owner_uid, owner_gid; /* who is 0:0 inside, by the caller's ids */
    uint32_t pipe_uid, pipe_gid;   /* who gets the pipes made for its stdio, likewise; 0: as made */
    uint64_t args_max;     /* of a template's sandbox: bytes of arguments and environment; 0: any */
    struct fns_file *file; /* this plan as bytes, made at its first start; NULL: made for each */
};

/* How a pool of network namespaces has fared. */
struct fns_pool_state {
    uint64_t made, waits, wait_ns; /* waits: sandboxes for which none was there */
};

enum { FNS_MAX_HIERARCHIES = 8, FNS_MAX_GROUPS = FNS_MAX_HIERARCHIES + 1 };

/* What differs from one spawn of a plan to the next. */
struct fns_args {
    char *const *argv;
    char *const *envp;
    char *const *paths; /* the candidates for execve, in order; NULL ends them */
    const char *cwd;
    const int *keep; /* fds >= 3 that stay open under the same number: ascending */
    uint32_t n_keep;
    /* For a CGROUP op: cgroup.procs of the cgroups to enter, written to and closed by it. With
     * clone_into the first of them is of cgroup v2, and the last fd is its directory. */
    const int *groups;
    uint32_t n_groups, clone_into;
    int userns;   /* fd >= 3 of the user namespace to join; 0: none */
    int stdio[3]; /* what becomes 0, 1 and 2, as they were before; -1: left as it is */
};

/* A batch's part of a template's server: which it is, and how many of it may be alive at once. What is
 * asked for beyond that waits in the server. batch 0: of none. */
struct fns_share {
    int32_t batch;
    uint32_t most;
};

#endif
