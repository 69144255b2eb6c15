/* Small plans for the tests of spawns, written by hand instead of compiled by Python. */
#ifndef FNS_TESTS_PLANS_H
#define FNS_TESTS_PLANS_H

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "caller/fastns.h"
#include "check.h"

/* sys.h defines these too, but one file cannot include both its kernel headers and libc's. */
#define NEWNS 0x00020000ull
#define NEWUTS 0x04000000ull
#define NEWIPC 0x08000000ull
#define NEWUSER 0x10000000ull
#define NEWPID 0x20000000ull

static char probe_path[4096];

/* A plan and the memory that it points to. */
struct made {
    struct fns_op ops[4];
    char strings[512];
    struct fns_plan plan;
};

__attribute__((unused)) static uint32_t place(struct made *made, const char *text)
{
    uint32_t at = made->plan.n_strings;
    CHECK(at + strlen(text) + 2 < sizeof made->strings);
    strcpy(made->strings + at, text);
    made->plan.n_strings += (uint32_t)strlen(text) + 1;
    return at;
}

__attribute__((unused)) static void add(struct made *made, unsigned code, unsigned stage,
                                        const char *target, const char *data)
{
    made->ops[made->plan.n_ops++] = (struct fns_op){
        .code = (uint16_t)code,
        .stage = (uint16_t)stage,
        .target = target ? place(made, target) : 0,
        .data = data ? place(made, data) : 0,
    };
}

__attribute__((unused)) static void finish(struct made *made)
{
    int bad;
    made->plan.n_strings++; /* the closing NUL */
    made->plan.ops = made->ops;
    made->plan.strings = made->strings;
    CHECK_EQUAL(fns_plan_check(&made->plan, &bad), 0);
}

/* Maps the caller's ids and sets a host name, in namespaces that any user may create.
 * `options`: FNS_PLAN_*. */
__attribute__((unused)) static void make_plan(struct made *made, unsigned options)
{
    char map[64];
    memset(made, 0, sizeof *made);
    made->plan.n_strings = 1;
    made->plan.options = options;
    made->plan.id_map = FNS_ID_MAP_SELF;
    made->plan.clone_flags = NEWUSER | NEWPID | NEWUTS;
    snprintf(map, sizeof map, "0 %d 1\n", (int)getgid());
    add(made, FNS_OP_WRITE, FNS_STAGE_ID_MAP, "/proc/self/setgroups", "deny");
    add(made, FNS_OP_WRITE, FNS_STAGE_ID_MAP, "/proc/self/gid_map", map);
    snprintf(map, sizeof map, "0 %d 1\n", (int)getuid());
    add(made, FNS_OP_WRITE, FNS_STAGE_ID_MAP, "/proc/self/uid_map", map);
    add(made, FNS_OP_HOSTNAME, FNS_STAGE_HOSTNAME, NULL, "inside");
    finish(made);
}

/* Makes a plan without namespaces and ops: the command shares everything with the caller. */
__attribute__((unused)) static void make_bare_plan(struct made *made)
{
    memset(made, 0, sizeof *made);
    made->plan.n_strings = 1;
    finish(made);
}

/* The arguments of the probe; unused ones are NULL. */
struct command {
    char *argv[6], *paths[2], *envp[1];
};
__attribute__((unused)) static struct fns_args
probe_args(struct command *command, const char *option, const char *first, const char *second)
{
    *command = (struct command){
        .argv = {(char *)"probe", (char *)option, (char *)first, (char *)second},
        .paths = {probe_path},
    };
    return (struct fns_args){.argv = command->argv,
                             .envp = command->envp,
                             .paths = command->paths,
                             .cwd = "/",
                             .stdio = {-1, -1, -1}};
}

__attribute__((unused)) static void no_child_is_left(void)
{
    CHECK_EQUAL(waitid(P_ALL, 0, NULL, WEXITED | WNOHANG | __WALL), -1);
    CHECK_EQUAL(errno, ECHILD);
}

/* Returns the number of jobs whose sandbox is alive. */
__attribute__((unused)) static int running(const struct fns_job *jobs, int n)
{
    int alive = 0;
    for (int i = 0; i < n; i++)
        alive += jobs[i].io.process.pidfd >= 0;
    return alive;
}

/* Waits for the end of a sandbox: fns_wait() returns -EINTR from time to time. */
__attribute__((unused)) static void wait_for_end(const struct fns_process *process)
{
    int ret;
    do
        ret = fns_wait(process, -1);
    while (ret == -EINTR);
    CHECK_EQUAL(ret, 1);
}

/* Calls fns_io_run() until it is done: it returns -EINTR from time to time. */
__attribute__((unused)) static int run_io(struct fns_io *io)
{
    int ret;
    fns_io_prepare(io);
    do
        ret = fns_io_run(io);
    while (ret == -EINTR);
    return ret;
}

static void use_program(const char *directory)
{
    char path[4096];
    struct stat st;
    CHECK(snprintf(path, sizeof path, "%s/program", directory) < (int)sizeof path);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0 && fstat(fd, &st) == 0);
    char *bytes = malloc((size_t)st.st_size);
    CHECK(bytes && read(fd, bytes, (size_t)st.st_size) == st.st_size);
    CHECK_EQUAL(fns_set_program(bytes, (size_t)st.st_size), 0);
    free(bytes);
    close(fd);
}

/* Reads the program and stores the path of the probe; both are in the build directory. */
__attribute__((unused)) static void use_programs(const char *directory)
{
    char path[4096];
    CHECK(realpath(directory, path) != NULL);
    CHECK(snprintf(probe_path, sizeof probe_path, "%s/probe", path) < (int)sizeof probe_path);
    CHECK(access(probe_path, X_OK) == 0);
    use_program(path);
}

#endif
