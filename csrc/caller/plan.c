/* Checks a plan once, so that no thread and no child has to. Runs in the parent. */
#include <errno.h>
#include <string.h>

#include "fastns.h"
#include "shared/sys.h"

const char *fns_op_name(unsigned code)
{
    static const char *const names[] = {
#define X(name, text) text,
        FNS_OPS(X)
#undef X
    };
    return code < FNS_OP_COUNT ? names[code] : "unknown";
}

static int inside(const struct fns_plan *plan, uint32_t offset)
{
    return offset < plan->n_strings;
}

/* What an op needs beside its code: S source, T target, Y type, D data text, B data of arg bytes,
 * G arg groups, F arg steps of a filter, L two limits. */
static const char *needs(unsigned code)
{
    switch ((enum fns_op_code)code) {
    case FNS_OP_SETNS:
    case FNS_OP_BIND_SOURCE:
    case FNS_OP_ROOT_TREE: return "S";
    case FNS_OP_WRITE: return "TD";
    case FNS_OP_OVERLAY:
    case FNS_OP_HOSTNAME:
    case FNS_OP_DOMAINNAME: return "D";
    case FNS_OP_ROOT_TMPFS:
    case FNS_OP_SCRATCH: return "YDB";
    case FNS_OP_MOUNT: return "TY";
    case FNS_OP_BIND:
    case FNS_OP_SHOW:
    case FNS_OP_SYMLINK: return "ST";
    case FNS_OP_DEVICE:
    case FNS_OP_DIRECTORY:
    case FNS_OP_LANDLOCK_PATH: return "T";
    case FNS_OP_MASK:
    case FNS_OP_READ_ONLY_PATHS: return "TDB";
    case FNS_OP_FILE_BIND: return "STB";
    case FNS_OP_RLIMIT: return "L";
    case FNS_OP_SETGROUPS: return "G";
    case FNS_OP_SECCOMP: return "F";
    default: return "";
    }
}

static int check_op(const struct fns_plan *plan, const struct fns_op *op)
{
    if (op->code >= FNS_OP_COUNT || op->stage == FNS_STAGE_NONE || op->stage >= FNS_STAGE_COUNT)
        return -EINVAL;
    if (!inside(plan, op->source) || !inside(plan, op->target) || !inside(plan, op->type) ||
        !inside(plan, op->data))
        return -EINVAL;
    for (const char *need = needs(op->code); *need; need++) {
        uint64_t bytes = *need == 'B'   ? op->arg
                         : *need == 'G' ? op->arg * sizeof(uint32_t)
                         : *need == 'F' ? op->arg * 8
                         : *need == 'L' ? 2 * sizeof(uint64_t)
                                        : 0;
        if (bytes > plan->n_strings - op->data)
            return -EINVAL;
        if ((*need == 'S' && !op->source) || (*need == 'T' && !op->target) ||
            (*need == 'Y' && !op->type) || (*need == 'D' && !op->data))
            return -EINVAL;
    }
    /* No more than BPF_MAXINSNS; SECCOMP_FILTER_FLAG_LOG and _SPEC_ALLOW, none that make an fd. */
    if (op->code == FNS_OP_SECCOMP && (!op->arg || op->arg > 4096 || op->flags & ~6ULL))
        return -EINVAL;
    if (op->code == FNS_OP_PIVOT_ROOT && op->arg > FNS_MAX_OLD_ROOTS)
        return -EINVAL;
    return op->code == FNS_OP_SETGROUPS && op->arg > 64 ? -EINVAL : 0;
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
    /* pid 1 would be open to a command with capabilities: whoever executes in a mapped namespace lets its
     * root look into its memory (ptrace(2), mm->user_ns). */
    if ((plan->options & FNS_PLAN_MAPS_FIRST) &&
        (plan->id_map != FNS_ID_MAP_SELF ||
         (plan->options & (FNS_PLAN_HOP | FNS_PLAN_INIT | FNS_PLAN_SERVER))))
        return -EINVAL;
    if ((plan->options & FNS_PLAN_SERVER) &&
        (!plan->sandbox || plan->sandbox->options ||
         !(plan->clone_flags & plan->sandbox->clone_flags & FNS_CLONE_NEWPID)))
        return -EINVAL;
    if (from_outside &&
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
