/* The server of a template: starts sandboxes for the caller, in the program's small memory.
 *
 * It is pid 1 of a pid namespace of its own, in a mount namespace that holds only the finished root. Each
 * sandbox is a clone that shares its memory until the exec, in a slot of its own (sandbox.c). The server
 * does not wait for that exec. It reaps, and reports how each sandbox ended. Nothing of one is kept for the
 * next. It ends with the caller, and all sandboxes end with it, as it is their pid 1. Raw system calls only.
 *
 *   serve.c        the loop
 *   requests.c     what it is requested to do
 *   sandboxes.c    whose turn it is, the start and the end of a sandbox
 *   launch.c       the clone; kill.c the kill
 *   connections.c  tables.c    what it listens to, what it knows
 *   netns.c        closer.c    processes beside it
 */
#include "program.h"

#include "closer.h"
#include "command.h"
#include "connections.h"
#include "kill.h"
#include "netns.h"
#include "requests.h"
#include "sandboxes.h"
#include "tables.h"

enum {
    MAX_EVENTS = 64,
    STRAYS_MS = 500, /* how often strays are looked for while sandboxes run */
    /* The closer is woken when there is much to close, or after a pause. The pause is longer than a tick, so
     * that the kernel need not set a timer for it. */
    CLOSE_MS = 20,
    MANY_TO_CLOSE = 16,
    MOST_TO_CLOSE = 48
};

static int ends, ready; /* a signalfd of SIGCHLD; an eventfd of netns.c */
static struct {
    uint64_t soft, hard;
} files; /* RLIMIT_NOFILE as the caller had it */
static struct fns_heritage heritage;

/* This process holds the fds of many sandboxes, so it raises its limit; each sandbox gets the caller's back.
 * Where the hard limit is above /proc/sys/fs/nr_open, it cannot be raised: the caller's limit stays. */
static long raise_files(void)
{
    long result = fns_sys4(__NR_prlimit64, 0, FNS_RLIMIT_NOFILE, 0, &files);
    const uint64_t most[2] = {files.hard, files.hard};
    if (result >= 0 && files.soft < files.hard &&
        fns_sys4(__NR_prlimit64, 0, FNS_RLIMIT_NOFILE, most, 0) >= 0)
        heritage.files = &files.soft;
    return result;
}

/* Blocks all signals; those of ended children are read from `ends`. */
static long listen_for_ends(void)
{
    const uint64_t all = ~0ull, sigchld = 1ull << (FNS_SIGCHLD - 1);
    long result = fns_sys4(__NR_rt_sigprocmask, FNS_SIG_SETMASK, &all, 0, FNS_SIGSET_SIZE);
    if (result >= 0)
        result = ends =
            (int)fns_sys4(__NR_signalfd4, -1, &sigchld, sizeof sigchld, O_CLOEXEC | O_NONBLOCK);
    return result < 0 ? result : fns_watch(ends, FNS_PEER_ENDS);
}

static long start_pool(void)
{
    ready = (int)fns_sys2(__NR_eventfd2, 0, O_CLOEXEC | O_NONBLOCK);
    long result = ready < 0 ? ready : fns_watch(ready, FNS_PEER_READY);
    return result < 0 ? result : fns_netns_start(heritage.plan->netns_pool, ready);
}

/* Keeps only the fds that are needed. */
static long close_others(int control, int status)
{
    const int needed[3] = {control, status, heritage.userns};
    long result = fns_close_but(needed);
    if (result >= 0 && heritage.userns)
        result = fns_close_on_exec(heritage.userns);
    return result;
}

