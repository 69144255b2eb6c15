/* What the program tells the caller: over a socket, and in the status pipe. Runs in the program. */
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
    /* A failure that is not reported looks like a process that was killed. */
    for (int tries = 0; result < 0 && result != -EPIPE && tries < FNS_TRIES; tries++)
        result = fns_write(status, &message, sizeof message);
    return result < 0 ? result : 0;
}
