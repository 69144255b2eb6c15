/* Packs plans and arguments for another process. Runs in the caller; makes no system call. */
#include "pack.h"

#include <stdlib.h>
#include <string.h>

enum { FIRST_SIZE = 4096 };

void fns_pack_at(struct fns_packer *packer, size_t at, const void *data, size_t size)
{
    if (packer->bytes && size)
        memcpy(packer->bytes + at, data, size);
}

void *fns_pack(struct fns_packer *packer, const void *data, size_t size)
{
    size_t at = packer->used, before = packer->size;
    packer->used = (at + size + 7) & ~(size_t)7;
    if (packer->used > before) {
        packer->size = packer->used > 2 * before ? packer->used + FIRST_SIZE : 2 * before;
        char *grown = before && !packer->bytes ? NULL : realloc(packer->bytes, packer->size);
        if (grown)
            memset(grown + before, 0, packer->size - before);
        else
            free(packer->bytes);
        packer->bytes = grown;
    }
    if (data)
        fns_pack_at(packer, at, data, size);
    return (void *)(uintptr_t)at;
}

void *fns_pack_text(struct fns_packer *packer, const char *text)
{
    return fns_pack(packer, text, strlen(text) + 1);
}

void *fns_pack_list(struct fns_packer *packer, char *const *texts)
{
    size_t n = 0, list;
    while (texts[n])
        n++;
    list = (size_t)fns_pack(packer, NULL, (n + 1) * sizeof *texts);
    for (size_t i = 0; i < n; i++) {
        void *text = fns_pack_text(packer, texts[i]);
        fns_pack_at(packer, list + i * sizeof text, &text, sizeof text);
    }
    return (void *)(uintptr_t)list;
}

void fns_pack_plan(struct fns_packer *packer, struct fns_plan *plan)
{
    plan->ops = fns_pack(packer, plan->ops, plan->n_ops * sizeof *plan->ops);
    plan->strings = fns_pack(packer, plan->strings, plan->n_strings);
}

void *fns_pack_file(const struct fns_plan *plan, size_t *size)
{
    struct fns_packed_plan packed = {.plan = *plan};
    struct fns_packer packer = {.bytes = NULL};
    fns_pack(&packer, NULL, sizeof packed);
    fns_pack_plan(&packer, &packed.plan);
    if (plan->sandbox) {
        packed.sandbox = *plan->sandbox;
        fns_pack_plan(&packer, &packed.sandbox);
    }
    fns_pack_at(&packer, 0, &packed, sizeof packed);
    *size = packer.used;
    return packer.bytes;
}

struct fns_request *fns_pack_request(const struct fns_args *args)
{
    struct fns_request request = {.kind = FNS_REQUEST_SPAWN, .args = *args};
    struct fns_packer packer = {.bytes = NULL};
    fns_pack(&packer, NULL, sizeof request);
    request.args.keep = fns_pack(&packer, args->keep, args->n_keep * sizeof *args->keep);
    request.args.groups = fns_pack(&packer, args->groups, args->n_groups * sizeof *args->groups);
    request.args.argv = fns_pack_list(&packer, args->argv);
    request.args.envp = fns_pack_list(&packer, args->envp);
    request.args.paths = fns_pack_list(&packer, args->paths);
    if (args->cwd)
        request.args.cwd = fns_pack_text(&packer, args->cwd);
    request.size = packer.used;
    fns_pack_at(&packer, 0, &request, sizeof request);
    return (struct fns_request *)(void *)packer.bytes;
}
