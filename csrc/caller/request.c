/* Plans and arguments as runs of bytes, for another process. Runs in the parent.
 *
 * Pointers become offsets from the start of the run; the reader turns them back (unpack.c), and takes
 * them for texts where the last byte is NUL: texts come last.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "shared/message.h"
#include "spawn.h"

struct packer {
    char *base; /* NULL on the first round, which only measures */
    size_t used;
};

static size_t round_up(size_t size)
{
    return (size + 7) & ~(size_t)7;
}

static size_t pack(struct packer *packer, const void *data, size_t size)
{
    size_t at = packer->used;
    if (packer->base && size)
        memcpy(packer->base + at, data, size);
    packer->used = round_up(at + size);
    return at;
}

static void *pack_array(struct packer *packer, char *const *items)
{
    size_t n = 0;
    while (items[n])
        n++;
    size_t table = packer->used;
    packer->used += (n + 1) * sizeof(uint64_t);
    for (size_t i = 0; i <= n; i++) {
        uint64_t offset = items[i] ? pack(packer, items[i], strlen(items[i]) + 1) : 0;
        if (packer->base)
            memcpy(packer->base + table + i * sizeof offset, &offset, sizeof offset);
    }
    return (void *)(uintptr_t)table;
}

static void pack_args(struct packer *packer, struct fns_args *args)
{
    if (args->n_keep)
        args->keep = (void *)(uintptr_t)pack(packer, args->keep, args->n_keep * sizeof(int));
    if (args->n_groups)
        args->groups = (void *)(uintptr_t)pack(packer, args->groups, args->n_groups * sizeof(int));
    args->argv = pack_array(packer, args->argv);
    args->envp = pack_array(packer, args->envp);
    args->paths = pack_array(packer, args->paths);
    if (args->cwd)
        args->cwd = (void *)(uintptr_t)pack(packer, args->cwd, strlen(args->cwd) + 1);
}

static void pack_plan(struct packer *packer, struct fns_plan *plan)
{
    plan->ops = (void *)(uintptr_t)pack(packer, plan->ops, plan->n_ops * sizeof *plan->ops);
    plan->strings = (void *)(uintptr_t)pack(packer, plan->strings, plan->n_strings);
}

static size_t pack_both(char *base, const struct fns_plan *plan)
{
    struct packer packer = {.base = base, .used = round_up(sizeof(struct fns_packed_plan))};
    struct fns_packed_plan packed = {.plan = *plan};
    pack_plan(&packer, &packed.plan);
    if (plan->sandbox) {
        packed.sandbox = *plan->sandbox;
        pack_plan(&packer, &packed.sandbox);
    }
    if (base)
        memcpy(base, &packed, sizeof packed);
    return packer.used;
}

#define MAX_KEPT_SIZE (1 << 20) /* a plan of more bytes is not held in memory twice */

static int make_file(const struct fns_plan *plan, size_t size)
{
    char *bytes = calloc(1, size);
    if (!bytes)
        return -ENOMEM;
    pack_both(bytes, plan);
    int fd = fns_memory_file("fastns-plan", bytes, size, FNS_SEALED);
    free(bytes);
    return fd;
}

int fns_plan_file(const struct fns_plan *plan, size_t *size)
{
    *size = pack_both(NULL, plan);
    if (*size > UINT32_MAX)
        return -E2BIG;
    int fd = fns_kept_file(plan->file);
    if (fd < 0) {
        fd = make_file(plan, *size);
        if (fd >= 0 && *size <= MAX_KEPT_SIZE)
            fns_keep_file(plan->file, fd);
    }
    return fd;
}

static size_t pack_ask(char *base, const struct fns_args *args)
{
    struct packer packer = {.base = base, .used = round_up(sizeof(struct fns_ask))};
    struct fns_ask ask = {.kind = FNS_ASK_SPAWN, .args = *args};
    pack_args(&packer, &ask.args);
    ask.size = packer.used;
    if (base)
        memcpy(base, &ask, sizeof ask);
    return packer.used;
}

struct fns_ask *fns_pack_ask(const struct fns_args *args)
{
    size_t size = pack_ask(NULL, args);
    char *bytes = calloc(1, size);
    if (bytes)
        pack_ask(bytes, args);
    return (struct fns_ask *)(void *)bytes;
}
