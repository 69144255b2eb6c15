/* Commands of a container: a server whose commands run in its own namespaces, root and cgroups.
 *
 * Each command has a supervisor (supervisor.c). When that exits, what the command has left running becomes a child of the
 * server, which is pid 1.
 *
 * To end a command and all it has started, the server looks for the supervisor's descendants in /proc, stops them, so
 * that they start no others, and kills them. Meanwhile the supervisor stays until it has reaped them all. A command that
 * kills its supervisor is killed too, but not what it has started.
 */
#include "server.h"

enum {
    MAX_PID = 1 << 22, /* PID_MAX_LIMIT */
    STAT_SIZE = 512,
    ENTRIES_SIZE = 4096,
    PASSES = 4, /* in which all descendants should have stopped */
    MANY = 64,  /* descendants: this process might get no more CPU time to stop them one by one */
    MAX_KILLS = 1000, /* searches, after which the container ends */
    PAUSE_NS = 1000000,
    CONTINUE_NS = 400000000,
};

static int proc = FNS_NONE;
static uint32_t *marks; /* by pid: the search in which it was found to be a descendant */
static uint32_t search;

long fns_open_container(void)
{
    long error = 0;
    marks = fns_map(MAX_PID * sizeof *marks, MAP_PRIVATE, &error);
    if (!marks)
        return error;
    proc = fns_open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return proc < 0 ? proc : fns_check_type(proc, PROC_SUPER_MAGIC);
}

/* ---- the end of a command ------------------------------------------------------------------- */

/* Waits until a killed command has left the server's memory. Before its exec, no process but the server may trace it,
 * so nothing delays its end. */
static void await_leaving(struct fns_slot *slot)
{
    for (int pid = slot->command; pid; pid = slot->command)
        FNS_IGNORE(fns_sys4(__NR_futex, &slot->command, FUTEX_WAIT, pid, 0), "it is read again");
}

void fns_supervisor_ended(struct fns_sandbox *sandbox, struct fns_siginfo *info)
{
    struct fns_slot *slot = sandbox->slot;
    int is_in_memory = slot->sandbox == sandbox && slot->command; /* or another has the slot now */
    int pid = is_in_memory ? slot->command : sandbox->command;
    if (pid > 0) /* the supervisor was killed: the command is now this process's child */
        FNS_IGNORE(fns_sys2(__NR_kill, pid, FNS_SIGKILL), "a child exists until it is reaped");
    if (is_in_memory)
        await_leaving(slot);
    /* It is not known whether a supervisor that was killed now has replied. A caller that still waits reads end of
     * file. */
    if (sandbox->replied && info->code != FNS_CLD_EXITED && sandbox->connection != FNS_NONE)
        FNS_IGNORE(fns_sys2(__NR_shutdown, sandbox->connection, FNS_SHUT_RDWR), "it may be closed");
    if (sandbox->code) {
        info->code = sandbox->code;
        info->status = sandbox->status;
    }
}

/* ---- the kill ------------------------------------------------------------------------------- */

/* What /proc/PID/stat says. */
struct process {
    char state;
    int parent;
};

static int number(const char **at)
{
    int n = 0;
    while (**at >= '0' && **at <= '9')
        n = n * 10 + *(*at)++ - '0';
    return n;
}

