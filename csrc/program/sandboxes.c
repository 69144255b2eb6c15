/* A server's sandboxes: whose turn it is, their start and their end. Runs in a template's server.
 *
 * A start can end another sandbox, and an end can start those that waited, so both are in one file.
 */
#include "server.h"

enum {
    MAX_STRAYS = 64, /* reaped in one go */
    STRAYS_MS = 500, /* how often to look for strays while sandboxes run */
    /* The closer is woken when there is much to close, or after a pause. The pause is longer than a tick, so
     * the kernel usually need not reprogram its hardware timer. */
    CLOSE_MS = 20,
    MANY_TO_CLOSE = 16,
    MOST_TO_CLOSE = 48
};

static const struct fns_plan *plan;
static int userns_to_join;              /* 0: none */
static const uint64_t *inherited_files; /* RLIMIT_NOFILE for sandboxes; 0: as the server has it */
static int closer;                      /* its pid */
static struct fns_slot *queue;          /* queued requests, oldest first */
static int to_park = FNS_NONE;          /* list of connections to park a sandbox for */
static int has_started;                 /* a sandbox was started since the last chores */
static int has_strays;                  /* children that no table knows may have ended */

/* This process holds the fds of many sandboxes, so it raises its soft limit to the hard limit; each sandbox
 * gets the caller's limit back. If the hard limit is above /proc/sys/fs/nr_open, the soft limit cannot be
 * raised and stays. */
static long raise_files(void)
{
    static uint64_t files[2]; /* soft, hard */
    long result = fns_sys4(__NR_prlimit64, 0, FNS_RLIMIT_NOFILE, 0, files);
    const uint64_t most[2] = {files[1], files[1]};
    if (result >= 0 && files[0] < files[1] &&
        fns_sys4(__NR_prlimit64, 0, FNS_RLIMIT_NOFILE, most, 0) >= 0)
        inherited_files = files;
    return result;
}

long fns_open_sandboxes(const struct fns_plan *sandbox, int userns)
{
    plan = sandbox;
    userns_to_join = fns_is_container() ? 0 : userns;
    long result = fns_open_tables((plan->options & FNS_PLAN_ROOMS) != 0);
    if (result >= 0)
        result = raise_files();
    if (fns_is_container())
        return result < 0 ? result : fns_open_container();
    if (result >= 0)
        result = closer = fns_closer_start();
    if (result >= 0 && plan->options & FNS_PLAN_NETWORKS)
        result = fns_open_networks(plan->id_map == FNS_ID_MAP_SELF);
    return result;
}

/* ---- the clone ------------------------------------------------------------------------------ */

static long clone_sandbox(struct fns_slot *slot, const struct fns_request *request, int *pidfd)
{
    struct fns_sandbox *sandbox = slot->sandbox;
    /* The last fd of args.groups is the directory of the cgroup to clone into. */
    uint32_t last = request ? 2 + request->args.n_keep + request->args.n_groups : 0;
    int into = request && request->args.clone_into && request->args.n_groups &&
               last < (uint32_t)slot->received.n_fds;
    struct fns_clone_args args = {
        .flags = plan->clone_flags | FNS_CLONE_VM | FNS_CLONE_CHILD_CLEARTID | FNS_CLONE_PIDFD |
                 (into ? FNS_CLONE_INTO_CGROUP : 0),
        .pidfd = (uintptr_t)pidfd,
        .child_tid = (uintptr_t)&slot->taken,
        .exit_signal = FNS_SIGCHLD,
        .stack = (uintptr_t)slot->stack,
        .stack_size = sizeof slot->stack,
        .cgroup = into ? (uint64_t)slot->received.fds[last] : 0,
    };
    sandbox->child.entered = into;
    int was_taken = slot->taken; /* a queued request is in it */
    slot->taken = 1;
    int (*entry)(void *) = fns_is_container() ? fns_supervisor_main : fns_sandbox_main;
    long pid = fns_clone_call(&args, entry, slot);
    if (pid == -ENOSYS && into) { /* without clone3(2), the sandbox enters its cgroups itself */
        sandbox->child.entered = 0;
        args.flags &= ~FNS_CLONE_INTO_CGROUP;
        pid = fns_clone_call(&args, fns_sandbox_main, slot);
    }
    if (pid < 0)
        slot->taken = was_taken;
    return pid;
}

