/* Plans and arguments as one run of bytes, which another process opens (shared/wire.h). */
#ifndef FNS_PACK_H
#define FNS_PACK_H

#include "shared/wire.h"

/* Bytes that grow at their end. Every item is aligned to 8 bytes and padded with zeros, so the last byte is NUL if the
 * last item is a text or a list. All zero at first. */
struct fns_packer {
    char *bytes; /* to be freed; NULL: no memory */
    size_t used, size;
};

/* Each appends a copy. The pointers that they return, or put into the plan, are offsets from the start. */
void *fns_pack(struct fns_packer *packer, const void *data, size_t size); /* data NULL: zeros */
void *fns_pack_text(struct fns_packer *packer, const char *text);
void *fns_pack_list(struct fns_packer *packer, char *const *texts); /* ends with NULL */
void fns_pack_plan(struct fns_packer *packer, struct fns_plan *plan);

/* Writes to an offset within what is packed. */
void fns_pack_at(struct fns_packer *packer, size_t at, const void *data, size_t size);

/* A plan as struct fns_packed_plan: bytes to be freed; NULL: no memory. */
void *fns_pack_file(const struct fns_plan *plan, size_t *size);

/* A SPAWN request with these arguments, to be freed; NULL: no memory. */
struct fns_request *fns_pack_request(const struct fns_args *args);

#endif
