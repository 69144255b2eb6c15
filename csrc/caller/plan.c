/* Checks plans, names ops and stages, and fills error records. Runs in the caller.
 *
 * A plan is checked once, so no thread and no child has to check it again.
 */
#include <errno.h>

#include "fastns.h"
#include "shared/sys.h"

enum { MAX_INSTRUCTIONS = 4096 /* BPF_MAXINSNS */, INSTRUCTION_SIZE = 8 };
#define SECCOMP_FLAGS (2u | 4u) /* SECCOMP_FILTER_FLAG_LOG, _SPEC_ALLOW: no flag that makes an fd */

static const struct {
    const char *name, *needs; /* see ops.def */
} ops[] = {
#define FNS_OP(code, name, needs, ...) {#name, needs},
#include "shared/ops.def"
};

const char *fns_op_name(unsigned code)
{
    return code < FNS_OP_COUNT ? ops[code].name : "unknown";
}

const char *fns_stage_name(unsigned stage)
{
    static const char *const names[] = {
#define FNS_STAGE(stage, name, ...) #name,
#include "shared/stages.def"
    };
    return stage < FNS_STAGE_COUNT ? names[stage] : "unknown";
}

int fns_set_error(struct fns_error *error, enum fns_stage stage, int op_index, int err)
{
    error->stage = (uint16_t)stage;
    error->detail = FNS_DETAIL_NONE;
    error->op_index = op_index;
    error->err = err < 0 ? -err : err;
    return -error->err;
}

static int inside(const struct fns_plan *plan, uint32_t offset)
{
    return offset < plan->n_strings;
}

/* Whether the op meets one of its `needs` (ops.def). */
static int has(const struct fns_plan *plan, const struct fns_op *op, char need)
{
    uint64_t left = plan->n_strings - op->data;
    switch (need) {
    case 'S': return op->source != 0;
    case 'T': return op->target != 0;
    case 'Y': return op->type != 0;
    case 'D': return op->data != 0;
    case 'B': return op->arg <= left;
    case 'G': return op->arg <= FNS_MAX_GIDS && op->arg * sizeof(uint32_t) <= left;
    case 'F':
        return op->arg && op->arg <= MAX_INSTRUCTIONS && op->arg * INSTRUCTION_SIZE <= left &&
               !(op->flags & ~(uint64_t)SECCOMP_FLAGS);
    case 'L': return 2 * sizeof(uint64_t) <= left;
    default: return 0;
    }
}

static int check_op(const struct fns_plan *plan, const struct fns_op *op)
{
    if (op->code >= FNS_OP_COUNT || op->stage == FNS_STAGE_NONE || op->stage >= FNS_STAGE_COUNT)
        return -EINVAL;
    if (!inside(plan, op->source) || !inside(plan, op->target) || !inside(plan, op->type) ||
        !inside(plan, op->data))
        return -EINVAL;
    for (const char *need = ops[op->code].needs; *need; need++)
        if (!has(plan, op, *need))
            return -EINVAL;
    return op->code == FNS_OP_PIVOT_ROOT && op->arg > FNS_MAX_OLD_ROOTS ? -EINVAL : 0;
}

int fns_plan_check(const struct fns_plan *plan, int *bad_op)
{
    const uint64_t namespaces = FNS_CLONE_NEWTIME | FNS_CLONE_NEWNS | FNS_CLONE_NEWCGROUP |
                                FNS_CLONE_NEWUTS | FNS_CLONE_NEWIPC | FNS_CLONE_NEWUSER |
                                FNS_CLONE_NEWPID | FNS_CLONE_NEWNET;
    int from_outside = plan->id_map == FNS_ID_MAP_PARENT || plan->id_map == FNS_ID_MAP_NEWUIDMAP;
    *bad_op = -1;
    if (plan->n_strings < 1 || plan->strings[0] || plan->strings[plan->n_strings - 1])
        return -EINVAL;
    if ((plan->clone_flags & ~namespaces) || plan->id_map > FNS_ID_MAP_RANGE ||
        plan->n_early > plan->n_ops || !inside(plan, plan->uid_map) || !inside(plan, plan->gid_map))
        return -EINVAL;
    if (plan->n_early && !(plan->options & FNS_PLAN_HOP))
        return -EINVAL;
    /* Root in a mapped user namespace may trace a process that was executed there (ptrace(2), mm->user_ns). So a
     * program that stays must not be executed in one: a command with capabilities could trace it. */
    if ((plan->options & FNS_PLAN_MAPS_FIRST) &&
        (plan->id_map != FNS_ID_MAP_SELF ||
         (plan->options & (FNS_PLAN_HOP | FNS_PLAN_INIT | FNS_PLAN_SERVER))))
        return -EINVAL;
    if ((plan->options & FNS_PLAN_ROOMS) && !(plan->options & FNS_PLAN_NETWORKS))
        return -EINVAL;
    if ((plan->options & FNS_PLAN_SERVER) &&
        (!plan->sandbox ||
         (plan->sandbox->options &
          ~(FNS_PLAN_NETWORKS | FNS_PLAN_ROOMS | FNS_PLAN_AHEAD | FNS_PLAN_CONTAINER)) ||
         !(plan->clone_flags & FNS_CLONE_NEWPID)))
        return -EINVAL;
    int is_container = plan->sandbox && plan->sandbox->options & FNS_PLAN_CONTAINER;
    if (plan->sandbox && !is_container == !(plan->sandbox->clone_flags & FNS_CLONE_NEWPID))
        return -EINVAL;
    if (from_outside && !(plan->options & FNS_PLAN_CONTAINER) &&
        (!plan->uid_map || !plan->gid_map || !(plan->clone_flags & FNS_CLONE_NEWUSER)))
        return -EINVAL;
    if ((plan->options & FNS_PLAN_INIT) && !(plan->clone_flags & FNS_CLONE_NEWPID))
        return -EINVAL;
    for (uint32_t i = 0; i < plan->n_ops; i++) {
        if (check_op(plan, &plan->ops[i]) < 0) {
            *bad_op = (int)i;
            return -EINVAL;
        }
    }
    return 0;
}
