/* The plan: what a start has to do, decided beforehand.
 *
 * Used by every process. A plan is const after fns_plan_check(), and any number of threads may share it. Its
 * ops hold no pointers, only offsets into one string arena, so the same bytes are valid in another process.
 */
#ifndef FNS_PLAN_H
#define FNS_PLAN_H

#include <stddef.h>
#include <stdint.h>

enum fns_op_code {
#define FNS_OP(code, ...) FNS_OP_##code,
#include "ops.def"
    FNS_OP_COUNT,
    FNS_OP_REQUEST = FNS_OP_CGROUP, /* in a template's sandbox, ops from here on need its request */
    FNS_OP_LAST = FNS_OP_CAPABILITIES /* ops from here on, at the end of a plan, are the last ops */
};

enum {
    FNS_MAX_OLD_ROOTS = 2, /* PIVOT_ROOT: mounts on the old "/": itself, and a scratch on top */
    FNS_MAX_SOURCES = 16,  /* BIND_SOURCE ops in a plan */
    FNS_MAX_GIDS = 64      /* of SETGROUPS */
};

enum fns_how {
    FNS_HOW_CREATE = 1,      /* make a missing target */
    FNS_HOW_NO_SYMLINKS = 2, /* refuse symbolic links in the target's path */
    FNS_HOW_RECURSIVE = 4,   /* include everything mounted below the source */
    FNS_HOW_SLAVE = 8,       /* propagation of the bind: slave instead of private */
    FNS_HOW_UNBINDABLE = 16, /* propagation of the bind: unbindable instead of private */
    FNS_HOW_KEEP = 32,       /* a later op needs capabilities: keep them across the change of ids */
    FNS_HOW_IDMAP = 64,      /* idmap the mounts to the user namespace of args->userns */
    FNS_HOW_OWNED = 128,     /* what the op makes belongs to plan->owner_uid and owner_gid */
    FNS_HOW_OPEN = 256,      /* only open the user namespace; JOIN_USER joins it */
    FNS_HOW_SEALED = 512,    /* nobody may read or search the keyring */
    FNS_HOW_OPTIONAL = 1024, /* succeed where the kernel lacks this or refuses it */
    FNS_HOW_RAISE = 2048,    /* raise a limit to this value; never lower it */
    FNS_HOW_AHEAD = 4096,    /* the source is the next tree that BIND_SOURCE has opened */
    FNS_HOW_HALF = 8192,     /* cap at half of the limit in force, or at `arg` if that is more */
    FNS_HOW_IF_THERE = 16384 /* skip a bind whose source is missing */
};

struct fns_op {
    uint16_t code, stage;                /* stage: reported if the op fails */
    uint32_t how;                        /* enum fns_how bits */
    uint64_t flags, arg;                 /* ops.def says what they mean for each op */
    uint32_t source, target, type, data; /* offsets into the strings; 0: none */
};

enum fns_plan_option {
    FNS_PLAN_HOP = 1,         /* the program runs the early ops, then clones the sandbox */
    FNS_PLAN_INIT = 2,        /* a reaper is pid 1, the command its child */
    FNS_PLAN_SERVER = 4,      /* the program stays and starts sandboxes (program/serve.c) */
    FNS_PLAN_MAPS_FIRST = 8,  /* the border writes the maps of FNS_ID_MAP_SELF */
    FNS_PLAN_OWN_MEMORY = 16, /* enter no cgroup before the program is executed */
    /* Of a sandbox's plan: */
    FNS_PLAN_NETWORKS = 32,   /* unused network namespaces serve again (program/networks.c) */
    FNS_PLAN_ROOMS = 64,      /* unused sandboxes serve again (program/keeper.c); needs NETWORKS */
    FNS_PLAN_AHEAD = 128,     /* only the first op from FNS_OP_REQUEST on waits for the request */
    FNS_PLAN_CONTAINER = 256, /* a command in the server's own namespaces (program/container.c) */
};

enum fns_id_map {
    FNS_ID_MAP_NONE,
    FNS_ID_MAP_SELF,      /* written by WRITE ops of stage ID_MAP, which are adjacent */
    FNS_ID_MAP_PARENT,    /* written by the caller */
    FNS_ID_MAP_NEWUIDMAP, /* written by newuidmap and newgidmap */
    FNS_ID_MAP_RANGE      /* not written: JOIN_USER joins a namespace that has its maps */
};

struct fns_plan {
    const struct fns_op *ops;
    const char *strings; /* starts and ends with NUL: offset 0 means none, every string ends */
    uint32_t n_ops, n_strings;
    uint32_t n_early;               /* FNS_PLAN_HOP: how many ops come before the clone */
    uint32_t options;               /* enum fns_plan_option bits */
    uint32_t id_map;                /* enum fns_id_map */
    uint32_t uid_map, gid_map;      /* offsets of "inside outside count\n" lines, for the caller */
    uint64_t clone_flags;           /* CLONE_NEW* */
    const struct fns_plan *sandbox; /* FNS_PLAN_SERVER: the plan of each sandbox */
    uint32_t owner_uid, owner_gid;  /* 0:0 inside, in the caller's ids */
    uint32_t pipe_uid, pipe_gid; /* owner of the pipes for stdio, in the caller's ids; 0: as made */
    uint64_t args_max;           /* in a sandbox's plan: most bytes of argv and envp; 0: any */
    struct fns_file *file; /* the packed plan, made at its first start; NULL: made for each start */
};

/* What a template's server has done since its start. Network namespaces: made; given to a further sandbox; dropped as
 * one had used it; dropped as an fd of it may have left its sandbox. Rooms: made; commands that ran in one that had
 * served before; thrown away for the same two reasons. */
struct fns_stats {
    uint64_t networks_made, networks_reused, networks_touched, networks_exposed;
    uint64_t rooms_made, rooms_reused, rooms_touched, rooms_exposed;
};

enum { FNS_MAX_HIERARCHIES = 8, FNS_MAX_GROUPS = FNS_MAX_HIERARCHIES + 1 };

/* What differs from one start of a plan to the next. */
struct fns_args {
    char *const *argv;
    char *const *envp;
    char *const *paths; /* the candidates for execve, in order; ends with NULL */
    const char *cwd;    /* NULL: unchanged */
    const int *keep;    /* fds >= 3 that stay open under the same number, ascending */
    uint32_t n_keep;
    /* fds of cgroup.procs, one for each cgroup to enter; the op CGROUP writes to them and closes them. With
     * clone_into, the first cgroup is of version 2, and the last fd is its directory. */
    const int *groups;
    uint32_t n_groups, clone_into;
    uint32_t
        has_ids; /* in a container: uid and gid take the place of the plan's, which has no other groups */
    uint32_t uid, gid;
    /* In a container (shared/transfer.h): enum fns_transfer, in place of an exec; one of the fds in `keep`, a file of records
     * to put before the exec, 0: none. */
    uint32_t transfer;
    int files;
    int userns;   /* fd >= 3 of the user namespace to join; 0: none */
    int stdio[3]; /* fds that become 0, 1 and 2, numbered as before the change; -1: unchanged */
};

/* The batch of a request to a template's server (0: none), and how many of its sandboxes may be alive at once.
 * Further requests wait in the server. */
struct fns_share {
    int32_t batch;
    uint32_t most;
};

#endif
