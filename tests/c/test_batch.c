/* Pipes and batches through the C API: data, limits, deadlines, and a result for each job. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>

#include "plans.h"

enum { N_JOBS = 60, AT_ONCE = 4, MIB = 1 << 20, LIMIT = 1000 };

static struct fns_process spawn(const struct fns_plan *plan, const struct fns_args *args)
{
    struct fns_process process;
    struct fns_error error;
    CHECK_EQUAL(fns_spawn(plan, args, 0, &process, &error), 0);
    return process;
}

static void reap(const struct fns_process *process, int code, int status)
{
    struct fns_result result;
    CHECK_EQUAL(fns_reap(process, &result), 0);
    CHECK_EQUAL(result.code, code);
    CHECK_EQUAL(result.status, status);
    close(process->pidfd);
    if (process->control >= 0)
        close(process->control);
}

/* Starts the probe; returns an fns_io with pipes to it. */
static struct fns_io io_with(const struct fns_plan *plan, struct fns_args args, int with_stdin)
{
    struct fns_io io = {.fds = {-1, -1, -1}};
    int theirs[3];
    for (int i = with_stdin ? 0 : 1; i < 3; i++) {
        int ends[2];
        CHECK_EQUAL(pipe2(ends, O_CLOEXEC), 0);
        io.fds[i] = ends[i == 0];
        theirs[i] = args.stdio[i] = ends[i != 0];
    }
    io.process = spawn(plan, &args);
    for (int i = with_stdin ? 0 : 1; i < 3; i++)
        close(theirs[i]);
    return io;
}

static void free_io(struct fns_io *io)
{
    for (int i = 0; i < 3; i++)
        CHECK_EQUAL(io->fds[i], -1); /* fns_io_run() closes each pipe at its end */
    fns_buffer_free(&io->output[0]);
    fns_buffer_free(&io->output[1]);
}

static void moves_much_both_ways(const struct fns_plan *plan)
{
    struct command command;
    char *input = malloc(8 * MIB);
    CHECK(input != NULL);
    for (size_t i = 0; i < 8 * MIB; i++)
        input[i] = (char)random_below(256);
    struct fns_io io = io_with(plan, probe_args(&command, "--echo", NULL, NULL), 1);
    io.input = input;
    io.input_size = 8 * MIB;
    CHECK_EQUAL(run_io(&io), FNS_IO_DONE);
    CHECK_EQUAL(io.output[0].size, 8 * MIB);
    CHECK_EQUAL(io.output[1].size, 0);
    CHECK_EQUAL(memcmp(io.output[0].data, input, 8 * MIB), 0);
    reap(&io.process, CLD_EXITED, 0);
    io.process.pidfd = -1;
    CHECK_EQUAL(run_io(&io), FNS_IO_DONE); /* a second call has nothing to do */
    free_io(&io);
    free(input);
}

static void takes_no_sigpipe(const struct fns_plan *plan)
{
    struct command command;
    char *input = calloc(1, MIB);
    CHECK(input && signal(SIGPIPE, SIG_DFL) != SIG_ERR);
    struct fns_io io = io_with(plan, probe_args(&command, "--exit", "4", NULL), 1);
    io.input = input;
    io.input_size = MIB;
    CHECK_EQUAL(run_io(&io), FNS_IO_DONE);
    reap(&io.process, CLD_EXITED, 4);
    free_io(&io);
    free(input);
}

static void ends_at_its_deadline(const struct fns_plan *plan)
{
    struct command command;
    struct fns_io io = io_with(plan, probe_args(&command, "--sleep", "60", NULL), 0);
    io.deadline = fns_now() + 1000000;
    CHECK_EQUAL(run_io(&io), FNS_IO_TIMEOUT);
    CHECK_EQUAL(fns_kill_all(plan, &io.process), 0);
    CHECK_EQUAL(fns_io_finish(&io), 0);
    reap(&io.process, CLD_KILLED, SIGKILL);
    free_io(&io);
}

