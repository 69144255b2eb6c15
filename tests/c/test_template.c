/* Templates through the C API: a server's sandboxes, successful and failed, and its end. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <time.h>

#include "plans.h"
#include "shared/wire.h"

enum { ROUNDS = 40, PARKED_ROUNDS = 20, THREADS = 4 };

static char *missing[] = {(char *)"/missing", NULL};

/* The plans of a server and of its sandboxes, each with its own user and pid namespaces. */
struct template
{
    struct made server, sandbox;
    struct fns_process process;
};

/* `options`: FNS_PLAN_* of the sandboxes. */
static void start_with(struct template *template, const char *hostname, unsigned options)
{
    struct fns_error error;
    int bad, null = open("/dev/null", O_RDWR | O_CLOEXEC);
    make_plan(&template->server, 0);
    memset(&template->sandbox, 0, sizeof template->sandbox);
    struct made *made = &template->sandbox;
    made->plan.n_strings = 1;
    made->plan.id_map = FNS_ID_MAP_SELF;
    made->plan.clone_flags = NEWUSER | NEWPID | NEWUTS | (options ? NEWNS | NEWIPC : 0);
    made->plan.options = options;
    add(made, FNS_OP_WRITE, FNS_STAGE_ID_MAP, "/proc/self/setgroups", "deny");
    add(made, FNS_OP_WRITE, FNS_STAGE_ID_MAP, "/proc/self/gid_map", "0 0 1\n");
    add(made, FNS_OP_WRITE, FNS_STAGE_ID_MAP, "/proc/self/uid_map", "0 0 1\n");
    add(made, FNS_OP_HOSTNAME, FNS_STAGE_HOSTNAME, NULL, hostname);
    finish(made);
    template->server.plan.options |= FNS_PLAN_SERVER;
    template->server.plan.clone_flags |= options ? NEWNS : 0;
    template->server.plan.sandbox = &made->plan;
    CHECK_EQUAL(fns_plan_check(&template->server.plan, &bad), 0);
    CHECK_EQUAL(
        fns_server_start(&template->server.plan, null, 0, NULL, NULL, &template->process, &error),
        0);
    close(null);
}

static void start(struct template *template, const char *hostname)
{
    start_with(template, hostname, 0);
}

/* Spawns over `connection`, reaps over `reaper`. */
static void run(const struct template *template, int connection, int reaper, int code)
{
    struct command command;
    struct fns_process process;
    struct fns_result result;
    struct fns_error error;
    char text[12];
    snprintf(text, sizeof text, "%d", code);
    struct fns_args args = probe_args(&command, "--exit", text, NULL);
    CHECK_EQUAL(fns_server_spawn(&template->process, connection, &template->sandbox.plan, &args,
                                 &process, &error),
                0);
    CHECK(process.pid > 0 && process.pidfd > 2);
    CHECK(process.served && !process.remote && process.control == -1);
    wait_for_end(&process);
    CHECK_EQUAL(fns_server_reap(reaper, &process, &result), 0);
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
    int closed = 1 << 19;
    args.paths = missing;
    CHECK_EQUAL(fns_server_spawn(&template->process, connection, &template->sandbox.plan, &args,
                                 &process, &error),
                -ENOENT);
    CHECK_EQUAL(error.stage, FNS_STAGE_EXEC);
    args = probe_args(&command, "--exit", "0", NULL);
    args.keep = &closed;
    args.n_keep = 1;
    CHECK_EQUAL(fns_server_spawn(&template->process, connection, &template->sandbox.plan, &args,
                                 &process, &error),
                -EBADF);
    CHECK_EQUAL(error.stage, FNS_STAGE_FDS);
}

/* Runs a command with fns_server_run(), which gets the start and the end in one reply. */
static int run_with_one_reply(const struct template *template, int connection,
                              struct fns_args *args, int kill, struct fns_result *result,
                              struct fns_error *error)
{
    struct fns_process process;
    CHECK_EQUAL(fns_server_run(&template->process, connection, args, (struct fns_share){0, 0},
                               &process, error),
                0);
    CHECK(process.remote && process.pidfd < 0);
    if (kill)
        CHECK_EQUAL(fns_kill_all(&template->sandbox.plan, &process), 0);
    wait_for_end(&process);
    return fns_server_end(&process, &template->sandbox.plan, result, error);
}

