/* What the helper and the sandbox it clones tell the parent, over one SEQPACKET socket pair.
 *
 * Used by: parent and helper. Order: CHILD (from the helper, with the pidfd as SCM_RIGHTS), then from
 * the new process MAP and, answered, GO when its id maps are written from outside; then RUNNING or
 * FAILED. Without a reaper the socket's end is the news that exec succeeded; with one, RUNNING is,
 * and EXITED follows when the command has ended.
 */
#ifndef FNS_MESSAGE_H
#define FNS_MESSAGE_H

#include "error.h"
#include "plan.h"

enum fns_message_kind {
    FNS_MESSAGE_CHILD = 1, /* value: pid in the helper's pid namespace */
    FNS_MESSAGE_MAP,
    FNS_MESSAGE_GO,
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
    struct fns_plan plan; /* ops, strings: offsets */
    struct fns_args args; /* argv, envp, paths, cwd, keep: offsets */
};

#endif
