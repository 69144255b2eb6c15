/* One start: what the program is given, and what it tells. Runs in the parent, without the GIL.
 *
 * The program is executed from a sealed memory file, the plan is in another one (memory.c, pack.c), the
 * command's arguments are the program's own (wire.h). It tells how the start goes over a pipe, and over a
 * socket pair where the caller has to answer or is told more.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "border/border.h"
#include "pack.h"
#include "shared/sys.h"
#include "spawn.h"

/* What a start has open. The program's ends, and what it is given, are closed once it runs. */
struct start {
    const struct fns_plan *plan;
    const struct fns_args *args;
    uint64_t time_ns, end;
    struct fns_process *process;
    struct fns_error *error;
    int status[2];  /* pipe: reading end, writing end */
    int control[2]; /* socket pair: the caller's end, the program's; -1: none */
    int program, packed, told;
    int helper; /* pidfd of who clones the sandbox, with FNS_PLAN_HOP; -1 */
    size_t packed_size;
};

static int fail(struct start *start, enum fns_stage stage, int ret)
{
    return fns_set_error(start->error, stage, -1, ret);
}

static int was_killed(struct start *start)
{
    fail(start, FNS_STAGE_CLONE, ECANCELED);
    start->error->detail = FNS_DETAIL_KILLED;
    return -ECANCELED;
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* ---- what the program is given ---------------------------------------------------------------- */

static int needs_control(const struct fns_plan *plan)
{
    return plan->options & (FNS_PLAN_HOP | FNS_PLAN_INIT | FNS_PLAN_SERVER) ||
           plan->id_map == FNS_ID_MAP_PARENT || plan->id_map == FNS_ID_MAP_NEWUIDMAP;
}

/* Everything at numbers that no stream of the child takes. */
static int open_all(struct start *start)
{
    /* A sandbox must not share a file with others if it could leave them messages there, as its owner or
     * because the program stays. */
    uint32_t map = start->plan->id_map;
    int owns = map == FNS_ID_MAP_SELF || map == FNS_ID_MAP_PARENT || map == FNS_ID_MAP_NEWUIDMAP;
    int stays = start->plan->options & (FNS_PLAN_HOP | FNS_PLAN_INIT | FNS_PLAN_SERVER);
    int ret = pipe2(start->status, O_CLOEXEC | O_NONBLOCK) < 0
                  ? -errno
                  : fns_both_above_stdio(start->status);
    if (ret < 0) {
        start->status[0] = start->status[1] = -1;
        return ret;
    }
    if (needs_control(start->plan)) {
        ret = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, start->control) < 0
                  ? -errno
                  : fns_both_above_stdio(start->control);
        if (ret < 0) {
            start->control[0] = start->control[1] = -1;
            return ret;
        }
    }
    const int32_t nobody = 0;
    if (start->plan->options & FNS_PLAN_HOP)
        ret = start->told = fns_memory_file("fastns", &nobody, sizeof nobody, FNS_WRITABLE);
    if (ret >= 0)
        ret = start->packed = fns_plan_file(start->plan, &start->packed_size);
    if (ret >= 0)
        ret = start->program = fns_program_file(!stays && !owns);
    return ret < 0 ? ret : 0;
}

static size_t count(char *const *items)
{
    size_t n = 0;
    while (items[n])
        n++;
    return n;
}

static char *put_number(char *at, uint32_t n)
{
    char digits[10];
    int i = 0;
    do
        digits[i++] = (char)('0' + n % 10);
    while (n /= 10);
    while (i)
        *at++ = digits[--i];
    *at++ = ' ';
    return at;
}

static uint32_t or_none(int fd)
{
    return fd < 0 ? 0 : (uint32_t)fd;
}

enum {
#define X(name) NUMBER_##name,
    FNS_NUMBERS(X)
#undef X
        N_NUMBERS
};

/* `text`: room for all numbers of 11 bytes each. */
static void write_numbers(const struct start *start, int entered, char *text)
{
    const struct fns_args *args = start->args;
    const struct fns_numbers numbers = {
        .status = (uint32_t)start->status[1],
        .control = or_none(start->control[1]),
        .plan = (uint32_t)start->packed,
        .plan_size = (uint32_t)start->packed_size,
        .told = or_none(start->told),
        .userns = (uint32_t)args->userns,
        .clone_into = args->clone_into,
        .entered = (uint32_t)entered,
        .n_groups = args->n_groups,
    };
#define X(name) text = put_number(text, numbers.name);
    FNS_NUMBERS(X)
#undef X
    for (uint32_t i = 0; i < args->n_groups; i++)
        text = put_number(text, (uint32_t)args->groups[i]);
    *text = 0;
}

