/* What the program tells the caller: over a socket, and in the status pipe. Runs in the program. */
#include "tell.h"

#include "shared/sys.h"

struct pid_message { /* struct cmsghdr with struct ucred */
    size_t size;
    int level, type, pid, uid, gid, padding;
};

long fns_tell(int socket, const struct fns_message *message, int fd, int pid)
{
    struct {
        struct fns_one_fd rights;
        struct pid_message credentials;
    } control = {
        .rights = {sizeof(size_t) + 3 * sizeof(int), 1 /* SOL_SOCKET */, 1 /* SCM_RIGHTS */, fd, 0},
        .credentials = {sizeof(size_t) + 5 * sizeof(int), 1, 2 /* SCM_CREDENTIALS */, pid, 0, 0, 0},
    };
    struct fns_vector vector = {(void *)(uintptr_t)message, sizeof *message};
    struct fns_header header = {.vector = &vector, .vector_size = 1};
    if (fd >= 0) {
        header.control = &control;
        header.control_size = sizeof control.rights;
    }
    if (pid > 0) {
        control.credentials.uid = (int)fns_sys0(__NR_geteuid);
        control.credentials.gid = (int)fns_sys0(__NR_getegid);
        header.control_size = sizeof control;
    }
    long result;
    do
        result = fns_sys3(__NR_sendmsg, socket, &header, 0x4000 /* MSG_NOSIGNAL */);
    while (result == -EINTR);
    return result;
}

long fns_say(int status, enum fns_message_kind kind, const struct fns_error *error)
{
    const struct fns_message message = {.kind = kind, .error = *error};
    long result = -EINTR;
    /* A failure that is not reported looks like a process that was killed. */
    for (int tries = 0; result < 0 && result != -EPIPE && tries < FNS_TRIES; tries++)
        result = fns_write(status, &message, sizeof message);
    return result < 0 ? result : 0;
}
