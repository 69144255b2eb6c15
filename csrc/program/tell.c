/* Messages to and from the caller: over sockets, and in the status pipe. Runs in the program and in a
 * template's sandboxes (child.h). */
#include "tell.h"

#include "shared/sys.h"

long fns_tell(int socket, const struct fns_message *message, int fd, int pid)
{
    long result;
    do
        result = fns_send_message(socket, message, sizeof *message, &fd, fd >= 0, pid, 0);
    while (result == -EINTR);
    return result;
}

long fns_say(int status, enum fns_message_kind kind, const struct fns_error *error)
{
    const struct fns_message message = {.kind = kind, .error = *error};
    long result = -EINTR;
    /* An unreported failure looks like a process that was killed. */
    for (int tries = 0; result < 0 && result != -EPIPE && tries < FNS_TRIES; tries++)
        result = fns_write(status, &message, sizeof message);
    return result < 0 ? result : 0;
}

void fns_receive(int socket, int flags, struct fns_received *received)
{
    do {
        received->n_fds = FNS_REQUEST_FDS;
        received->size = fns_receive_message(socket, received->bytes, sizeof received->bytes,
                                             received->fds, &received->n_fds, 0, flags);
    } while (received->size == -EINTR);
    if (received->n_fds < 0) {
        received->n_fds = 0;
        received->size = FNS_TRUNCATED;
    }
}
