/* Runs a plan's command to its end.
 *
 * The command gets this program's own stdin, stdout and stderr; this program only waits, as `fastns run` does
 * (fastns/cli/run.py). SIGTERM and SIGHUP end the sandbox. Ctrl-C reaches the sandbox through the terminal, so
 * it ends the sandbox only if the command neither handles nor ignores it. If the plan limits the output, stdout and
 * stderr are relayed (relay.c), and this program waits until all is passed on; but after a time limit or a signal,
 * not for a reader that does not read.
 *
 * This program is static and contains the engine's program: an interpreter or a loader would take longer to start
 * than the sandbox.
 */
#define _GNU_SOURCE
#include "run.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "relay.h"

#define EMBED(name, file)                                                                          \
    __asm__(".pushsection .rodata\n.balign 16\n" #name ": .incbin \"" file "\"\n" #name            \
            "_end: .byte 0\n.popsection\n");                                                       \
    extern const char name[], name##_end[]

EMBED(program, FNS_PROGRAM_FILE);

/* How long to wait for a reader that does not read the output of a sandbox that was killed. */
enum { PATIENCE_NS = 200000000 };

enum end { ENDED, TIMED_OUT, KILLED };

struct run {
    struct fns_planfile *file;
    struct outcome *outcome;
    struct fns_args args;
    struct fns_process process;
    struct fns_error error;
    struct fns_result *result;
    uint64_t time_ns; /* time limit; 0: none */
    int signals;      /* signalfd */
    int signal;       /* the signal that has ended it */
    struct fns_relay *relays;
    int n_relays;
};

/* ---- errors of a start ----------------------------------------------------------------------- */

static const char *hint_of(const struct fns_planfile *file, const struct fns_error *error,
                           const char *path)
{
    for (uint32_t i = 0; i < file->n_hints; i++) {
        const struct fns_hint *hint = &file->hints[i];
        if ((!hint->stage || hint->stage == error->stage) && hint->detail == error->detail &&
            (!hint->err || hint->err == error->err) &&
            (!*hint->path || (path && strcmp(hint->path, path) == 0)))
            return hint->text;
    }
    /* There is no hint for the detail. */
    const struct fns_error plain = {.stage = error->stage, .err = error->err};
    return error->detail ? hint_of(file, &plain, path) : NULL;
}

/* The path that an error is about; NULL: none. */
static const char *path_of(const struct fns_planfile *file, const struct fns_error *error,
                           const char *command)
{
    const struct fns_plan *plan = &file->plan;
    uint32_t index = (uint32_t)error->op_index;
    if (error->op_index < 0)
        return error->stage == FNS_STAGE_EXEC    ? command
               : error->stage == FNS_STAGE_CHDIR ? file->cwd
                                                 : NULL;
    if (index >= plan->n_ops)
        return NULL;
    const struct fns_op *op = &plan->ops[index];
    uint32_t place = error->detail == FNS_DETAIL_SOURCE || !op->target ? op->source : op->target;
    return place ? plan->strings + place : NULL;
}

static void fail_start(struct outcome *outcome, const struct fns_planfile *file,
                       const struct fns_error *error, const char *command)
{
    outcome->cause = "failed";
    outcome->exit_code = EXIT_FAILED;
    if (error->stage == FNS_STAGE_EXEC)
        outcome->exit_code =
            error->err == ENOENT || error->err == ENOTDIR ? EXIT_NOT_FOUND : EXIT_NOT_EXECUTABLE;
    outcome->stage = fns_stage_name(error->stage);
    outcome->op_index = error->op_index;
    outcome->err = error->err;
    outcome->path = path_of(file, error, command);
    word_error(outcome);
    complain(outcome->message, hint_of(file, error, outcome->path));
}

/* ---- signals --------------------------------------------------------------------------------- */

static const int end_signals[] = {SIGINT, SIGTERM, SIGHUP};

/* Those of them that are not ignored (as by nohup, or in a shell's background jobs): blocked, and read from an fd. */
static sigset_t watched;

