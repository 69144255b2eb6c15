/* The server of a template: starts sandboxes for the caller, in the program's tiny memory.
 *
 * pid 1 of a pid namespace of its own, in a mount namespace that holds only the finished root. Each
 * sandbox is a clone that shares its memory until it executes, in a room of its own (sandbox.c); the
 * server does not wait for that. It reaps, and says how each ended. Nothing of one is kept for the
 * next. It ends when the caller does, and with it, as the kernel has it for a pid 1, every sandbox.
 * Raw system calls only.
 */
#include "server.h"
#include "netns.h"

#include "shared/clone.h"
#include "shared/sys.h"

#define MAX_FD (1 << 20)
#define MAX_PID (1 << 22)
#define MAX_SANDBOXES (1 << 20)
#define MAX_ROOMS (1 << 13)
#define MAX_BATCHES MAX_ROOMS
#define STRAYS_MS 500
#define HELD_NS 100000000u
#define CLOSE_MS 20 /* farther than a tick: the clock need not be set for it */
#define MANY_UNHEARD 16
#define MAX_UNHEARD 48
#define NONE (-1)
#define SIGCONT 18

/* What is at the other end of an fd that epoll watches; indexed by that fd. */
enum peer_kind { NOBODY, CONTROL, CALLER, CONNECTION, ENDS, READY };
struct peer {
    uint8_t kind;   /* enum peer_kind */
    uint8_t park;   /* a connection for sandboxes made ahead */
    uint8_t parked; /* there is one: it hears what is asked, not the server */
    uint8_t closed; /* by the caller; here once its sandbox has ended */
    uint8_t waits;  /* what was asked: for its turn in a batch, or for a network namespace */
    uint8_t listed; /* among server.to_park, or to_park_then */
    int sandbox;    /* whose news go there; NONE */
    int next;       /* of those that are listed */
};
struct event { /* struct epoll_event */
    uint32_t events;
    uint64_t fd;
}
#if defined(__x86_64__)
__attribute__((packed))
#endif
;
struct batch {
    int number, alive;
};
enum { IN = 1, HANGUP = 0x10, READ_HANGUP = 0x2000, ADD = 1, DELETE = 2, MODIFY = 3 };
enum { DONT_WAIT = 0x40 /* MSG_DONTWAIT: an event may be an earlier connection's */ };

/* Everything the server has; one of them, in bss. The tables are mapped, and grow as they are used. */
static struct {
    const struct fns_plan *plan;
    int userns; /* for sandboxes to join; 0: none */
    struct peer *peers;
    struct fns_sandbox *sandboxes;
    int *by_pid;              /* number of the sandbox */
    int epoll, ends, ready;   /* a signalfd for SIGCHLD; an eventfd of netns.c */
    struct fns_room *waiting; /* asks for which there was no network namespace, the first first */
    struct fns_room *queued;  /* asks of batches that have enough alive, the first first */
    struct batch *batches;
    int n_batches;
    struct fns_pool_state pool;
    int n_sandboxes, free_sandbox; /* ever used; the first that is free */
    int last_looked_at;
    int n_rooms, no_memory;
    int strays; /* there may be children that nobody knows of */
    int killed; /* there may be sandboxes that are, and have not ended: when they are looked at */
    uint64_t look_at_killed;
    int to_park;       /* connections that want a sandbox made ahead, the last first */
    int to_park_then;  /* the same, when there is a network namespace for it */
    int started;       /* a sandbox, since chores were last done */
    uint64_t files[2]; /* struct rlimit of RLIMIT_NOFILE, as the caller had it */
    int raised;        /* this process has more */
    struct fns_room *rooms[MAX_ROOMS];
    struct fns_received received; /* what is for no room */
} server;

static _Noreturn void stop(void)
{
    for (;;)
        FNS_IGNORE(fns_sys1(__NR_exit_group, 0), "does not return");
}

static int control(int how, int fd, uint32_t events)
{
    struct event event = {events, (uint64_t)fd};
    long result = -EINTR;
    for (int tries = 0; result < 0 && tries < FNS_TRIES; tries++)
        result = fns_sys4(__NR_epoll_ctl, server.epoll, how, fd, &event);
    return (int)result;
}

static int watch(int fd, enum peer_kind kind)
{
    if (fd >= MAX_FD)
        return -EMFILE;
    const struct peer *before = &server.peers[fd]; /* that had this fd */
    server.peers[fd] = (struct peer){
        .kind = (uint8_t)kind, .sandbox = NONE, .listed = before->listed, .next = before->next};
    return control(ADD, fd, IN);
}

/* The caller has the same file, so that closing it here alone would leave it watched. */
static void forget(int fd)
{
    server.peers[fd].kind = NOBODY;
    control(DELETE, fd, 0);
    fns_close(fd);
}

/* Memory that takes pages when it is touched; 0: none, and server.no_memory has the errno. */
static void *map(uint64_t size)
{
    long at = fns_sys6(__NR_mmap, 0, (long)size, 3 /* PROT_READ|WRITE */,
                       0x4022 /* MAP_PRIVATE|ANONYMOUS|NORESERVE */, -1, 0);
    if (at >= 0 || at <= -4096)
        return (void *)at;
    server.no_memory = (int)at;
    return 0;
}

static uint64_t now(void)
{
    uint64_t time[2] = {0, 0};
    FNS_IGNORE(fns_sys2(__NR_clock_gettime, 1 /* CLOCK_MONOTONIC */, time), "there is this clock");
    return time[0] * 1000000000u + time[1];
}

/* ---- tables --------------------------------------------------------------------------------- */

