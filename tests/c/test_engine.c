/* The engine through the C API: early ops without a hop, the index of a failed op, a dynamically
 * linked command between pipes, a large batch, and a batch stopped in the middle. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>

#include "plans.h"

enum { N_JOBS = 200, MIB = 1 << 20, AT_ONCE = 4 };

/* Arguments of the jobs. They must outlive the batch. */
static struct command commands[N_JOBS];
static struct fns_job jobs[N_JOBS];

/* The same plan is accepted with a hop, so only the missing hop can be the reason. */
static void early_ops_need_a_hop(void)
{
    struct fns_op op = {.code = FNS_OP_UMASK, .stage = FNS_STAGE_UMASK};
    struct fns_plan plan = {
        .ops = &op, .strings = "", .n_ops = 1, .n_strings = 1, .options = FNS_PLAN_HOP};
    int bad;
    plan.n_early = 1;
    CHECK_EQUAL(fns_plan_check(&plan, &bad), 0);
    plan.options = 0;
    CHECK_EQUAL(fns_plan_check(&plan, &bad), -EINVAL);
    CHECK_EQUAL(bad, -1);
    plan.options = FNS_PLAN_HOP;
    plan.n_early = 2;
    CHECK_EQUAL(fns_plan_check(&plan, &bad), -EINVAL);
}

/* The failing op runs in a direct start, after a hop, or as an early op. */
static void names_the_namespace_that_is_missing(void)
{
    static const struct {
        unsigned options, n_early;
    } ways[] = {{0, 0}, {FNS_PLAN_HOP, 0}, {FNS_PLAN_HOP, 1}};
    for (unsigned i = 0; i < sizeof ways / sizeof *ways; i++) {
        struct made made;
        struct command command;
        struct fns_process process;
        struct fns_error error;
        struct fns_args args = probe_args(&command, "--exit", "0", NULL);
        int before = open_fds();
        memset(&made, 0, sizeof made);
        made.plan.n_strings = 1;
        made.plan.options = ways[i].options;
        made.plan.n_early = ways[i].n_early;
        add(&made, FNS_OP_SETNS, FNS_STAGE_SETNS, NULL, NULL);
        made.ops[0].source = place(&made, "/missing/ns");
        finish(&made);
        CHECK_EQUAL(fns_spawn(&made.plan, &args, 0, &process, &error), -ENOENT);
        CHECK_EQUAL(error.stage, FNS_STAGE_SETNS);
        CHECK_EQUAL(error.op_index, 0);
        CHECK_EQUAL(error.err, ENOENT);
        CHECK_EQUAL(error.detail, FNS_DETAIL_SOURCE);
        no_child_is_left();
        CHECK_EQUAL(open_fds(), before);
    }
}

static void echoes_through_cat(void)
{
    struct made made;
    char *argv[] = {(char *)"cat", NULL}, *paths[] = {(char *)"/bin/cat", NULL}, *envp[] = {NULL};
    struct fns_args args = {
        .argv = argv, .envp = envp, .paths = paths, .cwd = "/", .stdio = {-1, -1, -1}};
    struct fns_io io = {.fds = {-1, -1, -1}};
    struct fns_result result;
    struct fns_error error;
    int in[2], out[2];
    char *input = malloc(MIB);
    CHECK(input != NULL);
    for (size_t i = 0; i < MIB; i++)
        input[i] = (char)random_below(256);
    make_bare_plan(&made);
    CHECK_EQUAL(pipe2(in, O_CLOEXEC), 0);
    CHECK_EQUAL(pipe2(out, O_CLOEXEC), 0);
    args.stdio[0] = in[0];
    args.stdio[1] = out[1];
    CHECK_EQUAL(fns_spawn(&made.plan, &args, 0, &io.process, &error), 0);
    close(in[0]);
    close(out[1]);
    io.fds[0] = in[1];
    io.fds[1] = out[0];
    io.input = input;
    io.input_size = MIB;
    CHECK_EQUAL(run_io(&io), FNS_IO_DONE);
    CHECK_EQUAL(io.output[0].size, MIB);
    CHECK_EQUAL(memcmp(io.output[0].data, input, MIB), 0);
    CHECK_EQUAL(fns_reap(&io.process, &result), 0);
    CHECK_EQUAL(result.code, CLD_EXITED);
    CHECK_EQUAL(result.status, 0);
    close(io.process.pidfd);
    fns_buffer_free(&io.output[0]);
    free(input);
}

