/* The supervisor of a container's command: its parent, in the server's memory. Follows the rule of child.h.
 *
 * It is a subreaper, so every process that the command starts remains its descendant, even a daemon. It starts the
 * command by a vfork, reaps, records how the command ended, and exits.
 */
#include "server.h"

/* Waits for the next end of a child, and reaps it. Before it reaps the command, it records how that ended. Returns the
 * pid, or -errno. */
static long reap_next(struct fns_sandbox *sandbox)
{
    struct fns_siginfo info = {.pid = 0};
    struct fns_usage usage;
    long result = fns_sys5(__NR_waitid, P_ALL, 0, &info, WEXITED | __WALL | WNOWAIT, &usage);
    if (result < 0)
        return result;
    if (info.pid == sandbox->command && info.code < FNS_CLD_TRAPPED) {
        memcpy(sandbox->end.usage, &usage, sizeof usage);
        sandbox->end.executed = sandbox->child.executed;
        sandbox->end.ended = fns_clock();
        sandbox->status = info.status;
        sandbox->code = info.code;
        sandbox->command = 0; /* from here on, its pid may be another process's */
    }
    FNS_IGNORE(fns_sys5(__NR_waitid, P_PID, info.pid, &info, WEXITED | __WALL | WNOHANG, 0),
               "the loop comes back to it");
    return info.pid;
}

/* Replies to RUN, because the server would have to wait for this process's end. */
static void reply_end(struct fns_sandbox *sandbox)
{
    sandbox->end.message = (struct fns_message){.kind = FNS_MESSAGE_ENDED,
                                                .value = sandbox->code,
                                                .status = sandbox->status,
                                                .number = sandbox->request};
    sandbox->replied = 1; /* first, because the next request may come at once */
    fns_reply(sandbox->connection, &sandbox->end);
}

int fns_supervisor_main(void *arg)
{
    struct fns_slot *slot = arg;
    struct fns_sandbox *sandbox = slot->sandbox;
    int is_run = fns_request_of(&slot->received)->kind == FNS_REQUEST_RUN;
    const unsigned long flags = FNS_CLONE_VM | FNS_CLONE_VFORK | FNS_CLONE_PARENT_SETTID |
                                FNS_CLONE_CHILD_CLEARTID | FNS_SIGCHLD;
    long word = (long)&slot->command;
    long result = fns_prctl(PR_SET_CHILD_SUBREAPER, 1, 0);
    if (result >= 0)
        result = fns_sys_clone_call(
            __NR_clone, (long)flags, (long)(slot->stack + sizeof slot->stack / 2), word,
            FNS_CLONE_TLS_LAST ? word : 0, FNS_CLONE_TLS_LAST ? 0 : word, fns_sandbox_main, slot);
    if (result < 0) {
        fns_child_failed(&sandbox->child, FNS_STAGE_CLONE, result);
        return FNS_EXIT_FAILED;
    }
    /* The command's pipes, and the server's other connections. */
    FNS_IGNORE(fns_sys3(__NR_close_range, 0, 2, 0), "the arguments are valid");
    FNS_IGNORE(fns_close_but(sandbox->connection, 0, 0), "the arguments are valid");
    do
        result = reap_next(sandbox);
    while (result != -ECHILD && !(sandbox->code && fns_set_ending(sandbox, FNS_ENDING_ENDED)));
    if (is_run && sandbox->child.progress == FNS_PROGRESS_EXEC && sandbox->code)
        reply_end(sandbox);
    return 0;
}
