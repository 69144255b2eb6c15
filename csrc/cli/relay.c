/* One step of a relay. It reads only when all that it has read is written, so that a reader that does not read
 * blocks the command, as it would without a relay. */
#define _GNU_SOURCE
#include "relay.h"

#include <errno.h>
#include <limits.h>
#include <unistd.h>

#include "caller/fastns.h"

int fns_relay_open(struct fns_relay *relay, int sink, uint64_t limit, int *theirs)
{
    int ends[2], ret = fns_open_pipe(ends);
    relay->source = ret < 0 ? -1 : ends[0];
    relay->sink = sink;
    relay->left = limit;
    relay->dropped = relay->done = 0;
    relay->at = relay->size = 0;
    *theirs = ret < 0 ? -1 : ends[1];
    return ret;
}

struct pollfd fns_relay_wants(const struct fns_relay *relay)
{
    int writes = relay->source >= 0 && relay->at < relay->size;
    return (struct pollfd){.fd = writes ? relay->sink : relay->source,
                           .events = writes ? POLLOUT : POLLIN};
}

void fns_relay_close(struct fns_relay *relay)
{
    if (relay->source >= 0)
        close(relay->source);
    relay->source = -1;
}

/* Whether a read or write has come to the end of the pipe, or has failed for good. */
static int is_over(ssize_t n)
{
    return n == 0 || (n < 0 && errno != EINTR && errno != EAGAIN);
}

static void read_more(struct fns_relay *relay)
{
    ssize_t n = read(relay->source, relay->data, sizeof relay->data);
    if (is_over(n)) {
        fns_relay_close(relay);
    } else if (n > 0) {
        size_t size = (size_t)n, kept = size < relay->left ? size : (size_t)relay->left;
        relay->left -= kept;
        relay->dropped += size - kept;
        relay->done += size;
        relay->at = 0;
        relay->size = kept;
    }
}

void fns_relay_move(struct fns_relay *relay)
{
    size_t left = relay->size - relay->at;
    if (left == 0) {
        read_more(relay);
        return;
    }
    /* A pipe that can be written to takes so many bytes without blocking (pipe(7)). */
    ssize_t n = write(relay->sink, relay->data + relay->at, left < PIPE_BUF ? left : PIPE_BUF);
    if (is_over(n)) {
        fns_relay_close(relay);
    } else if (n > 0) {
        relay->at += (size_t)n;
        relay->done += (uint64_t)n;
    }
}