/* Makes every job from `first` on a run of the probe with these arguments. */
static void set_jobs(const struct fns_plan *plan, int first, const char *option, const char *value,
                     const char *second)
{
    for (int i = first; i < N_JOBS; i++)
        jobs[i] = (struct fns_job){.plan = plan,
                                   .args = probe_args(&commands[i], option, value, second),
                                   .timeout_ns = -1,
                                   .io.process = {.pidfd = -1, .control = -1}};
}

static void every_tenth_command_is_missing(void)
{
    static char *missing[] = {(char *)"/missing", NULL};
    struct made made;
    struct fns_batch *batch;
    int ret;
    make_bare_plan(&made);
    set_jobs(&made.plan, 0, "--exit", "5", NULL);
    for (int i = 0; i < N_JOBS; i += 10)
        jobs[i].args.paths = missing;
    CHECK_EQUAL(fns_batch_open(&batch, jobs, N_JOBS, AT_ONCE, 0), 0);
    while ((ret = fns_batch_run(batch)) != 1)
        CHECK(ret == 0 || ret == -EINTR);
    fns_batch_close(batch);
    for (int i = 0; i < N_JOBS; i++) {
        int is_missing = i % 10 == 0;
        CHECK_EQUAL(jobs[i].error.stage, is_missing ? FNS_STAGE_EXEC : FNS_STAGE_NONE);
        CHECK_EQUAL(jobs[i].error.err, is_missing ? ENOENT : 0);
        CHECK_EQUAL(jobs[i].error.op_index, -1);
        CHECK_EQUAL(jobs[i].result.code, is_missing ? 0 : CLD_EXITED);
        CHECK_EQUAL(jobs[i].result.status, is_missing ? 0 : 5);
    }
    no_child_is_left();
}

/* The first ten jobs end, the others sleep. The batch is closed when ten are done. */
static void is_stopped_half_way(void)
{
    struct made made;
    struct fns_batch *batch;
    int killed = 0;
    make_bare_plan(&made);
    set_jobs(&made.plan, 0, "--exit", "0", NULL);
    set_jobs(&made.plan, 10, "--sleep", "600", NULL);
    CHECK_EQUAL(fns_batch_open(&batch, jobs, N_JOBS, AT_ONCE, 0), 0);
    while (fns_batch_done(batch) < 10 || running(jobs, N_JOBS) < AT_ONCE)
        CHECK_EQUAL(fns_batch_run(batch), 0);
    fns_batch_close(batch);
    for (int i = 0; i < N_JOBS; i++) {
        CHECK_EQUAL(jobs[i].error.stage, FNS_STAGE_NONE);
        CHECK_EQUAL(jobs[i].io.process.pidfd, -1);
        CHECK(i >= 10 || jobs[i].result.code == CLD_EXITED);
        CHECK(i < 10 || jobs[i].result.code != CLD_EXITED);
        killed += jobs[i].result.code == CLD_KILLED;
    }
    CHECK_EQUAL(killed, AT_ONCE);
    no_child_is_left();
}

int main(int argc, char **argv)
{
    static void (*const tests[])(void) = {early_ops_need_a_hop, names_the_namespace_that_is_missing,
                                          echoes_through_cat, every_tenth_command_is_missing,
                                          is_stopped_half_way};
    int n_tests = sizeof tests / sizeof *tests;
    CHECK_EQUAL(argc, 2);
    use_programs(argv[1]);
    int before = open_fds();
    for (int i = 0; i < n_tests; i++) {
        tests[i]();
        CHECK_EQUAL(open_fds(), before);
    }
    printf("test_engine: %d passed, 0 failed\n", n_tests); /* a failure ends the program */
    return 0;
}
