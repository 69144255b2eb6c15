/* fastns-exec: runs one command in a sandbox that a plan file describes.
 *
 * Parses the command line, with the same syntax as `fastns run`, reads the file (trust.c, planfile.c), runs the command
 * (run.c), and reports how it ended (report.c).
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/stat.h>

#include "cli.h"

/* ---- the command line --------------------------------------------------------------------------- */

enum asked { ASKED_TO_RUN, ASKED_FOR_HELP, ASKED_FOR_VERSION };

struct options {
    enum asked asked;
    const char *plan;
    char **command;     /* ends with NULL */
    int64_t timeout_ns; /* 0: the plan's */
    int status_fd;      /* -1: none */
};

static const char help_text[] =
    "usage: fastns-exec [OPTIONS] PLAN [--] COMMAND [ARG...]\n"
    "\n"
    "Run one command in a sandbox of its own. PLAN is a file that\n"
    "`fastns compile [RUN OPTIONS] -o PLAN` has written; it describes the sandbox.\n"
    "\n"
    "  --timeout TIME   end the whole sandbox after 2s, 500ms, 1m30s, ...; replaces the\n"
    "                   plan's own --timeout\n"
    "  --status-fd N    write one JSON object to this open fd at the end. It must not\n"
    "                   be the command's stdin, stdout or stderr\n"
    "  -h, --help       show this help\n"
    "  -V, --version    show the version\n"
    "\n"
    "A plan works only on the machine, for the user and with the build of fastns that\n"
    "made it. Only that user and root may have write access to the file and to its\n"
    "directory.\n"
    "\n"
    "Exit code: the command's own; 128+n if signal n ended it; 124 on --timeout; 125\n"
    "if fastns-exec itself fails; 126 if the command is not executable; 127 if it is\n"
    "not found.\n";

static const char see_help[] = "see fastns-exec --help";

/* Parses 2s, 500ms, 1m30s, 1.5h or a number of seconds. Returns ns; 0: the text is none of these. */
static int64_t duration(const char *text)
{
    static const struct {
        const char *name;
        double seconds;
    } units[] = {{"ms", 1e-3}, {"us", 1e-6}, {"h", 3600}, {"m", 60}, {"s", 1}};
    double sum = 0;
    for (int first = 1; *text; first = 0) {
        size_t digits = strspn(text, "0123456789."), i = 0;
        char number[64];
        if (digits == 0 || digits >= sizeof number)
            return 0;
        memcpy(number, text, digits);
        number[digits] = 0;
        char *dot = strchr(number, '.');
        if ((dot && strchr(dot + 1, '.')) || digits == (dot != NULL))
            return 0;
        double amount = strtod(number, NULL);
        text += digits;
        if (first && !*text)
            return (int64_t)(amount > 4294967296.0 ? 0 : amount * 1e9);
        while (i < 5 && strncmp(text, units[i].name, strlen(units[i].name)) != 0)
            i++;
        if (i == 5)
            return 0;
        text += strlen(units[i].name);
        sum += amount * units[i].seconds;
    }
    return sum > 4294967296.0 ? 0 : (int64_t)(sum * 1e9);
}

static void set_timeout(struct options *options, const char *text, struct outcome *outcome)
{
    options->timeout_ns = duration(text);
    if (options->timeout_ns <= 0)
        fail(outcome, "for example: 2s, 500ms, 1m30s or 2.5",
             "--timeout %.100s: expected a time above zero and at most 2^32 seconds", text);
}

static int is_same_file(int fd, int other)
{
    struct stat one, two;
    return fstat(fd, &one) == 0 && fstat(other, &two) == 0 && one.st_dev == two.st_dev &&
           one.st_ino == two.st_ino;
}

/* Refuses a file that is also the command's stdin, stdout or stderr: the command could forge the status line, truncate
 * the file, or make it non-blocking for everybody. */
static void set_status_fd(struct options *options, const char *text, struct outcome *outcome)
{
    static const char hint[] = "for example: fastns-exec --status-fd 3 PLAN true 3>status.json";
    static const char *const names[] = {"stdin", "stdout", "stderr"};
    char *end;
    errno = 0;
    long fd = strtol(text, &end, 10);
    if (!isdigit((unsigned char)*text) || *end) {
        fail(outcome, hint, "--status-fd %.100s: not a number", text);
        return;
    }
    int mode = errno || fd > INT32_MAX ? -1 : fcntl((int)fd, F_GETFL);
    if (mode < 0 || (mode & O_ACCMODE) == O_RDONLY) {
        fail(outcome, hint, "--status-fd %.100s: not %s", text,
             mode < 0 ? "an open file descriptor" : "open for writing");
        return;
    }
    /* Check the number itself first: on a terminal, all three are the same file. */
    for (int i = -1; i < 3; i++) {
        int stdio = i < 0 ? (int)fd : i;
        if (stdio < 3 && is_same_file((int)fd, stdio)) {
            fail(outcome, hint,
                 "--status-fd %.100s: this is the command's %s, so the command could forge or "
                 "damage the status",
                 text, names[stdio]);
            return;
        }
    }
    options->status_fd = (int)fd;
}

