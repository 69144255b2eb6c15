/* Replies to the caller. Runs in a server, in keepers, and in supervisors (child.h). */
#include "server.h"

void fns_reply(int connection, const struct fns_ended *reply)
{
    long result = -EINTR;
    for (int tries = 0; result < 0 && result != -EPIPE && tries < FNS_TRIES; tries++)
        result =
            fns_sys6(__NR_sendto, connection, (long)reply, sizeof *reply, FNS_MSG_NOSIGNAL, 0, 0);
    if (result < 0)
        FNS_IGNORE(fns_sys2(__NR_shutdown, connection, FNS_SHUT_RDWR), "it may be closed");
}

void fns_reply_error(int connection, int number, struct fns_error error)
{
    const struct fns_ended reply = {
        .message = {.kind = FNS_MESSAGE_FAILED, .number = number, .error = error}};
    fns_reply(connection, &reply);
}

void fns_close_all(const int *fds, int n)
{
    for (int i = 0; i < n; i++)
        fns_close(fds[i]);
}
