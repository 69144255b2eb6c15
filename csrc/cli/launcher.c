/* fastns-exec: runs one command in a sandbox that a plan file describes.
 *
 * Reads the file (trust.c, planfile.c), runs the command (run.c), and reports how it ended (report.c).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/auxv.h>
#include <unistd.h>

#include "cli.h"

/* A file of this program would get the number of a closed stdio fd, and the command could write to it. /dev/null is
 * opened for the other direction, so that using the fd still fails with EBADF. */
static void fill_closed_stdio(void)
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
        break;
    case FNS_PLANFILE_BUILD:
        fail(outcome, again, "%s: compiled by another build of fastns (%s; this is %s)", plan,
             made_for->build, here->build);
        break;
    case FNS_PLANFILE_MACHINE:
        fail(outcome, again, "%s: compiled for another machine or kernel (%s; this is %s)", plan,
             made_for->machine, here->machine);
        break;
    case FNS_PLANFILE_CALLER:
        put_caller(one, sizeof one, made_for);
        put_caller(other, sizeof other, here);
        fail(outcome, again, "%s: compiled for another caller (%s; this is %s)", plan, one, other);
        break;
    case FNS_PLANFILE_DAMAGED: fail(outcome, again, "%s: the plan file is damaged", plan); break;
    }
}

/* 0; or an error, recorded in `outcome`. */
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
    return ret;
}

int main(int argc, char **argv)
{
    struct outcome outcome = {.op_index = -1};
    struct options options;
    struct fns_planfile file;
    (void)argc;
    fill_closed_stdio();
    read_options(argv, &options, &outcome);
    if (options.asked != ASKED_TO_RUN) {
        if (options.asked == ASKED_FOR_HELP)
            fputs(help_text, stdout);
        else
            printf("fastns-exec %s\n", FNS_VERSION);
        return fflush(stdout) == 0 ? 0 : EXIT_FAILED;
    }
    if (getauxval(AT_SECURE))
        fail(&outcome, "remove the set-user-ID bit and the file's capabilities",
             "fastns-exec has rights of its own: a plan file would lend them to its author");
    if (!outcome.cause && open_plan(options.plan, &file, &outcome) == 0)
        fns_run_plan(&file, &options, &outcome);
    if (*outcome.message)
        complain(outcome.message, outcome.hint);
    if (options.status_fd >= 0)
        write_status(options.status_fd, &outcome);
    return outcome.exit_code;
}