/* Clones a room, which has its own memory, and so its own copy of the slot. */
static long clone_room(struct fns_slot *slot, int *pidfd)
{
    const struct fns_clone_args args = {
        .flags = plan->clone_flags | FNS_CLONE_PIDFD,
        .pidfd = (uintptr_t)pidfd,
        .exit_signal = FNS_SIGCHLD,
        .stack = (uintptr_t)slot->stack,
        .stack_size = sizeof slot->stack,
    };
    return fns_clone_call(&args, fns_room_main, slot);
}

/* Clones a sandbox. `request`: the one in the slot; 0: the sandbox is parked, or a room, and has none yet. */
static long launch(struct fns_slot *slot, int connection, int network,
                   const struct fns_request *request, enum fns_stage *stage)
{
    *stage = FNS_STAGE_HELPER;
    struct fns_sandbox *sandbox = fns_new_sandbox(plan, userns_to_join);
    if (!sandbox)
        return -ENOMEM;
    slot->sandbox = sandbox;
    slot->files = inherited_files;
    sandbox->slot = slot;
    sandbox->connection = connection;
    sandbox->network = network;
    sandbox->is_parked = !request;
    sandbox->is_room = !request && plan->options & FNS_PLAN_ROOMS;
    sandbox->request = request ? request->number : 0;
    *stage = FNS_STAGE_CLONE;
    int pidfd = -1;
    long pid = sandbox->is_room ? clone_room(slot, &pidfd) : clone_sandbox(slot, request, &pidfd);
    if (pid < 0) {
        fns_free_sandbox(sandbox);
        return pid;
    }
    fns_set_pid(sandbox, (int)pid);
    fns_connection(connection)->sandbox = sandbox;
    fns_watch_sandbox(sandbox);
    has_started = 1;
    if (fns_is_container()) {
        fns_close(pidfd);
        return 0;
    }
    /* The closer keeps the mount namespace open until the sandbox's end was reported. */
    int mounts = fns_done_with(pidfd, fns_sys3(__NR_ioctl, pidfd, FNS_PIDFD_GET_MNT_NAMESPACE, 0));
    sandbox->mounts = fns_done_with(mounts, mounts < 0 ? FNS_NONE : fns_closer_hold(mounts));
    return 0;
}

/* As launch(), in an unused network namespace if the plan has the option for it. 0, or -errno and the stage. -EAGAIN:
 * the limit of processes is reached. */
static long start(struct fns_slot *slot, int connection, const struct fns_request *request,
                  enum fns_stage *stage)
{
    *stage = FNS_STAGE_NETWORK;
    int keeps = (plan->options & FNS_PLAN_NETWORKS) != 0;
    int network = keeps ? fns_take_network() : FNS_NONE;
    if (keeps && network < 0)
        return network;
    long result = launch(slot, connection, network, request, stage);
    if (result < 0 && keeps)
        fns_give_network(network, 0);
    else if (keeps && fns_let_network_go(network))
        fns_connection(connection)->sandbox->network = FNS_NONE;
    return result;
}

/* ---- starting a request --------------------------------------------------------------------- */

/* Stops or kills a sandbox, and waits until it has stopped or ended. 0 or -errno. */
static long signal_and_wait(int pid, int signal)
{
    struct fns_siginfo info;
    long result = fns_sys2(__NR_kill, pid, signal);
    if (result < 0)
        return result;
    return fns_sys5(__NR_waitid, P_PID, pid, &info,
                    WEXITED | (signal == FNS_SIGSTOP ? WSTOPPED : 0) | __WALL | WNOWAIT, 0);
}

/* Stops a parked sandbox, so that it cannot take a request meanwhile. 1: it has taken none. 0: it has, or is
 * not parked, and continues. */
