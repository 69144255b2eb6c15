/* One start, as the program carries it out. */
#ifndef FNS_PROGRAM_H
#define FNS_PROGRAM_H

#include "child.h"
#include "linux.h"
#include "tell.h"

struct fns_start {
    struct fns_plan plan, sandbox; /* sandbox: with FNS_PLAN_SERVER */
    struct fns_args args;
    struct fns_child child;
    struct fns_numbers given;
    long packed;             /* where the packed plan is mapped */
    char *words, *words_end; /* the program's arguments, as /proc/self/cmdline shows them */
};

/* Reports child->error and ends this process. */
FNS_INLINE _Noreturn void fns_start_failed(const struct fns_start *start)
{
    FNS_IGNORE(fns_say((int)start->given.status, FNS_MESSAGE_FAILED, &start->child.error),
               "this process ends in any case");
    fns_quit(FNS_EXIT_FAILED);
}

FNS_INLINE _Noreturn void fns_start_fail(struct fns_start *start, enum fns_stage stage, long result)
{
    start->child.error = (struct fns_error){(uint16_t)stage, FNS_DETAIL_NONE, -1, (int)-result};
    fns_start_failed(start);
}

/* Fails the start, in stage "helper", if a step of its own has. */
FNS_INLINE void fns_start_check(struct fns_start *start, long result)
{
    if (result < 0)
        fns_start_fail(start, FNS_STAGE_HELPER, result);
}

FNS_INLINE void fns_say_running(struct fns_start *start)
{
    const struct fns_error none = {.op_index = -1};
    fns_start_check(start, fns_say((int)start->given.status, FNS_MESSAGE_RUNNING, &none));
}

/* Clears what /proc/self/cmdline shows: the command's arguments are in it. For a process that stays. */
FNS_INLINE void fns_hide_arguments(struct fns_start *start)
{
    memset(start->words, 0, (size_t)(start->words_end - start->words));
}

#endif
