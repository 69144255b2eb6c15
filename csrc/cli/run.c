/* Runs a plan's command to its end. Runs in fastns-exec, which is the caller.
 *
 * The command gets the stdin, stdout and stderr of fastns-exec, which only waits, as `fastns run` does
 * (fastns/cli/run.py). SIGTERM and SIGHUP end the sandbox. The terminal sends Ctrl-C to the command as well, so Ctrl-C
 * ends the sandbox only if the command neither handles nor ignores it. If the plan limits the output, fastns-exec
 * relays stdout and stderr until everything is passed on. After a time limit or a signal, it does not wait for a reader
 * that does not read.
 *
 * fastns-exec is static and contains the program (csrc/program): an interpreter or a loader would take longer to start
 * than the sandbox.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "cli.h"

#define EMBED(name, file)                                                                          \
    __asm__(".pushsection .rodata\n.balign 16\n" #name ": .incbin \"" file "\"\n" #name            \
            "_end: .byte 0\n.popsection\n");                                                       \
    extern const char name[], name##_end[]

EMBED(program, FNS_PROGRAM_FILE);

/* How long to wait for a reader that does not read the output of a sandbox that was killed. */
enum { PATIENCE_NS = 200000000 };

enum end { ENDED, TIMED_OUT, KILLED };

/* Passes on what the command writes to stdout or stderr, up to the plan's limit. */
struct relay {
    int source, sink; /* source -1: none, or at its end */
    uint64_t left;    /* bytes until the limit */
    uint64_t dropped; /* bytes beyond the limit */
    uint64_t done;    /* bytes read plus bytes written */
    size_t at, size;  /* data[at..size] is read but not written */
    char data[65536];
};

