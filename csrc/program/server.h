/* What the files of a template's server share (serve.c): connections, slots, sandboxes, and the processes
 * beside the server. */
#ifndef FNS_SERVER_H
#define FNS_SERVER_H

#include "child.h"
#include "shared/wire.h"

enum { FNS_NONE = -1, FNS_SLOT_STACK = 65536 };

/* A request, with the fds that came along. */
struct fns_received {
    long size; /* 0: the other end is closed; -errno */
    int n_fds;
    int fds[FNS_REQUEST_FDS];
    char bytes[FNS_REQUEST_INLINE] __attribute__((aligned(8)));
};
enum { FNS_TRUNCATED = -4096 }; /* as a size: the bytes are there, but an fd was lost */

FNS_INLINE struct fns_request *fns_request_of(struct fns_received *received)
{
    return (struct fns_request *)(void *)received->bytes;
}

/* A sandbox, from its clone until its end was reported. Until its exec it writes the first part itself, in the
 * server's memory. */
struct fns_sandbox {
    struct fns_child child;
    struct fns_args args;
    volatile uint32_t requested; /* of a parked one: it takes its request, or has taken it */
    volatile uint32_t reported;  /* RUNNING was sent, or will be: the caller may know its number */
    volatile int request;        /* number of the request to reply to */

    int number;            /* its index in the table, and how often that was used before */
    int pid;               /* 0: not cloned, or reaped */
    int connection;        /* where replies about it go; FNS_NONE */
    int mounts;            /* the closer's entry of its mount namespace; FNS_NONE */
    int pid_namespace;     /* an fd, from when it was killed; FNS_NONE */
    int batch;             /* 0: none */
    struct fns_slot *slot; /* in which it started */
    int is_parked;         /* it is made ahead, and waits for its request */
    int is_awaited;        /* by a REAP, at `connection` */
    int has_ended;         /* `end` waits for a REAP */
    struct fns_sandbox *older, **link; /* in the list of watched ones; link 0: not in it */
    struct fns_sandbox *next;          /* in the list of free ones */
    struct fns_ended end;
};

/* What a sandbox needs until its exec: one slot for each that has not executed. */
struct fns_slot {
    volatile int taken; /* the kernel clears it when the sandbox has left (CLONE_CHILD_CLEARTID) */
    struct fns_sandbox *sandbox;
    int connection;        /* whose request waits here */
    uint64_t since;        /* when it began to wait: CLOCK_MONOTONIC, ns */
    uint64_t queued;       /* ns that it waited for its turn in a batch */
    struct fns_slot *next; /* in the queue */
    int awaits_network;    /* in the queue, for a network namespace */
    const uint64_t *files; /* struct rlimit of RLIMIT_NOFILE for it; 0: the server's */
    void *mapped;          /* a request from a memory file; 0: none */
    uint64_t mapped_size;
    int keep[FNS_REQUEST_FDS + 3];
    struct fns_received received;
    char stack[FNS_SLOT_STACK] __attribute__((aligned(4096))); /* the first page is a guard */
};

/* CLOCK_MONOTONIC, ns. */
FNS_INLINE uint64_t fns_now(void)
{
    uint64_t time[2] = {0, 0};
    FNS_IGNORE(fns_sys2(__NR_clock_gettime, FNS_CLOCK_MONOTONIC, time), "there is this clock");
    return time[0] * FNS_NS + time[1];
}

