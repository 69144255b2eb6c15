/* Templates through the C API alone: sandboxes of a server, to the end and failing, and its end. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>

#include "plans.h"

enum { ROUNDS = 40, THREADS = 4 };

/* The server's plan and that of its sandboxes: a user and a pid namespace of its own for each. */
struct template
{
    struct made server, sandbox;
    struct fns_process process;
};

static void start(struct template *template)
{
    struct fns_error error;
    int bad, null = open("/dev/null", O_RDWR | O_CLOEXEC);
    make_plan(&template->server, FNS_PLAN_STAGED);
    memset(&template->sandbox, 0, sizeof template->sandbox);
    struct made *made = &template->sandbox;
    made->plan.n_strings = 1;
    made->plan.id_map = FNS_ID_MAP_SELF;
    made->plan.clone_flags = NEWUSER | NEWPID | NEWUTS;
    add(made, FNS_OP_WRITE, FNS_STAGE_ID_MAP, "/proc/self/setgroups", "deny");
    add(made, FNS_OP_WRITE, FNS_STAGE_ID_MAP, "/proc/self/gid_map", "0 0 1\n");
    add(made, FNS_OP_WRITE, FNS_STAGE_ID_MAP, "/proc/self/uid_map", "0 0 1\n");
    add(made, FNS_OP_HOSTNAME, FNS_STAGE_HOSTNAME, NULL, "sandbox");
    finish(made);
    template->server.plan.options |= FNS_PLAN_SERVER;
    template->server.plan.sandbox = &made->plan;
    CHECK_EQUAL(fns_plan_check(&template->server.plan, &bad), 0);
    CHECK_EQUAL(fns_server_start(&template->server.plan, null, &template->process, &error), 0);
    close(null);
}

static void run(const struct template *template, int connection, int code)
{
    struct command command;
    struct fns_process process;
    struct fns_result result;
    struct fns_error error;
    char text[12];
    snprintf(text, sizeof text, "%d", code);
    struct fns_args args = probe_args(&command, "--exit", text, NULL);
    CHECK_EQUAL(fns_server_spawn(connection, &template->sandbox.plan, &args, &process, &error), 0);
    CHECK(process.pid > 0 && process.pidfd > 2);
    CHECK_EQUAL(fns_wait(&process, -1), 1);
    CHECK_EQUAL(fns_server_reap(connection, &process, &result), 0);
    CHECK_EQUAL(result.code, CLD_EXITED);
    CHECK_EQUAL(result.status, code);
    close(process.pidfd);
}

static void fails(const struct template *template, int connection)
{
    struct command command;
    struct fns_process process;
    struct fns_error error;
    struct fns_args args = probe_args(&command, "--exit", "0", NULL);
    char *missing[] = {(char *)"/missing", NULL};
    int closed = 1 << 19;
    args.paths = missing;
    CHECK_EQUAL(fns_server_spawn(connection, &template->sandbox.plan, &args, &process, &error),
                -ENOENT);
    CHECK_EQUAL(error.stage, FNS_STAGE_EXEC);
    args = probe_args(&command, "--exit", "0", NULL);
    args.keep = &closed;
    args.n_keep = 1;
    CHECK_EQUAL(fns_server_spawn(connection, &template->sandbox.plan, &args, &process, &error),
                -EBADF);
    CHECK_EQUAL(error.stage, FNS_STAGE_FDS);
}

/* By fns_server_run(), which hears of the start and of the end at once. */
static int run_quietly(const struct template *template, int connection, struct fns_args *args,
                       int kill, struct fns_result *result, struct fns_error *error)
{
    struct fns_process process;
    CHECK_EQUAL(fns_server_run(connection, args, &process, error), 0);
    CHECK(process.quiet && process.pidfd < 0);
    if (kill)
        CHECK_EQUAL(fns_kill_all(&template->sandbox.plan, &process), 0);
    CHECK_EQUAL(fns_wait(&process, -1), 1);
    return fns_server_end(&process, &template->sandbox.plan, result, error);
}

static void runs_quietly(const struct template *template, int connection)
{
    struct command command;
    struct fns_result result;
    struct fns_error error;
    char *missing[] = {(char *)"/missing", NULL};
    struct fns_args args = probe_args(&command, "--exit", "9", NULL);
    CHECK_EQUAL(run_quietly(template, connection, &args, 0, &result, &error), 0);
    CHECK_EQUAL(result.code, CLD_EXITED);
    CHECK_EQUAL(result.status, 9);
    args.paths = missing;
    CHECK_EQUAL(run_quietly(template, connection, &args, 0, &result, &error), -ENOENT);
    CHECK_EQUAL(error.stage, FNS_STAGE_EXEC);
    CHECK_EQUAL(error.detail, FNS_DETAIL_NONE);
}

