/* Carries out the ops of a plan, in order, until one fails. Runs in the program and in a template's sandboxes
 * (child.h). Decides nothing: the plan says what to do. */
#include "child.h"

/* Whether the op may use what earlier ops have cached, because it does not mount over that. */
static int uses_cache(const struct fns_op *op)
{
    return op->code == FNS_OP_DEVICE || op->code == FNS_OP_SYMLINK ||
           op->code == FNS_OP_DIRECTORY || op->code == FNS_OP_MASK ||
           op->code == FNS_OP_READ_ONLY_PATHS;
}

#define FNS_OP(code, name, ...)                                                                    \
    case FNS_OP_##code: return fns_op_##name(child, op);

static int run_op(struct fns_child *child, const struct fns_op *op)
{
    if (!uses_cache(op))
        fns_drop_cache(child);
    switch (op->code) {
#include "shared/ops.def"
    default: return -EINVAL;
    }
}

static int run(struct fns_child *child, uint32_t first, uint32_t end)
{
    for (uint32_t i = first; i < end; i++) {
        const struct fns_op *op = &child->plan->ops[i];
        int result = run_op(child, op);
        if (result < 0) {
            child->error.op_index = (int)i;
            return fns_child_failed(child, (enum fns_stage)op->stage, result);
        }
    }
    return 0;
}

/* Returns the index of the first of the last ops. */
static uint32_t find_last_ops(const struct fns_plan *plan)
{
    uint32_t n = plan->n_ops;
    while (n > 0 && plan->ops[n - 1].code >= FNS_OP_LAST)
        n--;
    return n;
}

int fns_run_ops(struct fns_child *child, uint32_t first, uint32_t end)
{
    uint32_t last = find_last_ops(child->plan);
    /* The plan, not the caller's umask, sets the modes of new files. */
    int result = (int)fns_sys1(__NR_umask, 0);
    if (result < 0)
        return fns_child_failed(child, FNS_STAGE_UMASK, result);
    result = run(child, first, end < last ? end : last);
    if (result < 0)
        return result;
    /* Not left to the exec: the working directory, which is resolved before it, must not lead to them. */
    fns_drop_cache(child);
    fns_close_if_open(child->root);
    fns_close_if_open(child->unmapped);
    child->root = child->unmapped = -1;
    if (!child->keeps_scratch) {
        fns_close_if_open(child->scratch);
        child->scratch = -1;
    }
    return 0;
}

int fns_run_one(struct fns_child *child, uint32_t index)
{
    return run(child, index, index + 1);
}

int fns_run_last_ops(struct fns_child *child)
{
    return run(child, find_last_ops(child->plan), child->plan->n_ops);
}
