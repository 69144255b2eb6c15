/* Plans and arguments as one run of bytes, which another process opens (shared/wire.h). */
#ifndef FNS_PACK_H
#define FNS_PACK_H

#include "shared/wire.h"

/* A run of bytes that is filled from its start. Every item is aligned to 8 bytes, so the last byte is NUL if a
 * text or a list comes last and the memory was zero before. */
struct fns_packer {
    char *base; /* NULL: nothing is written, only measured */
    size_t used;
};

/* Each appends a copy. The pointers that they return, or put into the plan, are offsets from the start. */
void *fns_pack(struct fns_packer *packer, const void *data, size_t size);
void *fns_pack_text(struct fns_packer *packer, const char *text);
void *fns_pack_list(struct fns_packer *packer, char *const *texts); /* NULL ends it */
void fns_pack_plan(struct fns_packer *packer, struct fns_plan *plan);

/* A plan as struct fns_packed_plan, into memory of this size, which is returned; base NULL: nothing is written. */
size_t fns_pack_file(char *base, const struct fns_plan *plan);

/* A SPAWN request with these arguments, to be freed; NULL: no memory. */
struct fns_request *fns_pack_request(const struct fns_args *args);

#endif