static int stop_unused(const struct fns_sandbox *sandbox)
{
    if (sandbox->pid <= 0 || !sandbox->is_parked || sandbox->requested)
        return 0;
    if (signal_and_wait(sandbox->pid, FNS_SIGSTOP) >= 0 && !sandbox->requested)
        return 1;
    FNS_IGNORE(fns_sys2(__NR_kill, sandbox->pid, FNS_SIGCONT), "a child exists until it is reaped");
    return 0;
}

/* Ends a parked sandbox to make room under the limit of processes. 1: there was one to end. */
static int give_up_unused(void)
{
    for (struct fns_sandbox *at = fns_newest_watched(); at; at = at->older)
        if (stop_unused(at)) {
            struct fns_connection *connection = fns_connection(at->connection);
            int has_ended = signal_and_wait(at->pid, FNS_SIGKILL) >= 0 && fns_reap(at->pid);
            connection->n_failed_rooms = 0; /* it was not the room that failed */
            return has_ended;
        }
    return 0;
}

/* Starts the sandbox of a request, or sends the failure. Closes the request's fds here, because the sandbox has its
 * own. */
static void start_request(struct fns_slot *slot, int connection)
{
    const struct fns_request *request = fns_request_of(&slot->received);
    enum fns_stage stage = FNS_STAGE_HELPER;
    /* From its clone on, the sandbox may change the slot, except for the fds. */
    int n_fds = slot->received.n_fds, batch = request->share.batch;
    long result = batch ? fns_count_alive(batch, 1) : 0;
    int counted = batch && result == 0;
    if (result == 0)
        do
            result = start(slot, connection, request, &stage);
        while (result == -EAGAIN && give_up_unused());
    if (result == 0) {
        struct fns_sandbox *sandbox = fns_connection(connection)->sandbox;
        sandbox->batch = batch;
        sandbox->end.queued = slot->queued;
    } else if (counted) {
        fns_count_alive(batch, -1);
    }
    fns_close_all(slot->received.fds, n_fds);
    if (result < 0) {
        slot->taken = 0;
        fns_reply_error(connection, request->number, FNS_FAILED(stage, result));
    }
}

/* ---- parked sandboxes ----------------------------------------------------------------------- */

void fns_park_later(int connection)
{
    struct fns_connection *at = fns_connection(connection);
    if (at->is_listed)
        return;
    at->is_listed = 1;
    at->next = to_park;
    to_park = connection;
}

/* Makes a sandbox, or a room, that takes its request from the connection. 1: it was started. */
static int park(int connection)
{
    enum fns_stage stage = FNS_STAGE_HELPER;
    long result = 0;
    struct fns_slot *slot = fns_take_slot(&result);
    if (slot)
        result = start(slot, connection, 0, &stage);
    /* If this failed, the server reads the next request there, and will fail in the same way. */
    fns_let_sandbox_read(connection, result == 0);
    return result == 0;
}

int fns_has_rooms(void)
{
    return (plan->options & FNS_PLAN_ROOMS) != 0;
}

int fns_is_container(void)
{
    return (plan->options & FNS_PLAN_CONTAINER) != 0;
}

int fns_make_room(int connection)
{
    return park(connection);
}

static void park_all(void)
{
    while (to_park != FNS_NONE) {
        int connection = to_park;
        struct fns_connection *at = fns_connection(connection);
        to_park = at->next;
        at->is_listed = 0;
        if (at->peer == FNS_PEER_CONNECTION && at->wants_parked && !at->is_closed &&
            !at->is_queued && !at->sandbox)
            park(connection);
    }
}

/* ---- the queue ------------------------------------------------------------------------------ */

static int is_full(struct fns_slot *slot)
{
    return fns_is_full(fns_request_of(&slot->received)->share);
}

void fns_run_request(struct fns_slot *slot, int connection)
{
    slot->queued = 0;
    if (!is_full(slot)) {
        start_request(slot, connection);
        return;
    }
    struct fns_slot **end = &queue;
    while (*end)
        end = &(*end)->next;
    *end = slot;
    slot->next = 0;
    slot->taken = 1;
    slot->connection = connection;
    slot->since = fns_clock();
    fns_connection(connection)->is_queued = 1;
}

