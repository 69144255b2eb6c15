/* A clone on a stack of its own. Used by: caller and program. */
#ifndef FNS_CLONE_H
#define FNS_CLONE_H

#include "sys.h"

/* The child goes on in fn(arg) on args->stack, and exits with what that returns. By clone(2) where there is no
 * clone3(2). -ENOSYS: a flag needs clone3: clone(2) has no bit for a cgroup, and takes that of CLONE_NEWTIME as
 * part of the exit signal. */
FNS_INLINE FNS_CHECKED long fns_clone_call(const struct fns_clone_args *args, int (*fn)(void *),
                                           void *arg)
{
    long result = fns_sys_clone_call(__NR_clone3, (long)args, sizeof *args, 0, 0, 0, fn, arg);
    if (result != -ENOSYS || args->flags & (FNS_CLONE_INTO_CGROUP | FNS_CLONE_NEWTIME))
        return result;
    return fns_sys_clone_call(__NR_clone, (long)(args->flags | args->exit_signal),
                              (long)(args->stack + args->stack_size), (long)args->pidfd,
                              FNS_CLONE_TLS_LAST ? (long)args->child_tid : 0,
                              FNS_CLONE_TLS_LAST ? 0 : (long)args->child_tid, fn, arg);
}

#endif