/* Memory that takes pages when it is touched. 0: none, and `error` is -errno. */
FNS_INLINE void *fns_map(size_t size, long *error)
{
    long at = fns_sys6(__NR_mmap, 0, (long)size, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (fns_is_address(at))
        return (void *)at;
    *error = at;
    return 0;
}

/* FUTEX_WAKE or FUTEX_WAIT on a word in shared memory. A wait has no result: the caller reads the word again. */
FNS_INLINE void fns_futex(volatile uint32_t *word, int op, uint32_t value)
{
    long result = -EINTR;
    for (int tries = 0; result < 0 && tries < (op == FUTEX_WAKE ? FNS_TRIES : 1); tries++)
        result = fns_sys4(__NR_futex, word, op | FUTEX_PRIVATE_FLAG, value, 0);
}

/* ---- sandbox.c: runs in a sandbox ------------------------------------------------------------- */

/* The function of a sandbox's clone. Its request is in the slot; a parked one waits for it. Returns only on
 * failure, which is then in its `child`. */
int fns_sandbox_main(void *slot);

/* Receives one message. flags: MSG_*. The fds are close-on-exec; those of a truncated message are closed. */
void fns_receive(int socket, int flags, struct fns_received *received);

/* ---- connections.c: what the server listens to. A connection is named by its fd. -------------- */

/* What is at the other end of an fd. */
enum fns_peer {
    FNS_PEER_NONE,
    FNS_PEER_CONTROL,
    FNS_PEER_CALLER,
    FNS_PEER_CONNECTION,
    FNS_PEER_ENDS,
    FNS_PEER_READY
};

struct fns_connection {
    uint8_t peer;                /* enum fns_peer */
    uint8_t wants_parked;        /* PARK was requested: there is to be a parked sandbox */
    uint8_t sandbox_reads;       /* a parked sandbox reads the requests, not the server */
    uint8_t is_closed;           /* by the caller; the fd stays until its sandbox has ended */
    uint8_t is_queued;           /* its request waits, for its turn or for a network namespace */
    uint8_t is_listed;           /* in the list of those to park for */
    int next;                    /* in that list */
    struct fns_sandbox *sandbox; /* whose replies go there; 0 */
};

/* Maps the table and makes the epoll set. 0 or -errno. */
FNS_CHECKED int fns_open_connections(void);

struct fns_connection *fns_connection(int fd);

/* Listens to an fd. 0 or -errno. */
FNS_CHECKED int fns_watch(int fd, enum fns_peer peer);

/* Stops listening, and closes the fd. */
void fns_forget(int fd);

/* Stops listening; the fd stays open for a reply. */
void fns_ignore(int fd);

/* Decides who reads the requests of a connection: the sandbox that is parked there, or the server. */
void fns_let_sandbox_read(int connection, int sandbox_reads);

/* Waits for events at most so many ms; -1: no limit. How many, or -errno. */
FNS_CHECKED int fns_await_events(struct epoll_event *events, int most, int ms);

/* Send a reply; `number` is that of its request. On failure the connection is shut down, so that whoever waits
 * for the reply reads its end. */
void fns_reply(int connection, const struct fns_ended *reply);
void fns_reply_error(int connection, int number, struct fns_error error);

void fns_close_all(const int *fds, int n);

/* ---- tables.c --------------------------------------------------------------------------------- */

/* Maps the tables. 0 or -errno. */
FNS_CHECKED int fns_open_tables(void);

/* A slot that no sandbox is in, and no request waits in. 0: none, and `error` is -errno. */
struct fns_slot *fns_take_slot(long *error);

/* A new sandbox with a plan and a user namespace to join (0: none); 0: there are too many. */
struct fns_sandbox *fns_new_sandbox(const struct fns_plan *plan, int userns);

/* Frees it, and releases its mount namespace and its connection. */
void fns_free_sandbox(struct fns_sandbox *sandbox);

/* Records the pid of its process. */
void fns_set_pid(struct fns_sandbox *sandbox, int pid);

/* The sandbox with a pid, or with a number that was reported; 0: there is none. */
struct fns_sandbox *fns_find_pid(int pid);
struct fns_sandbox *fns_find_number(int number);

/* The list of sandboxes whose end somebody waits for, linked by `older`; 0: it is empty. */
void fns_watch_sandbox(struct fns_sandbox *sandbox);
void fns_unwatch_sandbox(struct fns_sandbox *sandbox);
struct fns_sandbox *fns_newest_watched(void);

/* Whether a batch has as many sandboxes alive as it may. */
int fns_is_full(struct fns_share share);

/* Counts one more (1) or one less (-1). 0; -EAGAIN: there are too many batches. */
int fns_count_alive(int batch, int step);

/* ---- sandboxes.c: the start and the end of sandboxes ------------------------------------------ */

/* Opens the tables, and starts the processes beside the server. `userns`: for the sandboxes to join; 0: none.
 * 0 or -errno. */
FNS_CHECKED long fns_open_sandboxes(const struct fns_plan *plan, int userns);

/* Starts what a RUN or SPAWN in a slot requests, or queues it. */
void fns_run_request(struct fns_slot *slot, int connection);

/* Drops a queued request, with a reply, and its connection. 1: there was one. */
int fns_drop_queued(int connection);

/* Parks a sandbox for a connection, among the next chores. */
void fns_park_later(int connection);

/* A network namespace was made: starts what waits for one. */
void fns_network_is_ready(void);

/* Reaps what has ended, after SIGCHLD. One signal may stand for many ends; `pid` is the one it names, or 0. */
void fns_reap_ended(int pid);

/* Reaps a process if it has ended, and deals with the consequences. 1: it had. */
int fns_reap(int pid);

/* Does what nobody waits for, after everything else. `idle`: there was nothing else. How many ms may pass until
 * the next chores; -1: any number. */
int fns_do_chores(int idle);

/* ---- kill.c ----------------------------------------------------------------------------------- */

enum { FNS_KILL_MS = 100 }; /* how long a killed sandbox has to end */

/* Kills a sandbox, and opens its pid namespace. */
void fns_kill(struct fns_sandbox *sandbox);

/* Kills whatever still keeps a killed sandbox from ending after FNS_KILL_MS. 1: some may not have ended. */
int fns_check_killed(void);

/* ---- closer.c: a process that takes mount namespaces down ------------------------------------- */

/* Starts it; again, should it end. Its pid, or -errno. */
FNS_CHECKED int fns_closer_start(void);

/* Hands over a mount namespace, whose fd stays the server's to close: an entry, or FNS_NONE. */
int fns_closer_hold(int fd);

/* Releases an entry: its namespace may be taken down when the closer is woken. */
void fns_closer_release(int entry);

/* How many entries were released since the closer was last woken. */
unsigned fns_closer_pending(void);

void fns_closer_wake(void);

/* ---- netns.c: a process that makes network namespaces ahead ----------------------------------- */

/* Starts the process that keeps `size` of them ready, each with lo up; again, should it end. It writes to an
 * eventfd (FNS_PEER_READY) when one is there for whoever found none. Its pid, or -errno. */
FNS_CHECKED int fns_netns_start(uint32_t size);

/* An fd of one, for one sandbox. -EAGAIN: there is none until the eventfd can be read; -errno: making them has
 * failed for a long time, with this error. */
FNS_CHECKED int fns_netns_take(void);

/* The sandbox that took one has ended: another may be made. */
void fns_netns_ended(void);

/* Counters. Whoever waits for a network namespace counts that here. */
struct fns_pool_state *fns_netns_state(void);

#endif