static void runs_to_its_end(const struct template *template, int connection)
{
    struct command command;
    struct fns_result result;
    struct fns_error error;
    struct fns_args args = probe_args(&command, "--exit", "9", NULL);
    CHECK_EQUAL(run_with_one_reply(template, connection, &args, 0, &result, &error), 0);
    CHECK_EQUAL(result.code, CLD_EXITED);
    CHECK_EQUAL(result.status, 9);
}

static void finds_no_command(const struct template *template, int connection)
{
    struct command command;
    struct fns_result result;
    struct fns_error error;
    struct fns_args args = probe_args(&command, "--exit", "9", NULL);
    args.paths = missing;
    CHECK_EQUAL(run_with_one_reply(template, connection, &args, 0, &result, &error), -ENOENT);
    CHECK_EQUAL(error.stage, FNS_STAGE_EXEC);
    CHECK_EQUAL(error.err, ENOENT);
    CHECK_EQUAL(error.detail, FNS_DETAIL_NONE);
}

static void gets_one_reply(const struct template *template, int connection)
{
    runs_to_its_end(template, connection);
    finds_no_command(template, connection);
}

/* Kills a command that has echoed a byte, and so certainly runs. The kill breaks the connection. */
static void is_killed_as_it_runs(const struct template *template, int connection)
{
    struct command command;
    struct fns_process process;
    struct fns_result result;
    struct fns_error error;
    struct fns_args args = probe_args(&command, "--echo", NULL, NULL);
    int in[2], out[2];
    char byte = 0;
    CHECK_EQUAL(pipe2(in, O_CLOEXEC), 0);
    CHECK_EQUAL(pipe2(out, O_CLOEXEC), 0);
    args.stdio[0] = in[0];
    args.stdio[1] = out[1];
    CHECK_EQUAL(fns_server_run(&template->process, connection, &args, (struct fns_share){0, 0},
                               &process, &error),
                0);
    close(in[0]);
    close(out[1]);
    CHECK_EQUAL(write(in[1], "x", 1), 1);
    CHECK_EQUAL(read(out[0], &byte, 1), 1);
    CHECK_EQUAL(byte, 'x');
    CHECK_EQUAL(fns_wait(&process, 0), 0);
    CHECK_EQUAL(fns_kill_all(&template->sandbox.plan, &process), 0);
    wait_for_end(&process);
    CHECK_EQUAL(fns_server_end(&process, &template->sandbox.plan, &result, &error), 0);
    CHECK_EQUAL(result.code, CLD_KILLED);
    CHECK_EQUAL(result.status, SIGKILL);
    CHECK_EQUAL(read(out[0], &byte, 1), 0);
    args = probe_args(&command, "--exit", "0", NULL);
    CHECK_EQUAL(fns_server_run(&template->process, connection, &args, (struct fns_share){0, 0},
                               &process, &error),
                -EPIPE);
    CHECK_EQUAL(error.detail, FNS_DETAIL_BROKEN);
    close(in[1]);
    close(out[0]);
}

static void tells_its_host_name(const struct template *template, int connection, const char *name)
{
    struct command command;
    struct fns_result result;
    struct fns_error error;
    struct fns_args args = probe_args(&command, "--read", "/proc/sys/kernel/hostname", NULL);
    int ends[2];
    char line[32], expected[32];
    CHECK_EQUAL(pipe2(ends, O_CLOEXEC), 0);
    args.stdio[1] = ends[1];
    CHECK_EQUAL(run_with_one_reply(template, connection, &args, 0, &result, &error), 0);
    close(ends[1]);
    int n = snprintf(expected, sizeof expected, "%s\n", name);
    CHECK_EQUAL(read(ends[0], line, sizeof line), n);
    CHECK_EQUAL(memcmp(line, expected, (size_t)n), 0);
    close(ends[0]);
}