/* The program's argv (wire.h), to be freed; NULL: no memory. */
static char **program_argv(const struct fns_args *args, char *numbers)
{
    size_t n_paths = count(args->paths), n_argv = count(args->argv);
    char **argv = malloc((n_paths + n_argv + 5) * sizeof *argv), **at = argv;
    if (!argv)
        return NULL;
    *at++ = (char *)"fastns";
    *at++ = numbers;
    *at++ = (char *)(args->cwd ? args->cwd : "");
    for (size_t i = 0; i < n_paths; i++)
        *at++ = args->paths[i];
    *at++ = (char *)"";
    for (size_t i = 0; i <= n_argv; i++)
        *at++ = args->argv[i];
    return argv;
}

/* The fds that stay open until the program has them, ascending, to be freed; NULL: no memory. */
static int *fds_to_keep(const struct start *start, uint32_t *n)
{
    const struct fns_args *args = start->args;
    const int own[] = {start->status[1], start->control[1], start->packed,
                       start->told,      start->program,    args->userns ? args->userns : -1};
    uint32_t n_own = sizeof own / sizeof *own, n_known = args->n_keep + args->n_groups;
    int *keep = malloc((n_known + n_own) * sizeof *keep);
    *n = 0;
    for (uint32_t i = 0; keep && i < n_known + n_own; i++) { /* insertion keeps it ascending */
        int fd = i < args->n_keep ? args->keep[i]
                 : i < n_known    ? args->groups[i - args->n_keep]
                                  : own[i - n_known];
        if (fd < 0)
            continue;
        uint32_t at = (*n)++;
        for (; at > 0 && keep[at - 1] > fd; at--)
            keep[at] = keep[at - 1];
        keep[at] = fd;
    }
    return keep;
}

/* Clones, and waits until the program is executed, or not: that is heard. 0, or -errno and `error`. */
static int begin(struct start *start)
{
    const struct fns_args *args = start->args;
    int hops = start->plan->options & FNS_PLAN_HOP, gave_up = 0, pidfd = -1;
    /* What shares this memory must not run out of that of a cgroup: this process would be killed for it. */
    int entered = args->clone_into && !hops && !(start->plan->options & FNS_PLAN_OWN_MEMORY) &&
                  fns_clones_into_cgroups();
    int into = entered ? args->groups[args->n_groups - 1] : -1;
    char numbers[(N_NUMBERS + FNS_MAX_GROUPS) * 11 + 1];
    struct fns_args given = {.envp = args->envp};
    memcpy(given.stdio, args->stdio, sizeof given.stdio);
    int *keep = fds_to_keep(start, &given.n_keep);
    char **argv = program_argv(args, numbers);
    given.keep = keep;
    given.argv = argv;
    struct fns_border border = {
        .plan = start->plan, .args = &given, .program = start->program, .status = start->status[1]};
    write_numbers(start, entered, numbers);
    long pid = keep && argv ? fns_clone(&border, hops ? 0 : start->plan->clone_flags, into,
                                        start->end, &pidfd, &gave_up)
                            : -ENOMEM;
    if (pid == -ENOSYS && entered) { /* without clone3 it enters by itself */
        write_numbers(start, 0, numbers);
        pid = fns_clone(&border, start->plan->clone_flags, -1, start->end, &pidfd, &gave_up);
    }
    free(argv);
    free(keep);
    if (pid < 0)
        return fail(start, FNS_STAGE_CLONE, (int)pid);
    /* 0, 1 and 2 are closed here: what is opened there would be taken for a stream. */
    int high = pidfd > 2 ? pidfd : (int)fns_sys3(__NR_fcntl, pidfd, F_DUPFD_CLOEXEC, 3);
    if (high < 0) {
        fns_discard(pidfd);
        return fail(start, FNS_STAGE_CLONE, high);
    }
    if (high != pidfd)
        close(pidfd);
    pidfd = high;
    if (hops) {
        start->helper = pidfd;
    } else {
        start->process->pid = (int)pid;
        start->process->pidfd = pidfd;
    }
    return gave_up < 0 ? fail(start, FNS_STAGE_CLONE, gave_up) : 0;
}

/* ---- the status pipe -------------------------------------------------------------------------- */

int fns_believe_error(const struct fns_plan *plan, const struct fns_error *said,
                      struct fns_error *error)
{
    if (said->stage == FNS_STAGE_NONE || said->stage >= FNS_STAGE_COUNT || said->op_index < -1 ||
        (said->op_index >= 0 && (uint32_t)said->op_index >= plan->n_ops) || said->err <= 0)
        return fns_set_error(error, FNS_STAGE_HELPER, -1, EPROTO);
    *error = *said;
    return -error->err;
}