static void keeps_no_more_than_its_limit(const struct fns_plan *plan)
{
    struct command command;
    char *input = calloc(1, MIB);
    CHECK(input != NULL);
    for (size_t limit = 1; limit <= 100000; limit *= 10) {
        struct fns_io io = io_with(plan, probe_args(&command, "--echo", NULL, NULL), 1);
        io.input = input;
        io.input_size = MIB;
        io.limit = limit;
        CHECK_EQUAL(run_io(&io), FNS_IO_DONE);
        CHECK_EQUAL(io.output[0].size, limit);
        CHECK_EQUAL(io.output[0].dropped, MIB - limit);
        CHECK_EQUAL(io.output[1].dropped, 0);
        reap(&io.process, CLD_EXITED, 0);
        free_io(&io);
    }
    free(input);
}

/* ---- batches -------------------------------------------------------------------------------- */

static void free_jobs(struct fns_job *jobs)
{
    for (int i = 0; i < N_JOBS; i++) {
        fns_buffer_free(&jobs[i].io.output[0]);
        fns_buffer_free(&jobs[i].io.output[1]);
    }
}

static void run(struct fns_job *jobs, unsigned concurrency, int spawn)
{
    struct fns_batch *batch;
    CHECK_EQUAL(fns_batch_open(&batch, jobs, N_JOBS, concurrency, spawn), 0);
    int ret;
    while ((ret = fns_batch_run(batch)) != 1)
        CHECK(ret == 0 || ret == -EINTR);
    CHECK_EQUAL(fns_batch_done(batch), N_JOBS);
    fns_batch_close(batch);
}

/* Of every five jobs one has no command and one exceeds its timeout. The others echo a number. */
static void each_job_has_its_own_result(const struct fns_plan *plan)
{
    static struct command commands[N_JOBS];
    static struct fns_job jobs[N_JOBS];
    static char inputs[N_JOBS][12], *missing[] = {(char *)"/missing", NULL};
    memset(jobs, 0, sizeof jobs);
    for (int i = 0; i < N_JOBS; i++) {
        snprintf(inputs[i], sizeof inputs[i], "%d", i);
        jobs[i] = (struct fns_job){.plan = plan,
                                   .args = probe_args(&commands[i], "--echo", NULL, NULL),
                                   .pipes = FNS_PIPE_STDIN | FNS_PIPE_STDOUT | FNS_PIPE_STDERR,
                                   .io.input = inputs[i],
                                   .io.input_size = strlen(inputs[i]),
                                   .timeout_ns = -1,
                                   .io.process = {.pidfd = -1, .control = -1}};
        if (i % 5 == 1)
            jobs[i].args.paths = missing;
        if (i % 5 == 2) {
            jobs[i].args = probe_args(&commands[i], "--sleep", "60", NULL);
            jobs[i].timeout_ns = 20000000;
        }
    }
    run(jobs, AT_ONCE, 0);
    for (int i = 0; i < N_JOBS; i++) {
        if (i % 5 == 1) {
            CHECK_EQUAL(jobs[i].error.stage, FNS_STAGE_EXEC);
            CHECK_EQUAL(jobs[i].error.err, ENOENT);
        } else if (i % 5 == 2) {
            CHECK_EQUAL(jobs[i].timed_out, 1);
            CHECK_EQUAL(jobs[i].result.status, SIGKILL);
        } else {
            CHECK_EQUAL(jobs[i].error.stage, FNS_STAGE_NONE);
            CHECK_EQUAL(jobs[i].result.status, 0);
            CHECK_EQUAL(jobs[i].io.output[0].size, strlen(inputs[i]));
            CHECK_EQUAL(memcmp(jobs[i].io.output[0].data, inputs[i], strlen(inputs[i])), 0);
        }
        CHECK_EQUAL(jobs[i].io.process.pidfd, -1);
    }
    free_jobs(jobs);
}