static struct fns_sandbox *take_sandbox(void)
{
    int number = server.free_sandbox;
    if (number != NONE)
        server.free_sandbox = server.sandboxes[number].next;
    else if (server.n_sandboxes < MAX_SANDBOXES)
        number = server.n_sandboxes++;
    else
        return 0;
    struct fns_sandbox *sandbox = &server.sandboxes[number];
    sandbox->child = (struct fns_child)FNS_CHILD(server.plan, &sandbox->args, -1);
    sandbox->child.userns = server.userns;
    sandbox->asked = sandbox->told = 0;
    sandbox->number = (sandbox->number & ~(MAX_SANDBOXES - 1)) | number;
    sandbox->pid = sandbox->parked = sandbox->awaited = sandbox->ended = 0;
    sandbox->connection = sandbox->slot = NONE;
    sandbox->is_looked_at = sandbox->batch = 0;
    sandbox->held = NONE;
    sandbox->end.queued = 0;
    return sandbox;
}

static void look_at(struct fns_sandbox *sandbox)
{
    int number = (int)(sandbox - server.sandboxes);
    if (sandbox->is_looked_at)
        return;
    sandbox->is_looked_at = 1;
    sandbox->sooner = server.last_looked_at;
    sandbox->later = NONE;
    if (sandbox->sooner != NONE)
        server.sandboxes[sandbox->sooner].later = number;
    server.last_looked_at = number;
}

static void look_away(struct fns_sandbox *sandbox)
{
    if (!sandbox->is_looked_at)
        return;
    sandbox->is_looked_at = 0;
    if (sandbox->later != NONE)
        server.sandboxes[sandbox->later].sooner = sandbox->sooner;
    else
        server.last_looked_at = sandbox->sooner;
    if (sandbox->sooner != NONE)
        server.sandboxes[sandbox->sooner].later = sandbox->later;
}

static void give_sandbox(struct fns_sandbox *sandbox)
{
    int number = (int)(sandbox - server.sandboxes);
    look_away(sandbox);
    if (sandbox->slot != NONE)
        fns_closer_give(sandbox->slot);
    if (sandbox->slot != NONE && sandbox->args.n_groups)
        fns_closer_wake(); /* its cgroup is not empty before */
    sandbox->slot = NONE;
    if (sandbox->connection != NONE && server.peers[sandbox->connection].sandbox == number)
        server.peers[sandbox->connection].sandbox = NONE;
    sandbox->connection = NONE;
    sandbox->number = (sandbox->number + MAX_SANDBOXES) & 0x7fffffff;
    sandbox->pid = sandbox->ended = 0;
    sandbox->next = server.free_sandbox;
    server.free_sandbox = number;
}

static struct fns_room *make_room(void)
{
    server.no_memory = -ENOMEM;
    struct fns_room *room = server.n_rooms < MAX_ROOMS ? map(sizeof *room) : 0;
    if (!room)
        return 0;
    long result = fns_sys3(__NR_mprotect, room->stack, 4096, 0);
    if (result >= 0)
        return server.rooms[server.n_rooms++] = room;
    server.no_memory = (int)result; /* without a guard page the room is not used */
    FNS_IGNORE(fns_sys2(__NR_munmap, room, sizeof *room), "memory that nobody has touched");
    return 0;
}

/* A room that nobody is in; 0: none, and server.no_memory has the errno. */
static struct fns_room *take_room(void)
{
    struct fns_room *room = 0;
    for (int i = 0; i < server.n_rooms && !room; i++)
        if (!server.rooms[i]->taken)
            room = server.rooms[i];
    if (!room)
        room = make_room();
    if (room && room->mapped) {
        FNS_IGNORE(fns_sys2(__NR_munmap, room->mapped, room->mapped_size),
                   "what is left is memory");
        room->mapped = 0;
    }
    return room;
}

/* ---- a sandbox ------------------------------------------------------------------------------ */

/* The directory of the cgroup that what was asked is to be cloned into; NONE: it enters by itself. */
static int group_of(const struct fns_received *received)
{
    const struct fns_args *args =
        &((const struct fns_request *)(const void *)received->bytes)->args;
    uint32_t last = 3 + args->n_keep + args->n_groups - 1;
    if (received->size < (long)sizeof(struct fns_request) || !args->clone_into || !args->n_groups ||
        last >= (uint32_t)received->n_fds)
        return NONE;
    return received->fds[last];
}

static long clone_sandbox(struct fns_room *room, int *pidfd)
{
    uint64_t flags = server.plan->clone_flags | FNS_CLONE_VM | FNS_CLONE_CHILD_CLEARTID;
    struct fns_clone_args args = {
        .flags = flags | FNS_CLONE_PIDFD,
        .pidfd = (uintptr_t)pidfd,
        .child_tid = (uintptr_t)&room->taken,
        .exit_signal = FNS_SIGCHLD,
        .stack = (uintptr_t)room->stack,
        .stack_size = sizeof room->stack,
    };
    struct fns_child *child = &room->sandbox->child;
    int group = room->sandbox->parked ? NONE : group_of(&room->received);
    if (group >= 0) {
        args.flags |= FNS_CLONE_INTO_CGROUP;
        args.cgroup = (uint64_t)group;
    }
    child->entered = group >= 0;
    room->taken = 1;
    long pid = fns_clone_call(&args, fns_sandbox_main, room);
    if (pid == -ENOSYS && group >= 0) { /* without clone3(2) it enters by itself */
        child->entered = 0;
        args.flags &= ~FNS_CLONE_INTO_CGROUP;
        pid = fns_clone_call(&args, fns_sandbox_main, room);
    }
    if (pid < 0)
        room->taken = 0;
    return pid;
}

