/* Packs plans and arguments into one run of bytes, which another process unpacks (shared/wire.h). */
#ifndef FNS_PACK_H
#define FNS_PACK_H

#include "shared/wire.h"

/* A growing run of bytes. Every item is aligned to 8 bytes and padded with zeros, so the last byte is NUL if the last
 * item is a text or a list. All fields are zero at first. */
struct fns_packer {
    char *bytes; /* to be freed; NULL: no memory */
    size_t used, size;
};

/* Each of these appends a copy. The pointers that it returns, or sets in the plan, are offsets from the start. */
void *fns_pack(struct fns_packer *packer, const void *data, size_t size); /* data NULL: zeros */
void *fns_pack_text(struct fns_packer *packer, const char *text);
void *fns_pack_list(struct fns_packer *packer, char *const *texts); /* ends with NULL */
void fns_pack_plan(struct fns_packer *packer, struct fns_plan *plan);

/* Overwrites packed bytes from the offset `at` on. */
void fns_pack_at(struct fns_packer *packer, size_t at, const void *data, size_t size);

/* A plan as struct fns_packed_plan: bytes to be freed; NULL: no memory. */
void *fns_pack_file(const struct fns_plan *plan, size_t *size);

/* A SPAWN request with these arguments, to be freed; NULL: no memory. */
struct fns_request *fns_pack_request(const struct fns_args *args);

#endif
