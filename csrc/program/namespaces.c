/* The ops that join namespaces, make namespaces and write files. Runs in the program and in a template's
 * sandboxes (child.h). */
#include "child.h"

int fns_op_setns(struct fns_child *child, const struct fns_op *op)
{
    /* O_NONBLOCK: if this is a fifo, do not wait for a writer. */
    int fd = fns_open(fns_text(child, op->source), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return fns_source_failed(child, fd);
    if (op->how & FNS_HOW_OPEN) {
        child->userns = fd;
        if ((uint64_t)fns_sys2(__NR_ioctl, fd, NS_GET_NSTYPE) == op->flags)
            return 0;
        return fns_source_failed(child, -EINVAL);
    }
    int result = fns_done_with(fd, fns_sys2(__NR_setns, fd, op->flags));
    return result < 0 ? fns_source_failed(child, result) : 0;
}

int fns_op_unshare(struct fns_child *child, const struct fns_op *op)
{
    return (int)fns_sys1(__NR_unshare, op->flags);
}

/* Joining gives the process all capabilities in that namespace, and refills the bounding set. Later ops drop
 * them. */
int fns_op_join_user(struct fns_child *child, const struct fns_op *op)
{
    int result =
        fns_done_with(child->userns, fns_sys2(__NR_setns, child->userns, FNS_CLONE_NEWUSER));
    child->userns = -1;
    return result < 0 && op->source ? fns_source_failed(child, result) : result;
}

/* ---- namespaces that belong to the user namespace --------------------------------------------- */

/* Runs in a process of its own: joins the user namespace, makes namespaces there, reports the result over
 * `socket`, and keeps them alive until the other end is closed. */
static _Noreturn void make_namespaces(int userns, uint64_t flags, int socket)
{
    char byte;
    long result = fns_sys2(__NR_setns, userns, FNS_CLONE_NEWUSER);
    if (result >= 0)
        result = fns_sys1(__NR_unshare, flags);
    int reported = fns_write_retrying(socket, &result, sizeof result) >= 0;
    for (int tries = 0; reported && tries < FNS_TRIES; tries++)
        if (fns_read(socket, &byte, sizeof byte) == 0)
            break;
    fns_quit(0);
}

/* Joins the namespaces that make_namespaces() has reported. Before the report, the process that runs it may
 * still be in the host's namespaces, and setns(2) by its pidfd would succeed and change nothing. That this
 * process has stopped or ended proves nothing. */
static long join_made(struct fns_child *child, int pidfd, int socket, uint64_t flags)
{
    long made, got = fns_read(socket, &made, sizeof made);
    if (got < 0)
        return got;
    if (got != sizeof made) { /* it was killed */
        child->error.detail = FNS_DETAIL_KILLED;
        return -ECANCELED;
    }
    if (made >= 0)
        made = fns_sys2(__NR_setns, pidfd, flags);
    return made == -ESRCH ? -ECANCELED : made; /* killed since */
}

/* Kills and reaps a child, even one without an exit signal. */
static long end_child(int pidfd)
{
    struct fns_siginfo info;
    long result = fns_sys4(__NR_pidfd_send_signal, pidfd, FNS_SIGKILL, 0, 0);
    if (result < 0)
        return result;
    do
        result = fns_sys5(__NR_waitid, P_PIDFD, pidfd, &info, WEXITED | __WALL, 0);
    while (result == -EINTR);
    return result;
}

/* The sandbox's capabilities count only in namespaces that belong to its user namespace. Only a process in that
 * user namespace can make those, and this process stays outside until its mounts are done. So a child makes
 * them, and this process, which has rights over both user namespaces, joins them. */
int fns_op_own_namespaces(struct fns_child *child, const struct fns_op *op)
{
    int ends[2], pidfd = -1;
    long result = fns_socket_pair(ends);
    if (result < 0)
        return (int)result;
    long pid = fns_sys5(__NR_clone, FNS_CLONE_PIDFD, 0, &pidfd, 0, 0);
    if (pid == 0) {
        fns_close(ends[0]);
        make_namespaces(child->userns, op->flags, ends[1]);
    }
    fns_close(ends[1]); /* so that the read below ends with the child */
    result = pid < 0 ? pid : join_made(child, pidfd, ends[0], op->flags);
    fns_close(ends[0]);
    if (pid < 0)
        return (int)result;
    long ended = end_child(pidfd);
    fns_close(pidfd);
    return (int)(result < 0 ? result : ended);
}

/* ---- files ------------------------------------------------------------------------------------ */

int fns_op_write(struct fns_child *child, const struct fns_op *op)
{
    int fd = fns_open(fns_text(child, op->target), O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return fns_is_out_of_reach(fd) && op->how & FNS_HOW_OPTIONAL ? 0 : fd;
    return fns_write_text(fd, op->flags, fns_text(child, op->data));
}