/* The closer holds its mount namespace until its end was told. `pidfd` is closed. */
static void hold_mounts(struct fns_sandbox *sandbox, int pidfd)
{
    int mounts = (int)fns_sys3(__NR_ioctl, pidfd, 0xff03 /* PIDFD_GET_MNT_NAMESPACE */, 0);
    fns_close(pidfd);
    if (mounts < 0)
        return;
    sandbox->slot = fns_closer_hold(mounts);
    fns_close(mounts);
}

/* Enters a network namespace for the next clone to inherit. -EAGAIN: none is there yet. */
static int enter_network(void)
{
    int netns = fns_netns_take();
    if (netns < 0)
        return netns;
    int result = (int)fns_sys2(__NR_setns, netns, FNS_CLONE_NEWNET);
    fns_close(netns);
    if (result < 0)
        fns_netns_ended();
    return result;
}

static int reap(int pid);

/* 1: stopped a sandbox that is parked and has no request. 0: it has one, and goes on. */
static int stop_unasked(const struct fns_sandbox *sandbox)
{
    int info[32]; /* siginfo_t */
    if (sandbox->pid <= 0 || !sandbox->parked || sandbox->asked)
        return 0;
    long result = fns_sys2(__NR_kill, sandbox->pid, FNS_SIGSTOP);
    if (result >= 0)
        result = fns_sys5(__NR_waitid, 1 /* P_PID */, sandbox->pid, info,
                          2 | 4 | 0x41000000 /* WSTOPPED|WEXITED|__WALL|WNOWAIT */, 0);
    if (result >= 0 && !sandbox->asked)
        return 1;
    FNS_IGNORE(fns_sys2(__NR_kill, sandbox->pid, SIGCONT), "a child that is not reaped");
    return 0;
}

/* Ends one parked sandbox, to make place for another. 1: there was one. */
static int give_up_parked(void)
{
    int info[32]; /* siginfo_t */
    for (int at = server.last_looked_at; at != NONE; at = server.sandboxes[at].sooner) {
        int pid = server.sandboxes[at].pid;
        if (!stop_unasked(&server.sandboxes[at]))
            continue;
        long result = fns_sys2(__NR_kill, pid, FNS_SIGKILL);
        if (result >= 0)
            result = fns_sys5(__NR_waitid, 1 /* P_PID */, pid, info,
                              4 | 0x41000000 /* WEXITED|__WALL|WNOWAIT */, 0);
        return result >= 0 && reap(pid);
    }
    return 0;
}

/* 0, or -errno and the stage. Its news go to `connection`. */
static long start(struct fns_room *room, int connection, int parked, int ask, enum fns_stage *stage)
{
    *stage = FNS_STAGE_NETWORK;
    int entered = server.plan->netns_pool ? enter_network() : 0;
    if (entered < 0)
        return entered;
    struct fns_sandbox *sandbox = take_sandbox();
    *stage = FNS_STAGE_HELPER;
    if (!sandbox) {
        if (server.plan->netns_pool)
            fns_netns_ended();
        return -ENOMEM;
    }
    room->sandbox = sandbox;
    sandbox->room = room;
    room->files = server.raised ? server.files : 0;
    sandbox->connection = connection;
    sandbox->parked = parked;
    sandbox->ask = ask;
    int pidfd = NONE;
    long pid = clone_sandbox(room, &pidfd);
    while (pid == -EAGAIN && !parked && give_up_parked()) /* pids are short */
        pid = clone_sandbox(room, &pidfd);
    if (pid < 0 || pid >= MAX_PID) {
        *stage = FNS_STAGE_CLONE;
        give_sandbox(sandbox);
        if (server.plan->netns_pool)
            fns_netns_ended();
        return pid < 0 ? pid : -ENOMEM;
    }
    sandbox->pid = (int)pid;
    server.by_pid[pid] = (int)(sandbox - server.sandboxes);
    server.peers[connection].sandbox = server.by_pid[pid];
    look_at(sandbox);
    if (pidfd >= 0)
        hold_mounts(sandbox, pidfd);
    server.started = 1;
    return 0;
}

/* Its pid namespace; before Linux 6.11 its pidfd, which stands for that until its first thread ends. */
static int open_pid_namespace(int pid)
{
    int pidfd = (int)fns_sys2(__NR_pidfd_open, pid, 0);
    int namespace = (int)fns_sys3(__NR_ioctl, pidfd, 0xff05 /* PIDFD_GET_PID_NAMESPACE */, 0);
    if (namespace < 0)
        return pidfd;
    fns_close(pidfd);
    return namespace;
}

static void kill_sandbox(struct fns_sandbox *sandbox)
{
    if (sandbox->pid <= 0) /* not reaped: nobody else has this pid */
        return;
    if (sandbox->held < 0)
        sandbox->held = open_pid_namespace(sandbox->pid);
    FNS_IGNORE(fns_sys2(__NR_kill, sandbox->pid, FNS_SIGKILL), "a child that is not reaped");
    if (server.killed++ == 0)
        server.look_at_killed = now() + HELD_NS;
}

static int kill_others(void *none)
{
    (void)none;
    return (int)fns_sys2(__NR_kill, -1, FNS_SIGKILL);
}

/* Kills all that is in the pid namespace of a sandbox but its first process, which is killed already
 * and does not end while one of them traces it (PTRACE_O_TRACEEXIT): by a process that is in there. */
