/* What the program tells the caller (tell.c). */
#ifndef FNS_TELL_H
#define FNS_TELL_H

#include "child.h"
#include "shared/wire.h"

/* Defined in runtime.h. */
void *memcpy(void *restrict to, const void *restrict from, size_t size);

/* One message, with an fd (-1: none) and the pid that it is about (0: none), which the kernel
 * translates into the receiver's pid namespace (SCM_CREDENTIALS). 0 or -errno. */
FNS_CHECKED long fns_tell(int socket, const struct fns_message *message, int fd, int pid);

/* Writes RUNNING or FAILED to the status pipe; retries whatever the error. 0 or -errno. */
FNS_CHECKED long fns_say(int status, enum fns_message_kind kind, const struct fns_error *error);

#endif
