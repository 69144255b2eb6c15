/* What the server listens to, and its replies (connections.c). A connection is named by its fd. */
#ifndef FNS_CONNECTIONS_H
#define FNS_CONNECTIONS_H

#include "linux.h"
#include "shared/wire.h"

enum { FNS_NONE = -1 };

/* What is at the other end of an fd. */
enum fns_peer {
    FNS_PEER_NONE,
    FNS_PEER_CONTROL,
    FNS_PEER_CALLER,
    FNS_PEER_CONNECTION,
    FNS_PEER_ENDS,
    FNS_PEER_READY
};

struct fns_connection {
    uint8_t peer;          /* enum fns_peer */
    uint8_t wants_parked;  /* PARK was requested: there is to be a parked sandbox */
    uint8_t sandbox_reads; /* one is there: it reads the requests, not the server */
    uint8_t is_closed;     /* by the caller; here once its sandbox has ended */
    uint8_t is_queued;     /* its request waits, for its turn or for a network namespace */
    uint8_t is_listed;     /* in a struct fns_list */
    int sandbox;           /* whose replies go there: an index in the table; FNS_NONE */
    int next;              /* in the list */
};

/* Connections, the last one added first. */
struct fns_list {
    int first; /* FNS_NONE: empty */
};

/* Maps the table and makes the epoll set. 0 or -errno. */
FNS_CHECKED int fns_open_connections(void);

struct fns_connection *fns_connection(int fd);

/* Listens to an fd. 0 or -errno. */
FNS_CHECKED int fns_watch(int fd, enum fns_peer peer);

/* Stops listening, and closes the fd. */
void fns_forget(int fd);

/* Stops listening; the fd stays open for a reply. */
void fns_ignore(int fd);

/* Decides who reads the requests of a connection: the sandbox that is parked there, or the server. */
void fns_let_sandbox_read(int connection, int sandbox_reads);

/* Waits for events at most so many ms, -1: without end. How many, or -errno. */
FNS_CHECKED int fns_await_events(struct epoll_event *events, int most, int ms);

void fns_list_add(struct fns_list *list, int connection);

/* The first of a list, removed; FNS_NONE. */
int fns_list_take(struct fns_list *list);

/* Send a reply, `number` being that of its request. If that fails, the connection is shut down, so that whoever
 * waits for the reply sees the end. The last one is for a sandbox that was killed in its start. */
void fns_reply(int connection, const struct fns_ended *reply);
void fns_reply_failed(int connection, int number, enum fns_stage stage, long result);
void fns_reply_killed(int connection, int number);

#endif