static void *work(void *arg)
{
    const struct template *template = arg;
    int connection = fns_server_connect(&template->process);
    int other = fns_server_connect(&template->process);
    CHECK(connection >= 0 && other >= 0);
    for (int i = 0; i < ROUNDS; i++) {
        run(template, connection, i);
        runs_quietly(template, i % 2 ? connection : other);
    }
    fails(template, connection);
    run(template, other, 7);
    close(connection);
    close(other);
    return NULL;
}

static void stop(struct template *template)
{
    fns_server_stop(&template->process);
    fns_server_stop(&template->process); /* once more does nothing */
    fns_server_close(&template->process);
    CHECK_EQUAL(waitid(P_ALL, 0, NULL, WEXITED | WNOHANG | __WALL), -1);
    CHECK_EQUAL(errno, ECHILD);
}

static void starts_from_many_threads(void)
{
    static struct template template;
    pthread_t threads[THREADS];
    int before = open_fds();
    start(&template);
    for (int i = 0; i < THREADS; i++)
        CHECK_EQUAL(pthread_create(&threads[i], NULL, work, &template), 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    stop(&template);
    CHECK_EQUAL(open_fds(), before);
}

static void starts_what_is_parked(void)
{
    static struct template template;
    int before = open_fds();
    start(&template);
    int connection = fns_server_connect(&template.process);
    CHECK_EQUAL(fns_server_park(connection), 0);
    for (int i = 0; i < ROUNDS; i++)
        runs_quietly(&template, connection);
    fails(&template, connection);
    struct command command;
    struct fns_process process;
    struct fns_result result;
    struct fns_error error;
    struct fns_args args = probe_args(&command, "--sleep", "60", NULL);
    CHECK_EQUAL(fns_server_spawn(connection, &template.sandbox.plan, &args, &process, &error), 0);
    close(connection); /* it runs, and has nothing to do with it any more */
    CHECK_EQUAL(fns_wait(&process, 20000000), 0);
    CHECK_EQUAL(fns_kill(&process, SIGKILL), 0);
    CHECK_EQUAL(fns_wait(&process, -1), 1);
    connection = fns_server_connect(&template.process);
    CHECK_EQUAL(fns_server_reap(connection, &process, &result), 0);
    CHECK_EQUAL(result.code, CLD_KILLED);
    CHECK_EQUAL(fns_server_reap(connection, &process, &result), -ECHILD); /* but once */
    close(process.pidfd);
    close(connection);
    stop(&template);
    CHECK_EQUAL(open_fds(), before);
}

static void ends_with_its_connection_and_its_server(void)
{
    static struct template template;
    struct command command;
    struct fns_process first, second;
    struct fns_result result;
    struct fns_error error;
    int before = open_fds();
    start(&template);
    struct fns_args args = probe_args(&command, "--sleep", "60", NULL);
    int connections[] = {fns_server_connect(&template.process),
                         fns_server_connect(&template.process)};
    const struct fns_plan *plan = &template.sandbox.plan;
    CHECK_EQUAL(run_quietly(&template, connections[0], &args, 1, &result, &error) == 0 ||
                    error.detail == FNS_DETAIL_KILLED,
                1); /* before its exec, or after */
    close(connections[0]);
    connections[0] = fns_server_connect(&template.process);
    CHECK_EQUAL(fns_server_run(connections[0], &args, &first, &error), 0);
    CHECK_EQUAL(fns_server_spawn(connections[1], plan, &args, &second, &error), 0);
    CHECK_EQUAL(fns_wait(&first, 20000000), 0);
    CHECK_EQUAL(fns_wait(&second, 0), 0);
    fns_server_stop(&template.process);
    CHECK_EQUAL(fns_wait(&first, -1), 1);
    CHECK_EQUAL(fns_wait(&second, -1), 1);
    CHECK_EQUAL(fns_server_end(&first, plan, &result, &error), -ECANCELED);
    CHECK_EQUAL(error.detail, FNS_DETAIL_BROKEN);
    CHECK_EQUAL(fns_server_reap(connections[1], &second, &result), -ECANCELED);
    close(second.pidfd);
    CHECK_EQUAL(fns_server_spawn(connections[1], plan, &args, &second, &error), -EPIPE);
    CHECK_EQUAL(error.stage, FNS_STAGE_HELPER);
    CHECK_EQUAL(fns_server_connect(&template.process), -EPIPE);
    close(connections[0]);
    close(connections[1]);
    stop(&template);
    CHECK_EQUAL(open_fds(), before);
}

int main(int argc, char **argv)
{
    CHECK_EQUAL(argc, 2);
    use_programs(argv[1]);
    starts_from_many_threads();
    starts_what_is_parked();
    ends_with_its_connection_and_its_server();
    puts("test_template: a server and its sandboxes");
    return 0;
}
