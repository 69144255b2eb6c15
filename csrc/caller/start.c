/* One start: what the program gets, and what it reports. Runs in the caller, without the GIL.
 *
 * The program is executed from one sealed memory file and maps the plan from another (memory.c); its argv holds
 * the command's arguments (shared/wire.h). It reports over the status pipe. If the caller has to reply or sends more
 * later, there is also a control socket.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "border/border.h"
#include "shared/sys.h"
#include "shared/wire.h"
#include "spawn.h"

/* A start under way, with the fds it has open. */
struct start {
    const struct fns_plan *plan;
    const struct fns_args *args;
    struct fns_deadline deadline;
    struct fns_process *process;
    struct fns_error *error;
    int status[2];  /* pipe: the caller's end (reading), the program's end (writing) */
    int control[2]; /* socket pair: the caller's end, the program's end; -1: none */
    int program;    /* memory file of the program */
    int packed;     /* memory file of the plan */
    int pid_file;   /* memory file for the pid of a sandbox that a hop process clones; -1: no hop */
    int hop;        /* pidfd of the hop process; -1: none */
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

/* ---- what the program gets -------------------------------------------------------------------- */

static int hops(const struct start *start)
{
    return (start->plan->options & FNS_PLAN_HOP) != 0;
}

static int stays(const struct fns_plan *plan)
{
    return (plan->options & (FNS_PLAN_HOP | FNS_PLAN_INIT | FNS_PLAN_SERVER)) != 0;
}

/* Whether the caller, or a program that it runs, writes the id maps. */
static int maps_from_outside(const struct fns_plan *plan)
{
    return plan->id_map == FNS_ID_MAP_PARENT || plan->id_map == FNS_ID_MAP_NEWUIDMAP;
}

static int open_all(struct start *start)
{
    const struct fns_plan *plan = start->plan;
    /* A sandbox that owns the program's file, or whose program stays, could leave messages for other sandboxes in the
     * file's attributes. So it gets its own file. */
    int shares = !stays(plan) && !maps_from_outside(plan) && plan->id_map != FNS_ID_MAP_SELF;
    const int32_t nobody = 0;
    int ret = fns_pipe(start->status, O_NONBLOCK);
    if (ret == 0 && (stays(plan) || maps_from_outside(plan)))
        ret = fns_socket_pair(start->control);
    if (ret == 0 && hops(start))
        ret = start->pid_file = fns_memory_file("fastns", &nobody, sizeof nobody, FNS_WRITABLE);
    if (ret >= 0)
        ret = start->packed = fns_plan_file(plan, &start->packed_size);
    if (ret >= 0)
        ret = start->program = fns_program_file(shares);
    return ret < 0 ? ret : 0;
}

char **fns_command_paths(const char *command, char *const *directories)
{
    char *const none[] = {NULL};
    int is_path = strchr(command, '/') != NULL;
    size_t n = 0, length = strlen(command), size = is_path ? length + 1 : 0;
    for (char *const *at = is_path ? none : directories; *at; at++, n++)
        size += strlen(*at) + length + 2;
    char **paths = malloc((n + is_path + 1) * sizeof *paths + size);
    if (!paths)
        return NULL;
    char *text = (char *)(paths + n + is_path + 1);
    for (size_t i = 0; i < n; i++) {
        paths[i] = text;
        text += sprintf(text, "%s/%s", directories[i], command) + 1;
    }
    if (is_path)
        paths[n++] = strcpy(text, command);
    paths[n] = NULL;
    return paths;
}

static size_t count(char *const *items)
{
    size_t n = 0;
    while (items[n])
        n++;
    return n;
}

static uint32_t or_none(int fd) /* no fd: 0 */
{
    return fd < 0 ? 0 : (uint32_t)fd;
}

enum {
#define X(name) NUMBER_##name,
    FNS_NUMBERS(X)
#undef X
        N_NUMBERS
};
#define NUMBERS_SIZE ((N_NUMBERS + FNS_MAX_GROUPS) * sizeof "4294967295" + 1)

/* `text` has NUMBERS_SIZE bytes. */
static void write_numbers(const struct start *start, int entered, char *text)
{
    const struct fns_args *args = start->args;
    const struct fns_numbers numbers = {
        .status = (uint32_t)start->status[1],
        .control = or_none(start->control[1]),
        .plan = (uint32_t)start->packed,
        .plan_size = (uint32_t)start->packed_size,
        .pid_file = or_none(start->pid_file),
        .userns = (uint32_t)args->userns,
        .clone_into = args->clone_into,
        .entered = (uint32_t)entered,
        .n_groups = args->n_groups,
    };
#define X(name) text += sprintf(text, "%u ", numbers.name);
    FNS_NUMBERS(X)
#undef X
    for (uint32_t i = 0; i < args->n_groups; i++)
        text += sprintf(text, "%u ", (uint32_t)args->groups[i]);
}

/* Returns the program's argv (wire.h), which the caller frees; NULL: no memory. */
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

/* Returns the fds that the program gets, in ascending order, in an array that the caller frees; NULL: no memory. */
static int *fds_to_keep(const struct start *start, uint32_t *n)
{
    const struct fns_args *args = start->args;
    const int own[] = {start->status[1], start->control[1], start->packed,
                       start->pid_file,  start->program,    args->userns ? args->userns : -1};
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

/* Clones, and waits until the child has executed the program or has ended. If it ended, read_status() says why. 0, or
 * -errno and `error`. */
static int begin(struct start *start)
{
    const struct fns_args *args = start->args;
    uint64_t namespaces = hops(start) ? 0 : start->plan->clone_flags;
    int gave_up = 0, pidfd = -1;
    /* OWN_MEMORY: the OOM killer kills all processes that share the memory of its victim. So a child in a full cgroup
     * could get the caller killed. */
    int entered = args->clone_into && !hops(start) && !(start->plan->options & FNS_PLAN_OWN_MEMORY);
    int into = entered ? args->groups[args->n_groups - 1] : -1;
    char numbers[NUMBERS_SIZE];
    struct fns_args given = {.envp = args->envp};
    memcpy(given.stdio, args->stdio, sizeof given.stdio);
    int *keep = fds_to_keep(start, &given.n_keep);
    char **argv = program_argv(args, numbers);
    given.keep = keep;
    given.argv = argv;
    struct fns_border border = {
        .plan = start->plan, .args = &given, .program = start->program, .status = start->status[1]};
    write_numbers(start, entered, numbers);
    long pid = keep && argv
                   ? fns_clone(&border, namespaces, into, &start->deadline, &pidfd, &gave_up)
                   : -ENOMEM;
    if (pid == -ENOSYS && entered) { /* no clone3(2): the program enters the cgroup itself */
        write_numbers(start, 0, numbers);
        pid = fns_clone(&border, namespaces, -1, &start->deadline, &pidfd, &gave_up);
    }
    free(argv);
    free(keep);
    if (pid < 0)
        return fail(start, FNS_STAGE_CLONE, (int)pid);
    /* If 0, 1 or 2 is closed here, the pidfd may have got that number. */
    int high = pidfd > 2 ? pidfd : (int)fns_sys3(__NR_fcntl, pidfd, F_DUPFD_CLOEXEC, 3);
    if (high < 0) {
        fns_discard(pidfd);
        return fail(start, FNS_STAGE_CLONE, high);
    }
    if (high != pidfd)
        close(pidfd);
    if (hops(start)) {
        start->hop = high;
    } else {
        start->process->pid = (int)pid;
        start->process->pidfd = high;
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

/* Reads all messages. 1: RUNNING came; 0: none; -errno and `error`: FAILED came, or reading failed. */
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

/* Follows the start to its end. Kills a sandbox that has not executed its command in time; its start then counts
 * as done. 0, or -errno and `error`. */
static int follow(struct start *start)
{
    struct fns_process *process = start->process;
    struct pollfd end = {.fd = process->pidfd, .events = POLLIN};
    for (int runs = 0;;) {
        int ret = fns_executed(start->status[0], process, &start->deadline);
        if (ret < 0)
            return fail(start, FNS_STAGE_HELPER, ret);
        ret = read_status(start);
        if (ret < 0)
            return ret;
        if (runs || (ret > 0 && !hops(start)))
            return 0;
        runs = ret;
        /* After a hop, the first check of the lock may have come before the sandbox took it. RUNNING means that the
         * sandbox has taken the lock, so check again. */
        if (runs)
            continue;
        int ready = poll(&end, 1, 1);
        if (ready > 0) { /* the sandbox has ended: all its messages are here */
            ret = read_status(start);
            return ret < 0 ? ret : ret > 0 || process->timed_out ? 0 : was_killed(start);
        }
        if (fns_over_kills(&start->deadline, ready < 0, process) < 0)
            return fail(start, FNS_STAGE_HELPER, EINTR);
    }
}

/* ---- the control socket ----------------------------------------------------------------------- */

/* Writes the id maps if that is up to the caller, and sends GO. 0, or -errno and `error`. */
static int send_go(struct start *start)
{
    const struct fns_message go = {.kind = FNS_MESSAGE_GO};
    int ret = 0;
    if (maps_from_outside(start->plan))
        ret =
            fns_write_id_maps(start->plan, start->process->pid, start->deadline.end, start->error);
    if (ret < 0 && ret != -ETIME && ret != -EINTR) {
        int said = read_status(start); /* if the sandbox has failed, that is the cause */
        ret = said < 0 ? said : ret;
    }
    start->process->timed_out |= ret == -ETIME;
    if (ret < 0)
        return ret;
    /* EPIPE: the sandbox has ended, and has reported why over the status pipe. */
    int sent = send(start->control[0], &go, sizeof go, MSG_NOSIGNAL) >= 0 || errno == EPIPE;
    return sent ? 0 : fail(start, FNS_STAGE_HELPER, errno);
}

/* Waits for CHILD from the hop process. 0, or -errno and `error`. */
static int await_sandbox(struct start *start)
{
    struct fns_process *process = start->process;
    struct pollfd fds[2] = {{.fd = start->control[0], .events = POLLIN},
                            {.fd = start->hop, .events = POLLIN}};
    for (int ended = 0;;) {
        struct fns_message message;
        int pidfd, n_fds = 1;
        long n = fns_receive_message(start->control[0], &message, sizeof message, &pidfd, &n_fds,
                                     NULL, MSG_DONTWAIT);
        if (n == sizeof message && message.kind == FNS_MESSAGE_CHILD) {
            process->pid = message.value;
            process->pidfd = n_fds == 1 ? fns_above_stdio(pidfd) : -EMFILE;
            return process->pidfd < 0 ? fail(start, FNS_STAGE_HELPER, EMFILE) : 0;
        }
        if (n > 0 || (n < 0 && n != -EAGAIN))
            return fail(start, FNS_STAGE_HELPER, n < 0 ? (int)n : EPROTO);
        if (ended || n == 0) {
            int ret = read_status(start);
            return ret < 0 ? ret : was_killed(start);
        }
        const struct timespec time = fns_step(&start->deadline);
        int ready = ppoll(fds, 2, &time, NULL);
        if (ready < 0 && errno != EINTR)
            return fail(start, FNS_STAGE_HELPER, errno);
        int ret = ready > 0 ? 0 : fns_over(&start->deadline, ready < 0);
        if (ret < 0) {
            process->timed_out = ret == -ETIME;
            return fail(start, FNS_STAGE_HELPER, ret);
        }
        ended = ready > 0 && fds[1].revents; /* all its messages are here: read them once more */
    }
}

/* Returns a pidfd of the sandbox whose hop process was killed before it could send CHILD, or -1. The pid must still be
 * that of a child of this process: if SIGCHLD is ignored, the pid may have been reused. */
static int unreported_sandbox(int pid_file)
{
    siginfo_t info;
    int32_t pid;
    if (pread(pid_file, &pid, sizeof pid, 0) != sizeof pid || pid <= 0)
        return -1;
    int pidfd = fns_open_pidfd(pid);
    if (pidfd < 0)
        return -1;
    if (fns_sys5(__NR_waitid, P_PIDFD, pidfd, &info, WEXITED | WNOHANG | WNOWAIT | __WALL, 0) == 0)
        return pidfd;
    close(pidfd);
    return -1;
}

/* Ends the sandbox of a start that has failed. By now, its hop process, if any, has ended. */
static void discard_sandbox(int pid_file, struct fns_process *process)
{
    if (process->pid < 0 && pid_file >= 0)
        process->pidfd = unreported_sandbox(pid_file);
    if (process->pidfd >= 0) {
        fns_discard(process->pidfd);
    } else if (process->pid > 0) { /* no fd was free; the pid is not reused before it is reaped */
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
    start->process->timed_out = ret == -ETIME;
    /* Otherwise this process would keep the ends open, and never see that the program has closed them. */
    fns_close_fd(&start->status[1]);
    fns_close_fd(&start->control[1]);
    if (ret == 0 && hops(start))
        ret = await_sandbox(start);
    if (ret == 0 && (hops(start) || maps_from_outside(plan)))
        ret = send_go(start);
    if (ret == 0)
        ret = follow(start);
    /* Until they execute their commands, all sandboxes of a server have its program's file as /proc/self/exe. If they
     * could execute it, they could leave messages in its attributes. Without an x bit, not even root can. */
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
        .deadline = {.end = time_ns ? process->start + time_ns : 0},
        .process = process,
        .error = error,
        .status = {-1, -1},
        .control = {-1, -1},
        .program = -1,
        .packed = -1,
        .pid_file = -1,
        .hop = -1,
    };
    int ret = run(&start);
    if (ret < 0 && start.control[0] >= 0)
        shutdown(start.control[0], SHUT_RDWR); /* ends a sandbox that waits for GO */
    if (start.hop >= 0)
        fns_discard(start.hop);
    if (ret < 0) {
        discard_sandbox(start.pid_file, process);
    } else {
        struct rusage own;
        getrusage(RUSAGE_SELF, &own);
        process->rss_floor = own.ru_maxrss;
        if (plan->options & (FNS_PLAN_INIT | FNS_PLAN_SERVER)) {
            process->control = start.control[0];
            start.control[0] = -1;
        }
    }
    int *fds[] = {&start.status[0], &start.status[1], &start.control[0], &start.control[1],
                  &start.program,   &start.packed,    &start.pid_file};
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++)
        fns_close_fd(fds[i]);
    errno = saved;
    return ret;
}
