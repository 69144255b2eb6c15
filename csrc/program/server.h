/* What the files of a template's server share (serve.c): connections, slots, sandboxes, and the processes
 * beside the server. */
#ifndef FNS_SERVER_H
#define FNS_SERVER_H

#include "child.h"
#include "shared/wire.h"

enum { FNS_NONE = -1, FNS_SLOT_STACK = 131072 };

/* A request, with the fds that came with it. */
struct fns_received {
    long size; /* 0: the other end is closed; -errno */
    int n_fds;
    int fds[FNS_REQUEST_FDS];
    char bytes[FNS_REQUEST_INLINE] __attribute__((aligned(8)));
};
enum { FNS_TRUNCATED = -4096 }; /* as a size: an fd was lost, or the message was cut off */

FNS_INLINE struct fns_request *fns_request_of(struct fns_received *received)
{
    return (struct fns_request *)(void *)received->bytes;
}

/* struct rusage, getrusage(2) */
struct fns_usage {
    int64_t times[4]; /* user and system, each in seconds and microseconds */
    int64_t max_rss;  /* KiB */
    int64_t rest[13];
};

/* A sandbox, from its clone until its end has been reported. The sandbox itself writes the first group of fields: until
 * its exec, in the server's memory; a room's keeper, in memory that it shares with the server. */
struct fns_sandbox {
    struct fns_child child;
    struct fns_args args;
    /* Of a parked one: it is taking its request, or has taken it, and has not replied. */
    volatile uint32_t requested;
    /* RUNNING was sent, or will be: the caller may know its number. */
    volatile uint32_t reported;
    /* The command has an fd over which another fd can leave the sandbox. */
    volatile uint32_t exposed;
    volatile int request;       /* number of the request to reply to */
    uint32_t n_served;          /* of a room: how many commands have run */
    struct fns_usage before[2]; /* of a room: what its commands, and its keeper, had used */
    /* In a container, where `pid` is the supervisor's (container.c): the command's pid, until it is reaped; how it has
     * ended, as in siginfo (0: it has not); enum fns_ending. */
    volatile int command, code, status;
    volatile uint32_t ending;
    volatile uint32_t replied; /* by the supervisor */

    int number;            /* index in the table, plus MAX_SANDBOXES for each earlier use */
    int pid;               /* 0: not cloned, or reaped */
    int connection;        /* where replies about it go, or FNS_NONE */
    int is_room;           /* it serves one command after another */
    int network;           /* fd of its network namespace, if that may serve again; else FNS_NONE */
    int mounts;            /* the closer's entry for its mount namespace, or FNS_NONE */
    int pid_namespace;     /* an fd, opened when it is killed; before, FNS_NONE */
    int batch;             /* 0: none */
    struct fns_slot *slot; /* the one it started in */
    int is_parked;         /* it was made ahead of its request */
    int is_awaited;        /* a REAP or KILL at `connection` waits for its end */
    int has_ended;         /* `end` is kept for a REAP */
    int n_kills;           /* in a container: how often it was tried */
    struct fns_sandbox *older, **link; /* in the list of watched ones; link 0: not listed */
    struct fns_sandbox *next;          /* in the list of free ones */
    struct fns_ended end;
};

/* What a sandbox needs until its exec. A queued request has one too. */
struct fns_slot {
    /* The kernel clears both when the process has left (CLONE_CHILD_CLEARTID): */
    volatile int taken;   /* the sandbox or, in a container, the supervisor is in this memory */
    volatile int command; /* pid of a container's command that is in this memory */
    struct fns_sandbox *sandbox;
    int connection;        /* of the request that is queued here */
    uint64_t since;        /* when it began to wait: CLOCK_MONOTONIC, ns */
    uint64_t queued;       /* ns that it waited for its turn in a batch */
    struct fns_slot *next; /* in the queue */
    const uint64_t *files; /* RLIMIT_NOFILE for it: soft, hard; 0: the server's */
    void *mapped;          /* a request from a memory file; 0: none */
    uint64_t mapped_size;
    int keep[FNS_REQUEST_FDS + 3];
    struct fns_received received;
    char stack[FNS_SLOT_STACK] __attribute__((aligned(4096))); /* the first page is a guard */
};

