/* The keeper: pid 1 of a room, a sandbox that serves one command after another. Runs in a process that a template's
 * server has forked, in memory of its own.
 *
 * It takes all of the sandbox's posture upon itself: namespaces, mounts, ids, limits, filter. So a command inherits
 * it, and needs only a vfork and an exec. When a command has ended, the keeper kills and reaps whatever it has left
 * running, replies to the caller, and proves that the command has touched nothing that the next one can see (proof.c).
 * A room that is not proven is thrown away with all that is in it: the keeper exits. Raw system calls only.
 */
#include "proof.h"
#include "server.h"

enum {
    MAX_SERVED = 1000,
    STACK_SIZE = 32768,
    GET_SELF = 0, /* RUSAGE_*, getrusage(2) */
    GET_CHILDREN = -1
};

static char stack[STACK_SIZE] __attribute__((aligned(16)));
static struct fns_usage served; /* by the commands before the one that runs */

static void block_signals(uint64_t mask)
{
    FNS_IGNORE(fns_sys4(__NR_rt_sigprocmask, FNS_SIG_SETMASK, &mask, 0, FNS_SIGSET_SIZE),
               "the arguments are valid");
}

/* ---- the room ------------------------------------------------------------------------------- */

/* Does everything that a command inherits. 0, or -1 with child->error set. */
static int furnish(struct fns_slot *slot)
{
    struct fns_child *child = &slot->sandbox->child;
    uint32_t n_before = fns_count_ops_before_request(child->plan);
    long result = fns_close_but(slot->sandbox->connection, child->userns, 0);
    if (result < 0)
        return fns_child_failed(child, FNS_STAGE_FDS, result);
    child->keeps_scratch = 1;
    if (fns_run_ops(child, 0, n_before) < 0)
        return -1;
    result = fns_open_proof(child); /* while this process still has its rights */
    if (result >= 0 && slot->files)
        result = fns_sys4(__NR_prlimit64, 0, FNS_RLIMIT_NOFILE, slot->files, 0);
    if (result < 0)
        return fns_child_failed(child, FNS_STAGE_HELPER, result);
    if (fns_run_ops(child, n_before, child->plan->n_ops) < 0 || fns_run_last_ops(child) < 0)
        return -1;
    /* After the last change of credentials, which would undo it. The commands have the same uid, but cannot trace an
     * undumpable process, and its files in /proc belong to root. */
    result = fns_prctl(PR_SET_DUMPABLE, 0, 0);
    if (result >= 0)
        result = fns_start_proof();
    return result < 0 ? fns_child_failed(child, FNS_STAGE_HELPER, result) : 0;
}

/* ---- a command ------------------------------------------------------------------------------ */

/* Starts the command of the request that is in the socket. Returns its pid after its exec or its failure, or -errno. */
static long start_command(struct fns_slot *slot)
{
    /* Until its exec, the new process has this one's process group and signal actions. */
    block_signals(~0ull);
    long pid = fns_sys_clone_call(__NR_clone, FNS_CLONE_VM | FNS_CLONE_VFORK | FNS_SIGCHLD,
                                  (long)(stack + sizeof stack), 0, 0, 0, fns_command_main, slot);
    /* pid 1 ignores signals from inside for which it has no handler, but would queue them while they are blocked. */
    block_signals(0);
    if (slot->mapped)
        FNS_IGNORE(fns_sys2(__NR_munmap, slot->mapped, slot->mapped_size), "it only costs memory");
    slot->mapped = 0;
    return pid;
}

/* Reaps a child. Raises `max_rss` to that of the child. 0 or -errno. */
static long reap(struct fns_siginfo *info, int options, int64_t *max_rss)
{
    struct fns_usage usage;
    info->pid = 0;
    long result = fns_sys5(__NR_waitid, P_ALL, 0, info, WEXITED | __WALL | options, &usage);
    if (result >= 0 && info->pid && usage.max_rss > *max_rss)
        *max_rss = usage.max_rss;
    return result;
}

/* Waits for the command's end, and reaps all others that end meanwhile. 0 or -errno. */
static long await_command(long pid, struct fns_siginfo *info, int64_t *max_rss)
{
    for (;;) {
        long result = reap(info, 0, max_rss);
        if (result < 0 && result != -EINTR)
            return result;
        if (info->pid == pid && info->code < FNS_CLD_TRAPPED)
            return 0;
    }
}

/* Kills and reaps all that the command has left. 0 or -errno. */
static long end_others(int64_t *max_rss)
{
    struct fns_siginfo info;
    long result = reap(&info, WNOHANG, max_rss);
    if (result >= 0) /* there are some */
        FNS_IGNORE(fns_sys2(__NR_kill, -1, FNS_SIGKILL), "they may have ended");
    while (result >= 0 || result == -EINTR)
        result = reap(&info, 0, max_rss);
    return result == -ECHILD ? 0 : result;
}