/* Each job writes much more than a pipe holds, to both streams. */
static void each_job_keeps_no_more_than_its_limit(const struct fns_plan *plan)
{
    static struct command commands[N_JOBS];
    static struct fns_job jobs[N_JOBS];
    char kept[LIMIT];
    memset(kept, 'x', sizeof kept);
    for (int i = 0; i < N_JOBS; i++)
        jobs[i] = (struct fns_job){.plan = plan,
                                   .args = probe_args(&commands[i], "--flood", "both", "1048576"),
                                   .pipes = FNS_PIPE_STDOUT | FNS_PIPE_STDERR,
                                   .io.limit = LIMIT,
                                   .timeout_ns = -1,
                                   .io.process = {.pidfd = -1, .control = -1}};
    run(jobs, AT_ONCE, 0);
    for (int i = 0; i < N_JOBS; i++) {
        CHECK_EQUAL(jobs[i].error.stage, FNS_STAGE_NONE);
        CHECK_EQUAL(jobs[i].result.code, CLD_EXITED);
        CHECK_EQUAL(jobs[i].result.status, 0);
        for (int j = 0; j < 2; j++) {
            CHECK_EQUAL(jobs[i].io.output[j].size, LIMIT);
            CHECK_EQUAL(jobs[i].io.output[j].dropped, MIB - LIMIT);
            CHECK_EQUAL(memcmp(jobs[i].io.output[j].data, kept, LIMIT), 0);
        }
    }
    free_jobs(jobs);
}

static void sleeping_jobs(struct fns_job *jobs, struct command *commands,
                          const struct fns_plan *plan)
{
    for (int i = 0; i < N_JOBS; i++)
        jobs[i] = (struct fns_job){.plan = plan,
                                   .args = probe_args(&commands[i], "--sleep", "60", NULL),
                                   .pipes = FNS_PIPE_STDOUT,
                                   .timeout_ns = -1,
                                   .io.process = {.pidfd = -1, .control = -1}};
}

static void only_spawns(const struct fns_plan *plan)
{
    static struct command commands[N_JOBS];
    static struct fns_job jobs[N_JOBS];
    sleeping_jobs(jobs, commands, plan);
    run(jobs, 1, 1);
    for (int i = 0; i < N_JOBS; i++) {
        CHECK_EQUAL(jobs[i].error.stage, FNS_STAGE_NONE);
        CHECK_EQUAL(fns_wait(&jobs[i].io.process, 0), 0);
        CHECK_EQUAL(fns_kill(&jobs[i].io.process, SIGKILL), 0);
        wait_for_end(&jobs[i].io.process);
        reap(&jobs[i].io.process, CLD_KILLED, SIGKILL);
    }
}

static void is_stopped(const struct fns_plan *plan)
{
    static struct command commands[N_JOBS];
    static struct fns_job jobs[N_JOBS];
    struct fns_batch *batch;
    int killed = 0;
    sleeping_jobs(jobs, commands, plan);
    CHECK_EQUAL(fns_batch_open(&batch, jobs, N_JOBS, AT_ONCE, 0), 0);
    while (running(jobs, N_JOBS) < AT_ONCE)
        CHECK_EQUAL(fns_batch_run(batch), 0);
    CHECK_EQUAL(fns_batch_done(batch), 0);
    fns_batch_close(batch);
    for (int i = 0; i < N_JOBS; i++)
        killed += jobs[i].result.code == CLD_KILLED;
    CHECK_EQUAL(killed, AT_ONCE);
    no_child_is_left();
    free_jobs(jobs);
}

int main(int argc, char **argv)
{
    static const unsigned ways[] = {0, FNS_PLAN_HOP, FNS_PLAN_INIT};
    CHECK_EQUAL(argc, 2);
    use_programs(argv[1]);
    int before = open_fds();
    for (int i = 0; i < 3; i++) {
        struct made made;
        make_plan(&made, ways[i]);
        moves_much_both_ways(&made.plan);
        takes_no_sigpipe(&made.plan);
        ends_at_its_deadline(&made.plan);
        keeps_no_more_than_its_limit(&made.plan);
        each_job_has_its_own_result(&made.plan);
        each_job_keeps_no_more_than_its_limit(&made.plan);
        only_spawns(&made.plan);
        is_stopped(&made.plan);
    }
    CHECK_EQUAL(open_fds(), before);
    puts("test_batch: pipes and batches, direct, staged and behind a reaper");
    return 0;
}