static void dequeue(struct fns_slot **at)
{
    struct fns_slot *slot = *at;
    *at = slot->next;
    fns_connection(slot->connection)->is_queued = 0;
}

/* Starts the queued requests that have a place in their batch. */
static void run_queue(void)
{
    for (struct fns_slot **at = &queue; *at;) {
        struct fns_slot *slot = *at;
        if (is_full(slot)) {
            at = &slot->next;
            continue;
        }
        dequeue(at);
        slot->queued = fns_clock() - slot->since;
        start_request(slot, slot->connection);
    }
}

int fns_drop_queued(int connection)
{
    struct fns_slot **at = &queue;
    while (*at && (*at)->connection != connection)
        at = &(*at)->next;
    struct fns_slot *slot = *at;
    if (!slot)
        return 0;
    dequeue(at);
    fns_close_all(slot->received.fds, slot->received.n_fds);
    fns_reply_error(connection, fns_request_of(&slot->received)->number,
                    FNS_KILLED(FNS_STAGE_CLONE));
    slot->taken = 0;
    fns_forget(connection);
    return 1;
}

/* ---- the end of a sandbox ------------------------------------------------------------------- */

static void reply_end(int connection, struct fns_sandbox *sandbox)
{
    sandbox->end.message.number = sandbox->request;
    fns_reply(connection, &sandbox->end);
}

/* Whether a parked sandbox has ended without taking a request. If one was sent, it is still in the socket. */
static int is_unused(const struct fns_sandbox *sandbox)
{
    char byte;
    if (!sandbox->is_parked || !sandbox->requested)
        return sandbox->is_parked;
    return sandbox->child.progress != FNS_PROGRESS_EXEC && !sandbox->reported &&
           fns_sys6(__NR_recvfrom, sandbox->connection, (long)&byte, 1,
                    FNS_MSG_PEEK | FNS_MSG_DONTWAIT, 0, 0) > 0;
}

/* Frees a parked sandbox that has ended without taking a request. The server reads the next request itself; if
 * the caller has closed the connection, it sends an error for a request that is still in the socket. */
static void end_unused(struct fns_sandbox *sandbox, int connection)
{
    struct fns_request request;
    fns_free_sandbox(sandbox);
    if (!fns_connection(connection)->is_closed) {
        fns_let_sandbox_read(connection, 0);
        return;
    }
    long n =
        fns_sys6(__NR_recvfrom, connection, (long)&request, sizeof request, FNS_MSG_DONTWAIT, 0, 0);
    if (n == sizeof request)
        fns_reply_error(connection, request.number, FNS_KILLED(FNS_STAGE_CLONE));
    fns_forget(connection);
}

/* Frees a room that has ended while no command ran in it. If it has served, another takes its place. Otherwise the next
 * may fail too, so the server reads the next request, and replies the error. A room that was killed while it was idle
 * has no error, so this is tried once more. */
static void end_idle_room(struct fns_sandbox *sandbox, int connection)
{
    struct fns_connection *at = fns_connection(connection);
    int has_served = sandbox->n_served > 0, is_closed = at->is_closed;
    int failed = sandbox->child.progress == FNS_PROGRESS_FAILED;
    struct fns_error error = failed ? sandbox->child.error : FNS_KILLED(FNS_STAGE_CLONE);
    end_unused(sandbox, connection);
    if (is_closed)
        return;
    at->room_error = error;
    if (has_served)
        at->n_failed_rooms = 0;
    else
        at->n_failed_rooms = failed ? FNS_MOST_FAILED_ROOMS : at->n_failed_rooms + 1;
    if (has_served && at->wants_parked)
        fns_park_later(connection);
}

