/* What the server listens to, and its replies. Runs in a template's server. */
#include "server.h"

#define MAX_FD (1 << 20)

static struct fns_connection *connections; /* indexed by fd */
static int epoll;

int fns_open_connections(void)
{
    long error = 0;
    connections = fns_map(MAX_FD * sizeof *connections, MAP_PRIVATE, &error);
    epoll = (int)fns_sys1(__NR_epoll_create1, O_CLOEXEC);
    return connections ? epoll : (int)error;
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
    struct fns_connection *at = &connections[fd];
    /* An earlier connection with this fd may still be in the list of those to park for. */
    *at = (struct fns_connection){
        .peer = (uint8_t)peer, .is_listed = at->is_listed, .next = at->next};
    return control(EPOLL_CTL_ADD, fd, EPOLLIN);
}

void fns_ignore(int fd)
{
    control(EPOLL_CTL_DEL, fd, 0);
}

/* The close alone would leave it in the epoll set, because the caller has the same file open. */
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
