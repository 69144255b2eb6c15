/* The output of fastns-exec itself: errors on stderr, and at the end one JSON object on --status-fd. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "cli.h"

void fail(struct outcome *outcome, const char *hint, const char *form, ...)
{
    va_list args;
    if (outcome->cause)
        return;
    va_start(args, form);
    vsnprintf(outcome->message, sizeof outcome->message, form, args);
    va_end(args);
    outcome->hint = hint;
    outcome->cause = "failed";
    outcome->exit_code = EXIT_FAILED;
}

/* Opens a copy of `fd`, to which fclose() writes the whole text at once if it fits into `line`. Only one may be open at
 * a time. NULL: see errno. */
static FILE *open_line(int fd)
{
    static char line[65536];
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    FILE *file = copy < 0 ? NULL : fdopen(copy, "w");
    if (file)
        setvbuf(file, line, _IOFBF, sizeof line);
    return file;
}

static void put_line(FILE *file, const char *start, const char *text)
{
    fputs(start, file);
    for (; *text; text++) {
        if (*text == '\n')
            fputs("\\n", file);
        else
            fputc(*text, file);
    }
    fputc('\n', file);
}

void complain(const char *message, const char *hint)
{
    FILE *file = open_line(2);
    if (!file)
        return;
    put_line(file, "fastns: ", message);
    if (hint && *hint)
        put_line(file, "hint: ", hint);
    fclose(file);
}

/* libc has no names for errnos that only the kernel uses, such as 524. */
static const char *name_of(int err)
{
    const char *name = err == 524 ? "ENOTSUPP" : strerrorname_np(err);
    return name ? name : "?";
}

void word_error(struct outcome *outcome)
{
    const char *what =
        outcome->err == 524 ? "The kernel could not compile the filter" : strerror(outcome->err);
    char place[16] = "";
    if (outcome->op_index >= 0)
        snprintf(place, sizeof place, "[%d]", outcome->op_index);
    snprintf(outcome->message, sizeof outcome->message, "%s%s%s%s: %s (%s)", outcome->stage, place,
             outcome->path ? " " : "", outcome->path ? outcome->path : "", what,
             name_of(outcome->err));
}

/* ---- JSON ------------------------------------------------------------------------------------ */

/* The length of the UTF-8 character at `text`; 0: it is not valid. */
static int character(const unsigned char *text)
{
    int more = *text < 0x80   ? 0
               : *text < 0xc2 ? -1
               : *text < 0xe0 ? 1
               : *text < 0xf0 ? 2
               : *text < 0xf5 ? 3
                              : -1;
    unsigned first = more == 2 && *text == 0xe0 ? 0xa0 : more == 3 && *text == 0xf0 ? 0x90 : 0x80;
    unsigned last = more == 2 && *text == 0xed ? 0x9f : more == 3 && *text == 0xf4 ? 0x8f : 0xbf;
    for (int i = 1; i <= more; i++, first = 0x80, last = 0xbf)
        if (text[i] < first || text[i] > last)
            return 0;
    return more + 1;
}

/* An invalid byte becomes the surrogate that Python's os.fsdecode() uses for it. */
static void put_string(FILE *file, const char *string)
{
    if (!string) {
        fputs("null", file);
        return;
    }
    fputc('"', file);
    for (const unsigned char *at = (const unsigned char *)string; *at;) {
        int n = character(at);
        if (n == 0)
            fprintf(file, "\\udc%02x", *at);
        else if (*at == '"' || *at == '\\')
            fprintf(file, "\\%c", *at);
        else if (*at < 0x20)
            fprintf(file, "\\u%04x", *at);
        else
            fwrite(at, 1, (size_t)n, file);
        at += n ? n : 1;
    }
    fputc('"', file);
}

static void put_field(FILE *file, const char *name, const char *string)
{
    fprintf(file, ", \"%s\": ", name);
    put_string(file, string);
}

static double seconds(struct timeval time)
{
    return (double)time.tv_sec + (double)time.tv_usec * 1e-6;
}

static void put_result(FILE *file, const struct outcome *outcome)
{
    const struct fns_result *result = &outcome->result;
    if (!outcome->has_result) {
        fputs(", \"usage\": null, \"wall_time\": null, \"limits\": null", file);
        return;
    }
    fprintf(file, ", \"usage\": {\"user_time\": %.6f, \"system_time\": %.6f, \"max_rss\": %lld}",
            seconds(result->usage.ru_utime), seconds(result->usage.ru_stime),
            (long long)result->usage.ru_maxrss * 1024);
    fprintf(file, ", \"wall_time\": %.9f, \"limits\": []", outcome->wall_time);
}

/* Most real-time signals have no name of their own. */
static void name_signal(int signal, char *name, size_t size)
{
    const char *known = sigabbrev_np(signal);
    if (known)
        snprintf(name, size, "SIG%s", known);
    else if (signal == SIGRTMIN || signal == SIGRTMAX)
        snprintf(name, size, "SIGRTM%s", signal == SIGRTMIN ? "IN" : "AX");
    else
        snprintf(name, size, "SIG%d", signal);
}

static void put_outcome(FILE *file, const struct outcome *outcome)
{
    char name[24];
    name_signal(outcome->signal, name, sizeof name);
    fprintf(file, "{\"exit_code\": %d", outcome->exit_code);
    put_field(file, "cause", outcome->cause);
    put_field(file, "signal", outcome->signal ? name : NULL);
    put_result(file, outcome);
    fprintf(file, ", \"truncated\": %s", outcome->truncated ? "true" : "false");
    if (*outcome->message) {
        put_field(file, "stage", outcome->stage);
        if (outcome->err)
            fprintf(file, ", \"errno\": %d", outcome->err);
        else
            fputs(", \"errno\": null", file);
        put_field(file, "path", outcome->path);
        put_field(file, "message", outcome->message);
    }
    fputs("}\n", file);
}

void write_status(int fd, const struct outcome *outcome)
{
    FILE *file = open_line(fd);
    if (file)
        put_outcome(file, outcome);
    if (!file || fclose(file) != 0) {
        char message[128];
        snprintf(message, sizeof message, "--status-fd %d: %s", fd, strerror(errno));
        complain(message, NULL);
    }
}