static struct fns_usage usage_of(int whom)
{
    struct fns_usage usage = {.max_rss = 0};
    FNS_IGNORE(fns_sys2(__NR_getrusage, whom, &usage), "the arguments are valid");
    return usage;
}

/* Sends how the command has ended, or why it could not start (-errno in `result`). 1: it has exited. */
static int reply_end(struct fns_sandbox *sandbox, long result, const struct fns_siginfo *info,
                     int64_t max_rss, uint64_t ended)
{
    struct fns_ended reply = {.message = {.number = sandbox->request},
                              .executed = sandbox->child.executed,
                              .ended = ended};
    struct fns_usage usage = usage_of(GET_CHILDREN);
    fns_subtract_usage(&usage, &served);
    usage.max_rss = max_rss;
    memcpy(reply.usage, &usage, sizeof usage);
    if (sandbox->child.progress == FNS_PROGRESS_SETUP)
        sandbox->child.error = FNS_KILLED(FNS_STAGE_CLONE);
    if (result < 0)
        sandbox->child.error = FNS_FAILED(FNS_STAGE_CLONE, result);
    int has_run = result >= 0 && sandbox->child.progress == FNS_PROGRESS_EXEC;
    reply.message.kind = has_run ? FNS_MESSAGE_ENDED : FNS_MESSAGE_FAILED;
    reply.message.value = info->code;
    reply.message.status = info->status;
    reply.message.error = sandbox->child.error;
    reply.reused = sandbox->n_served > 0;
    fns_reply(sandbox->connection, &reply);
    /* Not earlier: if this process is killed before the reply, the server replies. */
    sandbox->requested = 0;
    return has_run && info->code == FNS_CLD_EXITED;
}

/* What a command's end means for its room. */
enum outcome { IS_LEFT, IS_OVER, MAY_BE_CLEAN };

/* Runs the command of the request that is in the socket, and replies. IS_LEFT: the request is still there, so the server
 * replies. MAY_BE_CLEAN: the room may serve again, if it is proven clean. */
static enum outcome serve_one(struct fns_slot *slot)
{
    struct fns_siginfo info = {.pid = 0};
    int64_t max_rss = 0;
    slot->received.size = 0;
    long result = start_command(slot);
    if (result < 0) { /* EAGAIN: the limit of processes is reached */
        fns_child_failed(&slot->sandbox->child, FNS_STAGE_CLONE, result);
        return IS_LEFT;
    }
    result = await_command(result, &info, &max_rss);
    uint64_t ended = fns_clock();
    if (result >= 0)
        result = end_others(&max_rss);
    if (slot->received.size <= 0 && slot->received.size != FNS_TRUNCATED)
        return IS_LEFT;
    return reply_end(slot->sandbox, result, &info, max_rss, ended) ? MAY_BE_CLEAN : IS_OVER;
}

/* Waits for a request, and notes its number. 0: the connection is closed. */
static int await_request(struct fns_sandbox *sandbox)
{
    struct fns_request request;
    long n;
    do
        n = fns_sys6(__NR_recvfrom, sandbox->connection, (long)&request, sizeof request,
                     FNS_MSG_PEEK, 0, 0);
    while (n == -EINTR);
    if (n <= 0)
        return 0;
    sandbox->child.progress = FNS_PROGRESS_SETUP;
    sandbox->child.error = (struct fns_error){.op_index = -1};
    /* If this process is killed, the server reports what it and its children have used since. */
    served = sandbox->before[0] = usage_of(GET_CHILDREN);
    sandbox->before[1] = usage_of(GET_SELF);
    sandbox->request = request.number;
    sandbox->requested = 1;
    return 1;
}

int fns_room_main(void *arg)
{
    struct fns_slot *slot = arg;
    struct fns_sandbox *sandbox = slot->sandbox;
    struct fns_stats *stats = fns_get_stats();
    if (furnish(slot) < 0)
        return FNS_EXIT_FAILED;
    block_signals(0);
    fns_count(&stats->rooms_made);
    while (await_request(sandbox)) {
        enum outcome end = serve_one(slot);
        if (end == IS_LEFT)
            break;
        if (sandbox->n_served > 0)
            fns_count(&stats->rooms_reused);
        sandbox->n_served++;
        if (sandbox->exposed) {
            fns_count(&stats->rooms_exposed);
            break;
        }
        if (end == IS_OVER || !fns_prove()) {
            fns_count(&stats->rooms_touched);
            break;
        }
        if (sandbox->n_served == MAX_SERVED)
            break;
    }
    return 0;
}
