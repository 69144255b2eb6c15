/* What a start tells the caller, what it is told, and what a template's server is asked.
 *
 * Used by: parent and program. Two channels:
 *
 *   status   a pipe, of every start. RUNNING says that the command is about to be executed: a FAILED may
 *            follow. Under a record lock that is given up when the command is executed, or the start has
 *            ended (fns_executed()). A reaper and a server say RUNNING when they run, and close it.
 *   control  a SEQPACKET socket pair, where the caller answers or is told more. After a hop CHILD, with
 *            the pidfd of the sandbox as SCM_RIGHTS; GO, without which the sandbox does not go on; EXITED
 *            from a reaper; what a server is asked.
 */
#ifndef FNS_MESSAGE_H
#define FNS_MESSAGE_H

#include "error.h"
#include "plan.h"

enum fns_message_kind {
    FNS_MESSAGE_CHILD = 1, /* value: pid in the caller's pid namespace */
    FNS_MESSAGE_GO, /* the caller has the pidfd, and has written the id maps it was to write */
    FNS_MESSAGE_RUNNING,
    FNS_MESSAGE_FAILED, /* error */
    FNS_MESSAGE_EXITED, /* value: siginfo's si_code, status: its si_status */
    FNS_MESSAGE_ENDED,  /* struct fns_ended, from a server */
};

enum { FNS_ANY_ASK = -1 }; /* in FAILED, as its connection was closed */

struct fns_message {
    uint32_t kind;
    int32_t value, status;
    int32_t number; /* a server's: of the ask that it answers */
    struct fns_error error;
};

/* A plan as one run of bytes: every pointer is an offset from the start. The file of it is mapped by the
 * program, and sealed. */
struct fns_packed_plan {
    struct fns_plan plan;    /* ops, strings: offsets */
    struct fns_plan sandbox; /* the same, with FNS_PLAN_SERVER */
};

/* The program's argv: a name; decimal numbers, as FNS_NUMBERS lists them, with a space after each, then
 * args->groups; args->cwd ("": this one); the paths to try; ""; the command's argv. Its environment is the
 * command's. */
#define FNS_NUMBERS(X)                                                                             \
    X(status)    /* fd */                                                                          \
    X(control)   /* fd; 0: none */                                                                 \
    X(plan)      /* fd of struct fns_packed_plan */                                                \
    X(plan_size) /* bytes of that */                                                               \
    X(told)      /* fd of a file for the pid of a sandbox that is cloned after a hop; 0: none */   \
    X(userns)    /* args->userns */                                                                \
    X(clone_into)                                                                                  \
    X(entered) /* it was cloned into the first of args->groups */                                  \
    X(n_groups)
struct fns_numbers {
#define X(name) uint32_t name;
    FNS_NUMBERS(X)
#undef X
};

/* What a server is asked (template.c, server.c). CALLER and CONNECT come over its control socket, with
 * an fd: a pidfd whose end is the server's too; a socket to be asked over. The rest comes over such a
 * socket, which has one sandbox at a time:
 *
 *   RUN    3 fds for stdio, one for each of args.keep and args.groups; its turn comes when fewer than
 *          share.most of its batch are alive. Answers: ENDED, or FAILED.
 *   SPAWN  the same, and the writing end of a pipe. RUNNING from the sandbox, with its pid, its
 *          pidfd and, as value, its number, once it holds a lock on that pipe (fns_executed()); what
 *          then fails is written there, and FAILED follows. Once it runs, the socket may be asked for
 *          something else.
 *   REAP   `sandbox`, of RUNNING: ENDED, as soon as that sandbox has ended.
 *   KILL   as REAP, after killing it.
 *   LOOK   ENDED at once; value: whether it is alive.
 *   POOL   an ENDED with struct fns_pool_state in place of its usage.
 *   PARK   from now on a sandbox is made ahead, waits for RUN or SPAWN at this socket, and is followed
 *          by the next when it has ended. No answer.
 *
 * A big ask's bytes are in a memory file, one more fd. A socket that is shut down ends the sandbox that
 * it was asked to RUN; ENDED still comes. */
enum fns_ask_kind {
    FNS_ASK_CALLER = 1,
    FNS_ASK_CONNECT,
    FNS_ASK_RUN,
    FNS_ASK_SPAWN,
    FNS_ASK_REAP,
    FNS_ASK_KILL,
    FNS_ASK_LOOK,
    FNS_ASK_POOL,
    FNS_ASK_PARK
};
enum { FNS_ASK_INLINE = 32768, FNS_ASK_FDS = 253 };
struct fns_ask {
    uint16_t kind, in_file;
    int32_t number;         /* the answers have it */
    int32_t sandbox;        /* REAP, KILL, LOOK */
    struct fns_share share; /* RUN */
    uint64_t size;
    struct fns_args args;
};

/* The answer to RUN and REAP; begins as FAILED does, which may come in its place. */
struct fns_ended {
    struct fns_message message; /* ENDED; value, status: siginfo's si_code and si_status */
    uint64_t queued;            /* RUN: ns for which it waited for its turn in a batch */
    char usage[144];            /* struct rusage */
};

#endif