static int watch_signals(void)
{
    struct sigaction action;
    sigemptyset(&watched);
    for (int i = 0; i < 3; i++)
        if (sigaction(end_signals[i], NULL, &action) == 0 && action.sa_handler != SIG_IGN)
            sigaddset(&watched, end_signals[i]);
    signal(SIGCHLD, SIG_DFL); /* if it were ignored, the status would be lost */
    signal(SIGPIPE, SIG_IGN); /* write(2) reports it */
    if (sigprocmask(SIG_BLOCK, &watched, NULL) < 0)
        return -errno;
    int fd = signalfd(-1, &watched, SFD_CLOEXEC | SFD_NONBLOCK);
    return fd < 0 ? -errno : fd;
}

/* The next signal; 0: none. */
static int take_signal(int fd)
{
    struct signalfd_siginfo info;
    return read(fd, &info, sizeof info) == sizeof info ? (int)info.ssi_signo : 0;
}

/* Whether one of them is pending: then a start that waits is given up. */
static int is_to_end(void)
{
    sigset_t pending;
    if (sigpending(&pending) < 0 || sigandset(&pending, &pending, &watched) < 0)
        return 0;
    return !sigisemptyset(&pending);
}

/* Whether a process handles or ignores SIGINT; 0 if it is gone. */
static int handles_sigint(int pid)
{
    char path[48], line[256];
    unsigned long long mask, all = 0;
    snprintf(path, sizeof path, "/proc/%d/status", pid);
    FILE *file = fopen(path, "re");
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "SigCgt: %llx", &mask) == 1 || sscanf(line, "SigIgn: %llx", &mask) == 1)
            all |= mask;
    if (file)
        fclose(file);
    return (all >> (SIGINT - 1)) & 1;
}

/* ---- output ---------------------------------------------------------------------------------- */

/* Relays stdout and stderr if there is a limit. `theirs`: the command's ends, to be closed after its start. 0 or
 * -errno. */
static int open_relays(struct run *run, int theirs[2])
{
    const struct fns_plan *plan = &run->file->plan;
    uint64_t limit = run->file->max_output;
    theirs[0] = theirs[1] = -1;
    if (limit == 0)
        return 0;
    run->relays = calloc(2, sizeof *run->relays);
    if (!run->relays)
        return -ENOMEM;
    for (int i = 0; i < 2; i++, run->n_relays++) {
        int ret = fns_relay_open(&run->relays[i], i + 1, limit, &theirs[i]);
        if (ret < 0)
            return ret;
        /* Or the command could not open it again (/dev/stderr). Where this program may not, it stays so. */
        if ((plan->pipe_uid || plan->pipe_gid) &&
            fchown(theirs[i], plan->pipe_uid, plan->pipe_gid) < 0)
            errno = 0;
        run->args.stdio[i + 1] = theirs[i];
    }
    return 0;
}

/* Waits at most `time_ns` for the end of the sandbox, a signal or output, and relays output. `fds` begins with the
 * sandbox and the signals. Returns what ppoll() does. */
static int wait_for_any(struct run *run, struct pollfd fds[4], uint64_t time_ns)
{
    const struct timespec time = {0, (long)time_ns};
    int n = 2;
    for (int i = 0; i < run->n_relays; i++)
        fds[n++] = fns_relay_wants(&run->relays[i]);
    int ready = ppoll(fds, (nfds_t)n, &time, NULL);
    for (int i = 0; ready > 0 && i < run->n_relays; i++)
        if (fds[2 + i].fd >= 0 && fds[2 + i].revents)
            fns_relay_move(&run->relays[i]);
    return ready;
}

/* After the end of the sandbox: relays the rest, until a signal comes or, if not `patient`, nothing has been read for
 * PATIENCE_NS. The signal, or 0. */