static void kill_namespace(int namespace)
{
    static char stack[4096] __attribute__((aligned(16)));
    int own = (int)fns_sys2(__NR_pidfd_open, fns_sys0(__NR_getpid), 0);
    if (own >= 0 && fns_sys2(__NR_setns, namespace, FNS_CLONE_NEWPID) == 0) {
        /* With memory of its own, and reaped as a stray: nobody waits for what they could hold. */
        FNS_IGNORE(fns_sys_clone_call(__NR_clone, FNS_SIGCHLD, (long)(stack + sizeof stack), 0, 0,
                                      0, kill_others, 0),
                   "it is tried again");
        if (fns_sys2(__NR_setns, own, FNS_CLONE_NEWPID) < 0)
            stop(); /* what is started next would be in there */
    }
    if (own >= 0)
        fns_close(own);
}

static void look_at_killed(void)
{
    server.killed = 0;
    server.look_at_killed = now() + HELD_NS;
    for (int at = server.last_looked_at; at != NONE; at = server.sandboxes[at].sooner) {
        if (server.sandboxes[at].held < 0)
            continue;
        server.killed++;
        kill_namespace(server.sandboxes[at].held);
    }
}

/* ---- batches -------------------------------------------------------------------------------- */

static struct fns_share share_of(const struct fns_room *room)
{
    return ((const struct fns_request *)(const void *)room->received.bytes)->share;
}

/* Where it is, or n_batches. */
static int find_batch(int number)
{
    int i = 0;
    while (i < server.n_batches && server.batches[i].number != number)
        i++;
    return i;
}

static int is_full(struct fns_share share)
{
    int i = share.batch ? find_batch(share.batch) : server.n_batches;
    return i < server.n_batches && (uint32_t)server.batches[i].alive >= share.most;
}

/* One more of a batch, or one less. 0; -EAGAIN: there are too many batches. */
static int count_alive(int batch, int step)
{
    int i = find_batch(batch);
    if (i == MAX_BATCHES)
        return -EAGAIN;
    if (i == server.n_batches)
        server.batches[server.n_batches++] = (struct batch){batch, 0};
    server.batches[i].alive += step;
    if (server.batches[i].alive <= 0)
        server.batches[i] = server.batches[--server.n_batches];
    return 0;
}

/* If an answer cannot be sent, closes its connection, so that whoever waits for it sees the end. */
static void check_told(int connection, long result)
{
    if (result < 0)
        FNS_IGNORE(fns_sys2(__NR_shutdown, connection, 2 /* SHUT_RDWR */), "it may be closed");
}

/* As if it had been killed on its way. */
static void tell_killed(int connection, int ask)
{
    const struct fns_message message = {
        .kind = FNS_MESSAGE_FAILED,
        .number = ask,
        .error = {FNS_STAGE_CLONE, FNS_DETAIL_KILLED, -1, ECANCELED}};
    check_told(connection, fns_tell(connection, &message, -1, 0));
}

/* What waits there is not to be started any more. */
static void drop(struct fns_room *room)
{
    fns_close_all(room->received.fds, room->received.n_fds);
    tell_killed(room->connection,
                ((const struct fns_request *)(const void *)room->received.bytes)->number);
    room->taken = 0;
    forget(room->connection);
}

/* The caller has gone, or is done with it. 1: it was in that list. */
static int leave(struct fns_room **at, int connection)
{
    struct fns_room *room;
    while (*at && (*at)->connection != connection)
        at = &(*at)->next;
    if (!*at)
        return 0;
    room = *at;
    *at = room->next;
    server.peers[connection].waits = 0;
    drop(room);
    return 1;
}

/* ---- connections ---------------------------------------------------------------------------- */

/* The caller has shut it down, or closed it. */
static void hang_up(int connection)
{
    struct peer *peer = &server.peers[connection];
    if (peer->closed)
        return;
    if (peer->waits && leave(&server.queued, connection))
        return;
    if (peer->waits && leave(&server.waiting, connection))
        return;
    struct fns_sandbox *sandbox = peer->sandbox == NONE ? 0 : &server.sandboxes[peer->sandbox];
    if (sandbox && !sandbox->told) {
        kill_sandbox(sandbox);
        peer->closed = 1; /* the news of its end are sent first */
        control(DELETE, connection, 0);
        return;
    }
    if (sandbox) {
        sandbox->connection = NONE;
        sandbox->awaited = 0;
    }
    forget(connection);
}

/* Who hears what is asked: the sandbox that is parked there, or the server. */
static void hear_by(int connection, int parked)
{
    struct peer *peer = &server.peers[connection];
    if (parked != peer->parked)
        control(MODIFY, connection, parked ? READ_HANGUP : IN);
    peer->parked = (uint8_t)parked;
}

static void put_in_list(int *list, int connection)
{
    struct peer *peer = &server.peers[connection];
    if (peer->listed)
        return;
    peer->listed = 1;
    peer->next = *list;
    *list = connection;
}

/* The first of them; NONE. */
static int take_from_list(int *list)
{
    int connection = *list;
    if (connection == NONE)
        return NONE;
    *list = server.peers[connection].next;
    server.peers[connection].listed = 0;
    return connection;
}

static void park_later(int connection)
{
    put_in_list(&server.to_park, connection);
}

/* A sandbox ahead for a connection that wants one. Should that fail, the server hears what is asked
 * there, and the failure is that sandbox's. */
static void park(int connection)
{
    enum fns_stage stage = FNS_STAGE_HELPER;
    struct fns_room *room = take_room();
    long result = room ? start(room, connection, 1, 0, &stage) : server.no_memory;
    hear_by(connection, result == 0);
    if (result == -EAGAIN && stage == FNS_STAGE_NETWORK)
        put_in_list(&server.to_park_then, connection);
}

