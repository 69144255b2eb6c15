/* Formats of what the caller and the program send each other, their unpacking, and messages with fds.
 *
 * Used by the caller and the program. Unpacking makes no system calls and never reads outside its input, however
 * malformed that is. A start has two channels:
 *
 *   status   A pipe, in every start. RUNNING means that the command is about to be executed; FAILED may still
 *            follow. The sender holds a record lock on the pipe until it executes the command or ends
 *            (fns_executed()). A reaper and a server send RUNNING when they are ready, then close the pipe.
 *   control  A SEQPACKET socket pair, in starts where the caller replies or more is sent later. It carries CHILD,
 *            with the sandbox's pidfd, after a hop; GO, for which the sandbox waits; EXITED from a reaper;
 *            requests to a server.
 */
#ifndef FNS_WIRE_H
#define FNS_WIRE_H

#include "error.h"
#include "plan.h"

/* ---- messages of a start ---------------------------------------------------------------------- */

enum fns_message_kind {
    FNS_MESSAGE_CHILD = 1, /* value: pid in the caller's pid namespace */
    FNS_MESSAGE_GO,        /* the caller has the pidfd and has written its id maps */
    FNS_MESSAGE_RUNNING,
    FNS_MESSAGE_FAILED, /* error */
    FNS_MESSAGE_EXITED, /* value: siginfo's si_code, status: its si_status */
    FNS_MESSAGE_ENDED,  /* struct fns_ended, from a server */
};

struct fns_message {
    uint32_t kind;
    int32_t value, status;
    int32_t number; /* from a server: of the request; FNS_ANY_REQUEST: the connection is closed */
    struct fns_error error;
};

enum { FNS_ANY_REQUEST = -1, FNS_EXIT_FAILED = 127 /* exit status of a failed start */ };

#define FNS_FAILED(stage, result)                                                                  \
    ((struct fns_error){(uint16_t)(stage), FNS_DETAIL_NONE, -1, (int)-(result)})
/* The error of a process that was killed during its start. */
#define FNS_KILLED(stage) ((struct fns_error){(uint16_t)(stage), FNS_DETAIL_KILLED, -1, ECANCELED})

/* ---- input of the program --------------------------------------------------------------------- */

/* A plan as one block of bytes, in a sealed file that the program maps. Its pointers are offsets from the start
 * of the block. */
struct fns_packed_plan {
    struct fns_plan plan;
    struct fns_plan sandbox; /* with FNS_PLAN_SERVER */
};

/* The program's argv:
 *   a name
 *   the numbers of FNS_NUMBERS, then args->groups, in decimal, each followed by a space
 *   args->cwd; "": unchanged
 *   the paths to try, then ""
 *   the command's argv
 * The program's environment is the command's. */
#define FNS_NUMBERS(X)                                                                             \
    X(status)    /* fd */                                                                          \
    X(control)   /* fd; 0: none */                                                                 \
    X(plan)      /* fd of struct fns_packed_plan */                                                \
    X(plan_size) /* in bytes */                                                                    \
    X(pid_file)  /* fd, for the pid of the sandbox that a hop process clones; 0: none */           \
    X(userns)    /* args->userns */                                                                \
    X(clone_into)                                                                                  \
    X(entered) /* the program was cloned into the first cgroup of args->groups */                  \
    X(n_groups)
struct fns_numbers {
#define X(name) uint32_t name;
    FNS_NUMBERS(X)
#undef X
};

/* ---- requests to a template's server ---------------------------------------------------------- */