static void end_sandbox(struct fns_sandbox *sandbox, int code, int status)
{
    int connection = sandbox->connection, is_room = sandbox->is_room;
    const struct fns_message ended = {.kind = FNS_MESSAGE_ENDED, .value = code, .status = status};
    struct fns_message *message = &sandbox->end.message;
    *message = ended;
    if (sandbox->child.progress != FNS_PROGRESS_EXEC) {
        message->kind = FNS_MESSAGE_FAILED;
        message->error = sandbox->child.progress == FNS_PROGRESS_FAILED
                             ? sandbox->child.error
                             : FNS_KILLED(FNS_STAGE_CLONE);
    }
    sandbox->pid = 0;
    fns_close_if_open(sandbox->pid_namespace);
    sandbox->pid_namespace = FNS_NONE;
    fns_unwatch_sandbox(sandbox);
    if (sandbox->batch) { /* before the reply, because its receiver would take the CPU */
        fns_count_alive(sandbox->batch, -1);
        run_queue();
    }
    if (sandbox->replied) {
        fns_free_sandbox(sandbox);
        if (connection != FNS_NONE && fns_connection(connection)->is_closed)
            fns_forget(connection);
        return;
    }
    if (is_unused(sandbox)) {
        if (is_room)
            end_idle_room(sandbox, connection);
        else
            end_unused(sandbox, connection);
        return;
    }
    if (is_room) /* it was killed while a command ran */
        fns_count(&fns_get_stats()->rooms_touched);
    sandbox->end.reused = sandbox->n_served > 0;
    if (sandbox->reported && !sandbox->is_awaited &&
        sandbox->child.progress != FNS_PROGRESS_FAILED) { /* keep the end for a REAP */
        /* The sandbox may have ended before it sent RUNNING. Then the pipe is empty, and this reply ends the
         * caller's wait. */
        if (sandbox->child.progress == FNS_PROGRESS_SETUP && connection != FNS_NONE)
            reply_end(connection, sandbox);
        *message = ended;
        sandbox->has_ended = 1;
        sandbox->connection = FNS_NONE;
    } else {
        if (connection != FNS_NONE)
            reply_end(connection, sandbox);
        fns_free_sandbox(sandbox);
    }
    if (connection == FNS_NONE)
        return;
    struct fns_connection *at = fns_connection(connection);
    at->sandbox = 0;
    if (at->is_closed)
        fns_forget(connection);
    else if (is_room)
        fns_let_sandbox_read(connection, 0);
    at->n_failed_rooms = 0;
    if (!at->is_closed && at->wants_parked)
        fns_park_later(connection);
}

/* ---- reaping -------------------------------------------------------------------------------- */

/* Starts the closer again if `pid` was its pid. 1: it was. */
static int restart(int pid)
{
    if (pid != closer)
        return 0;
    closer = fns_closer_start();
    if (closer < 0)
        fns_quit(0); /* every sandbox ends with this pid 1 */
    return 1;
}

void fns_subtract_usage(struct fns_usage *usage, const struct fns_usage *before)
{
    enum { IN_SECOND = 1000000 };
    int64_t *now = usage->times;
    const int64_t *then = before->times;
    for (unsigned i = 0; i < sizeof usage->times / sizeof *now; i += 2) {
        int64_t us = (now[i] - then[i]) * IN_SECOND + now[i + 1] - then[i + 1];
        now[i] = us / IN_SECOND;
        now[i + 1] = us % IN_SECOND;
    }
    for (unsigned i = 0; i < sizeof usage->rest / sizeof *usage->rest; i++)
        usage->rest[i] -= before->rest[i];
}

/* Leaves the usage of a killed room's last command. Its peak of memory is known only if it is the room's. */
static void leave_last(struct fns_sandbox *sandbox, struct fns_usage *usage)
{
    int64_t peak = 0;
    for (int i = 0; i < 2; i++) {
        fns_subtract_usage(usage, &sandbox->before[i]);
        if (sandbox->before[i].max_rss > peak)
            peak = sandbox->before[i].max_rss;
    }
    sandbox->end.rss_floor = (uint32_t)peak;
}

