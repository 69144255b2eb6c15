/* fastns-exec: one command in one sandbox, by a plan that was compiled beforehand.
 *
 * Theory of operation. It reads the plan file (trust.c, planfile.c), starts the command with its own stdin,
 * stdout and stderr, and then only waits. Its exit code and signals are those of `fastns run`: SIGTERM and
 * SIGHUP end the sandbox. Ctrl-C reaches the sandbox through the terminal, so it ends the sandbox only when
 * the command neither catches nor ignores it. The two programs of the engine are part of this one, which is
 * static: an interpreter or a loader would take longer to start than the sandbox does.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "options.h"
#include "planfile.h"
#include "report.h"
#include "trust.h"

#define EMBED(name, file)                                                                          \
    __asm__(".pushsection .rodata\n.balign 16\n" #name ": .incbin \"" file "\"\n" #name            \
            "_end: .byte 0\n.popsection\n");                                                       \
    extern const char name[], name##_end[]

EMBED(exec_program, FNS_EXEC_FILE);
EMBED(helper_program, FNS_HELPER_FILE);

/* ---- what it is asked to do ------------------------------------------------------------------ */

__attribute__((format(printf, 3, 4))) static void fail(struct outcome *outcome, const char *hint,
                                                       const char *form, ...)
{
    va_list args;
    va_start(args, form);
    vsnprintf(outcome->message, sizeof outcome->message, form, args);
    va_end(args);
    outcome->cause = "failed";
    outcome->exit_code = EXIT_FAILED;
    complain(outcome->message, hint);
}

/* Keeps 0, 1 and 2 from files of this program where they are closed: a command would write to them. Opened
 * for the other direction, each still fails with EBADF as it did. */
static void hold_closed_fds(void)
{
    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) < 0)
            open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY); /* the lowest number is free: fd */
}

static void distrust(struct outcome *outcome, const struct options *options,
                     const struct fns_distrust *why)
{
    static const char hint[] =
        "keep it where only you and root may write: chmod go-w, or another directory";
    if (why->mode & 022)
        fail(outcome, hint, "%s: others may write to %s (mode %04o)", options->plan, why->path,
             why->mode);
    else
        fail(outcome, hint, "%s: %s belongs to uid %u, neither to you nor to root", options->plan,
             why->path, why->owner);
}

static void put_caller(char *text, size_t size, const struct fns_identity *identity)
{
    snprintf(text, size, "uid %u, gid %u, capabilities %llx, user namespace %llu%s",
             identity->uids[1], identity->gids[1], (unsigned long long)identity->capabilities,
             (unsigned long long)identity->userns,
             identity->oom_protected ? ", oom_score_adj below 0" : "");
}

static void refuse(struct outcome *outcome, const struct options *options, int fault,
                   const struct fns_identity *made_for, const struct fns_identity *here)
{
    static const char again[] =
        "compile it again, as the caller that uses it: fastns compile ... -o PLAN";
    char one[160], other[160];
    const char *plan = options->plan;
    switch ((enum fns_planfile_fault)fault) {
    case FNS_PLANFILE_NO_PLAN:
        fail(outcome, "fastns compile -o PLAN makes one", "%s: not a plan file", plan);
        return;
    case FNS_PLANFILE_BUILD:
        fail(outcome, again, "%s: compiled by another build of fastns (%s; this is %s)", plan,
             made_for->build, here->build);
        return;
    case FNS_PLANFILE_MACHINE:
        fail(outcome, again, "%s: compiled for another machine or kernel (%s; this is %s)", plan,
             made_for->machine, here->machine);
        return;
    case FNS_PLANFILE_CALLER:
        put_caller(one, sizeof one, made_for);
        put_caller(other, sizeof other, here);
        fail(outcome, again, "%s: compiled for another caller (%s; this is %s)", plan, one, other);
        return;
    case FNS_PLANFILE_DAMAGED: fail(outcome, again, "%s: the plan file is damaged", plan); return;
    case FNS_PLANFILE_NO_MEMORY: fail(outcome, NULL, "%s: out of memory", plan); return;
    }
}