static void tell_failure(int connection, int ask, enum fns_stage stage, long result)
{
    const struct fns_message message = {
        .kind = FNS_MESSAGE_FAILED, .number = ask, .error = {(uint16_t)stage, 0, -1, (int)-result}};
    check_told(connection, fns_tell(connection, &message, -1, 0));
}

static void tell(int connection, const struct fns_ended *answer)
{
    long result = -EINTR;
    for (int tries = 0; result < 0 && result != -EPIPE && tries < FNS_TRIES; tries++)
        result = fns_sys6(__NR_sendto, connection, (long)answer, sizeof *answer,
                          0x4000 /* MSG_NOSIGNAL */, 0, 0);
    check_told(connection, result);
}

static void tell_end(int connection, struct fns_sandbox *sandbox)
{
    sandbox->end.message.number = sandbox->ask;
    tell(connection, &sandbox->end);
}

/* The sandbox that is asked about; 0: there is none, and this was said. */
static struct fns_sandbox *find_sandbox(int connection, const struct fns_request *ask)
{
    int index = ask->sandbox & (MAX_SANDBOXES - 1);
    struct fns_sandbox *sandbox = index < server.n_sandboxes ? &server.sandboxes[index] : 0;
    if (sandbox && sandbox->number == ask->sandbox && sandbox->told &&
        (sandbox->pid || sandbox->ended))
        return sandbox;
    tell_failure(connection, ask->number, FNS_STAGE_WAIT, -ECHILD);
    return 0;
}

static void hear_look(int connection, const struct fns_request *ask)
{
    const struct fns_sandbox *sandbox = find_sandbox(connection, ask);
    struct fns_ended answer = {.message = {.kind = FNS_MESSAGE_ENDED, .number = ask->number}};
    if (!sandbox)
        return;
    answer.message.value = sandbox->pid != 0;
    tell(connection, &answer);
}

static void hear_reap(int connection, const struct fns_request *ask)
{
    int kill = ask->kind == FNS_REQUEST_KILL;
    struct fns_sandbox *sandbox = find_sandbox(connection, ask);
    if (!sandbox)
        return;
    sandbox->ask = ask->number;
    if (sandbox->ended) {
        tell_end(connection, sandbox);
        give_sandbox(sandbox);
    } else {
        if (sandbox->connection != NONE) { /* the one it was spawned over */
            server.peers[sandbox->connection].sandbox = NONE;
            hear_by(sandbox->connection, 0);
        }
        sandbox->connection = connection;
        sandbox->awaited = 1;
        server.peers[connection].sandbox = (int)(sandbox - server.sandboxes);
        if (kill)
            kill_sandbox(sandbox);
        look_at(sandbox);
        reap(sandbox->pid);
    }
}

/* What was asked is started; once it is, its fds are its own. */
static long start_asked(struct fns_room *room, int connection)
{
    enum fns_stage stage = FNS_STAGE_HELPER;
    int ask = ((const struct fns_request *)(const void *)room->received.bytes)->number;
    int n_fds = room->received.n_fds, fds[FNS_REQUEST_FDS];
    for (int i = 0; i < n_fds; i++) /* the room is the sandbox's from its clone on */
        fds[i] = room->received.fds[i];
    int batch = share_of(room).batch;
    int counted = batch ? count_alive(batch, 1) : 0;
    long result = counted < 0 ? counted : start(room, connection, 0, ask, &stage);
    if (result == 0) {
        struct fns_sandbox *sandbox = &server.sandboxes[server.peers[connection].sandbox];
        sandbox->batch = batch;
        sandbox->end.queued = room->queued;
    } else if (batch && counted == 0) {
        count_alive(batch, -1);
    }
    if (result == -EAGAIN && stage == FNS_STAGE_NETWORK)
        return result;
    fns_close_all(fds, n_fds);
    if (result < 0)
        tell_failure(connection, ask, stage, result);
    return 0;
}

/* The room is kept in a list, as its last. */
static void keep_room(struct fns_room **list, struct fns_room *room, int connection)
{
    while (*list)
        list = &(*list)->next;
    *list = room;
    room->next = 0;
    room->taken = 1;
    room->connection = connection;
    room->since = now();
    server.peers[connection].waits = 1;
}

/* The room is kept until there is a network namespace for it. */
static void wait(struct fns_room *room, int connection)
{
    keep_room(&server.waiting, room, connection);
    server.pool.waits++;
}

static void end_wait(struct fns_room *room)
{
    server.waiting = room->next;
    server.peers[room->connection].waits = 0;
    server.pool.wait_ns += now() - room->since;
}

static void hear_run(int connection, struct fns_room *room, const struct fns_received *received)
{
    if (!room) {
        fns_close_all(received->fds, received->n_fds);
        tell_failure(connection,
                     ((const struct fns_request *)(const void *)received->bytes)->number,
                     FNS_STAGE_HELPER, server.no_memory);
        return;
    }
    room->queued = 0;
    if (is_full(share_of(room)))
        keep_room(&server.queued, room, connection);
    else if (server.waiting || start_asked(room, connection) == -EAGAIN)
        wait(room, connection);
}

/* One of a batch has ended: it is the turn of the next, or, where those cannot be started, of more. */
static void start_queued(int batch)
{
    for (struct fns_room **at = &server.queued; *at;) {
        struct fns_room *room = *at;
        struct fns_share share = share_of(room);
        if (share.batch != batch || is_full(share)) {
            at = &room->next;
            continue;
        }
        *at = room->next;
        room->queued += now() - room->since;
        server.peers[room->connection].waits = 0;
        if (server.waiting || start_asked(room, room->connection) == -EAGAIN)
            wait(room, room->connection);
        else if (server.peers[room->connection].sandbox == NONE) /* it failed */
            room->taken = 0;
    }
}

