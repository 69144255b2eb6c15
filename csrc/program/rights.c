/* The ops that give up rights: capabilities, no_new_privs, Landlock, the filter. Runs in the program and in a
 * template's sandboxes (child.h). */
#include "child.h"

int fns_op_bounding(struct fns_child *child, const struct fns_op *op)
{
    for (unsigned cap = 0; cap < FNS_MAX_CAPABILITIES; cap++) {
        long result = op->arg >> cap & 1 ? 0 : fns_prctl(PR_CAPBSET_DROP, cap, 0);
        if (result == -EINVAL) /* the kernel has no further capabilities */
            break;
        if (result < 0 && fns_prctl(PR_CAPBSET_READ, cap, 0) != 0)
            return (int)result; /* if we may not drop it, it must already be absent */
    }
    /* With this setting, the change of ids leaves capabilities permitted. The exec clears it. */
    int keep = op->arg || op->how & FNS_HOW_KEEP;
    return keep ? (int)fns_prctl(PR_SET_KEEPCAPS, 1, 0) : 0;
}

int fns_op_capabilities(struct fns_child *child, const struct fns_op *op)
{
    const uint64_t own = op->arg | op->flags;
    const struct fns_capabilities sets = {own, own, op->arg};
    long result = fns_prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0);
    if (result >= 0)
        result = fns_capset(&sets);
    /* Across an exec, any uid except 0 keeps only ambient capabilities. */
    for (unsigned cap = 0; result >= 0 && cap < FNS_MAX_CAPABILITIES; cap++)
        if (op->arg >> cap & 1)
            result = fns_prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap);
    return result < 0 ? (int)result : 0;
}

int fns_op_no_new_privileges(struct fns_child *child, const struct fns_op *op)
{
    return (int)fns_prctl(PR_SET_NO_NEW_PRIVS, 1, 0);
}

/* With KEEP, makes effective again the capabilities that the change of ids has left permitted. */
static int raise_kept(const struct fns_op *op)
{
    struct fns_capabilities sets;
    if (!(op->how & FNS_HOW_KEEP))
        return 0;
    long result = fns_capget(&sets);
    if (result < 0)
        return (int)result;
    sets.effective = sets.permitted;
    return (int)fns_capset(&sets);
}

/* ---- Landlock (landlock(7)) ------------------------------------------------------------------- */

enum { PATH_BENEATH = 1 /* LANDLOCK_RULE_PATH_BENEATH: headers older than Linux 5.13 lack it */ };

int fns_op_landlock(struct fns_child *child, const struct fns_op *op)
{
    const struct { /* struct landlock_ruleset_attr of Linux 6.12 */
        uint64_t files, network, scoped;
    } handled = {op->flags, 0, op->arg};
    /* A kernel that knows fewer fields accepts the larger size if the others are zero. */
    child->ruleset = (int)fns_sys3(__NR_landlock_create_ruleset, &handled, sizeof handled, 0);
    return child->ruleset;
}

int fns_op_landlock_path(struct fns_child *child, const struct fns_op *op)
{
    int top = fns_open("/", FNS_PATH_FLAGS | O_DIRECTORY);
    int fd = fns_done_with(top, top < 0 ? top : fns_resolve(top, fns_text(child, op->target), 0));
    long result = fd < 0 ? fd : fns_type_in(fd, "");
    const struct { /* struct landlock_path_beneath_attr */
        uint64_t allowed;
        int fd;
    } __attribute__((packed)) rule = {result == FNS_S_IFDIR ? op->flags : op->arg, fd};
    if (result >= 0)
        result = fns_sys4(__NR_landlock_add_rule, child->ruleset, PATH_BENEATH, &rule, 0);
    return fns_done_with(fd, result);
}

int fns_op_landlock_restrict(struct fns_child *child, const struct fns_op *op)
{
    int result = raise_kept(op);
    if (result >= 0)
        result = (int)fns_sys2(__NR_landlock_restrict_self, child->ruleset, 0);
    return fns_done_with(child->ruleset, result);
}

/* ---- the filter ------------------------------------------------------------------------------- */

int fns_op_seccomp(struct fns_child *child, const struct fns_op *op)
{
    const struct { /* struct sock_fprog */
        uint16_t length;
        const void *filter;
    } program = {(uint16_t)op->arg, child->plan->strings + op->data};
    int result = raise_kept(op);
    return result < 0 ? result
                      : (int)fns_sys3(__NR_seccomp, SECCOMP_SET_MODE_FILTER, op->flags, &program);
}
