/* Spawns through the C API: success and failure in each way of starting, and many threads. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "plans.h"

static const unsigned ways[] = {0, FNS_PLAN_MAPS_FIRST, FNS_PLAN_HOP, FNS_PLAN_INIT,
                                FNS_PLAN_HOP | FNS_PLAN_INIT};
enum { N_WAYS = sizeof ways / sizeof *ways };

static void end(const struct fns_process *process, struct fns_result *result)
{
    wait_for_end(process);
    CHECK_EQUAL(fns_reap(process, result), 0);
    CHECK_EQUAL(fns_reap(process, result), -ECHILD);
    close(process->pidfd);
    if (process->control >= 0)
        close(process->control);
}

static void spawn_and_end(const struct fns_plan *plan, int code)
{
    struct command command;
    struct fns_process process;
    struct fns_result result;
    struct fns_error error;
    char text[12];
    snprintf(text, sizeof text, "%d", code);
    struct fns_args args = probe_args(&command, "--exit", text, NULL);
    CHECK_EQUAL(fns_spawn(plan, &args, 0, &process, &error), 0);
    CHECK_EQUAL(error.stage, FNS_STAGE_NONE);
    CHECK(process.pid > 0 && process.pidfd > 2);
    end(&process, &result);
    CHECK_EQUAL(result.code, CLD_EXITED);
    CHECK_EQUAL(result.status, code);
    CHECK(result.end > process.start);
}

static void runs_to_its_end(void)
{
    struct made made;
    make_bare_plan(&made);
    spawn_and_end(&made.plan, 3);
    for (int i = 0; i < N_WAYS; i++) {
        make_plan(&made, ways[i]);
        for (int code = 0; code < 200; code += 40)
            spawn_and_end(&made.plan, code);
    }
}

static void is_killed(void)
{
    for (int i = 0; i < N_WAYS; i++) {
        struct made made;
        struct command command;
        struct fns_process process;
        struct fns_result result;
        struct fns_error error;
        make_plan(&made, ways[i]);
        struct fns_args args = probe_args(&command, "--sleep", "60", NULL);
        CHECK_EQUAL(fns_spawn(&made.plan, &args, 0, &process, &error), 0);
        CHECK_EQUAL(fns_wait(&process, 0), 0);
        CHECK_EQUAL(fns_wait(&process, 1000000), 0);
        CHECK_EQUAL(fns_reap(&process, &result), -EAGAIN);
        CHECK_EQUAL(fns_kill(&process, 4242), -EINVAL);
        CHECK_EQUAL(fns_kill(&process, SIGKILL), 0);
        end(&process, &result);
        CHECK_EQUAL(result.code, CLD_KILLED);
        CHECK_EQUAL(result.status, SIGKILL);
    }
}

/* ---- failures ------------------------------------------------------------------------------- */

static void fails(const struct fns_plan *plan, const struct fns_args *args, int stage, int op_index,
                  int err)
{
    struct fns_process process;
    struct fns_error error;
    int before = open_fds();
    CHECK_EQUAL(fns_spawn(plan, args, 0, &process, &error), -err);
    CHECK_EQUAL(error.stage, stage);
    CHECK_EQUAL(error.op_index, op_index);
    CHECK_EQUAL(error.err, err);
    CHECK_EQUAL(process.pidfd, -1);
    CHECK_EQUAL(waitid(P_ALL, 0, NULL, WEXITED | WNOHANG | __WALL), -1); /* no child */
    CHECK_EQUAL(errno, ECHILD);
    CHECK_EQUAL(open_fds(), before);
}