/* A network namespace was made. */
static void hear_ready(void)
{
    uint64_t count;
    FNS_IGNORE(fns_sys3(__NR_read, server.ready, &count, sizeof count), "it says nothing more");
    while (server.waiting) {
        struct fns_room *room = server.waiting;
        if (is_full(share_of(room))) { /* others of its batch were sooner */
            server.waiting = room->next;
            server.pool.waits--;
            keep_room(&server.queued, room, room->connection);
        } else if (start_asked(room, room->connection) == 0) {
            end_wait(room);
            if (server.peers[room->connection].sandbox == NONE) /* it failed */
                room->taken = 0;
        } else {
            return;
        }
    }
    for (int at; (at = take_from_list(&server.to_park_then)) != NONE;)
        park_later(at);
}

static void tell_pool(int connection, int ask)
{
    struct fns_ended answer = {.message = {.kind = FNS_MESSAGE_ENDED, .number = ask}};
    server.pool.made = fns_netns_made();
    memcpy(answer.usage, &server.pool, sizeof server.pool);
    tell(connection, &answer);
}

static void hear_connection(int connection)
{
    struct peer *peer = &server.peers[connection];
    struct fns_room *room = take_room();
    struct fns_received *received = room ? &room->received : &server.received;
    fns_receive(connection, DONT_WAIT, received);
    const struct fns_request *ask = (const struct fns_request *)(const void *)received->bytes;
    if (peer->sandbox != NONE && server.sandboxes[peer->sandbox].told &&
        !server.sandboxes[peer->sandbox].awaited) { /* it runs: REAP is for it */
        server.sandboxes[peer->sandbox].connection = NONE;
        peer->sandbox = NONE;
    }
    if (received->size == -EAGAIN)
        return;
    int free = peer->sandbox == NONE && !peer->waits;
    int kind = received->size >= (long)sizeof *ask && free ? ask->kind : 0;
    if (received->size == FNS_TRUNCATED) {
        tell_failure(connection, ask->number, FNS_STAGE_FDS, -EMFILE);
    } else if (kind == FNS_REQUEST_RUN || kind == FNS_REQUEST_SPAWN) {
        hear_run(connection, room, received);
    } else if (kind == FNS_REQUEST_REAP || kind == FNS_REQUEST_KILL) {
        hear_reap(connection, ask);
    } else if (kind == FNS_REQUEST_LOOK) {
        hear_look(connection, ask);
    } else if (kind == FNS_REQUEST_POOL) {
        tell_pool(connection, ask->number);
    } else if (kind == FNS_REQUEST_PARK) {
        peer->park = 1;
        park_later(connection);
    } else {
        if (received->size < 0) /* it could not be heard */
            tell_failure(connection, FNS_ANY_REQUEST, FNS_STAGE_HELPER, received->size);
        fns_close_all(received->fds, received->n_fds);
        hang_up(connection);
    }
}

static void hear_control(int fd)
{
    struct fns_received *received = &server.received;
    fns_receive(fd, DONT_WAIT, received);
    const struct fns_request *ask = (const struct fns_request *)(const void *)received->bytes;
    if (received->size == 0)
        stop();
    if (received->size == -EAGAIN)
        return;
    int watched = -EPROTO;
    if (received->size >= (long)sizeof *ask && received->n_fds == 1)
        watched = watch(received->fds[0], ask->kind == FNS_REQUEST_CALLER ? CALLER : CONNECTION);
    if (watched < 0 && received->n_fds == 1 && ask->kind != FNS_REQUEST_CALLER)
        tell_failure(received->fds[0], FNS_ANY_REQUEST, FNS_STAGE_HELPER, watched);
    if (watched < 0)
        fns_close_all(received->fds, received->n_fds); /* its other end reads as closed */
}

/* ---- the end of a sandbox ------------------------------------------------------------------- */

/* What `sandbox->end` says: ENDED, or FAILED when it has not come to run its command. */
static void describe_end(struct fns_sandbox *sandbox, int code, int status)
{
    struct fns_message *message = &sandbox->end.message;
    *message = (struct fns_message){.kind = FNS_MESSAGE_ENDED, .value = code, .status = status};
    if (sandbox->child.progress == FNS_PROGRESS_EXEC)
        return;
    message->kind = FNS_MESSAGE_FAILED;
    message->error = sandbox->child.error;
    if (sandbox->child.progress == FNS_PROGRESS_SETUP)
        message->error = (struct fns_error){FNS_STAGE_CLONE, FNS_DETAIL_KILLED, -1, ECANCELED};
}

/* The connection of a sandbox that has ended is free for the next. */
static void end_use(int connection)
{
    struct peer *peer = &server.peers[connection];
    peer->sandbox = NONE;
    if (peer->closed)
        forget(connection);
    else if (peer->park)
        park_later(connection);
}

/* Whether a sandbox that was parked has ended without having taken what was asked. */
static int is_unused(const struct fns_sandbox *sandbox)
{
    char byte;
    if (!sandbox->parked || !sandbox->asked)
        return sandbox->parked;
    return sandbox->child.progress != FNS_PROGRESS_EXEC && !sandbox->told &&
           fns_sys6(__NR_recvfrom, sandbox->connection, (long)&byte, 1,
                    2 | DONT_WAIT /* MSG_PEEK */, 0, 0) > 0;
}

/* RUNNING may have been sent, and its pipe be silent: both who waits for RUNNING and who will REAP
 * are answered. */