/* The value of an option: what follows "=", or the next word. NULL: there is none. */
static const char *value_of(const char *word, char ***at)
{
    const char *equals = strchr(word, '=');
    return equals ? equals + 1 : (*at)[1] ? *++*at : NULL;
}

static int is(const char *word, const char *option)
{
    size_t size = strlen(option);
    return strncmp(word, option, size) == 0 && (!word[size] || word[size] == '=');
}

static void read_option(struct options *options, char ***at, struct outcome *outcome)
{
    const char *word = **at;
    int timeout = is(word, "--timeout"), status = is(word, "--status-fd");
    if (strcmp(word, "-h") == 0 || strcmp(word, "--help") == 0) {
        options->asked = ASKED_FOR_HELP;
    } else if (strcmp(word, "-V") == 0 || strcmp(word, "--version") == 0) {
        options->asked = ASKED_FOR_VERSION;
    } else if (timeout || status) {
        const char *value = value_of(word, at);
        if (!value)
            fail(outcome, see_help, "%s: expected a value", timeout ? "--timeout" : "--status-fd");
        else if (timeout)
            set_timeout(options, value, outcome);
        else
            set_status_fd(options, value, outcome);
    } else {
        fail(outcome, "pass sandbox options to fastns compile; see fastns-exec --help",
             "unknown option: %.*s", (int)strcspn(word, "=") > 100 ? 100 : (int)strcspn(word, "="),
             word);
    }
}

/* Parses all words, even after an error: a later --status-fd gets the error too. */
static void read_options(char **argv, struct options *options, struct outcome *outcome)
{
    *options = (struct options){.status_fd = -1};
    char **at = argv[0] ? argv + 1 : argv;
    for (int only_words = 0; *at && options->asked == ASKED_TO_RUN; at++) {
        if (!only_words && strcmp(*at, "--") == 0)
            only_words = 1;
        else if (!only_words && (*at)[0] == '-' && (*at)[1])
            read_option(options, &at, outcome);
        else if (!options->plan)
            options->plan = *at;
        else
            break;
    }
    options->command = at;
    if (!options->plan)
        fail(outcome, "make one with fastns compile -o PLAN; see fastns-exec --help",
             "no plan given");
    else if (!*at)
        fail(outcome, "for example: fastns-exec PLAN -- sh -c 'echo hello'", "no command to run");
    else if (!**at)
        fail(outcome, "expected a name or a path", "the command is an empty string");
}

/* ---- the plan file ------------------------------------------------------------------------------ */

/* Fills closed stdio fds: otherwise a file that fastns-exec opens would get such a number, and the command could write
 * to it. /dev/null is opened for the wrong direction, so that using the fd still fails with EBADF. */
static void fill_closed_stdio(void)
{
    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) < 0)
            open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY); /* the lowest number is free: fd */
}

static void distrust(struct outcome *outcome, const char *plan, const struct fns_distrust *why)
{
    if (why->mode & 022)
        fail(outcome,
             "run chmod go-w on it, or move the plan to a directory where only you and root may "
             "write",
             "%s: others may write to %s (mode %04o)", plan, why->path, why->mode);
    else
        fail(outcome, "copy the plan to a directory where only you and root may write",
             "%s: %s is owned by uid %u, not by you or root", plan, why->path, why->owner);
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
        fail(outcome, "make one with fastns compile -o PLAN", "%s: not a plan file", plan);
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
        fail(outcome, ret == -ENOENT ? "make one with fastns compile -o PLAN" : NULL, "%s: %s",
             plan, ret == -EINVAL ? "not a regular file" : strerror(-ret));
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
             "fastns-exec must not be set-user-ID or have file capabilities: a plan file could use "
             "them");
    if (!outcome.cause && open_plan(options.plan, &file, &outcome) == 0)
        fns_run_plan(&file, options.command, options.timeout_ns, &outcome);
    if (*outcome.message)
        complain(outcome.message, outcome.hint);
    if (options.status_fd >= 0)
        write_status(options.status_fd, &outcome);
    return outcome.exit_code;
}
