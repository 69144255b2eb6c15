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
 * the reader. */
struct fns_request {
    uint64_t size;
    int32_t pid;             /* of the sandbox: the kernel's entry, before the clone returns */
    struct fns_plan plan;    /* ops, strings: offsets */
    struct fns_plan sandbox; /* the same, with FNS_PLAN_SERVER */
    struct fns_args args;    /* argv, envp, paths, cwd, keep: offsets */
};

/* What a server is asked (template.c, server.c). CALLER and CONNECT come over its control socket, with
 * an fd: a pidfd whose end is the server's too; a socket to be asked over. SPAWN comes over such a
 * socket, with 3 fds for stdio and one for each of args.keep; a big one's bytes are in a memory file,
 * the last fd. Answers: RUNNING with the pidfd, then ENDED; or FAILED. A connection has one sandbox at
 * a time, which ends when the connection does. */
enum fns_ask_kind { FNS_ASK_CALLER = 1, FNS_ASK_CONNECT, FNS_ASK_SPAWN };
enum { FNS_ASK_INLINE = 32768, FNS_ASK_FDS = 253 };
struct fns_ask {
    uint32_t kind, in_file;
    uint64_t size;
    struct fns_args args;
};

struct fns_ended {
    int32_t code, status; /* siginfo's si_code and si_status */
    char usage[144];      /* struct rusage */
};

#endif
