/* fns_planfile_read(): nothing in a file that it accepts refers to memory outside the file.
 *
 * The input is a file without its magic, identity and size. The target adds these, because random
 * bytes would always be refused. It then reads everything that an accepted file refers to.
 */
#define _GNU_SOURCE
#include <stdlib.h>

#include "../../csrc/cli/planfile.c"
#include "input.h"

int fns_capabilities(uint64_t *effective)
{
    *effective = 0;
    return 0;
}

static unsigned long total; /* keeps the compiler from dropping the reads */

static void read_plan(const struct fns_plan *plan)
{
    for (uint32_t i = 0; i < plan->n_ops; i++) {
        const struct fns_op *op = &plan->ops[i];
        total += strlen(plan->strings + op->source) + strlen(plan->strings + op->target) +
                 strlen(plan->strings + op->type);
    }
    total += strlen(plan->strings + plan->uid_map) + strlen(plan->strings + plan->gid_map);
}

static void read_file(const struct fns_planfile *file)
{
    read_plan(&file->plan);
    for (size_t i = 0; file->envp[i]; i++)
        total += strlen(file->envp[i]);
    for (size_t i = 0; file->directories[i]; i++)
        total += strlen(file->directories[i]);
    for (uint32_t i = 0; i < file->n_hints; i++)
        total += strlen(file->hints[i].path) + strlen(file->hints[i].text);
    total +=
        strlen(file->cwd) + strlen(file->inotify) + strlen(file->maps[0]) + strlen(file->maps[1]);
}

/* Writes an accepted file and reads it again: the result must be the same. */
static void pack_again(const struct fns_planfile *file, const struct fns_identity *identity)
{
    struct fns_identity made_for;
    struct fns_planfile other;
    void *bytes;
    size_t size;
    if (fns_planfile_pack(file, identity, &bytes, &size) < 0)
        abort();
    if (fns_planfile_read(bytes, size, identity, &made_for, &other) != 0 ||
        other.n_hints != file->n_hints || other.plan.n_ops != file->plan.n_ops ||
        other.timeout_ns != file->timeout_ns || strcmp(other.cwd, file->cwd) != 0)
        abort();
    free(bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, data + size};
    const struct fns_identity identity = {.build = FNS_BUILD};
    struct fns_identity made_for;
    struct fns_planfile file;
    struct header header;
    const size_t first = offsetof(struct header, size) + sizeof header.size;
    size_t whole = first + size;
    char *bytes = malloc(whole);
    if (!bytes)
        abort();
    memset(&header, 0, sizeof header);
    memcpy(header.magic, magic, sizeof magic);
    header.identity = identity;
    header.size = whole;
    memcpy(bytes, &header, first);
    take_bytes(&input, bytes + first, size);
    if (fns_planfile_read(bytes, whole, &identity, &made_for, &file) == 0) {
        read_file(&file);
        pack_again(&file, &identity);
    } else if (file.envp || file.directories || file.hints) {
        abort(); /* a refused file must leave no fields set */
    }
    free(bytes);
    return 0;
}
