/* From the clone of a start to the exec of the program. BORDER: it runs in the caller's memory.
 *
 * Everything but this stack is somebody else's, and other threads go on using it. Therefore: raw system
 * calls only; no heap, no locks, no errno or other TLS, no libc function, no writes but to this stack. All
 * signals are blocked, so no handler of the caller's runs here. tests/sandbox/test_child_rule.py compares
 * the symbols of the object file with that list. Whatever need not happen before the exec is the
 * program's to do (program.c).
 */
#include "border.h"

#include "shared/sys.h"
#include "shared/wire.h"

int fns_place_fds(const struct fns_args *args, int same, enum fns_stage *stage)
{
    /* A source among 0, 1 and 2 is saved before one of them is replaced; close_range takes the copy. */
    int sources[3], above = args->n_keep ? args->keep[args->n_keep - 1] + 1 : 3;
    *stage = FNS_STAGE_STDIO;
    for (int fd = 0; fd < 3; fd++) {
        int source = sources[fd] = args->stdio[fd];
        if (source >= 0 && source < 3)
            sources[fd] = (int)fns_sys3(__NR_fcntl, source, F_DUPFD_CLOEXEC, above);
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

/* `type`: f_type of statfs(2) of the file system that has to hold the file. */
static int write_file(const char *path, uint64_t type, const char *data)
{
    long size = (long)fns_length(data);
    int fd = (int)fns_sys4(__NR_openat, AT_FDCWD, path, O_WRONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return fd;
    long result = fns_check_type(fd, type);
    if (result >= 0)
        result = fns_write(fd, data, (size_t)size);
    fns_close(fd);
    return result == size ? 0 : result < 0 ? (int)result : -EIO;
}

/* An exec in an unmapped user namespace would take all capabilities. `*at`: the op. */
static int write_maps(const struct fns_plan *plan, int *at)
{
    int result = 0;
    for (uint32_t i = 0; result == 0 && i < plan->n_ops; i++) {
        const struct fns_op *op = &plan->ops[i];
        if (op->code != FNS_OP_WRITE || op->stage != FNS_STAGE_ID_MAP)
            continue;
        *at = (int)i;
        result = write_file(plan->strings + op->target, op->flags, plan->strings + op->data);
    }
    return result;
}

/* An exec leaves uid 0 its capabilities, unless SECBIT_NOROOT is set. To others it leaves those that are
 * ambient (capabilities(7)). */
static int keep_capabilities(void)
{
    const uint32_t header[2] = {0x20080522 /* _LINUX_CAPABILITY_VERSION_3 */, 0};
    uint32_t sets[6]; /* effective, permitted, inheritable; low words first */
    long bits = fns_sys5(__NR_prctl, 27 /* PR_GET_SECUREBITS */, 0, 0, 0, 0);
    if (fns_sys0(__NR_geteuid) == 0 && fns_sys0(__NR_getuid) == 0 && bits >= 0 && !(bits & 1))
        return 0;
    long result = fns_sys2(__NR_capget, header, sets);
    if (result < 0 || !(sets[1] | sets[4]))
        return (int)result;
    sets[2] |= sets[1];
    sets[5] |= sets[4];
    result = fns_sys2(__NR_capset, header, sets);
    if (result == -EPERM) { /* no exec can keep those that the bounding set lacks */
        for (unsigned cap = 0; cap < 64; cap++)
            if (fns_sys5(__NR_prctl, 23 /* PR_CAPBSET_READ */, cap, 0, 0, 0) != 1)
                sets[cap < 32 ? 2 : 5] &= ~(1u << cap % 32);
        result = fns_sys2(__NR_capset, header, sets);
    }
    for (unsigned cap = 0; result >= 0 && cap < 64; cap++) {
        unsigned low = cap < 32 ? 0 : 3;
        if ((sets[low + 1] & sets[low + 2]) >> cap % 32 & 1)
            result =
                fns_sys5(__NR_prctl, 47 /* PR_CAP_AMBIENT */, 2 /* CAP_AMBIENT_RAISE */, cap, 0, 0);
        if (result ==
            -EPERM) /* SECBIT_NO_CAP_AMBIENT_RAISE: an op that needs one fails, and says so */
            result = 0;
    }
    return (int)result;
}

static int fail(int status, enum fns_stage stage, int op_index, int result)
{
    const struct fns_message failed = {.kind = FNS_MESSAGE_FAILED,
                                       .error = {(uint16_t)stage, 0, op_index, -result}};
    /* A failure that is not reported looks like a process that was killed. */
    for (int tries = 0; tries < FNS_TRIES; tries++)
        if (fns_write(status, &failed, sizeof failed) >= 0)
            break;
    return 127;
}

int fns_border_main(void *arg)
{
    const struct fns_border *border = arg;
    const struct fns_args *args = border->args;
    enum fns_stage stage;
    int op = -1, result = fns_place_fds(args, border->program, &stage);
    if (result < 0)
        return fail(border->status, stage, -1, result);
    result = fns_lock(border->status, F_SETLK, F_WRLCK);
    if (result < 0)
        return fail(border->status, FNS_STAGE_HELPER, -1, result);
    if (border->plan->options & FNS_PLAN_MAPS_FIRST)
        result = write_maps(border->plan, &op);
    if (result < 0)
        return fail(border->status, FNS_STAGE_ID_MAP, op, result);
    if (border->plan->n_ops) /* without ops, none would take them away again */
        result = keep_capabilities();
    if (result < 0)
        return fail(border->status, FNS_STAGE_CAPABILITIES, -1, result);
    result =
        (int)fns_sys5(__NR_execveat, border->program, "", args->argv, args->envp, AT_EMPTY_PATH);
    /* The program carries the command's arguments: limits it meets are the command's. */
    int own = result != -E2BIG && result != -EAGAIN && result != -ENOMEM;
    return fail(border->status, own ? FNS_STAGE_HELPER : FNS_STAGE_EXEC, -1, result);
}
