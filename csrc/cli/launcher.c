/* fastns-exec: runs one command in one sandbox, as a plan file says.
 *
 * Reads the file (trust.c, planfile.c), runs the command (run.c), and reports how it ended (report.c).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/auxv.h>
#include <unistd.h>

#include "options.h"
#include "planfile.h"
#include "report.h"
#include "run.h"
#include "trust.h"

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

/* If 0, 1 or 2 is closed, a file of this program would get that number, and the command could write to it. Opened for
 * the other direction, its use still fails with EBADF. */
static void hold_closed_fds(void)
{
    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) < 0)
            open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY); /* the lowest number is free: fd */
}

static void distrust(struct outcome *outcome, const char *plan, const struct fns_distrust *why)
{
    static const char hint[] =
        "keep it where only you and root may write: chmod go-w, or another directory";
    if (why->mode & 022)
        fail(outcome, hint, "%s: others may write to %s (mode %04o)", plan, why->path, why->mode);
    else
        fail(outcome, hint, "%s: %s belongs to uid %u, neither to you nor to root", plan, why->path,
             why->owner);
}

static void put_caller(char *text, size_t size, const struct fns_identity *identity)
{
    snprintf(text, size, "uid %u, gid %u, capabilities %llx, user namespace %llu%s",
             identity->uids[1], identity->gids[1], (unsigned long long)identity->capabilities,
             (unsigned long long)identity->userns,
             identity->oom_protected ? ", oom_score_adj below 0" : "");
}

static void refuse(struct outcome *outcome, const char *plan, int fault,
                   const struct fns_identity *made_for, const struct fns_identity *here)
{
    static const char again[] =
        "compile it again, as the caller that uses it: fastns compile ... -o PLAN";
    char one[160], other[160];
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
    }
}

/* Reads the plan file. 0; -1: the outcome says why not. */
static int open_plan(const char *plan, struct fns_planfile *file, struct outcome *outcome)
{
    struct fns_identity here, made_for;
    struct fns_distrust why;
    char *bytes;
    size_t size;
    int ret = fns_read_trusted(plan, &bytes, &size, &why);
    if (ret == -EPERM && *why.path) {
        distrust(outcome, plan, &why);
    } else if (ret < 0) {
        fail(outcome, ret == -ENOENT ? "fastns compile -o PLAN makes one" : NULL, "%s: %s", plan,
             ret == -EINVAL ? "not a regular file" : strerror(-ret));
    } else if ((ret = fns_identify(&here)) < 0) {
        fail(outcome, "mount -t proc proc /proc", "/proc: %s", strerror(-ret));
    } else {
        ret = fns_planfile_read(bytes, size, &here, &made_for, file);
        if (ret)
            refuse(outcome, plan, ret, &made_for, &here);
    }
    return ret ? -1 : 0;
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
    else if (open_plan(options.plan, &file, &outcome) == 0)
        fns_run_plan(&file, &options, &outcome, &result);
    if (options.status_fd >= 0)
        write_status(options.status_fd, &outcome);
    return outcome.exit_code;
}