/* The plan of a file. 0, or -1 and the outcome says why not. */
static int open_plan(const struct options *options, struct fns_planfile *file,
                     struct outcome *outcome)
{
    struct fns_identity here, made_for;
    struct fns_distrust why;
    char *bytes;
    size_t size;
    int ret = fns_read_trusted(options->plan, &bytes, &size, &why);
    if (ret == -EPERM && *why.path) {
        distrust(outcome, options, &why);
        return -1;
    }
    if (ret < 0) {
        fail(outcome, ret == -ENOENT ? "fastns compile -o PLAN makes one" : NULL, "%s: %s",
             options->plan, ret == -EINVAL ? "not a regular file" : strerror(-ret));
        return -1;
    }
    ret = fns_identify(&here);
    if (ret < 0) {
        fail(outcome, "mount -t proc proc /proc", "/proc: %s", strerror(-ret));
        return -1;
    }
    ret = fns_planfile_read(bytes, size, &here, &made_for, file);
    if (ret)
        refuse(outcome, options, ret, &made_for, &here);
    return ret ? -1 : 0;
}

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
    /* A detail of which there is nothing to say. */
    const struct fns_error plain = {.stage = error->stage, .err = error->err};
    return error->detail ? hint_of(file, &plain, path) : NULL;
}

/* The path that a failed op is about; NULL: none. */
static const char *path_of(const struct fns_planfile *file, const struct fns_error *error,
                           const char *command)
{
    const struct fns_plan *plan = &file->plan;
    uint32_t index = (uint32_t)error->op_index;
    if (error->op_index < 0)
        return error->stage == FNS_STAGE_EXEC    ? command
               : error->stage == FNS_STAGE_CHDIR ? file->cwd
                                                 : NULL;
    if (index >= plan->n_ops && plan->late) {
        index -= plan->n_ops;
        plan = plan->late;
    }
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

/* SIGINT, SIGTERM and SIGHUP, but not one that is ignored (nohup, a background job of a shell): blocked
 * from now on, and read from an fd. */
static sigset_t watched;

static int watch_signals(void)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction action;
    sigemptyset(&watched);
    for (int i = 0; i < 3; i++)
        if (sigaction(numbers[i], NULL, &action) == 0 && action.sa_handler != SIG_IGN)
            sigaddset(&watched, numbers[i]);
    signal(SIGCHLD, SIG_DFL); /* ignored, it would lose the status */
    signal(SIGPIPE, SIG_IGN); /* writing says so itself */
    if (sigprocmask(SIG_BLOCK, &watched, NULL) < 0)
        return -errno;
    int fd = signalfd(-1, &watched, SFD_CLOEXEC | SFD_NONBLOCK);
    return fd < 0 ? -errno : fd;
}

/* The next one that came; 0: none. */
static int take_signal(int fd)
{
    struct signalfd_siginfo info;
    return read(fd, &info, sizeof info) == sizeof info ? (int)info.ssi_signo : 0;
}

/* For a start that waits: it is given up for any of them. */
static int is_asked_to_end(void)
{
    sigset_t pending;
    if (sigpending(&pending) < 0)
        return 0;
    return (sigismember(&pending, SIGINT) == 1 && sigismember(&watched, SIGINT)) ||
           (sigismember(&pending, SIGTERM) == 1 && sigismember(&watched, SIGTERM)) ||
           (sigismember(&pending, SIGHUP) == 1 && sigismember(&watched, SIGHUP));
}

/* Whether a process catches or ignores SIGINT; 0 when it is gone. */
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

/* ---- the run --------------------------------------------------------------------------------- */

enum end { ENDED, TIMED_OUT, KILLED };

/* What a signal to this program does: the sandbox has to be ended by it, or it goes on. */
static enum end act_on(int signal, const struct fns_plan *plan, const struct fns_process *process)
{
    /* The terminal has sent SIGINT to a command in this session as well, but pid 1 of a namespace gets only
     * what it handles. A reaper as pid 1 hides whether its child does. */
    if (signal != SIGINT || (plan->options & FNS_PLAN_INIT) || !handles_sigint(process->pid))
        return KILLED;
    if (getsid(process->pid) != getsid(0))
        fns_kill(process, SIGINT);
    return ENDED;
}

