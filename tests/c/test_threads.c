/* Starts, batches and templates from many threads at once, for ThreadSanitizer (`make tsan`). It
 * finds data that threads share without a lock, but not what a child does in the caller's memory.
 *
 * The threads share the plans, the programs and one server, like threads of a Python process. Each
 * also has its own template. In the control, built with -DRACE, they change a counter without a
 * lock.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>

#include "plans.h"

enum { THREADS = 8, N_JOBS = 12, AT_ONCE = 3, WAYS = 3, N_GROUPS = 2 * THREADS * AT_ONCE };

static struct made plans[WAYS], server_plan, sandbox_plan;
static struct fns_process shared_server;
static struct fns_cgroups *groups;
static char groups_directory[64];
static int groups_fd, rounds, null;
#ifdef RACE
static int finished;
#endif

static void make_template(void)
{
    int bad;
    make_plan(&server_plan, 0);
    sandbox_plan.plan.n_strings = 1;
    sandbox_plan.plan.id_map = FNS_ID_MAP_SELF;
    sandbox_plan.plan.clone_flags = NEWUSER | NEWPID | NEWUTS;
    add(&sandbox_plan, FNS_OP_WRITE, FNS_STAGE_ID_MAP, "/proc/self/setgroups", "deny");
    add(&sandbox_plan, FNS_OP_WRITE, FNS_STAGE_ID_MAP, "/proc/self/gid_map", "0 0 1\n");
    add(&sandbox_plan, FNS_OP_WRITE, FNS_STAGE_ID_MAP, "/proc/self/uid_map", "0 0 1\n");
    finish(&sandbox_plan);
    server_plan.plan.options |= FNS_PLAN_SERVER;
    server_plan.plan.sandbox = &sandbox_plan.plan;
    CHECK_EQUAL(fns_plan_check(&server_plan.plan, &bad), 0);
}

static void start_server(struct fns_process *server)
{
    struct fns_error error;
    CHECK_EQUAL(fns_server_start(&server_plan.plan, null, 0, NULL, NULL, server, &error), 0);
}

static void stop_server(struct fns_process *server)
{
    fns_server_stop(server);
    fns_server_close(server);
}

static void spawns(const struct fns_plan *plan, int number)
{
    struct command command;
    struct fns_process process;
    struct fns_result result;
    struct fns_error error;
    char code[12];
    snprintf(code, sizeof code, "%d", number);
    struct fns_args args = probe_args(&command, "--exit", code, NULL);
    CHECK_EQUAL(fns_spawn(plan, &args, 0, &process, &error), 0);
    while (fns_wait(&process, -1) != 1)
        fns_attend(&process, 0);
    CHECK_EQUAL(fns_reap(&process, &result), 0);
    CHECK_EQUAL(result.status, number);
    close(process.pidfd);
    if (process.control >= 0)
        close(process.control);
    command.paths[0] = (char *)"/missing";
    CHECK_EQUAL(fns_spawn(plan, &args, 0, &process, &error), -ENOENT);
}

static void asks(const struct fns_process *server, int number)
{
    struct command command;
    struct fns_process process;
    struct fns_result result;
    struct fns_error error;
    char code[12];
    snprintf(code, sizeof code, "%d", number);
    struct fns_args args = probe_args(&command, "--exit", code, NULL);
    int connection = fns_server_connect(server, FNS_PATIENT);
    CHECK(connection >= 0);
    CHECK_EQUAL(fns_server_spawn(server, connection, &sandbox_plan.plan, &args, &process, &error),
                0);
    wait_for_end(&process);
    CHECK_EQUAL(fns_server_reap(connection, &process, &result), 0);
    CHECK_EQUAL(result.status, number);
    close(process.pidfd);
    close(connection);
}

static void runs_a_batch(const struct fns_plan *plan, const struct fns_process *server, int number)
{
    struct command commands[N_JOBS];
    struct fns_job jobs[N_JOBS];
    struct fns_batch *batch;
    char inputs[N_JOBS][12];
    int result;
    for (int i = 0; i < N_JOBS; i++) {
        snprintf(inputs[i], sizeof inputs[i], "%d", 100 * number + i);
        jobs[i] = (struct fns_job){.plan = plan,
                                   .server = server,
                                   .groups = groups,
                                   .args = probe_args(&commands[i], "--echo", NULL, NULL),
                                   .pipes = FNS_PIPE_STDIN | FNS_PIPE_STDOUT,
                                   .io.input = inputs[i],
                                   .io.input_size = strlen(inputs[i]),
                                   .timeout_ns = -1,
                                   .io.process = {.pidfd = -1, .control = -1}};
    }
    CHECK_EQUAL(fns_batch_open(&batch, jobs, N_JOBS, AT_ONCE, 0), 0);
    while ((result = fns_batch_run(batch)) != 1)
        CHECK(result == 0 || result == -EINTR);
    fns_batch_close(batch);
    for (int i = 0; i < N_JOBS; i++) {
        CHECK_EQUAL(jobs[i].error.stage, FNS_STAGE_NONE);
        CHECK_EQUAL(jobs[i].result.status, 0);
        CHECK_EQUAL(jobs[i].io.output[0].size, strlen(inputs[i]));
        CHECK_EQUAL(memcmp(jobs[i].io.output[0].data, inputs[i], strlen(inputs[i])), 0);
        fns_buffer_free(&jobs[i].io.output[0]);
        fns_buffer_free(&jobs[i].io.output[1]);
    }
}

/* ---- cgroups, which all threads share -------------------------------------------------------- */