int fns_reap(int pid)
{
    struct fns_siginfo info = {.pid = 0};
    struct fns_usage usage;
    long result = fns_sys5(__NR_waitid, P_PID, pid, &info, WNOHANG | WEXITED | __WALL, &usage);
    if (result < 0 || info.pid != pid || info.code >= FNS_CLD_TRAPPED)
        return 0;
    struct fns_sandbox *sandbox = restart(pid) ? 0 : fns_find_pid(pid);
    if (sandbox) {
        int network = sandbox->network, exposed = sandbox->exposed != 0;
        sandbox->network = FNS_NONE;
        if (sandbox->is_room)
            leave_last(sandbox, &usage);
        if (fns_is_container())
            fns_supervisor_ended(sandbox, &info);
        if (!sandbox->code) { /* a supervisor has left this about its command */
            memcpy(sandbox->end.usage, &usage, sizeof usage);
            sandbox->end.executed = sandbox->child.executed;
            sandbox->end.ended = fns_clock();
        }
        end_sandbox(sandbox, info.code, info.status);
        if (network != FNS_NONE) /* after the reply */
            fns_give_network(network, exposed);
    }
    return 1;
}

/* Whether the command runs and no REAP waits for its end yet. */
static int is_on_its_own(const struct fns_sandbox *sandbox)
{
    int has_left = sandbox->slot->sandbox != sandbox || !sandbox->slot->taken || fns_is_container();
    return has_left && sandbox->reported && !sandbox->is_awaited &&
           sandbox->child.progress == FNS_PROGRESS_EXEC;
}

/* waitid(2) for any child goes through all live children. So this tries only those whose end somebody waits
 * for, and the one that the signal names. */
void fns_reap_ended(int pid)
{
    if (pid > 0) {
        int known = pid == closer || fns_find_pid(pid);
        fns_reap(pid);
        has_strays |= !known;
    }
    has_strays |= fns_is_container(); /* what commands have left running may have ended too */
    fns_reap(closer);
    for (struct fns_sandbox *at = fns_newest_watched(), *older; at; at = older) {
        older = at->older;
        if (!fns_reap(at->pid) && is_on_its_own(at))
            fns_unwatch_sandbox(at);
    }
}

/* Strays are children that no table knows: threads of a sandbox that asked to be traced (PTRACE_TRACEME).
 * Unless this process reaps them, their sandbox never ends. */
static void reap_strays(void)
{
    for (int i = 0; i < MAX_STRAYS; i++) {
        struct fns_siginfo info = {.pid = 0};
        long result =
            fns_sys5(__NR_waitid, P_ALL, 0, &info, WNOHANG | WEXITED | __WALL | WNOWAIT, 0);
        if (result < 0 || info.pid <= 0) {
            has_strays = 0;
            break;
        }
        if (!fns_reap(info.pid))
            break;
    }
}

/* ---- chores --------------------------------------------------------------------------------- */

/* Yields the CPU to the receiver of the last reply before it parks sandboxes, because each takes a clone. Wakes
 * the closer for many namespaces at a time, preferably after a start, when that caller has nothing else to do. */
int fns_do_chores(int idle)
{
    unsigned to_close = fns_closer_pending();
    int wake = (idle && to_close) || (to_close >= MANY_TO_CLOSE && has_started) ||
               to_close >= MOST_TO_CLOSE;
    has_started = 0;
    if (to_park != FNS_NONE)
        FNS_IGNORE(fns_sys0(__NR_sched_yield), "it only costs time");
    park_all();
    if (wake)
        fns_closer_wake();
    if (has_strays || (idle && !to_close))
        reap_strays();
    int killed = fns_check_killed(), look_again = fns_check_networks();
    if (has_strays)
        return 0;
    if (fns_is_container()) {
        if (fns_check_killed_commands())
            return 1;
        fns_continue_supervisors();
    }
    if (fns_closer_pending())
        return CLOSE_MS;
    if (look_again != FNS_NONE)
        return look_again;
    if (killed)
        return FNS_KILL_MS;
    return fns_newest_watched() ? STRAYS_MS : -1;
}
