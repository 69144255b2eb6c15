/* The part of a start from the clone to the exec of the program. Runs in the caller's memory.
 *
 * The caller's other threads keep using that memory. Therefore: raw system calls only; no heap, no locks, no
 * errno or other TLS, no libc function, and no writes except to this stack. All signals are blocked, so no
 * handler of the caller runs here. tests/sandbox/test_child_rule.py checks the object file. Whatever can wait
 * until after the exec is left to the program.
 */
#include "border.h"

#include "shared/sys.h"
#include "shared/wire.h"

enum { NOROOT = 1 /* SECBIT_NOROOT */ };

static int is_kept(const struct fns_args *args, int fd)
{
    for (uint32_t i = 0; i < args->n_keep; i++)
        if (args->keep[i] == fd)
            return 1;
    return 0;
}

int fns_move_away(const struct fns_args *args, int fd)
{
    for (int at = 3;; at++) {
        int to = (int)fns_sys3(__NR_fcntl, fd, F_DUPFD_CLOEXEC, at);
        if (to < 0 || !is_kept(args, to))
            return to;
        fns_close(to);
        at = to;
    }
}

int fns_place_fds(const struct fns_args *args, int same, enum fns_stage *stage)
{
    /* A source that is itself 0, 1 or 2 is copied first, since it may be replaced. close_range closes the
     * copy. */
    int sources[3];
    *stage = FNS_STAGE_STDIO;
    for (int fd = 0; fd < 3; fd++) {
        int source = sources[fd] = args->stdio[fd];
        if (source >= 0 && source < 3)
            sources[fd] = fns_move_away(args, source);
        if (source >= 0 && sources[fd] < 0)
            return sources[fd];
    }
    for (int fd = 0; fd < 3; fd++) {
        long result = sources[fd] >= 0 ? fns_sys3(__NR_dup3, sources[fd], fd, 0) : 0;
        if (result < 0)
            return (int)result;
    }
    *stage = FNS_STAGE_FDS;
    unsigned first = 3;
    for (uint32_t i = 0; i < args->n_keep; i++) {
        unsigned fd = (unsigned)args->keep[i];
        long result = fd > first ? fns_sys3(__NR_close_range, first, fd - 1, 0) : 0;
        if (result >= 0 && (int)fd != same)
            result = fns_sys3(__NR_fcntl, fd, F_SETFD, 0);
        if (result < 0)
            return (int)result;
        first = fd + 1;
    }
    return (int)fns_sys3(__NR_close_range, first, ~0u, 0);
}

/* Runs the ops that write id maps, because uid 0 of a mapped namespace keeps its capabilities across the exec.
 * `at`: index of the last op run. */
static int write_maps(const struct fns_plan *plan, int *at)
{
    int result = 0;
    for (uint32_t i = 0; result == 0 && i < plan->n_ops; i++) {
        const struct fns_op *op = &plan->ops[i];
        if (op->code != FNS_OP_WRITE || op->stage != FNS_STAGE_ID_MAP)
            continue;
        *at = (int)i;
        result = (int)fns_sys4(__NR_openat, AT_FDCWD, plan->strings + op->target,
                               O_WRONLY | O_CLOEXEC, 0);
        if (result >= 0)
            result = fns_write_text(result, op->flags, plan->strings + op->data);
    }
    return result;
}

/* Makes all capabilities survive the exec. uid 0 keeps them unless SECBIT_NOROOT is set; any other uid keeps
 * only ambient ones (capabilities(7)). */
static int keep_capabilities(void)
{
    struct fns_capabilities sets;
    long bits = fns_prctl(PR_GET_SECUREBITS, 0, 0);
    if (fns_sys0(__NR_geteuid) == 0 && fns_sys0(__NR_getuid) == 0 && bits >= 0 && !(bits & NOROOT))
        return 0;
    long result = fns_capget(&sets);
    if (result < 0 || !sets.permitted)
        return (int)result;
    sets.inheritable |= sets.permitted;
    result = fns_capset(&sets);
    if (result == -EPERM) { /* capabilities outside the bounding set cannot become inheritable */
        for (unsigned cap = 0; cap < FNS_MAX_CAPABILITIES; cap++)
            if (fns_prctl(PR_CAPBSET_READ, cap, 0) != 1)
                sets.inheritable &= ~(1ull << cap);
        result = fns_capset(&sets);
    }
    for (unsigned cap = 0; result >= 0 && cap < FNS_MAX_CAPABILITIES; cap++) {
        if ((sets.permitted & sets.inheritable) >> cap & 1)
            result = fns_prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap);
        if (result == -EPERM) /* SECBIT_NO_CAP_AMBIENT_RAISE: an op that needs it will fail */
            result = 0;
    }
    return (int)result;
}

int fns_border_main(void *arg)
{
    const struct fns_border *border = arg;
    const struct fns_args *args = border->args;
    enum fns_stage stage;
    int op = -1, result = fns_place_fds(args, border->program, &stage);
    if (result >= 0) {
        stage = FNS_STAGE_HELPER;
        result = fns_lock(border->status, F_SETLK, F_WRLCK);
    }
    if (result >= 0 && border->plan->options & FNS_PLAN_MAPS_FIRST) {
        stage = FNS_STAGE_ID_MAP;
        result = write_maps(border->plan, &op);
    }
    if (result >= 0 && border->plan->n_ops) { /* without ops, nothing would drop them again */
        stage = FNS_STAGE_CAPABILITIES;
        op = -1;
        result = keep_capabilities();
    }
    if (result >= 0) {
        result = (int)fns_sys5(__NR_execveat, border->program, "", args->argv, args->envp,
                               AT_EMPTY_PATH);
        /* The program gets the command's arguments, so these errors concern the command. */
        int own = result != -E2BIG && result != -EAGAIN && result != -ENOMEM;
        stage = own ? FNS_STAGE_HELPER : FNS_STAGE_EXEC;
        op = -1;
    }
    const struct fns_message failed = {.kind = FNS_MESSAGE_FAILED,
                                       .error = {(uint16_t)stage, 0, op, -result}};
    FNS_IGNORE(fns_write_retrying(border->status, &failed, sizeof failed), "this process ends");
    return FNS_EXIT_FAILED;
}
