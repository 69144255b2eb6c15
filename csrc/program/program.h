/* One start, as the program carries it out, and the parts of the program. */
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

/* start.c: runs the plan from op `next` on, then becomes what the plan says: the command, a reaper or a
 * server. */
_Noreturn void fns_start_sandbox(struct fns_start *start, uint32_t next);

/* start.c: runs ops; a failure ends the start. */
void fns_start_ops(struct fns_start *start, uint32_t first, uint32_t end);

/* start.c: runs the ops that write this process' own files in /proc, and those next to them: from `first` to
 * before `end` at most. The first op that is left. */
FNS_CHECKED uint32_t fns_write_own_files(struct fns_start *start, uint32_t first, uint32_t end);

/* start.c: while this process is undumpable nobody may look into it: not from a namespace it joins, not from
 * the sandbox whose pid 1 it becomes (CVE-2016-9962). Its files in /proc are root's then (proc(5)). */
void fns_set_dumpable(struct fns_start *start, int dumpable);

/* hop.c: runs the early ops and clones the sandbox, which goes on with fns_start_sandbox(). */
_Noreturn void fns_hop(struct fns_start *start);

/* init.c: starts the command as a child, passes signals on, reaps, and ends with the command. */
_Noreturn void fns_run_init(struct fns_start *start);

/* serve.c: sends RUNNING, and starts sandboxes on request, until the other end of `control` is closed.
 * `userns`: for them to join; 0: none. */
_Noreturn void fns_serve(const struct fns_plan *sandbox, int control, int status, int userns);

#endif