/* Reads what is there. 1: it runs; 0: nothing was said; -errno and `error`. */
static int read_status(struct start *start)
{
    struct fns_message message;
    int runs = 0;
    for (;;) {
        long n = fns_read(start->status[0], &message, sizeof message);
        if (n == 0 || n == -EAGAIN) /* EAGAIN: another process holds the pipe open */
            return runs;
        if (n < 0)
            return fail(start, FNS_STAGE_HELPER, (int)n);
        if (n == sizeof message && message.kind == FNS_MESSAGE_RUNNING)
            runs = 1;
        else if (n == sizeof message && message.kind == FNS_MESSAGE_FAILED)
            return fns_believe_error(start->plan, &message.error, start->error);
        else
            return fail(start, FNS_STAGE_HELPER, EPROTO);
    }
}

/* Follows the start to its end. A sandbox that has not come to its command in time is killed, and its start
 * is as good as done. 0, or -errno and `error`. */
static int hear(struct start *start)
{
    struct fns_process *process = start->process;
    uint64_t next = 0;
    for (;;) {
        struct pollfd end = {.fd = process->pidfd, .events = POLLIN};
        int ret = fns_executed(start->status[0], process, start->time_ns);
        if (ret < 0)
            return fail(start, FNS_STAGE_HELPER, ret);
        ret = read_status(start);
        if (ret == 0 && poll(&end, 1, 0) > 0) { /* all it said is here by now */
            ret = read_status(start);
            if (ret == 0 && !process->late)
                return was_killed(start);
            return ret < 0 ? ret : 0;
        }
        if (ret > 0 && start->plan->options & FNS_PLAN_HOP) {
            /* The first look may have come before it had the lock. Who says RUNNING has it, or had it. */
            ret = fns_executed(start->status[0], process, start->time_ns);
            if (ret < 0)
                return fail(start, FNS_STAGE_HELPER, ret);
            ret = read_status(start);
            return ret < 0 ? ret : 0;
        }
        if (ret)
            return ret < 0 ? ret : 0;
        /* After a hop it may not have the lock yet. */
        int signalled = poll(&end, 1, 1) < 0;
        fns_keep_time(process, start->time_ns);
        if (fns_interrupted(&next, signalled))
            return fail(start, FNS_STAGE_HELPER, EINTR);
    }
}

/* ---- the control socket ----------------------------------------------------------------------- */

/* The next message. 0; -EAGAIN: none is here; -EPIPE: the other end is closed; -errno. `*fd`: one that came along, or -1. */
static int receive(int control, struct fns_message *message, int *fd)
{
    int n_fds = 1;
    long n = fns_receive_message(control, message, sizeof *message, fd, &n_fds, NULL, MSG_DONTWAIT);
    *fd = n_fds == 1 ? fns_above_stdio(*fd) : -1;
    return n < 0 ? (int)n : n == sizeof *message ? 0 : n ? -EPROTO : -EPIPE;
}

/* Lets the sandbox go on, once its ids are mapped. */
static int answer(struct start *start)
{
    const struct fns_plan *plan = start->plan;
    const struct fns_message go = {.kind = FNS_MESSAGE_GO};
    int ret = 0;
    if (plan->id_map == FNS_ID_MAP_PARENT || plan->id_map == FNS_ID_MAP_NEWUIDMAP)
        ret = fns_write_id_maps(plan, start->process->pid, start->end, start->error);
    if (ret < 0 && ret != -ETIME && ret != -EINTR) {
        int said = read_status(start); /* why it has ended, if it has */
        ret = said < 0 ? said : ret;
    }
    if (ret == -ETIME)
        start->process->late = 1;
    if (ret == 0 && send(start->control[0], &go, sizeof go, MSG_NOSIGNAL) < 0 && errno != EPIPE)
        ret = fail(start, FNS_STAGE_HELPER, -errno);
    return ret; /* EPIPE: it has ended, and why is in the status pipe */
}

/* After a hop: the sandbox, as its maker tells of it. 0, or -errno and `error`. */
static int await_sandbox(struct start *start)
{
    struct fns_process *process = start->process;
    uint64_t next = 0;
    for (int ended = 0;;) {
        struct fns_message message;
        int fd, ret = receive(start->control[0], &message, &fd);
        if (ret == 0 && message.kind == FNS_MESSAGE_CHILD) {
            process->pid = message.value;
            process->pidfd = fd;
            /* The kernel drops an fd that finds no place. */
            return fd < 0 ? fail(start, FNS_STAGE_HELPER, EMFILE) : 0;
        }
        if (ret != -EAGAIN && ret != -EPIPE)
            return fail(start, FNS_STAGE_HELPER, ret < 0 ? ret : EPROTO);
        if (ended || ret == -EPIPE) {
            ret = read_status(start);
            return ret < 0 ? ret : was_killed(start);
        }
        int ms = FNS_LOOK_NS / 1000000;
        int left = start->time_ns ? fns_time_left(process, start->time_ns) : 999999999;
        if (left == 0) {
            process->late = 1;
            return fail(start, FNS_STAGE_HELPER, ETIME);
        }
        struct pollfd fds[2] = {{.fd = start->control[0], .events = POLLIN},
                                {.fd = start->helper, .events = POLLIN}};
        int ready = poll(fds, 2, left / 1000000 + 1 < ms ? left / 1000000 + 1 : ms);
        if (ready < 0 && errno != EINTR)
            return fail(start, FNS_STAGE_HELPER, -errno);
        if (fns_interrupted(&next, ready < 0))
            return fail(start, FNS_STAGE_HELPER, EINTR);
        /* Then one more look: all it sent is here by now. */
        ended = ready > 0 && fds[1].revents;
    }
}