/* 0 or -errno. */
static long prepare(int control, int status)
{
    long result = close_others(control, status);
    if (result >= 0)
        result = raise_files();
    if (result >= 0)
        result = fns_open_connections();
    if (result >= 0)
        result = fns_open_tables();
    if (result >= 0)
        result = fns_watch(control, FNS_PEER_CONTROL);
    if (result >= 0)
        result = listen_for_ends();
    /* While it is stopped, the server would not notice the caller's end: this signal continues it then. It
     * also comes, and does nothing, when only the thread that was its parent ends. A change of credentials
     * would clear this; none follows. */
    if (result >= 0)
        result = fns_prctl(PR_SET_PDEATHSIG, FNS_SIGCONT, 0);
    if (result >= 0)
        result = fns_closer_start();
    if (result >= 0 && heritage.plan->netns_pool)
        result = start_pool();
    return result;
}

static void read_ends(void)
{
    int info[32] = {0}; /* struct signalfd_siginfo: signo, errno, code, pid, ... */
    FNS_IGNORE(fns_sys3(__NR_read, ends, info, sizeof info), "then it names nobody");
    fns_reap_ended(info[3]);
}

static void read_ready(void)
{
    uint64_t count;
    FNS_IGNORE(fns_sys3(__NR_read, ready, &count, sizeof count), "its count is not needed");
    fns_network_is_ready();
}

static void handle(int fd)
{
    const struct fns_connection *at = fns_connection(fd);
    switch ((enum fns_peer)at->peer) {
    case FNS_PEER_CONTROL: fns_read_control(fd); break;
    case FNS_PEER_CALLER: fns_quit(0); /* it has ended */
    case FNS_PEER_CONNECTION:
        /* A sandbox reads here, so the event is a hangup. Between the end of one and the next, nobody
         * has read what was requested before it. */
        if (at->sandbox_reads && at->sandbox != FNS_NONE)
            fns_hang_up(fd);
        else
            fns_read_request(fd);
        break;
    case FNS_PEER_ENDS: read_ends(); break;
    case FNS_PEER_READY: read_ready(); break;
    case FNS_PEER_NONE: break;
    }
}

/* What nobody waits for comes after all else. A sandbox is parked once the process that was told of an end
 * has had this CPU, if it runs here: the clone takes as long as the reply did. The closer is woken for
 * many at a time, best beside a sandbox that was just started, whose caller has nothing to do either. */
static void do_chores(int idle)
{
    unsigned to_close = fns_closer_pending();
    int started = fns_has_started();
    int wake =
        (idle && to_close) || (to_close >= MANY_TO_CLOSE && started) || to_close >= MOST_TO_CLOSE;
    if (fns_has_to_park())
        FNS_IGNORE(fns_sys0(__NR_sched_yield), "it only costs time");
    fns_park();
    if (wake)
        fns_closer_wake();
    if (fns_has_strays() || (idle && !to_close))
        fns_reap_strays();
    fns_check_killed();
}

static int time_to_wait(void)
{
    if (fns_has_strays() || fns_has_to_park())
        return 0;
    if (fns_closer_pending())
        return CLOSE_MS;
    if (fns_has_killed())
        return FNS_KILL_MS;
    return fns_newest_watched() ? STRAYS_MS : -1;
}

_Noreturn void fns_serve(const struct fns_plan *sandbox, int control, int status, int userns)
{
    const struct fns_error none = {.op_index = -1};
    struct epoll_event events[MAX_EVENTS];
    heritage.plan = sandbox;
    heritage.userns = userns;
    fns_open_sandboxes(&heritage);
    long result = prepare(control, status);
    if (result >= 0)
        result = fns_say(status, FNS_MESSAGE_RUNNING, &none);
    if (result < 0) {
        const struct fns_error error = {FNS_STAGE_HELPER, 0, -1, (int)-result};
        FNS_IGNORE(fns_say(status, FNS_MESSAGE_FAILED, &error), "this process ends in any case");
        fns_quit(0);
    }
    fns_close(status);
    for (;;) { /* n < 0: a stop has ended (signal(7)) */
        int n = fns_await_events(events, MAX_EVENTS, time_to_wait());
        for (int i = 0; i < n; i++)
            handle((int)events[i].data);
        do_chores(n == 0);
    }
}