static void says_where_it_failed(void)
{
    for (int i = 0; i < N_WAYS; i++) {
        struct made made;
        struct command command;
        struct fns_args good = probe_args(&command, "--exit", "0", NULL), args = good;
        char *missing[] = {(char *)"/missing", NULL}, *denied[] = {(char *)"/etc", NULL};
        const int closed = 1 << 19;
        make_plan(&made, ways[i]);

        args.paths = missing;
        fails(&made.plan, &args, FNS_STAGE_EXEC, -1, ENOENT);
        args.paths = denied;
        fails(&made.plan, &args, FNS_STAGE_EXEC, -1, EACCES);
        args = good;
        args.cwd = "/missing";
        fails(&made.plan, &args, FNS_STAGE_CHDIR, -1, ENOENT);
        args = good;
        args.stdio[1] = closed;
        fails(&made.plan, &args, FNS_STAGE_STDIO, -1, EBADF);
        args = good;
        args.keep = &closed;
        args.n_keep = 1;
        fails(&made.plan, &args, FNS_STAGE_FDS, -1, EBADF);

        made.ops[1].target = made.ops[0].data; /* write the map to a file named "deny" */
        fails(&made.plan, &good, FNS_STAGE_ID_MAP, 1, ENOENT);
        make_plan(&made, ways[i]);
        made.ops[3].code = FNS_OP_SETUID;
        made.ops[3].stage = FNS_STAGE_SETUID;
        made.ops[3].arg = 12345; /* not mapped */
        fails(&made.plan, &good, FNS_STAGE_SETUID, 3, EINVAL);
    }
}

/* ---- the caller ----------------------------------------------------------------------------- */

static void leaves_the_caller_alone(void)
{
    sigset_t before, after;
    struct made made[N_WAYS];
    int dumpable = prctl(PR_GET_DUMPABLE, 0, 0, 0, 0), fds = open_fds();
    sigemptyset(&before);
    sigaddset(&before, SIGUSR1);
    sigaddset(&before, SIGRTMAX);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    for (int i = 0; i < N_WAYS; i++)
        make_plan(&made[i], ways[i]);
    for (int i = 0; i < 60; i++) {
        struct command command;
        struct fns_process process;
        struct fns_result result;
        struct fns_error error;
        struct fns_args args = probe_args(&command, "--exit", "0", NULL);
        errno = 4242;
        CHECK_EQUAL(fns_spawn(&made[i % N_WAYS].plan, &args, 0, &process, &error), 0);
        CHECK_EQUAL(errno, 4242);
        end(&process, &result);
        args.cwd = "/missing";
        errno = 4242;
        CHECK_EQUAL(fns_spawn(&made[i % N_WAYS].plan, &args, 0, &process, &error), -ENOENT);
        CHECK_EQUAL(errno, 4242);
    }
    pthread_sigmask(SIG_SETMASK, NULL, &after);
    for (int sig = 1; sig < 65; sig++)
        CHECK_EQUAL(sigismember(&after, sig), sigismember(&before, sig));
    sigemptyset(&before);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    CHECK_EQUAL(prctl(PR_GET_DUMPABLE, 0, 0, 0, 0), dumpable);
    CHECK_EQUAL(open_fds(), fds);
}

static void *spawn_many(void *arg)
{
    struct made *made = arg;
    for (int i = 0; i < 60; i++)
        spawn_and_end(&made[i % N_WAYS].plan, i);
    return NULL;
}

static void spawns_from_many_threads(void)
{
    pthread_t threads[6];
    static struct made made[N_WAYS]; /* shared: const to every thread */
    for (int i = 0; i < N_WAYS; i++)
        make_plan(&made[i], ways[i]);
    for (int i = 0; i < 6; i++)
        CHECK_EQUAL(pthread_create(&threads[i], NULL, spawn_many, made), 0);
    for (int i = 0; i < 6; i++)
        pthread_join(threads[i], NULL);
}

static void writes_maps_from_outside(void)
{
    if (getuid() != 0) /* needs CAP_SETUID; newuidmap has its own tests */
        return;
    struct made made;
    memset(&made, 0, sizeof made);
    made.plan.n_strings = 1;
    made.plan.id_map = FNS_ID_MAP_PARENT;
    made.plan.clone_flags = NEWUSER;
    made.plan.uid_map = place(&made, "0 100000 1000\n");
    made.plan.gid_map = place(&made, "0 100000 1000\n");
    finish(&made);
    spawn_and_end(&made.plan, 7);

    struct command command;
    struct fns_args args = probe_args(&command, "--exit", "0", NULL);
    memcpy(made.strings + made.plan.uid_map, "nonsense", 8);
    fails(&made.plan, &args, FNS_STAGE_ID_MAP, -1, EINVAL);
}

