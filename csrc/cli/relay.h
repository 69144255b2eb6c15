/* Passes output of a command on, up to a limit. What is beyond is read, counted and dropped. */
#ifndef FNS_RELAY_H
#define FNS_RELAY_H

#include <poll.h>
#include <stddef.h>
#include <stdint.h>

struct fns_relay {
    int source, sink; /* source -1: it has come to its end */
    uint64_t left;    /* bytes until the limit */
    uint64_t dropped; /* bytes beyond the limit */
    uint64_t done;    /* bytes read plus bytes written */
    size_t at, size;  /* data[at..size] is read but not written */
    char data[65536];
};

/* Makes the pipe to read from; its writing end, for the command, is `*theirs`. 0 or -errno. */
int fns_relay_open(struct fns_relay *relay, int sink, uint64_t limit, int *theirs);

/* What to poll for before fns_relay_move(); fd -1: it has come to its end. */
struct pollfd fns_relay_wants(const struct fns_relay *relay);

/* Reads or writes once. It does not block after that poll. */
void fns_relay_move(struct fns_relay *relay);

/* Closes the pipe. The command gets SIGPIPE when it writes. */
void fns_relay_close(struct fns_relay *relay);

#endif