/* The sandbox of a maker that was killed before it could tell of it: a pidfd, or -1. It has to be
 * this process' child still: with SIGCHLD ignored its pid may be another's by now. */
static int untold_sandbox(int told)
{
    siginfo_t info;
    int32_t pid;
    if (pread(told, &pid, sizeof pid, 0) != sizeof pid || pid <= 0)
        return -1;
    int pidfd = (int)fns_sys2(__NR_pidfd_open, pid, 0);
    if (pidfd < 0)
        return -1;
    if (fns_sys5(__NR_waitid, P_PIDFD, pidfd, &info, WEXITED | WNOHANG | WNOWAIT | __WALL, 0) == 0)
        return pidfd;
    close(pidfd);
    return -1;
}

/* Ends a sandbox whose start has failed, and whose maker has ended. */
static void discard_sandbox(int told, struct fns_process *process)
{
    if (process->pid < 0 && told >= 0)
        process->pidfd = untold_sandbox(told);
    if (process->pidfd >= 0) {
        fns_discard(process->pidfd);
    } else if (process->pid > 0) { /* its pidfd found no place: the pid is ours until reaped */
        kill(process->pid, SIGKILL);
        while (waitpid(process->pid, NULL, __WALL) < 0 && errno == EINTR)
            ;
    }
    process->pidfd = process->pid = -1;
}

/* ---- all of it -------------------------------------------------------------------------------- */

static int run(struct start *start)
{
    const struct fns_plan *plan = start->plan;
    int ret = open_all(start);
    if (ret < 0)
        return fail(start, FNS_STAGE_HELPER, ret);
    ret = begin(start);
    if (ret == -ETIME)
        start->process->late = 1;
    /* From now on the program's ends are its own: with one here, its end would not be heard. */
    close_fd(&start->status[1]);
    close_fd(&start->control[1]);
    if (ret == 0 && plan->options & FNS_PLAN_HOP)
        ret = await_sandbox(start);
    if (ret == 0 && needs_control(plan) &&
        (plan->options & FNS_PLAN_HOP || plan->id_map == FNS_ID_MAP_PARENT ||
         plan->id_map == FNS_ID_MAP_NEWUIDMAP))
        ret = answer(start);
    if (ret == 0)
        ret = hear(start);
    /* A server's sandboxes have its program as /proc/self/exe until they execute: one file for all of
     * them, to be left messages on. Without an x bit not even root can execute it. */
    if (ret == 0 && plan->options & FNS_PLAN_SERVER)
        fchmod(start->program, 0);
    return ret;
}

int fns_spawn(const struct fns_plan *plan, const struct fns_args *args, uint64_t time_ns,
              struct fns_process *process, struct fns_error *error)
{
    int saved = errno;
    *error = (struct fns_error){.op_index = -1};
    *process = (struct fns_process){.pid = -1, .pidfd = -1, .control = -1, .start = fns_now()};
    struct start start = {
        .plan = plan,
        .args = args,
        .time_ns = time_ns,
        .end = fns_end_of(process, time_ns),
        .process = process,
        .error = error,
        .status = {-1, -1},
        .control = {-1, -1},
        .program = -1,
        .packed = -1,
        .told = -1,
        .helper = -1,
    };
    int ret = run(&start);
    if (ret < 0 && start.control[0] >= 0)
        shutdown(start.control[0], SHUT_RDWR); /* a sandbox that waits for GO quits */
    if (start.helper >= 0)
        fns_discard(start.helper);
    if (ret < 0) {
        discard_sandbox(start.told, process);
    } else {
        struct rusage own;
        getrusage(RUSAGE_SELF, &own);
        process->rss_floor = own.ru_maxrss;
        if (plan->options & (FNS_PLAN_INIT | FNS_PLAN_SERVER)) {
            process->control = start.control[0];
            start.control[0] = -1;
        }
    }
    close_fd(&start.status[0]);
    close_fd(&start.status[1]);
    close_fd(&start.control[0]);
    close_fd(&start.control[1]);
    close_fd(&start.program);
    close_fd(&start.packed);
    close_fd(&start.told);
    errno = saved;
    return ret;
}
