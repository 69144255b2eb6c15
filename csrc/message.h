/* What the helper and the sandbox it clones tell the parent, over one SEQPACKET socket pair.
 *
 * Used by: parent and helper. Order: CHILD from the helper, with the pidfd as SCM_RIGHTS; GO, the
 * parent's answer, without which the sandbox does not run; then RUNNING or FAILED from the sandbox.
 * RUNNING says, without a reaper, that the command is about to be executed: a FAILED may follow
 * until the sandbox gives its lock on the socket up (fns_executed()). With a reaper the command runs,
 * and EXITED follows when it has ended.
 */
#ifndef FNS_MESSAGE_H
#define FNS_MESSAGE_H

#include "error.h"
#include "plan.h"

enum fns_message_kind {
    FNS_MESSAGE_CHILD = 1, /* value: pid in the helper's pid namespace */
    FNS_MESSAGE_GO, /* the parent has the pidfd, and has written the id maps it was to write */
    FNS_MESSAGE_RUNNING,
    FNS_MESSAGE_FAILED, /* error */
    FNS_MESSAGE_EXITED, /* value: siginfo's si_code, status: its si_status */
};

struct fns_message {
    uint32_t kind;
    int32_t value, status;
    struct fns_error error;
};

/* A plan and its arguments as one run of bytes, for the helper's memory: every pointer is an offset
 * from the start. The pointer arrays hold offsets too, ended by 0, and are turned into pointers by
 * the helper (fns_request_open). */
struct fns_request {
    uint64_t size;
    int32_t pid; /* of the sandbox: the kernel's entry, before the helper's clone returns */
    struct fns_plan plan; /* ops, strings: offsets */
    struct fns_args args; /* argv, envp, paths, cwd, keep: offsets */
};

#endif
