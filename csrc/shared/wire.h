/* What the caller and the program send each other: formats, unpacking, messages with fds.
 *
 * Used by: caller and program. Unpacking is pure: no system call, and nothing is read outside the bytes
 * given, whatever they hold. A start has two channels:
 *
 *   status   A pipe, in every start. RUNNING: the command is about to be executed; FAILED may still follow.
 *            The sender holds a record lock on the pipe until its exec or its end (fns_executed()). A
 *            reaper and a server send RUNNING when they are ready, then close the pipe.
 *   control  A SEQPACKET socket pair, if the caller has to reply or sends more later. CHILD, with the
 *            sandbox's pidfd, after a hop; GO, for which the sandbox waits; EXITED from a reaper; the
 *            requests to a server.
 */
#ifndef FNS_WIRE_H
#define FNS_WIRE_H

#include "error.h"
#include "plan.h"

/* ---- messages of a start ---------------------------------------------------------------------- */

enum fns_message_kind {
    FNS_MESSAGE_CHILD = 1, /* value: pid in the caller's pid namespace */
    FNS_MESSAGE_GO, /* the caller has the pidfd, and has written the id maps that it writes */
    FNS_MESSAGE_RUNNING,
    FNS_MESSAGE_FAILED, /* error */
    FNS_MESSAGE_EXITED, /* value: siginfo's si_code, status: its si_status */
    FNS_MESSAGE_ENDED,  /* struct fns_ended, from a server */
};

enum {
    FNS_ANY_REQUEST = -1
}; /* number of a FAILED that is sent because its connection is closed */

struct fns_message {
    uint32_t kind;
    int32_t value, status;
    int32_t number; /* from a server: that of the request to which this replies */
    struct fns_error error;
};

/* ---- what the program is given ---------------------------------------------------------------- */

/* A plan as one run of bytes, in a sealed file that the program maps. Every pointer is an offset from its
 * start. */
struct fns_packed_plan {
    struct fns_plan plan;
    struct fns_plan sandbox; /* with FNS_PLAN_SERVER */
};

/* The program's argv: a name; the decimal numbers of FNS_NUMBERS and then args->groups, a space after each;
 * args->cwd ("": unchanged); the paths to try; ""; the command's argv. Its environment is the command's. */
#define FNS_NUMBERS(X)                                                                             \
    X(status)    /* fd */                                                                          \
    X(control)   /* fd; 0: none */                                                                 \
    X(plan)      /* fd of struct fns_packed_plan */                                                \
    X(plan_size) /* in bytes */                                                                    \
    X(pid_file)  /* fd of a file for the pid of the sandbox that a hop process clones; 0: none */  \
    X(userns)    /* args->userns */                                                                \
    X(clone_into)                                                                                  \
    X(entered) /* the program was cloned into the first of args->groups */                         \
    X(n_groups)
struct fns_numbers {
#define X(name) uint32_t name;
    FNS_NUMBERS(X)
#undef X
};

/* ---- requests to a template's server ---------------------------------------------------------- */

/* CALLER and CONNECT are sent over the control socket, with one fd: a pidfd with whose process the server
 * ends; a socket to take requests from, which is a connection. The others are sent over a connection, which
 * serves one sandbox at a time:
 *
 *   RUN    With 3 fds for stdio and one for each of args.keep and args.groups. Starts when fewer than
 *          share.most sandboxes of its batch are alive. Reply: ENDED or FAILED.
 *   SPAWN  The same fds, and the writing end of a pipe. The sandbox itself replies RUNNING, with its pid,
 *          its pidfd and, as value, its number, when it holds a lock on the pipe (fns_executed()). A later
 *          failure is written to the pipe, and FAILED follows. After that the connection is free.
 *   REAP   `sandbox`: the number from RUNNING. Reply: ENDED, as soon as that sandbox has ended.
 *   KILL   Kills it first, then as REAP.
 *   LOOK   Reply: ENDED at once; value: whether it is alive.
 *   POOL   Reply: ENDED, with `pool`.
 *   PARK   A sandbox is made ahead and waits at this connection for RUN or SPAWN; when it has ended, the
 *          next one is made. No reply.
 *
 * A request of more than FNS_REQUEST_INLINE bytes is in a memory file, one more fd. To shut a connection down
 * kills the sandbox that RUN started over it; ENDED is still sent. */
enum fns_request_kind {
    FNS_REQUEST_CALLER = 1,
    FNS_REQUEST_CONNECT,
    FNS_REQUEST_RUN,
    FNS_REQUEST_SPAWN,
    FNS_REQUEST_REAP,
    FNS_REQUEST_KILL,
    FNS_REQUEST_LOOK,
    FNS_REQUEST_POOL,
    FNS_REQUEST_PARK
};
enum { FNS_REQUEST_INLINE = 32768, FNS_REQUEST_FDS = 253 /* SCM_MAX_FD, unix(7) */ };
struct fns_request {
    uint16_t kind, in_file;
    int32_t number;         /* repeated in the replies */
    int32_t sandbox;        /* REAP, KILL, LOOK */
    struct fns_share share; /* RUN */
    uint64_t size;
    struct fns_args args; /* every pointer is an offset from the start of the request */
};

/* The reply to RUN and REAP. FAILED may come in its place, and begins alike. */
struct fns_ended {
    struct fns_message message; /* ENDED; value, status: siginfo's si_code and si_status */
    uint64_t queued;            /* RUN: ns for which it waited for its turn in a batch */
    union {
        char usage[144];            /* struct rusage */
        struct fns_pool_state pool; /* the reply to POOL */
    };
};

/* ---- unpacking -------------------------------------------------------------------------------- */

/* These turn offsets from `base` into pointers, in place. 0; -EPROTO: the bytes are not what caller/pack.c
 * makes. A text may reach to the end of the bytes, so the last of them has to be NUL. */
FNS_CHECKED int fns_open_text(char *base, uint64_t size, const char **text);
FNS_CHECKED int fns_open_list(char *base, uint64_t size, char *const **list); /* ends with NULL */
FNS_CHECKED int fns_open_items(char *base, uint64_t size, uint64_t n, uint64_t item_size,
                               const void **items);
FNS_CHECKED int fns_open_plan(char *base, uint64_t size, struct fns_plan *plan);

/* The arguments of a RUN or SPAWN that came with so many fds, not counting a memory file. */
FNS_CHECKED int fns_open_request(struct fns_request *request, uint64_t size, int n_fds,
                                 struct fns_args *args);

/* ---- messages with fds ------------------------------------------------------------------------ */

/* sendmsg(2), with n_fds fds (at most FNS_REQUEST_FDS), and with the pid of a process that the kernel
 * translates into the receiver's pid namespace (0: none). flags: MSG_*, besides MSG_NOSIGNAL. How many
 * bytes, or -errno; it is not repeated after a signal. */
FNS_CHECKED long fns_send_message(int socket, const void *bytes, size_t size, const int *fds,
                                  int n_fds, int pid, int flags);

/* recvmsg(2), fds close-on-exec. `*n_fds`: how many fds there is space for; then how many came, or -1: at
 * least one was lost, or the message was cut off, and all that came are closed. `*pid`: unchanged if none came;
 * may be NULL. flags: MSG_*. How many bytes, 0: the other end is closed, or -errno; not repeated either. */
FNS_CHECKED long fns_receive_message(int socket, void *bytes, size_t size, int *fds, int *n_fds,
                                     int *pid, int flags);

#endif
