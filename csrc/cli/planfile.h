/* A compiled plan as a file, and who may use it.
 *
 * Used by: _core, which packs what `fastns compile` writes, and fastns-exec, which reads it. A file is only valid for
 * the build of fastns, the machine and the caller that it was compiled for. Nothing in it is used before
 * fns_planfile_read() has checked it.
 */
#ifndef FNS_PLANFILE_H
#define FNS_PLANFILE_H

#include "caller/fastns.h"

/* Who runs this program, and where. A compiled plan depends on this as well as on its options. */
struct fns_identity {
    char build[24];         /* of the sources of this program */
    char machine[200];      /* kernel, architecture, /etc/machine-id */
    uint32_t uids[3];       /* real, effective, saved */
    uint32_t gids[3];       /* the same */
    uint64_t capabilities;  /* effective, a bit each */
    uint64_t userns;        /* number of the user namespace */
    uint64_t oom_protected; /* 1: oom_score_adj is below 0 */
};

/* A hint for a failure with this stage, errno and detail; stage or errno 0: any. */
struct fns_hint {
    uint16_t stage, detail;
    int32_t err;
    const char *path; /* "": any */
    const char *text;
};

struct fns_planfile {
    struct fns_plan plan;
    char *const *envp;        /* of the command; NULL ends it */
    char *const *directories; /* where a command without a slash is looked up; NULL ends them */
    const char *cwd;          /* of the command, inside */
    const char *maps[2];      /* uid_map and gid_map of the user namespace to join; "": none */
    const char *inotify;      /* its limit on inotify instances; "": none */
    int64_t timeout_ns;       /* -1: none */
    uint64_t max_output;      /* bytes of each of stdout and stderr that are passed on; 0: all */
    struct fns_hint *hints;   /* the first one that matches is shown */
    uint32_t n_hints;
};

enum fns_planfile_fault {
    FNS_PLANFILE_NO_PLAN = 1, /* it is not a plan file */
    FNS_PLANFILE_BUILD,
    FNS_PLANFILE_MACHINE,
    FNS_PLANFILE_CALLER,
    FNS_PLANFILE_DAMAGED,
};

/* Describes this process. 0; -errno: /proc cannot be read. */
int fns_identify(struct fns_identity *identity);

/* Packs a plan file into bytes, which the caller frees. The plan must have been checked, and must not be a server's. 0
 * or -ENOMEM. */
int fns_planfile_pack(const struct fns_planfile *file, const struct fns_identity *identity,
                      void **bytes, size_t *size);

/* Reads the bytes of a plan file, which are aligned as by malloc(). `file` then points into them. 0; or an enum
 * fns_planfile_fault, with `file` all zero. `made_for` is set except with FNS_PLANFILE_NO_PLAN. */
int fns_planfile_read(void *bytes, size_t size, const struct fns_identity *identity,
                      struct fns_identity *made_for, struct fns_planfile *file);

#endif
