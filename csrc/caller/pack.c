/* Packs plans and arguments for another process. Runs in the caller; makes no system call. */
#include "pack.h"

#include <stdlib.h>
#include <string.h>

void *fns_pack(struct fns_packer *packer, const void *data, size_t size)
{
    size_t at = packer->used;
    if (packer->base && size)
        memcpy(packer->base + at, data, size);
    packer->used = (at + size + 7) & ~(size_t)7;
    return (void *)(uintptr_t)at;
}

void *fns_pack_text(struct fns_packer *packer, const char *text)
{
    return fns_pack(packer, text, strlen(text) + 1);
}

void *fns_pack_list(struct fns_packer *packer, char *const *texts)
{
    size_t n = 0, list = packer->used;
    while (texts[n])
        n++;
    packer->used += (n + 1) * sizeof *texts;
    for (size_t i = 0; i < n; i++) {
        void *text = fns_pack_text(packer, texts[i]);
        if (packer->base)
            memcpy(packer->base + list + i * sizeof text, &text, sizeof text);
    }
    return (void *)(uintptr_t)list;
}

void fns_pack_plan(struct fns_packer *packer, struct fns_plan *plan)
{
    plan->ops = fns_pack(packer, plan->ops, plan->n_ops * sizeof *plan->ops);
    plan->strings = fns_pack(packer, plan->strings, plan->n_strings);
}

/* ---- plans ------------------------------------------------------------------------------------ */

size_t fns_pack_file(char *base, const struct fns_plan *plan)
{
    struct fns_packed_plan packed = {.plan = *plan};
    struct fns_packer packer = {.base = base, .used = sizeof packed};
    fns_pack_plan(&packer, &packed.plan);
    if (plan->sandbox) {
        packed.sandbox = *plan->sandbox;
        fns_pack_plan(&packer, &packed.sandbox);
    }
    if (base)
        memcpy(base, &packed, sizeof packed);
    return packer.used;
}

/* ---- requests --------------------------------------------------------------------------------- */

static size_t pack_request(char *base, const struct fns_args *args)
{
    struct fns_request request = {.kind = FNS_REQUEST_SPAWN, .args = *args};
    struct fns_packer packer = {.base = base, .used = sizeof request};
    request.args.keep = fns_pack(&packer, args->keep, args->n_keep * sizeof *args->keep);
    request.args.groups = fns_pack(&packer, args->groups, args->n_groups * sizeof *args->groups);
    request.args.argv = fns_pack_list(&packer, args->argv);
    request.args.envp = fns_pack_list(&packer, args->envp);
    request.args.paths = fns_pack_list(&packer, args->paths);
    if (args->cwd)
        request.args.cwd = fns_pack_text(&packer, args->cwd);
    request.size = packer.used;
    if (base)
        memcpy(base, &request, sizeof request);
    return packer.used;
}

struct fns_request *fns_pack_request(const struct fns_args *args)
{
    char *bytes = calloc(1, pack_request(NULL, args));
    if (bytes)
        pack_request(bytes, args);
    return (struct fns_request *)(void *)bytes;
}