static int relay_rest(struct run *run, int patient)
{
    uint64_t before = UINT64_MAX, since = 0, done;
    int signal = 0, open = run->n_relays;
    while (open > 0 && !signal) {
        struct pollfd fds[4] = {{.fd = -1}, {.fd = run->signals, .events = POLLIN}};
        wait_for_any(run, fds, FNS_LOOK_NS / 2);
        signal = take_signal(run->signals);
        done = 0;
        open = 0;
        for (int i = 0; i < run->n_relays; i++) {
            done += run->relays[i].done;
            open += run->relays[i].source >= 0;
        }
        if (done != before)
            since = fns_now();
        else if (!patient && fns_now() - since > PATIENCE_NS)
            break;
        before = done;
    }
    return signal;
}

/* ---- the run --------------------------------------------------------------------------------- */

/* Acts on a signal to this program. KILLED: the caller has to kill the sandbox. ENDED: the command handles the
 * signal, and the caller waits on. */
static enum end act_on(const struct run *run)
{
    const struct fns_process *process = &run->process;
    /* A command in this session has got SIGINT from the terminal too, but pid 1 of a namespace gets only signals that
     * it handles. With a reaper as pid 1, it is not known whether the command handles it. */
    if (run->signal != SIGINT || (run->file->plan.options & FNS_PLAN_INIT) ||
        !handles_sigint(process->pid))
        return KILLED;
    if (getsid(process->pid) != getsid(0))
        fns_kill(process, SIGINT);
    return ENDED;
}

/* Waits for the end of the sandbox, of its time, or for a signal that ends it, which is then run->signal. */
static enum end await_end(struct run *run)
{
    const struct fns_process *process = &run->process;
    struct pollfd fds[4] = {{.fd = fns_end_fd(process), .events = POLLIN},
                            {.fd = run->signals, .events = POLLIN}};
    uint64_t deadline = run->time_ns ? process->start + run->time_ns : 0;
    for (;;) {
        uint64_t now = fns_now(), left = FNS_LOOK_NS;
        if (deadline && now >= deadline)
            return fns_wait(process, 0) == 1 ? ENDED : TIMED_OUT;
        if (deadline && deadline - now < left)
            left = deadline - now;
        int ready = wait_for_any(run, fds, left);
        if (ready > 0 && fds[0].revents && fns_wait(process, 0) == 1)
            return ENDED;
        while (ready > 0 && fds[1].revents && (run->signal = take_signal(run->signals)))
            if (act_on(run) == KILLED)
                return KILLED;
        if (ready <= 0 || fds[0].revents)
            fns_attend(process, 0);
    }
}

/* Waits for the end and reaps; `killed`: kills it first. 0, or -errno and run->error. */
static int reap(struct run *run, int killed)
{
    const struct fns_process *process = &run->process;
    int ret;
    if (killed)
        fns_kill_all(&run->file->plan, process);
    do {
        while ((ret = fns_wait(process, -1)) == -EINTR || ret == 0)
            fns_attend(process, killed);
        if (ret > 0)
            ret = fns_reap(process, run->result);
    } while (ret == -EAGAIN);
    if (ret == 0 && run->result->lost)
        ret = fns_set_error(&run->error, FNS_STAGE_INIT, -1, run->result->lost);
    else if (ret < 0)
        fns_set_error(&run->error, FNS_STAGE_WAIT, -1, ret);
    return ret;
}

static int has_filter(const struct fns_plan *plan)
{
    for (uint32_t i = 0; i < plan->n_ops; i++)
        if (plan->ops[i].code == FNS_OP_SECCOMP)
            return 1;
    return 0;
}

static void conclude(struct run *run, enum end how, const struct fns_result *result)
{
    struct outcome *outcome = run->outcome;
    outcome->result = result;
    for (int i = 0; i < run->n_relays; i++)
        outcome->truncated |= run->relays[i].dropped || (result && run->relays[i].source >= 0);
    if (how == KILLED) {
        outcome->cause = "killed";
        outcome->signal = run->signal;
        outcome->exit_code = 128 + run->signal;
    } else if (how == TIMED_OUT) {
        outcome->cause = "timeout";
        outcome->signal = SIGKILL;
        outcome->exit_code = EXIT_TIMEOUT;
    } else if (result->code == CLD_EXITED) {
        outcome->cause = "exited";
        outcome->exit_code = result->status;
    } else {
        int filtered = result->status == SIGSYS && has_filter(&run->file->plan);
        outcome->cause = filtered ? "seccomp" : "signaled";
        outcome->signal = result->status;
        outcome->exit_code = 128 + result->status;
    }
}

