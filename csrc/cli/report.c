/* Error messages, and the status as JSON. */
#define _GNU_SOURCE
#include "report.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A line that is written at once, when it is complete. */
struct line {
    char *data;
    size_t size;
    FILE *file;
};

static void begin(struct line *line)
{
    *line = (struct line){NULL, 0, NULL};
    line->file = open_memstream(&line->data, &line->size);
}

/* Writes as much of the line as possible. 0 or errno. */
static int finish(struct line *line, int fd)
{
    int error = 0;
    if (!line->file || fclose(line->file) != 0)
        return ENOMEM;
    for (size_t done = 0; done < line->size && !error;) {
        ssize_t n = write(fd, line->data + done, line->size - done);
        if (n < 0 && errno != EINTR)
            error = errno;
        done += n > 0 ? (size_t)n : 0;
    }
    free(line->data);
    return error;
}

static void put_line(struct line *line, const char *start, const char *text)
{
    if (!line->file)
        return;
    fputs(start, line->file);
    for (; *text; text++) {
        if (*text == '\n')
            fputs("\\n", line->file);
        else
            fputc(*text, line->file);
    }
    fputc('\n', line->file);
}

void complain(const char *message, const char *hint)
{
    struct line line;
    begin(&line);
    put_line(&line, "fastns: ", message);
    if (hint && *hint)
        put_line(&line, "hint: ", hint);
    finish(&line, 2);
}

/* libc has no names for errnos that only the kernel uses: 524 is one. */
static const char *name_of(int err)
{
    const char *name = err == 524 ? "ENOTSUPP" : strerrorname_np(err);
    return name ? name : "?";
}

void word_error(struct outcome *outcome)
{
    const char *what =
        outcome->err == 524 ? "The kernel could not compile it" : strerror(outcome->err);
    char place[16] = "";
    if (outcome->op_index >= 0)
        snprintf(place, sizeof place, "[%d]", outcome->op_index);
    snprintf(outcome->message, sizeof outcome->message, "%s%s%s%s: %s (%s)", outcome->stage, place,
             outcome->path ? " " : "", outcome->path ? outcome->path : "", what,
             name_of(outcome->err));
}

/* ---- JSON ------------------------------------------------------------------------------------ */

/* How many bytes the UTF-8 character here has; 0: it is not valid. */
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
    const struct fns_result *result = outcome->result;
    if (!result) {
        fputs(", \"usage\": null, \"wall_time\": null, \"limits\": null", file);
        return;
    }
    fprintf(file, ", \"usage\": {\"user_time\": %.6f, \"system_time\": %.6f, \"max_rss\": %lld}",
            seconds(result->usage.ru_utime), seconds(result->usage.ru_stime),
            (long long)result->usage.ru_maxrss * 1024);
    fprintf(file, ", \"wall_time\": %.9f, \"limits\": []", outcome->wall_time);
}

/* SIGKILL for 9; most real-time signals have no name of their own. */
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

void write_status(int fd, const struct outcome *outcome)
{
    char name[24];
    struct line line;
    begin(&line);
    if (line.file) {
        name_signal(outcome->signal, name, sizeof name);
        fprintf(line.file, "{\"exit_code\": %d", outcome->exit_code);
        put_field(line.file, "cause", outcome->cause);
        put_field(line.file, "signal", outcome->signal ? name : NULL);
        put_result(line.file, outcome);
        fprintf(line.file, ", \"truncated\": %s", outcome->truncated ? "true" : "false");
        if (*outcome->message) {
            put_field(line.file, "stage", outcome->stage);
            if (outcome->err)
                fprintf(line.file, ", \"errno\": %d", outcome->err);
            else
                fputs(", \"errno\": null", line.file);
            put_field(line.file, "path", outcome->path);
            put_field(line.file, "message", outcome->message);
        }
        fputs("}\n", line.file);
    }
    int error = finish(&line, fd);
    if (error) {
        char message[128];
        snprintf(message, sizeof message, "--status-fd %d: %s", fd, strerror(error));
        complain(message, NULL);
    }
}
