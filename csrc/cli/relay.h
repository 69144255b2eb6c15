/* Output of a command handed on up to a limit: what is beyond is read, counted and thrown away. */
#ifndef FNS_RELAY_H
#define FNS_RELAY_H

#include <poll.h>
#include <stddef.h>
#include <stdint.h>

struct fns_relay {
    int source, sink; /* source -1: it has come to its end */
    uint64_t left;    /* bytes that may still be handed on */
    uint64_t dropped; /* bytes beyond */
    uint64_t done;    /* bytes read, and bytes written */
    size_t at, size;  /* what was read and not written yet: data[at..size] */
    char data[65536];
};

/* A pipe to read from; its other end, which is the command's, in `*theirs`. 0 or -errno. */
int fns_relay_open(struct fns_relay *relay, int sink, uint64_t limit, int *theirs);

/* What to poll for before fns_relay_move(); fd -1: nothing, it has come to its end. */
struct pollfd fns_relay_wants(const struct fns_relay *relay);

/* Reads or writes once, which does not block after that poll. */
void fns_relay_move(struct fns_relay *relay);

/* Reads no more. The command is told so by SIGPIPE. */
void fns_relay_close(struct fns_relay *relay);

#endif
