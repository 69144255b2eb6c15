/* One start, as the program carries it out, and what the program becomes after the ops. */
#ifndef FNS_PROGRAM_H
#define FNS_PROGRAM_H

#include "child.h"
#include "shared/wire.h"

struct fns_start {
    struct fns_plan plan, sandbox; /* sandbox: with FNS_PLAN_SERVER */
    struct fns_args args;
    struct fns_child child;
    struct fns_numbers numbers;
    long packed;             /* where the packed plan is mapped */
    char *words, *words_end; /* the program's arguments, as /proc/self/cmdline shows them */
};

/* Writes to the status pipe. 0 or more, or -errno. */
FNS_INLINE FNS_CHECKED long fns_report(const struct fns_start *start, enum fns_message_kind kind)
{
    const struct fns_message message = {.kind = kind, .error = start->child.error};
    return fns_write_retrying((int)start->numbers.status, &message, sizeof message);
}

/* Reports child->error and ends this process. */
FNS_INLINE _Noreturn void fns_start_failed(const struct fns_start *start)
{
    FNS_IGNORE(fns_report(start, FNS_MESSAGE_FAILED), "this process ends in any case");
    fns_quit(FNS_EXIT_FAILED);
}

FNS_INLINE _Noreturn void fns_start_fail(struct fns_start *start, enum fns_stage stage, long result)
{
    start->child.error = FNS_FAILED(stage, result);
    fns_start_failed(start);
}

/* Fails the start in stage "helper" if `result` is an error. */
FNS_INLINE void fns_start_check(struct fns_start *start, long result)
{
    if (result < 0)
        fns_start_fail(start, FNS_STAGE_HELPER, result);
}

FNS_INLINE void fns_report_running(struct fns_start *start)
{
    fns_start_check(start, fns_report(start, FNS_MESSAGE_RUNNING));
}

/* Clears the command's arguments from /proc/self/cmdline of a program that stays. */
FNS_INLINE void fns_hide_arguments(struct fns_start *start)
{
    memset(start->words, 0, (size_t)(start->words_end - start->words));
}

/* init.c: starts the command as a child, passes signals on, reaps, and ends with the command. */
_Noreturn void fns_run_init(struct fns_start *start);

/* serve.c: sends RUNNING, and starts sandboxes on request until the other end of the control socket is closed. */
_Noreturn void fns_serve(struct fns_start *start);

#endif
