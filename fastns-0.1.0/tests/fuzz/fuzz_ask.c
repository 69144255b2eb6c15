/* What the server parses: whatever bytes arrive, nothing beyond them is read, and what is accepted can be
 * used as it is.
 */
#include <stdlib.h>
#include <string.h>

#include "helper.h"
#include "input.h"

static volatile uint8_t sink;

static void read_text(const char *text)
{
    while (*text)
        sink ^= (uint8_t)*text++;
}

static void read_texts(char *const *texts)
{
    for (; *texts; texts++)
        read_text(*texts);
}

static void use(const struct fns_args *args)
{
    read_texts(args->argv);
    read_texts(args->envp);
    read_texts(args->paths);
    if (args->cwd)
        read_text(args->cwd);
    if (args->n_groups > FNS_MAX_GROUPS || args->clone_into > args->n_groups)
        abort();
    int last = 2;
    for (uint32_t i = 0; i < args->n_keep; last = args->keep[i++])
        if (args->keep[i] <= last)
            abort();
    for (uint32_t i = 0; i < args->n_groups; i++)
        sink ^= (uint8_t)args->groups[i];
}

static void open_request(char *bytes, size_t size)
{
    struct fns_request *request = (struct fns_request *)(void *)bytes;
    if (size < sizeof *request)
        return;
    if (fns_open_plan(bytes, size, &request->plan) == 0) {
        for (uint32_t i = 0; i < request->plan.n_ops; i++)
            sink ^= (uint8_t)request->plan.ops[i].data;
        for (uint32_t i = 0; i < request->plan.n_strings; i++)
            sink ^= (uint8_t)request->plan.strings[i];
    }
    struct fns_args args = request->args; /* the array may lie anywhere, over this too */
    if (fns_open_args(bytes, size, &args) == 0)
        use(&args);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, data + size};
    unsigned how = (unsigned)take(&input, 1);
    int n_fds = (int)take(&input, 1);
    size_t left = (size_t)(input.end - input.at);
    char *bytes = malloc(left + !left);
    struct fns_args args;
    if (!bytes)
        abort();
    take_bytes(&input, bytes, left);
    if (how & 1)
        open_request(bytes, left);
    else if (fns_open_ask((struct fns_ask *)(void *)bytes, left, n_fds, &args) == 0)
        use(&args);
    free(bytes);
    return 0;
}
