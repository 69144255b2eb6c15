/* What the two files of the helper program share: talking over a socket, opening what was packed. */
#ifndef FNS_HELPER_H
#define FNS_HELPER_H

#include "child.h"
#include "message.h"

/* Defined in program.h. */
void *memcpy(void *restrict to, const void *restrict from, size_t size);

/* sendmsg(2) and recvmsg(2), as the kernel lays them out. */
struct fns_vector {
    void *base;
    size_t size;
};
struct fns_header {
    void *name;
    int name_size;
    struct fns_vector *vector;
    size_t vector_size;
    void *control;
    size_t control_size;
    unsigned flags;
};

struct fns_one_fd { /* struct cmsghdr with one fd */
    size_t size;
    int level, type, fd, padding;
};

/* One message, with an fd (-1: none) and the pid that it is about (0: none), which the kernel
 * translates into the receiver's pid namespace (SCM_CREDENTIALS). 0 or -errno. */
FNS_CHECKED long fns_tell(int socket, const struct fns_message *message, int fd, int pid);

/* Sends FAILED; retries whatever the error. */
FNS_CHECKED long fns_tell_failure(int socket, const struct fns_error *error);

/* Turns the offsets of packed arguments, or of a plan, into pointers (unpack.c). 0, or -EPROTO for bytes
 * that are not what request.c packs: nothing beyond `size` is read. */
int fns_open_args(char *base, uint64_t size, struct fns_args *args);
int fns_open_plan(char *base, uint64_t size, struct fns_plan *plan);

/* The same for RUN or SPAWN, which came with so many fds, a memory file not counted. */
int fns_open_ask(struct fns_ask *ask, uint64_t size, int n_fds, struct fns_args *args);

/* Starts sandboxes for whoever asks over `control`, until its other end is closed (server.c).
 * `userns`: for them to join; 0: none. */
_Noreturn void fns_serve(const struct fns_plan *sandbox, int control, int userns);

#endif
