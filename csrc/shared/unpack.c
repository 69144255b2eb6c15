/* Unpacks what request.c has packed: turns offsets into pointers, and checks each. Runs in the program
 * and in a template's sandboxes.
 *
 * Pure: it makes no system call, and reads nothing outside of the bytes that it is given, whatever they hold.
 * -EPROTO: they are not what request.c packs.
 */
#include "unpack.h"

#include "sys.h"

/* Whether n items of so many bytes, aligned to `align`, lie at an offset. */
static int holds(uint64_t size, uint64_t offset, uint64_t n, uint64_t item, uint64_t align)
{
    return offset % align == 0 && offset <= size && n <= (size - offset) / item;
}

/* For a text only the offset is checked: the last byte of all is NUL. */
static int holds_text(uint64_t size, uint64_t offset)
{
    return offset > 0 && offset < size;
}

static int open_array(char *base, uint64_t size, char *const **array)
{
    uint64_t offset = (uintptr_t)*array;
    for (uint64_t at = offset;; at += sizeof at) {
        if (!at || !holds(size, at, 1, sizeof at, sizeof at))
            return -EPROTO;
        uint64_t *item = (uint64_t *)(void *)(base + at);
        if (!*item)
            break;
        if (!holds_text(size, *item))
            return -EPROTO;
        *item += (uintptr_t)base;
    }
    *array = (char *const *)(void *)(base + offset);
    return 0;
}

static int open_ints(char *base, uint64_t size, uint32_t n, const int **ints)
{
    uint64_t offset = (uintptr_t)*ints;
    if (!n)
        return 0;
    if (!holds(size, offset, n, sizeof **ints, sizeof **ints))
        return -EPROTO;
    *ints = (const int *)(const void *)(base + offset);
    return 0;
}

/* The fds that stay open are sorted, as close_range() between them requires. */
static int ascend(const int *fds, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (fds[i] <= (i ? fds[i - 1] : 2) || fds[i] == 0x7fffffff)
            return 0;
    return 1;
}

int fns_open_args(char *base, uint64_t size, struct fns_args *args)
{
    if (!size || base[size - 1])
        return -EPROTO;
    if (open_array(base, size, &args->argv) < 0 || open_array(base, size, &args->envp) < 0 ||
        open_array(base, size, &args->paths) < 0 ||
        open_ints(base, size, args->n_keep, &args->keep) < 0 ||
        open_ints(base, size, args->n_groups, &args->groups) < 0)
        return -EPROTO;
    if (!ascend(args->keep, args->n_keep) || args->n_groups > FNS_MAX_GROUPS ||
        args->clone_into > 1 || args->clone_into > args->n_groups)
        return -EPROTO;
    if (!args->cwd)
        return 0;
    if (!holds_text(size, (uintptr_t)args->cwd))
        return -EPROTO;
    args->cwd = base + (uintptr_t)args->cwd;
    return 0;
}

int fns_open_plan(char *base, uint64_t size, struct fns_plan *plan)
{
    uint64_t ops = (uintptr_t)plan->ops, strings = (uintptr_t)plan->strings;
    if (!holds(size, ops, plan->n_ops, sizeof *plan->ops, sizeof(uint64_t)) ||
        !holds(size, strings, plan->n_strings, 1, 1))
        return -EPROTO;
    plan->ops = (const struct fns_op *)(const void *)(base + ops);
    plan->strings = base + strings;
    return 0;
}

int fns_open_ask(struct fns_ask *ask, uint64_t size, int n_fds, struct fns_args *args)
{
    if (size < sizeof *ask || (ask->kind != FNS_ASK_RUN && ask->kind != FNS_ASK_SPAWN))
        return -EPROTO;
    *args = ask->args;
    if (args->n_keep > FNS_ASK_FDS || args->n_groups > FNS_MAX_GROUPS ||
        n_fds != 3 + (int)(args->n_keep + args->n_groups) + (ask->kind == FNS_ASK_SPAWN))
        return -EPROTO;
    return fns_open_args((char *)ask, size, args);
}