/* The server replies that it could not receive a request. It then closes the connection. */
static void fails_before_it_is_received(const struct template *template)
{
    const struct fns_message failed = {.kind = FNS_MESSAGE_FAILED,
                                       .number = FNS_ANY_REQUEST,
                                       .error = {FNS_STAGE_HELPER, 0, -1, ENOMEM}};
    struct command command;
    struct fns_process process;
    struct fns_error error;
    struct fns_args args = probe_args(&command, "--exit", "0", NULL);
    int pair[2];
    CHECK_EQUAL(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    CHECK_EQUAL(send(pair[1], &failed, sizeof failed, 0), (long)sizeof failed);
    CHECK_EQUAL(fns_server_spawn(&template->process, pair[0], &template->sandbox.plan, &args,
                                 &process, &error),
                -ENOMEM);
    CHECK_EQUAL(error.stage, FNS_STAGE_HELPER);
    CHECK_EQUAL(error.detail, FNS_DETAIL_BROKEN);
    close(pair[0]);
    close(pair[1]);
}

static void *work(void *arg)
{
    const struct template *template = arg;
    int connection = fns_server_connect(&template->process, FNS_PATIENT);
    int other = fns_server_connect(&template->process, FNS_PATIENT);
    CHECK(connection >= 0 && other >= 0);
    for (int i = 0; i < ROUNDS; i++) {
        run(template, connection, i % 2 ? connection : other, i);
        gets_one_reply(template, i % 2 ? connection : other);
    }
    fails(template, connection);
    fails_before_it_is_received(template);
    run(template, other, other, 7);
    close(connection);
    close(other);
    return NULL;
}

static void stop(struct template *template)
{
    fns_server_stop(&template->process);
    fns_server_stop(&template->process); /* a second call does nothing */
    fns_server_close(&template->process);
}

/* Returns the number of sandboxes that the server has not reaped, including parked ones: all its
 * children but the closer. */
static int children_of(const struct template *template)
{
    char path[64];
    int child, n = 0;
    snprintf(path, sizeof path, "/proc/%d/task/%d/children", template->process.pid,
             template->process.pid);
    FILE *file = fopen(path, "re");
    CHECK(file != NULL);
    while (fscanf(file, "%d", &child) == 1)
        n++;
    fclose(file);
    return n - 1;
}

static int fds_of(const struct template *template)
{
    char path[64];
    int n = 0;
    snprintf(path, sizeof path, "/proc/%d/fd", template->process.pid);
    DIR *dir = opendir(path);
    CHECK(dir != NULL);
    while (readdir(dir))
        n++;
    closedir(dir);
    return n;
}

/* Returns the number of fds of the idle server. The server is idle once it replies, because it has
 * then handled all earlier requests. */
static int idle_fds_of(const struct template *template)
{
    struct fns_stats stats;
    int connection = fns_server_connect(&template->process, FNS_PATIENT);
    CHECK_EQUAL(fns_server_stats(&template->process, connection, &stats), 0);
    int n = fds_of(template) - 1; /* the connection */
    close(connection);
    return n;
}

/* Waits until the count is n. The server sends no message when it changes. */
static void comes_to(int (*count)(const struct template *), const struct template *template, int n)
{
    const struct timespec pause = {0, 1000000};
    for (int tries = 0; count(template) != n && tries < 5000; tries++)
        nanosleep(&pause, NULL);
    CHECK_EQUAL(count(template), n);
}

static void starts_from_many_threads(void)
{
    static struct template template;
    pthread_t threads[THREADS];
    int before = open_fds();
    start(&template, "sandbox");
    for (int i = 0; i < THREADS; i++)
        CHECK_EQUAL(pthread_create(&threads[i], NULL, work, &template), 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    stop(&template);
    no_child_is_left();
    CHECK_EQUAL(open_fds(), before);
}

static void starts_what_is_parked(void)
{
    static struct template template;
    int before = open_fds();
    start(&template, "sandbox");
    int connection = fns_server_connect(&template.process, FNS_PATIENT);
    CHECK_EQUAL(fns_server_park(connection), 0);
    for (int i = 0; i < ROUNDS; i++)
        gets_one_reply(&template, connection);
    fails(&template, connection);
    struct command command;
    struct fns_process process;
    struct fns_result result;
    struct fns_error error;
    struct fns_args args = probe_args(&command, "--sleep", "60", NULL);
    CHECK_EQUAL(fns_server_spawn(&template.process, connection, &template.sandbox.plan, &args,
                                 &process, &error),
                0);
    close(connection); /* a running sandbox needs no connection */
    CHECK_EQUAL(fns_wait(&process, 20000000), 0);
    CHECK_EQUAL(fns_kill(&process, SIGKILL), 0);
    wait_for_end(&process);
    connection = fns_server_connect(&template.process, FNS_PATIENT);
    CHECK_EQUAL(fns_server_reap(connection, &process, &result), 0);
    CHECK_EQUAL(result.code, CLD_KILLED);
    CHECK_EQUAL(fns_server_reap(connection, &process, &result), -ECHILD); /* reaped already */
    close(process.pidfd);
    close(connection);
    stop(&template);
    no_child_is_left();
    CHECK_EQUAL(open_fds(), before);
}

static void leaves_nothing_of_what_was_parked(void)
{
    static struct template template;
    int before = open_fds();
    start(&template, "sandbox");
    int fds = idle_fds_of(&template);
    CHECK_EQUAL(children_of(&template), 0);
    int connection = fns_server_connect(&template.process, FNS_PATIENT);
    CHECK_EQUAL(fns_server_park(connection), 0);
    comes_to(children_of, &template, 1);
    for (int i = 0; i < PARKED_ROUNDS; i++)
        runs_to_its_end(&template, connection);
    finds_no_command(&template, connection);
    comes_to(children_of, &template, 1); /* the next parked sandbox */
    close(connection);
    comes_to(children_of, &template, 0);
    comes_to(fds_of, &template, fds);
    stop(&template);
    no_child_is_left();
    CHECK_EQUAL(open_fds(), before);
}

/* Each sandbox is spawned over a parked connection and reaped over another. */
static void spawns_what_is_parked(void)
{
    static struct template template;
    int before = open_fds();
    start(&template, "sandbox");
    int fds = idle_fds_of(&template);
    int reaper = fns_server_connect(&template.process, FNS_PATIENT);
    for (int i = 0; i < PARKED_ROUNDS; i++) {
        int connection = fns_server_connect(&template.process, FNS_PATIENT);
        CHECK_EQUAL(fns_server_park(connection), 0);
        fails(&template, connection);
        run(&template, connection, reaper, i);
        close(connection);
    }
    close(reaper);
    comes_to(children_of, &template, 0);
    comes_to(fds_of, &template, fds);
    stop(&template);
    no_child_is_left();
    CHECK_EQUAL(open_fds(), before);
}

static void kills_a_quiet_one_alone(void)
{
    static struct template template;
    int before = open_fds();
    start(&template, "sandbox");
    int fds = idle_fds_of(&template);
    int other = fns_server_connect(&template.process, FNS_PATIENT);
    for (int parked = 0; parked < 2; parked++) {
        int connection = fns_server_connect(&template.process, FNS_PATIENT);
        if (parked)
            CHECK_EQUAL(fns_server_park(connection), 0);
        is_killed_as_it_runs(&template, connection);
        close(connection);
        gets_one_reply(&template, other);
    }
    close(other);
    comes_to(children_of, &template, 0);
    comes_to(fds_of, &template, fds);
    stop(&template);
    no_child_is_left();
    CHECK_EQUAL(open_fds(), before);
}

/* A room is thrown away when its command could not start, was killed, or has left something. These plans show the
 * host's terminals, which may change at any time, so a room may also be thrown away without such a cause. */
static void serves_again_in_a_room(void)
{
    static struct template template;
    struct command command;
    struct fns_result result;
    struct fns_error error;
    struct fns_stats stats;
    uint64_t reused = 0;
    int before = open_fds();
    start_with(&template, "sandbox", FNS_PLAN_NETWORKS | FNS_PLAN_ROOMS);
    int other = fns_server_connect(&template.process, FNS_PATIENT);
    for (int parked = 0; parked < 2; parked++) {
        int connection = fns_server_connect(&template.process, FNS_PATIENT);
        if (parked)
            CHECK_EQUAL(fns_server_park(connection), 0);
        for (int i = 0; i < ROUNDS; i++) {
            char text[12];
            snprintf(text, sizeof text, "%d", i);
            struct fns_args args = probe_args(&command, "--exit", text, NULL);
            CHECK_EQUAL(run_with_one_reply(&template, connection, &args, 0, &result, &error), 0);
            CHECK_EQUAL(result.code, CLD_EXITED);
            CHECK_EQUAL(result.status, i);
            reused += (uint64_t)result.reused;
        }
        finds_no_command(&template, connection);
        struct fns_args args = probe_args(&command, "--exit", "0", NULL);
        CHECK_EQUAL(run_with_one_reply(&template, connection, &args, 0, &result, &error), 0);
        CHECK_EQUAL(result.reused, 0);
        is_killed_as_it_runs(&template, connection);
        close(connection);
    }
    run(&template, other, other, 3); /* spawned beside the rooms */
    CHECK_EQUAL(fns_server_stats(&template.process, other, &stats), 0);
    CHECK(reused > ROUNDS && stats.rooms_made >= 4);
    CHECK(stats.rooms_reused >= reused && stats.rooms_reused <= reused + 2); /* 2: not found */
    close(other);
    comes_to(children_of, &template, 0);
    stop(&template);
    no_child_is_left();
    CHECK_EQUAL(open_fds(), before);
}

static void two_servers_are_strangers(void)
{
    static struct template templates[2];
    static const char *const names[] = {"first", "second"};
    struct command command;
    struct fns_process processes[2];
    struct fns_result result;
    struct fns_error error;
    struct fns_args args = probe_args(&command, "--sleep", "60", NULL);
    int connections[2], before = open_fds();
    for (int i = 0; i < 2; i++) {
        start(&templates[i], names[i]);
        connections[i] = fns_server_connect(&templates[i].process, FNS_PATIENT);
    }
    for (int i = 0; i < ROUNDS; i++)
        tells_its_host_name(&templates[i % 2], connections[i % 2], names[i % 2]);
    for (int i = 0; i < 2; i++)
        CHECK_EQUAL(fns_server_spawn(&templates[i].process, connections[i],
                                     &templates[i].sandbox.plan, &args, &processes[i], &error),
                    0);
    stop(&templates[0]);
    wait_for_end(&processes[0]);
    CHECK_EQUAL(fns_server_reap(connections[0], &processes[0], &result), -ECANCELED);
    CHECK_EQUAL(fns_wait(&processes[1], 20000000), 0);
    tells_its_host_name(&templates[1], connections[1], names[1]);
    CHECK_EQUAL(fns_kill_all(&templates[1].sandbox.plan, &processes[1]), 0);
    wait_for_end(&processes[1]);
    CHECK_EQUAL(fns_server_reap(connections[1], &processes[1], &result), 0);
    CHECK_EQUAL(result.code, CLD_KILLED);
    CHECK_EQUAL(result.status, SIGKILL);
    for (int i = 0; i < 2; i++) {
        close(connections[i]);
        close(processes[i].pidfd);
    }
    stop(&templates[1]);
    no_child_is_left();
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
    start(&template, "sandbox");
    struct fns_args args = probe_args(&command, "--sleep", "60", NULL);
    int connections[] = {fns_server_connect(&template.process, FNS_PATIENT),
                         fns_server_connect(&template.process, FNS_PATIENT)};
    const struct fns_plan *plan = &template.sandbox.plan;
    CHECK_EQUAL(run_with_one_reply(&template, connections[0], &args, 1, &result, &error) == 0 ||
                    error.detail == FNS_DETAIL_KILLED,
                1); /* killed before or after its exec */
    close(connections[0]);
    connections[0] = fns_server_connect(&template.process, FNS_PATIENT);
    CHECK_EQUAL(fns_server_run(&template.process, connections[0], &args, (struct fns_share){0, 0},
                               &first, &error),
                0);
    CHECK_EQUAL(fns_server_spawn(&template.process, connections[1], plan, &args, &second, &error),
                0);
    CHECK_EQUAL(fns_wait(&first, 20000000), 0);
    CHECK_EQUAL(fns_wait(&second, 0), 0);
    fns_server_stop(&template.process);
    wait_for_end(&first);
    wait_for_end(&second);
    CHECK_EQUAL(fns_server_end(&first, plan, &result, &error), -ECANCELED);
    CHECK_EQUAL(error.detail, FNS_DETAIL_BROKEN);
    CHECK_EQUAL(fns_server_reap(connections[1], &second, &result), -ECANCELED);
    close(second.pidfd);
    CHECK_EQUAL(fns_server_spawn(&template.process, connections[1], plan, &args, &second, &error),
                -EPIPE);
    CHECK_EQUAL(error.stage, FNS_STAGE_HELPER);
    CHECK_EQUAL(fns_server_connect(&template.process, FNS_PATIENT), -EPIPE);
    close(connections[0]);
    close(connections[1]);
    stop(&template);
    no_child_is_left();
    CHECK_EQUAL(open_fds(), before);
}

int main(int argc, char **argv)
{
    CHECK_EQUAL(argc, 2);
    use_programs(argv[1]);
    starts_from_many_threads();
    starts_what_is_parked();
    leaves_nothing_of_what_was_parked();
    spawns_what_is_parked();
    kills_a_quiet_one_alone();
    serves_again_in_a_room();
    two_servers_are_strangers();
    ends_with_its_connection_and_its_server();
    puts("test_template: a server and its sandboxes");
    return 0;
}