static void keep_end(struct fns_sandbox *sandbox, int code, int status)
{
    if (sandbox->child.progress == FNS_PROGRESS_SETUP && sandbox->connection != NONE)
        tell_end(sandbox->connection, sandbox);
    sandbox->end.message =
        (struct fns_message){.kind = FNS_MESSAGE_ENDED, .value = code, .status = status};
    sandbox->ended = 1;
}

/* The caller is done with it, and with what it has asked there, if that was left in the socket. */
static void forget_unused(int connection)
{
    struct fns_request ask;
    long n = fns_sys6(__NR_recvfrom, connection, (long)&ask, sizeof ask, DONT_WAIT, 0, 0);
    if (n == sizeof ask)
        tell_killed(connection, ask.number);
    forget(connection);
}

static void end_sandbox(struct fns_sandbox *sandbox, int code, int status)
{
    int connection = sandbox->connection;
    describe_end(sandbox, code, status);
    sandbox->pid = 0;
    if (sandbox->held >= 0)
        fns_close(sandbox->held);
    sandbox->held = NONE;
    look_away(sandbox);
    if (server.plan->netns_pool)
        fns_netns_ended();
    if (sandbox->batch) { /* before the news: who hears them would be on the CPU that is free now */
        count_alive(sandbox->batch, -1);
        start_queued(sandbox->batch);
    }
    if (is_unused(sandbox)) { /* what is asked there next, or was, the server hears */
        give_sandbox(sandbox);
        if (server.peers[connection].closed)
            forget_unused(connection);
        else
            hear_by(connection, 0);
        return;
    }
    if (sandbox->told && !sandbox->awaited && sandbox->child.progress != FNS_PROGRESS_FAILED) {
        keep_end(sandbox, code, status);
        sandbox->connection = NONE;
    } else {
        if (connection != NONE)
            tell_end(connection, sandbox);
        give_sandbox(sandbox);
    }
    if (connection != NONE)
        end_use(connection);
}

static int is_mine(int pid)
{
    return pid == fns_closer_pid() || (server.plan->netns_pool && pid == fns_netns_maker());
}

/* 1: it has ended, and all that follows from it is done. */
static int reap(int pid)
{
    int info[32] = {0}; /* siginfo_t */
    char usage[sizeof server.sandboxes->end.usage];
    long result = fns_sys5(__NR_waitid, 1 /* P_PID */, pid, info,
                           1 | 4 | 0x40000000 /* WNOHANG|WEXITED|__WALL */, usage);
    if (result < 0 || info[4] != pid || info[2] >= FNS_CLD_TRAPPED)
        return 0;
    if (is_mine(pid)) {
        if (pid == fns_closer_pid() ? fns_closer_start() < 0
                                    : fns_netns_start(server.plan->netns_pool, server.ready) < 0)
            stop();
        return 1;
    }
    struct fns_sandbox *sandbox = &server.sandboxes[server.by_pid[pid]];
    if (sandbox->pid == pid) {
        memcpy(sandbox->end.usage, usage, sizeof usage);
        end_sandbox(sandbox, info[2], info[6]);
    }
    return 1;
}

/* Whether it is with its command, and only a REAP can ask for its end. */
static int is_on_its_own(const struct fns_sandbox *sandbox)
{
    int left = sandbox->room->sandbox != sandbox || !sandbox->room->taken;
    return left && sandbox->told && !sandbox->awaited &&
           sandbox->child.progress == FNS_PROGRESS_EXEC;
}

/* One signal may stand for many ends. Asked for any child, the kernel would go through all that live:
 * looked at are the one it names, and those whose end somebody waits for. */
static void hear_ends(void)
{
    int info[32] = {0}; /* struct signalfd_siginfo */
    FNS_IGNORE(fns_sys3(__NR_read, server.ends, info, sizeof info), "then it names nobody");
    int pid = info[3];
    if (pid > 0 && pid < MAX_PID) {
        int known = is_mine(pid) || server.sandboxes[server.by_pid[pid]].pid == pid;
        reap(pid);
        server.strays |= !known;
    }
    reap(fns_closer_pid());
    if (server.plan->netns_pool)
        reap(fns_netns_maker());
    for (int at = server.last_looked_at, next; at != NONE; at = next) {
        struct fns_sandbox *sandbox = &server.sandboxes[at];
        next = sandbox->sooner;
        if (!reap(sandbox->pid) && is_on_its_own(sandbox))
            look_away(sandbox);
    }
}

/* A thread of a sandbox that asked to be traced (PTRACE_TRACEME) is this process' to reap, or its
 * sandbox never ends. So now and then any child is asked for, and not too many in one go. */
static void reap_strays(void)
{
    int info[32];
    for (int i = 0; i < 64; i++) {
        info[4] = 0;
        long result = fns_sys5(__NR_waitid, 0 /* P_ALL */, 0, info,
                               1 | 4 | 0x41000000 /* WNOHANG|WEXITED|__WALL|WNOWAIT */, 0);
        if (result < 0 || info[4] <= 0) {
            server.strays = 0;
            break;
        }
        if (!reap(info[4]))
            break;
    }
}

/* ---- the loop ------------------------------------------------------------------------------- */

/* This process holds the fds of many sandboxes, so it raises its limit; each sandbox gets the caller's back.
 * If the hard limit is above /proc/sys/fs/nr_open it cannot be raised: the caller's limit is left. */