/* Makes fake cgroups: numbered directories whose counters are always 0. */
static void make_groups(void)
{
    static const struct fns_cgroup_counter used = {
        .kind = FNS_COUNT_CPU_TIME, .file = "../used", .key = "", .scale = 1};
    char directory[] = "/tmp/fastns-threads-XXXXXX", name[12];
    CHECK(mkdtemp(directory) != NULL);
    int at = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int file = openat(at, "used", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    CHECK(at >= 0 && file >= 0 && write(file, "0", 1) == 1);
    close(file);
    for (int i = 0; i < N_GROUPS; i++) {
        snprintf(name, sizeof name, "%d", i);
        CHECK_EQUAL(mkdirat(at, name, 0700), 0);
    }
    const struct fns_cgroup_plan plan = {.hierarchies = {{.directory = at}},
                                         .counters = &used,
                                         .n_counters = 1,
                                         .cpu_time_ns = 1000000};
    snprintf(groups_directory, sizeof groups_directory, "%s", directory);
    groups_fd = at;
    CHECK_EQUAL(fns_cgroups_open(&groups, &plan), 0);
}

static void remove_groups(void)
{
    char name[12];
    CHECK_EQUAL(fns_cgroups_remove(groups, 0), 0);
    fns_cgroups_close(groups);
    for (int i = 0; i < N_GROUPS; i++) {
        snprintf(name, sizeof name, "%d", i);
        CHECK_EQUAL(unlinkat(groups_fd, name, AT_REMOVEDIR), 0);
    }
    CHECK_EQUAL(unlinkat(groups_fd, "used", 0), 0);
    CHECK_EQUAL(rmdir(groups_directory), 0);
    close(groups_fd);
}

static void *do_all(void *arg)
{
    int number = *(int *)arg;
    struct fns_process own;
    start_server(&own);
    for (int i = 0; i < rounds; i++) {
        const struct fns_plan *plan = &plans[(number + i) % WAYS].plan;
        spawns(plan, number);
        runs_a_batch(plan, NULL, number);
        asks(&shared_server, number);
        asks(&own, number);
        runs_a_batch(&sandbox_plan.plan, number % 2 ? &own : &shared_server, number);
    }
    stop_server(&own);
#ifdef RACE
    finished++;
#endif
    return NULL;
}

int main(int argc, char **argv)
{
    static const unsigned ways[WAYS] = {0, FNS_PLAN_HOP, FNS_PLAN_INIT};
    pthread_t threads[THREADS];
    int numbers[THREADS];
    CHECK(argc == 2 || argc == 3);
    rounds = argc == 3 ? atoi(argv[2]) : 3;
    use_programs(argv[1]);
    for (int i = 0; i < WAYS; i++)
        make_plan(&plans[i], ways[i]);
    make_template();
    null = open("/dev/null", O_RDWR | O_CLOEXEC);
    make_groups();
    start_server(&shared_server);
    for (int i = 0; i < THREADS; i++) {
        numbers[i] = i;
        CHECK_EQUAL(pthread_create(&threads[i], NULL, do_all, &numbers[i]), 0);
    }
    for (int i = 0; i < THREADS; i++)
        CHECK_EQUAL(pthread_join(threads[i], NULL), 0);
    stop_server(&shared_server);
    remove_groups();
    close(null);
    no_child_is_left();
    puts("test_threads: spawns, batches and templates from 8 threads");
    return 0;
}