/* Waits for the end, the time's, or a signal that asks for it; then `*signal` is that. */
static enum end await_end(const struct fns_plan *plan, const struct fns_process *process,
                          uint64_t deadline, int signals, int *signal)
{
    struct pollfd fds[2] = {{.fd = fns_end_fd(process), .events = POLLIN},
                            {.fd = signals, .events = POLLIN}};
    for (;;) {
        uint64_t now = fns_now(), left = FNS_LOOK_NS;
        if (deadline && now >= deadline)
            return fns_wait(process, 0) == 1 ? ENDED : TIMED_OUT;
        if (deadline && deadline - now < left)
            left = deadline - now;
        const struct timespec time = {0, (long)left};
        int ready = ppoll(fds, 2, &time, NULL);
        if (ready > 0 && fds[0].revents && fns_wait(process, 0) == 1)
            return ENDED;
        while (ready > 0 && fds[1].revents && (*signal = take_signal(signals)))
            if (act_on(*signal, plan, process) == KILLED)
                return KILLED;
        fns_attend(process, 0);
    }
}

/* Reaps what has ended, or is to be killed. 0, or -errno and `error`. */
static int end(const struct fns_plan *plan, const struct fns_process *process, int killed,
               struct fns_result *result, struct fns_error *error)
{
    int ret;
    if (killed)
        fns_kill_all(plan, process);
    do {
        while ((ret = fns_wait(process, -1)) == -EINTR || ret == 0)
            fns_attend(process, killed);
        if (ret > 0)
            ret = fns_reap(process, result);
    } while (ret == -EAGAIN);
    if (ret == 0 && result->lost)
        ret = fns_set_error(error, FNS_STAGE_INIT, -1, result->lost);
    else if (ret < 0)
        fns_set_error(error, FNS_STAGE_WAIT, -1, ret);
    return ret;
}

static int has_filter(const struct fns_plan *plan)
{
    for (uint32_t i = 0; plan && i < plan->n_ops; i++)
        if (plan->ops[i].code == FNS_OP_SECCOMP)
            return 1;
    return plan && has_filter(plan->late);
}

static void conclude(struct outcome *outcome, enum end how, int signal, const struct fns_plan *plan,
                     const struct fns_result *result)
{
    outcome->result = result;
    if (how == KILLED) {
        outcome->cause = "killed";
        outcome->signal = signal;
        outcome->exit_code = 128 + signal;
    } else if (how == TIMED_OUT) {
        outcome->cause = "timeout";
        outcome->signal = SIGKILL;
        outcome->exit_code = EXIT_TIMEOUT;
    } else if (result->code == CLD_EXITED) {
        outcome->cause = "exited";
        outcome->exit_code = result->status;
    } else {
        int filtered = result->status == SIGSYS && has_filter(plan);
        outcome->cause = filtered ? "seccomp" : "signaled";
        outcome->signal = result->status;
        outcome->exit_code = 128 + result->status;
    }
}

/* The paths to try for a command: itself, or with each of the directories. NULL: no memory. */
static char **paths_of(char *command, char *const *directories)
{
    size_t n = 0, i = 0;
    while (directories[n])
        n++;
    char **paths = calloc(n + 2, sizeof *paths);
    if (!paths || strchr(command, '/')) {
        if (paths)
            paths[0] = command;
        return paths;
    }
    for (; i < n; i++)
        if (asprintf(&paths[i], "%s/%s", directories[i], command) < 0)
            return NULL;
    return paths;
}

/* What a plan needs that no file holds: the engine's programs, and the user namespace. 0, or -errno and
 * `error`. */