struct run {
    const struct fns_planfile *file;
    struct outcome *outcome;
    struct fns_job job;
    int signals; /* signalfd */
    int signal;  /* the signal that ended the run */
    struct relay *relays;
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
    /* No hint has this detail: try those without one. */
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

/* Records why the command has not started, or its end could not be observed. */
static void fail_run(const struct run *run)
{
    struct outcome *outcome = run->outcome;
    const struct fns_error *error = &run->job.error;
    outcome->cause = "failed";
    outcome->exit_code = EXIT_FAILED;
    if (error->stage == FNS_STAGE_EXEC)
        outcome->exit_code =
            error->err == ENOENT || error->err == ENOTDIR ? EXIT_NOT_FOUND : EXIT_NOT_EXECUTABLE;
    outcome->stage = fns_stage_name(error->stage);
    outcome->op_index = error->op_index;
    outcome->err = error->err;
    outcome->path = path_of(run->file, error, run->job.args.argv[0]);
    word_error(outcome);
    outcome->hint = hint_of(run->file, error, outcome->path);
}

/* ---- signals --------------------------------------------------------------------------------- */

/* The signals that end a run and are not ignored (as by nohup, or in a shell's background jobs). */
static sigset_t watched;

/* Blocks these signals, and returns an fd to read them from, or -errno. */
static int watch_signals(void)
{
    static const int end_signals[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction action;
    sigemptyset(&watched);
    for (int i = 0; i < 3; i++)
        if (sigaction(end_signals[i], NULL, &action) == 0 && action.sa_handler != SIG_IGN)
            sigaddset(&watched, end_signals[i]);
    signal(SIGCHLD, SIG_DFL); /* if it were ignored, the status would be lost */
    signal(SIGPIPE, SIG_IGN); /* write(2) fails with EPIPE instead */
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

/* Whether a watched signal is pending, so that a waiting start gives up (fns_set_interrupted()). */
static int has_signal(void)
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

/* Whether a read or write has come to the end of the pipe, or has failed for good. */
static int is_over(ssize_t n)
{
    return n == 0 || (n < 0 && errno != EINTR && errno != EAGAIN);
}

/* Reads or writes once, without blocking if poll() has reported relay_wants(). Reads only when everything read so far
 * is written, so that a reader that does not read blocks the command, as without a relay. */
static void relay_move(struct relay *relay)
{
    size_t left = relay->size - relay->at;
    /* A pipe that can be written to takes this many bytes without blocking (pipe(7)). */
    ssize_t n = left
                    ? write(relay->sink, relay->data + relay->at, left < PIPE_BUF ? left : PIPE_BUF)
                    : read(relay->source, relay->data, sizeof relay->data);
    if (is_over(n)) {
        close(relay->source); /* the command gets SIGPIPE when it writes */
        relay->source = -1;
    }
    if (n <= 0)
        return;
    relay->done += (uint64_t)n;
    if (left) {
        relay->at += (size_t)n;
        return;
    }
    relay->at = 0;
    relay->size = (uint64_t)n < relay->left ? (size_t)n : (size_t)relay->left;
    relay->left -= relay->size;
    relay->dropped += (size_t)n - relay->size;
}

static struct pollfd relay_wants(const struct relay *relay)
{
    int writes = relay->source >= 0 && relay->at < relay->size;
    return (struct pollfd){.fd = writes ? relay->sink : relay->source,
                           .events = writes ? POLLOUT : POLLIN};
}

/* Waits at most `time_ns` for the end of the sandbox (fds[0]), a signal (fds[1]) or output, and relays output. Returns
 * what ppoll() does. */
static int wait_for_any(struct run *run, struct pollfd fds[4], uint64_t time_ns)
{
    const struct timespec time = {0, (long)time_ns};
    for (int i = 0; i < 2; i++)
        fds[2 + i] = relay_wants(&run->relays[i]);
    int ready = ppoll(fds, 4, &time, NULL);
    for (int i = 0; ready > 0 && i < 2; i++)
        if (fds[2 + i].fd >= 0 && fds[2 + i].revents)
            relay_move(&run->relays[i]);
    return ready;
}

/* Relays what is left after the sandbox has ended. Stops at a signal and, unless `patient`, when nothing has moved
 * for PATIENCE_NS. The signal, or 0. */
static int relay_rest(struct run *run, int patient)
{
    const struct relay *relays = run->relays;
    uint64_t before = UINT64_MAX, since = 0;
    int signal = 0;
    while (!signal && (relays[0].source >= 0 || relays[1].source >= 0)) {
        struct pollfd fds[4] = {{.fd = -1}, {.fd = run->signals, .events = POLLIN}};
        wait_for_any(run, fds, FNS_LOOK_NS / 2);
        signal = take_signal(run->signals);
        uint64_t done = relays[0].done + relays[1].done;
        if (done != before)
            since = fns_now();
        else if (!patient && fns_now() - since > PATIENCE_NS)
            break;
        before = done;
    }
    return signal;
}

/* ---- the run --------------------------------------------------------------------------------- */

/* Whether a signal to fastns-exec must end the sandbox. If not, the command handles it. A command that has left this
 * session is sent SIGINT here, as the terminal did not. */
static int must_kill(const struct run *run, int signal)
{
    const struct fns_process *process = &run->job.io.process;
    /* The terminal has sent SIGINT to a command in this session too, but pid 1 of a namespace gets only signals that it
     * handles. With a reaper as pid 1, it is not known whether the command handles SIGINT. */
    if (signal != SIGINT || (run->file->plan.options & FNS_PLAN_INIT) ||
        !handles_sigint(process->pid))
        return 1;
    if (getsid(process->pid) != getsid(0))
        fns_kill(process, SIGINT);
    return 0;
}

/* Waits until the sandbox has ended, its time is over, or a signal must end it, which is then run->signal. */
static enum end await_end(struct run *run)
{
    const struct fns_process *process = &run->job.io.process;
    const uint64_t deadline = run->job.io.deadline;
    struct pollfd fds[4] = {{.fd = fns_end_fd(process), .events = POLLIN},
                            {.fd = run->signals, .events = POLLIN}};
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
            if (must_kill(run, run->signal))
                return KILLED;
        if (ready <= 0 || fds[0].revents)
            fns_attend(process, 0);
    }
}

static int has_filter(const struct fns_plan *plan)
{
    for (uint32_t i = 0; i < plan->n_ops; i++)
        if (plan->ops[i].code == FNS_OP_SECCOMP)
            return 1;
    return 0;
}

static void conclude(struct run *run, enum end how)
{
    struct outcome *outcome = run->outcome;
    const struct fns_result *result = &run->job.result;
    if (how == KILLED) {
        outcome->cause = "killed";
        outcome->signal = run->signal;
    } else if (how == TIMED_OUT) {
        outcome->cause = "timeout";
        outcome->signal = SIGKILL;
    } else if (result->code == CLD_EXITED) {
        outcome->cause = "exited";
        outcome->exit_code = result->status;
    } else {
        int filtered = result->status == SIGSYS && has_filter(&run->file->plan);
        outcome->cause = filtered ? "seccomp" : "signaled";
        outcome->signal = result->status;
    }
    if (outcome->signal)
        outcome->exit_code = how == TIMED_OUT ? EXIT_TIMEOUT : 128 + outcome->signal;
}

/* Sets up what a plan file cannot contain: signals, the program, the user namespace. 0, or -errno and the job's
 * error. */
static int prepare(struct run *run)
{
    const struct fns_planfile *file = run->file;
    struct fns_job *job = &run->job;
    if (run->signals < 0)
        return fns_set_error(&job->error, FNS_STAGE_SIGNALS, -1, run->signals);
    if (!job->args.paths)
        return fns_set_error(&job->error, FNS_STAGE_EXEC, -1, ENOMEM);
    int ret = fns_set_program(program, (size_t)(program_end - program));
    if (ret < 0)
        return fns_set_error(&job->error, FNS_STAGE_HELPER, -1, ret);
    fns_set_interrupted(has_signal);
    if (file->plan.id_map != FNS_ID_MAP_RANGE)
        return 0;
    job->args.userns = fns_userns_open(file->maps[0], file->maps[1],
                                       *file->inotify ? file->inotify : NULL, &job->error);
    return job->args.userns < 0 ? job->args.userns : 0;
}

/* Moves the job's ends of stdout and stderr (-1: no pipe) to the relays. */
static void open_relays(struct run *run)
{
    for (int i = 0; i < 2; i++) {
        struct relay *relay = &run->relays[i];
        relay->source = run->job.io.fds[1 + i];
        relay->sink = 1 + i;
        relay->left = run->file->max_output;
        run->job.io.fds[1 + i] = -1;
    }
}

/* Follows a running sandbox to its end. */
static enum end follow(struct run *run)
{
    struct fns_job *job = &run->job;
    open_relays(run);
    enum end how = job->timed_out ? TIMED_OUT : await_end(run);
    int was_killed = how != ENDED, signal;
    if (was_killed)
        fns_job_kill(job);
    fns_job_finish(job);
    /* A signal that came before the end was noticed still ends the run. A Ctrl-C does not: the command got it too. */
    while ((signal = take_signal(run->signals)) == SIGINT)
        ;
    if (!signal)
        signal = relay_rest(run, !was_killed);
    if (signal && !was_killed) {
        how = KILLED;
        run->signal = signal;
    }
    for (int i = 0; i < 2; i++)
        run->outcome->truncated |= run->relays[i].dropped || run->relays[i].source >= 0;
    run->outcome->has_result = job->error.stage == FNS_STAGE_NONE;
    run->outcome->result = job->result;
    run->outcome->wall_time = (double)(job->result.end - job->io.process.start) * 1e-9;
    return how;
}

void fns_run_plan(const struct fns_planfile *file, char **command, int64_t timeout_ns,
                  struct outcome *outcome)
{
    static struct relay relays[2];
    int64_t timeout = timeout_ns ? timeout_ns : file->timeout_ns;
    struct run run = {
        .file = file,
        .outcome = outcome,
        .job = {.plan = &file->plan,
                .args = {.argv = command,
                         .envp = file->envp,
                         .paths = fns_command_paths(command[0], file->directories),
                         .cwd = file->cwd,
                         .stdio = {-1, -1, -1}},
                .pipes = file->max_output ? FNS_PIPE_STDOUT | FNS_PIPE_STDERR : 0,
                .timeout_ns = timeout > 0 ? timeout : -1,
                .error = {.op_index = -1}},
        .signals = watch_signals(),
        .relays = relays,
    };
    int ret = prepare(&run);
    if (ret == 0)
        ret = fns_job_start(&run.job, -1);
    enum end how = ENDED;
    if (ret == 0)
        how = follow(&run);
    else if (ret == -EINTR && (run.signal = take_signal(run.signals)))
        how = KILLED;
    else if (ret == -ETIME && run.job.timed_out)
        how = TIMED_OUT;
    if (ret == 0 ? !outcome->has_result : how == ENDED)
        fail_run(&run);
    else
        conclude(&run, how);
}