/* Reads about the process whose directory in /proc is open. 0 or -errno. */
static int read_process(int directory, struct process *process)
{
    char text[STAT_SIZE];
    int fd = fns_open_in(directory, "stat", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return fd;
    long n = fns_done_with(fd, fns_read(fd, text, sizeof text - 1));
    if (n <= 0)
        return n < 0 ? (int)n : -ESRCH;
    text[n] = 0;
    const char *at = text + n; /* the name, in parentheses, may hold any character */
    while (at > text && *at != ')')
        at--;
    if (text + n - at < 5)
        return -EPROTO;
    process->state = at[2];
    at += 4;
    process->parent = number(&at);
    return 0;
}

/* Sends a signal to a process if it is a descendant of the supervisor with this pid. STOP is sent only to those that
 * have not stopped. Returns what a pass counts: processes that were still running (STOP), or that were not known to be
 * descendants (KILL). */
static int signal_descendant(const char *name, int supervisor, int signal)
{
    struct process process;
    const char *at = name;
    int pid = number(&at), counts = 0;
    if (*at || pid <= 1 || pid >= MAX_PID)
        return 0;
    /* Through this fd, the signal reaches this process or none, even if the pid is used again. */
    int directory = fns_open_in(proc, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0)
        return 0;
    if (read_process(directory, &process) == 0 && process.parent < MAX_PID &&
        (process.parent == supervisor || marks[process.parent] == search)) {
        int has_stopped = process.state == 'T' || process.state == 't' || process.state == 'Z';
        counts = signal == FNS_SIGSTOP ? !has_stopped : marks[pid] != search;
        marks[pid] = search;
        if (signal != FNS_SIGSTOP || !has_stopped)
            FNS_IGNORE(fns_sys4(__NR_pidfd_send_signal, directory, signal, 0, 0),
                       "it may have ended");
    } else {
        marks[pid] = 0;
    }
    fns_close(directory);
    return counts;
}

/* Goes through all processes once. Returns the sum of what signal_descendant() returns, or -errno. STOP: returns early
 * when there are MANY. */
static long signal_descendants(int supervisor, int signal)
{
    static char entries[ENTRIES_SIZE] __attribute__((aligned(8)));
    enum { SIZE_AT = 16, NAME_AT = 19 }; /* in struct linux_dirent64, getdents(2) */
    long n, sum = 0, result = fns_sys3(__NR_lseek, proc, 0, 0);
    while (result >= 0 && (n = fns_sys3(__NR_getdents64, proc, entries, sizeof entries)) != 0) {
        if (n < 0)
            return n;
        uint16_t size;
        for (long at = 0; at < n; at += size) {
            memcpy(&size, entries + at + SIZE_AT, sizeof size);
            sum += signal_descendant(entries + at + NAME_AT, supervisor, signal);
        }
        if (signal == FNS_SIGSTOP && sum >= MANY)
            break;
    }
    return result < 0 ? result : sum;
}

/* Processes that fork faster than they are found are stopped by one call, which stops all others in the container too.
 * They continue at once. */
static void kill_descendants(struct fns_sandbox *sandbox)
{
    int stops_all = 1;
    long running = 0;
    search++;
    for (int i = 0; i < PASSES && stops_all && running < MANY; i++) {
        running = signal_descendants(sandbox->pid, FNS_SIGSTOP);
        stops_all = running > 0;
    }
    if (stops_all)
        FNS_IGNORE(fns_sys2(__NR_kill, -1, FNS_SIGSTOP), "it is tried again");
    search++;
    while (signal_descendants(sandbox->pid, FNS_SIGKILL) >
           0) /* a child may be listed before its parent */
        ;
    if (stops_all)
        FNS_IGNORE(fns_sys2(__NR_kill, -1, FNS_SIGCONT), "it is tried again");
    else
        FNS_IGNORE(fns_sys2(__NR_kill, sandbox->pid, FNS_SIGCONT),
                   "a child exists until it is reaped");
}

void fns_kill_command(struct fns_sandbox *sandbox)
{
    if (sandbox->pid <= 0 || !fns_set_ending(sandbox, FNS_ENDING_KILLED))
        return;
    sandbox->n_kills = 0;
    kill_descendants(sandbox);
}

int fns_check_killed_commands(void)
{
    static uint64_t next;
    uint64_t now = fns_clock();
    int n_killed = 0;
    for (struct fns_sandbox *at = fns_newest_watched(); at; at = at->older) {
        if (at->ending != FNS_ENDING_KILLED)
            continue;
        n_killed++;
        if (now < next)
            continue;
        if (++at->n_kills > MAX_KILLS)
            fns_quit(0); /* with this pid 1, all processes end */
        kill_descendants(at);
    }
    if (now >= next) /* leaves half of the time to the processes that are ending */
        next = 2 * fns_clock() - now + PAUSE_NS;
    return n_killed != 0;
}

void fns_continue_supervisors(void)
{
    static uint64_t next;
    uint64_t now = fns_clock();
    if (now < next)
        return;
    next = now + CONTINUE_NS;
    for (struct fns_sandbox *at = fns_newest_watched(); at; at = at->older) {
        FNS_IGNORE(fns_sys2(__NR_kill, at->pid, FNS_SIGCONT), "a child exists until it is reaped");
        int pid = at->slot->sandbox == at ? at->slot->command : 0;
        if (pid > 0)
            FNS_IGNORE(fns_sys2(__NR_kill, pid, FNS_SIGCONT), "it may have ended");
    }
}