/* The control socket accepts CALLER and CONNECT, each with one fd. CALLER brings a pidfd; the server ends when
 * that process does. CONNECT brings a socket, which becomes a connection. A connection accepts all other
 * requests, and serves one sandbox at a time:
 *
 *   RUN    Carries 3 fds for stdio, then one for each of args.keep and args.groups. The sandbox starts when
 *          fewer than share.most sandboxes of its batch are alive. Reply: ENDED or FAILED.
 *   SPAWN  Carries the same fds, then the writing end of a pipe. The sandbox locks the pipe (fns_executed()) and
 *          replies RUNNING itself, with its pid, its pidfd and, as value, its number. If it fails after that, it
 *          writes the error to the pipe, and FAILED follows. Then the connection is free.
 *   REAP   `sandbox`: the number from RUNNING. Reply: ENDED, as soon as that sandbox has ended.
 *   KILL   Kills the sandbox, then acts as REAP.
 *   LOOK   Reply: ENDED, at once. Its value says whether the sandbox is alive.
 *   STATS  Reply: ENDED, with `stats`.
 *   PARK   Makes a sandbox ahead, which waits at this connection for RUN or SPAWN. When it has ended, the server
 *          makes the next one. No reply.
 *
 * A request of more than FNS_REQUEST_INLINE bytes is in a memory file, whose fd comes last. Shutting a
 * connection down kills its sandbox, unless RUNNING was sent for it; the reply is still sent. */
enum fns_request_kind {
    FNS_REQUEST_CALLER = 1,
    FNS_REQUEST_CONNECT,
    FNS_REQUEST_RUN,
    FNS_REQUEST_SPAWN,
    FNS_REQUEST_REAP,
    FNS_REQUEST_KILL,
    FNS_REQUEST_LOOK,
    FNS_REQUEST_STATS,
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

/* A reply of the server: ENDED or FAILED. */
struct fns_ended {
    struct fns_message message; /* ENDED; value, status: siginfo's si_code and si_status */
    uint64_t queued;            /* RUN: ns that it waited for its turn in a batch */
    uint64_t executed,
        ended;          /* when the command was executed, and had ended: CLOCK_MONOTONIC, ns */
    uint32_t reused;    /* RUN: its room had served before */
    uint32_t rss_floor; /* KiB: a peak of memory that is not above this is not its own */
    union {
        char usage[144];        /* struct rusage */
        struct fns_stats stats; /* the reply to STATS */
    };
};

/* ---- unpacking -------------------------------------------------------------------------------- */

/* These turn offsets from `base` into pointers, in place. 0, or -EPROTO if caller/pack.c cannot have made these
 * bytes. The last byte must be NUL, because a text may extend to the end. */
FNS_CHECKED int fns_open_text(char *base, uint64_t size, const char **text);
FNS_CHECKED int fns_open_list(char *base, uint64_t size, char *const **list); /* ends with NULL */
FNS_CHECKED int fns_open_items(char *base, uint64_t size, uint64_t n, uint64_t item_size,
                               void *pointer); /* to the first of n items */
FNS_CHECKED int fns_open_plan(char *base, uint64_t size, struct fns_plan *plan);

/* Unpacks the arguments of a RUN or SPAWN that came with n_fds fds, not counting a memory file. 0 or -EPROTO. */
FNS_CHECKED int fns_open_request(struct fns_request *request, uint64_t size, int n_fds,
                                 struct fns_args *args);

/* ---- messages with fds ------------------------------------------------------------------------ */

/* sendmsg(2), with n_fds fds (at most FNS_REQUEST_FDS) and a pid (0: none), which the kernel translates into
 * the receiver's pid namespace. flags: MSG_*; MSG_NOSIGNAL is always set. Returns how many bytes, or -errno;
 * does not retry on EINTR. */
FNS_CHECKED long fns_send_message(int socket, const void *bytes, size_t size, const int *fds,
                                  int n_fds, int pid, int flags);

/* recvmsg(2). The fds received are close-on-exec. `*n_fds`: in, how many fds there is space for; out, how many
 * came, or -1 if the message was truncated or an fd was lost. In that case all that came are closed. `*pid`:
 * unchanged if none came; `pid` may be NULL. flags: MSG_*. Returns how many bytes, 0 if the other end is
 * closed, or -errno; does not retry on EINTR. */
FNS_CHECKED long fns_receive_message(int socket, void *bytes, size_t size, int *fds, int *n_fds,
                                     int *pid, int flags);

/* Sends one message, with an fd (-1: none) and a pid (0: none); retries on EINTR. 0 or more, or -errno. */
FNS_CHECKED long fns_send(int socket, const struct fns_message *message, int fd, int pid);

#endif
