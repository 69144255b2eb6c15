/* The record a failed step leaves, and the one list of stages.
 *
 * Used by: parent, child and helper. Header only: an enum and two structs, so that the child may
 * include it. A stage is the name a person sees in SpawnError.stage; add one here and nowhere else:
 * fns_stage_name() and the Python side are generated from the same list.
 */
#ifndef FNS_ERROR_H
#define FNS_ERROR_H

#include <stdint.h>

/* Of a function whose result has to be looked at. */
#define FNS_CHECKED __attribute__((warn_unused_result))

/* How often a call is tried that must not fail: more than a passing failure takes. */
enum { FNS_TRIES = 4 };

#define FNS_STAGES(X)                                                                              \
    X(NONE, "none")                                                                                \
    X(CLONE, "clone")                                                                              \
    X(ID_MAP, "id_map")                                                                            \
    X(SETNS, "setns")                                                                              \
    X(UNSHARE, "unshare")                                                                          \
    X(PROPAGATION, "propagation")                                                                  \
    X(ROOTFS, "rootfs")                                                                            \
    X(OVERLAY, "overlay")                                                                          \
    X(MOUNT, "mount")                                                                              \
    X(FILE, "file")                                                                                \
    X(DEVICE, "device")                                                                            \
    X(DIRECTORY, "directory")                                                                      \
    X(SYMLINK, "symlink")                                                                          \
    X(READ_ONLY, "read_only")                                                                      \
    X(MASKED_PATHS, "masked_paths")                                                                \
    X(READONLY_PATHS, "readonly_paths")                                                            \
    X(PIVOT_ROOT, "pivot_root")                                                                    \
    X(CHROOT, "chroot")                                                                            \
    X(HOSTNAME, "hostname")                                                                        \
    X(DOMAINNAME, "domainname")                                                                    \
    X(NETWORK, "network")                                                                          \
    X(PERSONALITY, "personality")                                                                  \
    X(OOM_SCORE, "oom_score_adj")                                                                  \
    X(KEYRING, "keyring")                                                                          \
    X(CGROUP, "cgroup")                                                                            \
    X(RLIMIT, "rlimit")                                                                            \
    X(UMASK, "umask")                                                                              \
    X(CAPABILITIES, "capabilities")                                                                \
    X(NO_NEW_PRIVILEGES, "no_new_privileges")                                                      \
    X(LANDLOCK, "landlock")                                                                        \
    X(SECCOMP, "seccomp")                                                                          \
    X(SETGROUPS, "setgroups")                                                                      \
    X(SETGID, "setgid")                                                                            \
    X(SETUID, "setuid")                                                                            \
    X(PARENT_DEATH, "parent_death")                                                                \
    X(STDIO, "stdio")                                                                              \
    X(FDS, "fds")                                                                                  \
    X(SIGNALS, "signals")                                                                          \
    X(SESSION, "session")                                                                          \
    X(CHDIR, "chdir")                                                                              \
    X(EXEC, "exec")                                                                                \
    X(HELPER, "helper")                                                                            \
    X(INIT, "init")                                                                                \
    X(WAIT, "wait")

enum fns_stage {
#define X(name, text) FNS_STAGE_##name,
    FNS_STAGES(X)
#undef X
        FNS_STAGE_COUNT
};

/* What more is known about a failure than its errno. */
enum fns_detail {
    FNS_DETAIL_NONE,
    FNS_DETAIL_SOURCE, /* the op's source, not its target, is at fault */
    FNS_DETAIL_FOUND, /* exec: the file is there, so its interpreter or loader is what is missing */
    FNS_DETAIL_BROKEN, /* the conversation with a template's server broke off */
    FNS_DETAIL_KILLED, /* the child was killed before it reached exec */
    FNS_DETAIL_ID_MAP, /* what is mounted cannot be shown with other owners */
    FNS_DETAIL_MEMORY, /* exec: the arguments do not fit into the memory limit */
};

struct fns_error {
    uint16_t stage;   /* enum fns_stage; FNS_STAGE_NONE: no error */
    uint16_t detail;  /* enum fns_detail */
    int32_t op_index; /* -1: no op */
    int32_t err;      /* errno, positive */
};

#endif
