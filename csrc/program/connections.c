/* What the server listens to, and its replies. Runs in a template's server. */
#include "connections.h"

#include "tell.h"

#define MAX_FD (1 << 20)

static struct fns_connection *connections; /* indexed by fd */
static int epoll;

int fns_open_connections(void)
{
    long error = 0;
    connections = fns_map(MAX_FD * sizeof *connections, &error);
    epoll = (int)fns_sys1(__NR_epoll_create1, O_CLOEXEC);
    return connections ? epoll < 0 ? epoll : 0 : (int)error;
}

struct fns_connection *fns_connection(int fd)
{
    return &connections[fd];
}

static int control(int how, int fd, uint32_t events)
{
    struct epoll_event event = {.events = events, .data = (uint64_t)fd};
    long result = -EINTR;
    for (int tries = 0; result < 0 && tries < FNS_TRIES; tries++)
        result = fns_sys4(__NR_epoll_ctl, epoll, how, fd, &event);
    return (int)result;
}

int fns_watch(int fd, enum fns_peer peer)
{
    if (fd >= MAX_FD)
        return -EMFILE;
    const struct fns_connection *before =
        &connections[fd]; /* with this fd; it may still be in a list */
    connections[fd] = (struct fns_connection){.peer = (uint8_t)peer,
                                              .sandbox = FNS_NONE,
                                              .is_listed = before->is_listed,
                                              .next = before->next};
    return control(EPOLL_CTL_ADD, fd, EPOLLIN);
}

void fns_ignore(int fd)
{
    control(EPOLL_CTL_DEL, fd, 0);
}

/* The caller has the same file: to close it here alone would leave it in the epoll set. */
void fns_forget(int fd)
{
    connections[fd].peer = FNS_PEER_NONE;
    fns_ignore(fd);
    fns_close(fd);
}

void fns_let_sandbox_read(int connection, int sandbox_reads)
{
    struct fns_connection *at = &connections[connection];
    if (sandbox_reads != at->sandbox_reads)
        control(EPOLL_CTL_MOD, connection, sandbox_reads ? EPOLLRDHUP : EPOLLIN);
    at->sandbox_reads = (uint8_t)sandbox_reads;
}

int fns_await_events(struct epoll_event *events, int most, int ms)
{
    return (int)fns_sys6(__NR_epoll_pwait, epoll, (long)events, most, ms, 0, 0);
}

/* ---- lists ---------------------------------------------------------------------------------- */

void fns_list_add(struct fns_list *list, int connection)
{
    struct fns_connection *at = &connections[connection];
    if (at->is_listed)
        return;
    at->is_listed = 1;
    at->next = list->first;
    list->first = connection;
}

int fns_list_take(struct fns_list *list)
{
    int connection = list->first;
    if (connection == FNS_NONE)
        return FNS_NONE;
    list->first = connections[connection].next;
    connections[connection].is_listed = 0;
    return connection;
}

/* ---- replies -------------------------------------------------------------------------------- */

static void check_sent(int connection, long result)
{
    if (result < 0)
        FNS_IGNORE(fns_sys2(__NR_shutdown, connection, FNS_SHUT_RDWR), "it may be closed");
}

void fns_reply(int connection, const struct fns_ended *reply)
{
    long result = -EINTR;
    for (int tries = 0; result < 0 && result != -EPIPE && tries < FNS_TRIES; tries++)
        result =
            fns_sys6(__NR_sendto, connection, (long)reply, sizeof *reply, FNS_MSG_NOSIGNAL, 0, 0);
    check_sent(connection, result);
}

static void reply_error(int connection, int number, struct fns_error error)
{
    const struct fns_message message = {
        .kind = FNS_MESSAGE_FAILED, .number = number, .error = error};
    check_sent(connection, fns_tell(connection, &message, -1, 0));
}

void fns_reply_failed(int connection, int number, enum fns_stage stage, long result)
{
    reply_error(connection, number,
                (struct fns_error){(uint16_t)stage, FNS_DETAIL_NONE, -1, (int)-result});
}

void fns_reply_killed(int connection, int number)
{
    reply_error(connection, number, FNS_KILLED(FNS_STAGE_CLONE));
}