/* Maps memory that takes pages only when it is touched. sharing: MAP_PRIVATE or MAP_SHARED. 0: it failed, and `error`
 * is -errno. */
FNS_INLINE void *fns_map(size_t size, int sharing, long *error)
{
    long at = fns_sys6(__NR_mmap, 0, (long)size, PROT_READ | PROT_WRITE,
                       sharing | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (fns_is_address(at))
        return (void *)at;
    *error = at;
    return 0;
}

/* FUTEX_WAKE or FUTEX_WAIT on a word in shared memory. A wait may end early, so the word has to be read again. */
FNS_INLINE void fns_futex(volatile uint32_t *word, int op, uint32_t value)
{
    long result = -EINTR;
    for (int tries = 0; result < 0 && tries < (op == FUTEX_WAKE ? FNS_TRIES : 1); tries++)
        result = fns_sys4(__NR_futex, word, op | FUTEX_PRIVATE_FLAG, value, 0);
}

/* ---- container.c ------------------------------------------------------------------------------ */

/* Whether a command has ended by itself, or is being ended with all it has started. */
enum fns_ending { FNS_ENDING_RUNS, FNS_ENDING_ENDED, FNS_ENDING_KILLED };

/* Sets `ending` if it is still RUNS. 1: it was. */
FNS_INLINE int fns_set_ending(struct fns_sandbox *sandbox, enum fns_ending ending)
{
    uint32_t expected = FNS_ENDING_RUNS;
    return __atomic_compare_exchange_n(&sandbox->ending, &expected, (uint32_t)ending, 0,
                                       __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

/* Entry point of a supervisor's clone (supervisor.c). */
int fns_supervisor_main(void *slot);

/* Prepares for the rest. 0 or more, or -errno. */
FNS_CHECKED long fns_open_container(void);

/* After the end of a supervisor, sets how its command has ended. */
void fns_supervisor_ended(struct fns_sandbox *sandbox, struct fns_siginfo *info);

/* Begins to kill a command and all that it has started, unless it has ended. */
void fns_kill_command(struct fns_sandbox *sandbox);

/* Continues that. 1: some may not have ended yet. */
int fns_check_killed_commands(void);

/* From time to time, continues supervisors, and processes that move files or have not executed their command: a command
 * with the same ids could stop them, and nobody else would continue them. */
void fns_continue_supervisors(void);

/* ---- transfer.c ------------------------------------------------------------------------------- */

/* Moves files as args->transfer says. Returns the exit status. */
int fns_run_transfer(const struct fns_args *args);

/* Puts what the records in a file describe. 0 or -errno. */
FNS_CHECKED int fns_put_files(int file);

/* ---- keeper.c --------------------------------------------------------------------------------- */

/* Entry point of a room's clone, which has its own memory. Returns when the room is not to serve again. */
int fns_room_main(void *slot);

/* ---- sandbox.c: runs in a sandbox ------------------------------------------------------------- */

/* How many ops come before those that depend on the request. */
uint32_t fns_count_ops_before_request(const struct fns_plan *plan);

/* Entry point of the vfork of a command, in the room's memory. Receives the request that is in the socket. Returns only
 * on failure, which is then in the sandbox's `child`. */
int fns_command_main(void *slot);

/* Entry point of a sandbox's clone. The request is in the slot; a parked sandbox waits for it. Returns only on
 * failure, which is then in the sandbox's `child`. */
int fns_sandbox_main(void *slot);

/* Receives one message. flags: MSG_*. The fds are close-on-exec; those of a truncated message are closed. */
void fns_receive(int socket, int flags, struct fns_received *received);

/* ---- connections.c: what the server listens to. An fd identifies a connection. ---------------- */

/* What is at the other end of an fd. */
enum fns_peer {
    FNS_PEER_NONE,
    FNS_PEER_CONTROL,
    FNS_PEER_CALLER,
    FNS_PEER_CONNECTION,
    FNS_PEER_ENDS
};

struct fns_connection {
    uint8_t peer;                /* enum fns_peer */
    uint8_t wants_parked;        /* PARK was requested: a sandbox is to be parked here */
    uint8_t sandbox_reads;       /* a parked sandbox reads the requests instead of the server */
    uint8_t is_closed;           /* by the caller; the fd stays until its sandbox has ended */
    uint8_t is_queued;           /* its request waits for its turn */
    uint8_t n_failed_rooms;      /* rooms in a row that ended here before they served */
    uint8_t is_listed;           /* in the list of connections to park a sandbox for */
    int next;                    /* in that list */
    struct fns_sandbox *sandbox; /* whose replies go there; 0: none */
    struct fns_error room_error; /* of the last such room */
};

/* Maps the table and makes the epoll set. 0 or more, or -errno. */
FNS_CHECKED int fns_open_connections(void);

struct fns_connection *fns_connection(int fd);

/* Starts listening to an fd. 0 or -errno. */
FNS_CHECKED int fns_watch(int fd, enum fns_peer peer);

/* Stops listening, and closes the fd. */
void fns_forget(int fd);

/* Stops listening; the fd stays open for a reply. */
void fns_ignore(int fd);

/* Sets who reads the requests of a connection: the sandbox that is parked there, or the server. */
void fns_let_sandbox_read(int connection, int sandbox_reads);

/* Waits for events for at most `ms` milliseconds (-1: no limit). Returns how many came, or -errno. */
FNS_CHECKED int fns_await_events(struct epoll_event *events, int most, int ms);

/* ---- replies.c -------------------------------------------------------------------------------- */

/* Send a reply; `number` is that of its request. If that fails, the connection is shut down, so that whoever
 * waits for the reply reads end of file. */
void fns_reply(int connection, const struct fns_ended *reply);
void fns_reply_error(int connection, int number, struct fns_error error);

void fns_close_all(const int *fds, int n);

/* ---- tables.c --------------------------------------------------------------------------------- */

/* Maps the tables. `shared`: forked processes share them. 0 or -errno. */
FNS_CHECKED int fns_open_tables(int shared);

/* What the server has done. In rooms, shared with the keepers. */
struct fns_stats *fns_get_stats(void);

/* Returns a slot with no sandbox and no queued request; it stays free until `taken` is set. 0: there is none,
 * and `error` is -errno. */
struct fns_slot *fns_take_slot(long *error);

/* Returns a new sandbox with a plan and a user namespace to join (0: none). 0: there are too many. */
struct fns_sandbox *fns_new_sandbox(const struct fns_plan *plan, int userns);

/* Frees it, and releases its mount namespace and its connection. */
void fns_free_sandbox(struct fns_sandbox *sandbox);

/* Records the pid of its process. */
void fns_set_pid(struct fns_sandbox *sandbox, int pid);

/* Return the sandbox with this pid, or with this number if it was reported. 0: there is none. */
struct fns_sandbox *fns_find_pid(int pid);
struct fns_sandbox *fns_find_number(int number);

/* The list of watched sandboxes, whose end somebody waits for. Linked by `older`; 0: it is empty. */
void fns_watch_sandbox(struct fns_sandbox *sandbox);
void fns_unwatch_sandbox(struct fns_sandbox *sandbox);
struct fns_sandbox *fns_newest_watched(void);

/* Whether a batch has as many sandboxes alive as it may. */
int fns_is_full(struct fns_share share);

/* Adds 1 or -1 to the number of a batch's live sandboxes. 0, or -EAGAIN if there are too many batches. */
int fns_count_alive(int batch, int step);

/* ---- sandboxes.c: the start and the end of sandboxes ------------------------------------------ */

/* Opens the tables, and starts the processes beside the server. `userns`: the one that sandboxes join; 0: none.
 * 0 or more, or -errno. */
FNS_CHECKED long fns_open_sandboxes(const struct fns_plan *plan, int userns);

/* Starts the sandbox that the RUN or SPAWN in a slot requests, or queues the request. */
void fns_run_request(struct fns_slot *slot, int connection);

/* Drops a connection's queued request with a reply, and closes the connection. 1: there was one. */
int fns_drop_queued(int connection);

/* Whether the template has rooms, and whether this is a container. */
int fns_has_rooms(void);
int fns_is_container(void);

/* Makes a room that takes its request from the connection. 1: it was started. */
enum { FNS_MOST_FAILED_ROOMS = 2 };
int fns_make_room(int connection);

/* Leaves the parking of a sandbox for this connection to fns_do_chores(). */
void fns_park_later(int connection);

/* Reaps children that have ended, after SIGCHLD. One signal may stand for many ends; `pid` is the one it names,
 * or 0. */
void fns_reap_ended(int pid);

/* Counts in a statistic. Rooms count at the same time. */
FNS_INLINE void fns_count(uint64_t *counter)
{
    __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
}

/* Subtracts all but the peak of memory, which is no sum. */
void fns_subtract_usage(struct fns_usage *usage, const struct fns_usage *before);

/* Reaps a process if it has ended, and handles its end. 1: it had. */
int fns_reap(int pid);

/* Does the work that nobody waits for, after everything else. `idle`: the last wait for events timed out.
 * Returns how many ms may pass until the next chores; -1: no limit. */
int fns_do_chores(int idle);

/* ---- kill.c ----------------------------------------------------------------------------------- */

enum { FNS_KILL_MS = 100 }; /* how long a killed sandbox has to end */

/* Kills a sandbox, and opens its pid namespace for fns_check_killed(). */
void fns_kill(struct fns_sandbox *sandbox);

/* Kills whatever still keeps killed sandboxes from ending after FNS_KILL_MS. 1: some may not have ended yet. */
int fns_check_killed(void);

/* ---- closer.c: a process that takes mount namespaces down ------------------------------------- */

/* Starts the closer, or restarts it after its end. Returns its pid, or -errno. */
FNS_CHECKED int fns_closer_start(void);

/* Sends the closer an fd of a mount namespace; `fd` itself stays open. Returns an entry, or FNS_NONE. */
int fns_closer_hold(int fd);

/* Releases an entry: its namespace may be taken down when the closer is woken. */
void fns_closer_release(int entry);

/* How many entries were released since the closer was last woken. */
unsigned fns_closer_pending(void);

void fns_closer_wake(void);

/* ---- networks.c: network namespaces that serve more than one sandbox -------------------------- */

/* Prepares for the rest. `owned`: the server is in a user namespace whose ids its sandboxes have. 0 or more, or
 * -errno. */
FNS_CHECKED int fns_open_networks(int owned);

/* Enters a network namespace that no sandbox has used, so that the next clone inherits it. Returns its fd, or
 * -errno. */
FNS_CHECKED int fns_take_network(void);

/* Closes one that a sandbox has just entered, if fds are scarce: it does not serve again. 1: it did. */
int fns_let_network_go(int fd);

/* Takes one back from a sandbox that has ended. `exposed`: an fd of it may have left the sandbox. */
void fns_give_network(int fd, int exposed);

/* Opens files of a network namespace: dev, sockstat and sockstat6 in `directory`, an fd of /proc/PID/net. -ENOENT in
 * place of an fd: there is no such file. 0 or -errno. */
enum { FNS_NETWORK_FILES = 3 };
FNS_CHECKED int fns_open_network_files(int directory, int files[FNS_NETWORK_FILES]);

/* Compares what these files say with those of a new network namespace. DOUBTFUL: only sockets differ, which the kernel
 * may be about to free. */
enum fns_network_use { FNS_NETWORK_UNUSED, FNS_NETWORK_DOUBTFUL, FNS_NETWORK_USED };
enum fns_network_use fns_network_use(const int files[FNS_NETWORK_FILES]);

/* Looks again at those that seemed used. Returns how many ms may pass until the next call; FNS_NONE: no limit. */
int fns_check_networks(void);

#endif