static int prepare(struct fns_planfile *file, struct fns_args *args, struct fns_error *error)
{
    struct fns_plan *plan = &file->plan;
    void *image = NULL;
    int ret =
        fns_set_program(FNS_PROGRAM_EXEC, exec_program, (size_t)(exec_program_end - exec_program));
    if (ret == 0)
        ret = fns_set_program(FNS_PROGRAM_HELPER, helper_program,
                              (size_t)(helper_program_end - helper_program));
    if (ret == 0 && plan->late) {
        ret = fns_exec_image(plan, &image, &plan->image_size);
        plan->image = image;
    }
    if (ret < 0)
        return fns_set_error(error, FNS_STAGE_HELPER, -1, ret);
    if (plan->id_map != FNS_ID_MAP_RANGE)
        return 0;
    ret =
        fns_userns_open(file->maps[0], file->maps[1], *file->inotify ? file->inotify : NULL, error);
    args->userns = ret;
    return ret < 0 ? ret : 0;
}

static void run(struct fns_planfile *file, const struct options *options, struct outcome *outcome,
                struct fns_result *result)
{
    const struct fns_plan *plan = &file->plan;
    struct fns_process process;
    struct fns_error error = {.op_index = -1};
    struct fns_args args = {.argv = options->command,
                            .envp = file->envp,
                            .paths = paths_of(options->command[0], file->directories),
                            .cwd = file->cwd,
                            .stdio = {-1, -1, -1}};
    int64_t timeout = options->timeout_ns ? options->timeout_ns : file->timeout_ns;
    uint64_t time_ns = timeout > 0 ? (uint64_t)timeout : 0;
    int signal = 0, signals = watch_signals();
    int ret = signals < 0   ? fns_set_error(&error, FNS_STAGE_SIGNALS, -1, signals)
              : !args.paths ? fns_set_error(&error, FNS_STAGE_EXEC, -1, ENOMEM)
                            : prepare(file, &args, &error);
    fns_set_interrupted(is_asked_to_end);
    if (ret == 0)
        ret = fns_spawn(plan, &args, time_ns, &process, &error);
    if (ret == -EINTR && (signal = take_signal(signals))) {
        conclude(outcome, KILLED, signal, plan, NULL);
        return;
    }
    if (ret == -ETIME && process.late) {
        conclude(outcome, TIMED_OUT, 0, plan, NULL);
        return;
    }
    if (ret < 0) {
        fail_start(outcome, file, &error, options->command[0]);
        return;
    }
    enum end how = TIMED_OUT;
    if (!process.late)
        how = await_end(plan, &process, time_ns ? process.start + time_ns : 0, signals, &signal);
    if (end(plan, &process, how != ENDED, result, &error) < 0) {
        fail_start(outcome, file, &error, options->command[0]);
        return;
    }
    /* A signal that came before the end was known asks for it all the same; a Ctrl-C was the command's as
     * well. */
    for (int late; how == ENDED && (late = take_signal(signals));)
        if (late != SIGINT) {
            how = KILLED;
            signal = late;
        }
    outcome->wall_time = (double)(result->end - process.start) * 1e-9;
    conclude(outcome, how, signal, plan, result);
}

int main(int argc, char **argv)
{
    struct outcome outcome = {.op_index = -1};
    struct options options;
    struct fns_planfile file;
    struct fns_result result;
    (void)argc;
    hold_closed_fds();
    read_options(argv, &options);
    if (options.asked != ASKED_TO_RUN) {
        if (options.asked == ASKED_FOR_HELP)
            print_help();
        else
            printf("fastns-exec %s\n", FNS_VERSION);
        return fflush(stdout) == 0 ? 0 : EXIT_FAILED;
    }
    if (*options.wrong)
        fail(&outcome, options.hint, "%s", options.wrong);
    else if (getauxval(AT_SECURE))
        fail(&outcome, "remove the set-user-ID bit and the file's capabilities",
             "fastns-exec has rights of its own: a plan file would lend them to its author");
    else if (open_plan(&options, &file, &outcome) == 0)
        run(&file, &options, &outcome, &result);
    if (options.status_fd >= 0)
        write_status(options.status_fd, &outcome);
    return outcome.exit_code;
}