/* Sets up what no plan file holds: the engine's program and the user namespace. 0, or -errno and `error`. */
static int prepare(struct fns_planfile *file, struct fns_args *args, struct fns_error *error)
{
    struct fns_plan *plan = &file->plan;
    int ret = fns_set_program(program, (size_t)(program_end - program));
    if (ret < 0)
        return fns_set_error(error, FNS_STAGE_HELPER, -1, ret);
    if (plan->id_map != FNS_ID_MAP_RANGE)
        return 0;
    ret =
        fns_userns_open(file->maps[0], file->maps[1], *file->inotify ? file->inotify : NULL, error);
    args->userns = ret;
    return ret < 0 ? ret : 0;
}

/* 0, or -errno and run->error. */
static int start(struct run *run)
{
    int theirs[2] = {-1, -1}, ret = 0;
    if (run->signals < 0)
        ret = fns_set_error(&run->error, FNS_STAGE_SIGNALS, -1, run->signals);
    if (ret == 0 && !run->args.paths)
        ret = fns_set_error(&run->error, FNS_STAGE_EXEC, -1, ENOMEM);
    if (ret == 0 && (ret = open_relays(run, theirs)) < 0)
        fns_set_error(&run->error, FNS_STAGE_STDIO, -1, ret);
    if (ret == 0)
        ret = prepare(run->file, &run->args, &run->error);
    fns_set_interrupted(is_to_end);
    if (ret == 0)
        ret = fns_spawn(&run->file->plan, &run->args, run->time_ns, &run->process, &run->error);
    for (int i = 0; i < 2; i++)
        if (theirs[i] >= 0)
            close(theirs[i]);
    return ret;
}

/* Follows a sandbox that was started. 0, or -errno and run->error. */
static int follow(struct run *run)
{
    enum end how = run->process.late ? TIMED_OUT : await_end(run);
    int was_ended = how != ENDED, ret = reap(run, was_ended), signal;
    /* A signal that came before the end was noticed still ends the run; but a Ctrl-C was the command's too. */
    while ((signal = take_signal(run->signals)) == SIGINT)
        ;
    if (!signal)
        signal = relay_rest(run, !was_ended);
    if (signal && !was_ended) {
        how = KILLED;
        run->signal = signal;
    }
    if (ret < 0)
        return ret;
    run->outcome->wall_time = (double)(run->result->end - run->process.start) * 1e-9;
    conclude(run, how, run->result);
    return 0;
}

void fns_run_plan(struct fns_planfile *file, const struct options *options, struct outcome *outcome,
                  struct fns_result *result)
{
    int64_t timeout = options->timeout_ns ? options->timeout_ns : file->timeout_ns;
    struct run run = {.file = file,
                      .outcome = outcome,
                      .result = result,
                      .error = {.op_index = -1},
                      .args = {.argv = options->command,
                               .envp = file->envp,
                               .paths = fns_command_paths(options->command[0], file->directories),
                               .cwd = file->cwd,
                               .stdio = {-1, -1, -1}},
                      .time_ns = timeout > 0 ? (uint64_t)timeout : 0,
                      .signals = watch_signals()};
    int ret = start(&run);
    if (ret == -EINTR && (run.signal = take_signal(run.signals))) {
        conclude(&run, KILLED, NULL);
        return;
    }
    if (ret == -ETIME && run.process.late) {
        conclude(&run, TIMED_OUT, NULL);
        return;
    }
    if (ret == 0)
        ret = follow(&run);
    if (ret < 0)
        fail_start(outcome, file, &run.error, options->command[0]);
}
