/* The start of a sandbox, in its own process: runs the plan, then executes the command, or stays. Runs in
 * the program. */
#include "program.h"

#include "command.h"
#include "ops.h"

void fns_set_dumpable(struct fns_start *start, int dumpable)
{
    fns_start_check(start, fns_prctl(PR_SET_DUMPABLE, (unsigned long)dumpable, 0));
}

void fns_start_ops(struct fns_start *start, uint32_t first, uint32_t end)
{
    if (fns_run_ops(&start->child, first, end) < 0)
        fns_start_failed(start);
}

static int is_map(const struct fns_op *op)
{
    return op->code == FNS_OP_WRITE && op->stage == FNS_STAGE_ID_MAP;
}

uint32_t fns_write_own_files(struct fns_start *start, uint32_t first, uint32_t end)
{
    const struct fns_plan *plan = &start->plan;
    int mapped = (plan->options & FNS_PLAN_MAPS_FIRST) != 0;
    uint32_t next = first, n_writes = 0;
    for (; next < end && !(mapped && is_map(&plan->ops[next])); next++) {
        if (plan->ops[next].code != FNS_OP_WRITE && plan->ops[next].code != FNS_OP_RLIMIT)
            break;
        n_writes += plan->ops[next].code == FNS_OP_WRITE;
    }
    if (n_writes)
        fns_set_dumpable(start, 1);
    fns_start_ops(start, first, next);
    /* The sandboxes of such a server write map files too. */
    int server_maps = plan->id_map == FNS_ID_MAP_SELF && plan->options & FNS_PLAN_SERVER;
    if (n_writes && !server_maps)
        fns_set_dumpable(start, 0);
    while (mapped && next < end && is_map(&plan->ops[next]))
        next++; /* the border has run these */
    return next;
}

/* Waits until the caller has the pidfd, and has written the maps it was to write. Without GO nobody knows of
 * this sandbox: the process that has cloned it was killed before it could tell. */
static void await_go(struct fns_start *start)
{
    struct fns_message message;
    long got = fns_read((int)start->given.control, &message, sizeof message);
    fns_start_check(start, got);
    if (got != sizeof message || message.kind != FNS_MESSAGE_GO)
        fns_quit(FNS_EXIT_FAILED);
}

_Noreturn void fns_start_sandbox(struct fns_start *start, uint32_t next)
{
    struct fns_child *child = &start->child;
    const struct fns_plan *plan = &start->plan;
    int mapped_by_caller =
        plan->id_map == FNS_ID_MAP_PARENT || plan->id_map == FNS_ID_MAP_NEWUIDMAP;
    int hopped = (plan->options & FNS_PLAN_HOP) != 0;
    /* A plan without ops keeps the caller's surroundings, its session too. */
    if (plan->n_ops && fns_leave_session(child) < 0)
        fns_start_failed(start);
    if (mapped_by_caller)
        await_go(start);
    next = fns_write_own_files(start, next, plan->n_ops);
    fns_start_ops(start, next, plan->n_ops);
    if (hopped && !mapped_by_caller) /* GO has arrived by now: the wait costs nothing here */
        await_go(start);
    if (plan->options & FNS_PLAN_INIT)
        fns_run_init(start);
    if (plan->options & FNS_PLAN_SERVER) {
        if (fns_run_last_ops(child) < 0)
            fns_start_failed(start);
        fns_hide_arguments(start);
        fns_serve(&start->sandbox, (int)start->given.control, (int)start->given.status,
                  child->userns);
    }
    if (fns_change_directory(child) < 0)
        fns_start_failed(start);
    fns_say_running(start); /* before the last ops: a filter among them may refuse it */
    FNS_IGNORE(fns_execute(child), "it is in child->error");
    fns_start_failed(start);
}
