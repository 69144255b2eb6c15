/* Messages to and from the caller (tell.c). */
#ifndef FNS_TELL_H
#define FNS_TELL_H

#include <linux/errno.h>

#include "shared/wire.h"

/* The exit status of a start that has failed. The caller reads the failure itself from a channel. */
enum { FNS_EXIT_FAILED = 127 };

/* The error of a process that was killed in its start. */
#define FNS_KILLED(stage) ((struct fns_error){(uint16_t)(stage), FNS_DETAIL_KILLED, -1, ECANCELED})

/* A request, with the fds that came along. */
struct fns_received {
    long size; /* 0: the other end is closed; -errno */
    int n_fds;
    int fds[FNS_REQUEST_FDS];
    char bytes[FNS_REQUEST_INLINE] __attribute__((aligned(8)));
};
enum { FNS_TRUNCATED = -4096 }; /* as a size: the bytes are there, but an fd had no place */

/* Receives one message. flags: MSG_*. The fds are close-on-exec; those of a truncated message are closed. */
void fns_receive(int socket, int flags, struct fns_received *received);

/* Sends one message, with an fd (-1: none) and the pid that it is about (0: none), which the kernel
 * translates into the receiver's pid namespace (SCM_CREDENTIALS). 0 or more, or -errno. */
FNS_CHECKED long fns_tell(int socket, const struct fns_message *message, int fd, int pid);

/* Writes RUNNING or FAILED to the status pipe; retries whatever the error. 0 or -errno. */
FNS_CHECKED long fns_say(int status, enum fns_message_kind kind, const struct fns_error *error);

#endif