static long raise_files(void)
{
    long result = fns_sys4(__NR_prlimit64, 0, 7 /* RLIMIT_NOFILE */, 0, server.files);
    const uint64_t most[2] = {server.files[1], server.files[1]};
    if (result >= 0 && server.files[0] < server.files[1])
        server.raised = fns_sys4(__NR_prlimit64, 0, 7, most, 0) >= 0;
    return result;
}

static long start_pool(void)
{
    server.ready = (int)fns_sys2(__NR_eventfd2, 0, O_CLOEXEC | O_NONBLOCK);
    long result = server.ready < 0 ? server.ready : watch(server.ready, READY);
    return result < 0 ? result : fns_netns_start(server.plan->netns_pool, server.ready);
}

/* 0 or -errno. */
static long prepare(int socket, int status)
{
    const int needed[3] = {socket, status, server.userns};
    const uint64_t all = ~0ull, ends = 1ull << (FNS_SIGCHLD - 1);
    long result = fns_sys4(__NR_rt_sigprocmask, FNS_SIG_SETMASK, &all, 0, FNS_SIGSET_SIZE);
    if (result >= 0)
        result = fns_close_but(needed);
    if (result >= 0 && server.userns)
        result = fns_close_on_exec(server.userns);
    if (result >= 0)
        result = raise_files();
    if (result < 0)
        return result;
    server.peers = map(MAX_FD * sizeof *server.peers);
    server.sandboxes = map(MAX_SANDBOXES * sizeof *server.sandboxes);
    server.by_pid = map(MAX_PID * sizeof *server.by_pid);
    server.batches = map(MAX_BATCHES * sizeof *server.batches);
    server.free_sandbox = server.last_looked_at = server.to_park = server.to_park_then = NONE;
    server.epoll = (int)fns_sys1(__NR_epoll_create1, O_CLOEXEC);
    server.ends = (int)fns_sys4(__NR_signalfd4, -1, &ends, sizeof ends, O_CLOEXEC | O_NONBLOCK);
    if (!server.peers || !server.sandboxes || !server.by_pid || !server.batches)
        return server.no_memory;
    if (server.epoll < 0 || server.ends < 0)
        return server.epoll < 0 ? server.epoll : server.ends;
    result = watch(socket, CONTROL);
    if (result >= 0)
        result = watch(server.ends, ENDS);
    /* While stopped, the server would not notice that the caller has ended; this signal continues it then.
     * It also comes when only the thread that was its parent ends, and does nothing. A change of credentials
     * would clear it; none follows. */
    if (result >= 0)
        result = fns_sys5(__NR_prctl, 1 /* PR_SET_PDEATHSIG */, SIGCONT, 0, 0, 0);
    if (result >= 0)
        result = fns_closer_start();
    if (result >= 0 && server.plan->netns_pool)
        result = start_pool();
    return result;
}

static void hear(int fd)
{
    struct peer *peer = &server.peers[fd];
    switch ((enum peer_kind)peer->kind) {
    case CONTROL: hear_control(fd); break;
    case CALLER: stop();
    case CONNECTION:
        /* Between the end of one and the next there is nobody to hear what was asked before this. */
        if (peer->parked && peer->sandbox != NONE)
            hang_up(fd);
        else
            hear_connection(fd);
        break;
    case ENDS: hear_ends(); break;
    case READY: hear_ready(); break;
    case NOBODY: break;
    }
}

/* What nobody waits for is done after all else, and after who was told of an end has had this CPU, if
 * it is to run here: a clone takes as long as the news did. To wake the closer is another such chore,
 * done for many at a time, or when there is nothing else to do. It is best done beside a sandbox that
 * was just started, whose caller has nothing to do either. */
static void do_chores(int idle)
{
    unsigned unheard = fns_closer_unheard();
    int wake =
        (idle && unheard) || (unheard >= MANY_UNHEARD && server.started) || unheard >= MAX_UNHEARD;
    server.started = 0;
    if (server.to_park != NONE)
        FNS_IGNORE(fns_sys0(__NR_sched_yield), "it only costs time");
    for (int connection; (connection = take_from_list(&server.to_park)) != NONE;) {
        const struct peer *peer = &server.peers[connection];
        if (peer->kind == CONNECTION && peer->park && !peer->closed && !peer->waits &&
            peer->sandbox == NONE)
            park(connection);
    }
    if (wake)
        fns_closer_wake();
    if (server.strays || (idle && !unheard))
        reap_strays();
    if (server.killed && now() >= server.look_at_killed)
        look_at_killed();
}

static int time_to_wait(void)
{
    if (server.strays || server.to_park != NONE)
        return 0;
    if (fns_closer_unheard())
        return CLOSE_MS;
    if (server.killed)
        return HELD_NS / 1000000;
    return server.last_looked_at == NONE ? -1 : STRAYS_MS;
}

_Noreturn void fns_serve(const struct fns_plan *sandbox, int control, int status, int userns)
{
    const struct fns_error running = {.op_index = -1};
    struct event events[64];
    server.plan = sandbox;
    server.userns = userns;
    long result = prepare(control, status);
    if (result >= 0)
        result = fns_say(status, FNS_MESSAGE_RUNNING, &running);
    if (result < 0) {
        const struct fns_error error = {FNS_STAGE_HELPER, 0, -1, (int)-result};
        FNS_IGNORE(fns_say(status, FNS_MESSAGE_FAILED, &error), "this process ends in any case");
        stop();
    }
    fns_close(status);
    for (;;) { /* n < 0: a stop that has ended (signal(7)) */
        long n = fns_sys6(__NR_epoll_pwait, server.epoll, (long)events, 64, time_to_wait(), 0, 0);
        for (long i = 0; i < n; i++)
            hear((int)events[i].fd);
        do_chores(n == 0);
    }
}