/* Joining an fd that is no user namespace fails. */
static void joins_no_user_namespace(void)
{
    struct made made;
    struct command command;
    struct fns_args args = probe_args(&command, "--exit", "0", NULL);
    make_plan(&made, 0);
    made.plan.n_strings--;
    made.ops[3].code = FNS_OP_JOIN_USER;
    made.ops[3].stage = FNS_STAGE_ID_MAP;
    finish(&made);
    args.userns = open("/dev/null", O_RDONLY | O_CLOEXEC);
    fails(&made.plan, &args, FNS_STAGE_ID_MAP, 3, EINVAL);
    close(args.userns);
    args.userns = open("/proc/self/ns/uts", O_RDONLY | O_CLOEXEC); /* another kind */
    fails(&made.plan, &args, FNS_STAGE_ID_MAP, 3, EINVAL);
    close(args.userns);
}

static int kept_file(void)
{
    struct stat st;
    for (int fd = 3; fd < 100; fd++) {
        char path[32], link[64] = "";
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        if (readlink(path, link, sizeof link - 1) > 0 && strstr(link, "fastns-plan") &&
            fstat(fd, &st) == 0)
            return fd;
    }
    return -1;
}

/* Spawns work although the application has closed a file that fastns keeps, or reused its fd. */
static void loses_a_kept_file(void)
{
    struct made made;
    make_plan(&made, 0);
    CHECK_EQUAL(kept_file(), -1);
    CHECK((made.plan.file = fns_file_new()) != NULL);
    int before = open_fds();
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 3; i++)
            spawn_and_end(&made.plan, i);
        int kept = kept_file(), null = open("/dev/null", O_RDWR | O_CLOEXEC);
        CHECK(kept > 2);
        if (round == 0) { /* replace it with another file */
            CHECK_EQUAL(dup3(null, kept, O_CLOEXEC), kept);
            close(null);
            CHECK_EQUAL(kept_file(), -1);
            for (int i = 0; i < 3; i++)
                spawn_and_end(&made.plan, i);
            CHECK(kept_file() > 2);
            close(kept);
        } else { /* close it */
            close(null);
            close(kept);
        }
    }
    spawn_and_end(&made.plan, 9);
    CHECK_EQUAL(open_fds(), before);
    fns_file_free(made.plan.file);
    CHECK_EQUAL(kept_file(), -1);
}

/* The fd keeps the namespace alive. If the kernel refuses a map, nothing is left behind. */
static void makes_a_user_namespace(void)
{
    struct fns_error error;
    char map[64];
    if (geteuid() != 0) { /* a user would have to deny setgroups first */
        CHECK_EQUAL(fns_userns_open("0 0 10\n", "0 0 10\n", NULL, &error), -EPERM);
        CHECK_EQUAL(error.stage, FNS_STAGE_ID_MAP);
        return;
    }
    snprintf(map, sizeof map, "0 %d 1000\n", 100000);
    int fd = fns_userns_open(map, map, NULL, &error), dumpable = prctl(PR_GET_DUMPABLE);
    CHECK(fd > 2);
    CHECK_EQUAL(dumpable, 1);
    close(fd);
    CHECK_EQUAL(fns_userns_open("nonsense", map, NULL, &error), -EINVAL);
    CHECK_EQUAL(error.stage, FNS_STAGE_ID_MAP);
    CHECK_EQUAL(error.op_index, -1);
}

int main(int argc, char **argv)
{
    CHECK_EQUAL(argc, 2);
    use_programs(argv[1]);
    int before = open_fds();
    runs_to_its_end();
    is_killed();
    says_where_it_failed();
    joins_no_user_namespace();
    loses_a_kept_file();
    makes_a_user_namespace();
    leaves_the_caller_alone();
    spawns_from_many_threads();
    writes_maps_from_outside();
    CHECK_EQUAL(open_fds(), before);
    puts("test_spawn: each way to the command");
    return 0;
}
