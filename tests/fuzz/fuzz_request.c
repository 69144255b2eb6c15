/* Packing and unpacking: pack.c packs plans and arguments into exactly as many bytes as it
 * announces, and wire.c unpacks equal plans and arguments from them.
 */
#include <stdlib.h>
#include <string.h>

#include "caller/pack.h"
#include "input.h"
#include "shared/wire.h"

enum { MAX_WORDS = 12, MAX_LENGTH = 300, MAX_FDS = 12, MAX_OPS = 12 };

#define EXPECT(condition)                                                                          \
    do {                                                                                           \
        if (!(condition))                                                                          \
            abort();                                                                               \
    } while (0)

static char *take_text(struct input *input)
{
    size_t size = take(input, 2) % MAX_LENGTH;
    char *text = calloc(1, size + 1);
    EXPECT(text);
    for (size_t i = 0; i < size; i++)
        text[i] = (char)(take(input, 1) % 255 + 1);
    return text;
}

static char **take_words(struct input *input)
{
    size_t n = take(input, 1) % MAX_WORDS;
    char **words = calloc(n + 1, sizeof *words);
    EXPECT(words);
    for (size_t i = 0; i < n; i++)
        words[i] = take_text(input);
    return words;
}

static int *take_fds(struct input *input, uint32_t n)
{
    int *fds = malloc(n * sizeof *fds + 1), last = 2;
    EXPECT(fds);
    for (uint32_t i = 0; i < n; i++)
        fds[i] = last += 1 + (int)(take(input, 4) % 100000000);
    return fds;
}

static struct fns_args take_args(struct input *input)
{
    struct fns_args args = {.argv = take_words(input),
                            .envp = take_words(input),
                            .paths = take_words(input),
                            .cwd = take(input, 1) & 1 ? take_text(input) : NULL,
                            .n_keep = (uint32_t)take(input, 1) % MAX_FDS,
                            .n_groups = (uint32_t)take(input, 1) % FNS_MAX_GROUPS};
    args.keep = take_fds(input, args.n_keep);
    args.groups = take_fds(input, args.n_groups);
    args.clone_into = args.n_groups && take(input, 1) & 1;
    args.userns = (int)take(input, 4);
    for (int i = 0; i < 3; i++)
        args.stdio[i] = (int)take(input, 4);
    return args;
}

static void free_words(char *const *words)
{
    for (char *const *word = words; *word; word++)
        free(*word);
    free((void *)(uintptr_t)words);
}

static void free_args(struct fns_args *args)
{
    free_words(args->argv);
    free_words(args->envp);
    free_words(args->paths);
    free((void *)(uintptr_t)args->cwd);
    free((void *)(uintptr_t)args->keep);
    free((void *)(uintptr_t)args->groups);
}

static void words_are_the_same(char *const *a, char *const *b)
{
    for (; *a && *b; a++, b++)
        EXPECT(strcmp(*a, *b) == 0);
    EXPECT(!*a && !*b);
}

static void args_are_the_same(const struct fns_args *a, const struct fns_args *b)
{
    words_are_the_same(a->argv, b->argv);
    words_are_the_same(a->envp, b->envp);
    words_are_the_same(a->paths, b->paths);
    EXPECT(!a->cwd == !b->cwd && (!a->cwd || strcmp(a->cwd, b->cwd) == 0));
    EXPECT(a->n_groups == b->n_groups && a->clone_into == b->clone_into);
    EXPECT(!a->n_groups || memcmp(a->groups, b->groups, a->n_groups * sizeof(int)) == 0);
    EXPECT(a->userns == b->userns && memcmp(a->stdio, b->stdio, sizeof a->stdio) == 0);
    EXPECT(a->n_keep == b->n_keep);
    EXPECT(!a->n_keep || memcmp(a->keep, b->keep, a->n_keep * sizeof(int)) == 0);
}

static void plans_are_the_same(const struct fns_plan *a, const struct fns_plan *b)
{
    EXPECT(a->n_ops == b->n_ops && a->n_strings == b->n_strings && a->options == b->options);
    EXPECT(a->clone_flags == b->clone_flags && a->id_map == b->id_map);
    EXPECT(!a->n_ops || memcmp(a->ops, b->ops, a->n_ops * sizeof *a->ops) == 0);
    EXPECT(!a->n_strings || memcmp(a->strings, b->strings, a->n_strings) == 0);
}

static void goes_through_a_request(const struct fns_args *args, int spawn)
{
    struct fns_request *request = fns_pack_request(args);
    struct fns_args opened;
    EXPECT(request);
    request->kind = spawn ? FNS_REQUEST_SPAWN : FNS_REQUEST_RUN;
    int n_fds = 3 + (int)(args->n_keep + args->n_groups) + spawn;
    char *exact = malloc(request->size);
    EXPECT(exact);
    memcpy(exact, request, request->size);
    EXPECT(fns_open_request((struct fns_request *)(void *)exact, request->size, n_fds + 1,
                            &opened) < 0);
    EXPECT(fns_open_request((struct fns_request *)(void *)exact, request->size, n_fds, &opened) ==
           0);
    args_are_the_same(args, &opened);
    free(exact);
    free(request);
}

static void goes_through_a_file(const struct fns_plan *plan)
{
    size_t packed_size;
    char *packed = fns_pack_file(plan, &packed_size);
    EXPECT(packed);
    struct fns_packed_plan *opened = (struct fns_packed_plan *)(void *)packed;
    EXPECT(fns_open_plan(packed, packed_size, &opened->plan) == 0);
    EXPECT(fns_open_plan(packed, packed_size, &opened->sandbox) == 0);
    plans_are_the_same(plan, &opened->plan);
    if (plan->sandbox)
        plans_are_the_same(plan->sandbox, &opened->sandbox);
    free(packed);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, data + size};
    int flags = (int)take(&input, 1);
    struct fns_args args = take_args(&input);
    struct fns_op ops[MAX_OPS];
    char strings[MAX_LENGTH];
    struct fns_plan plan = {.ops = ops,
                            .strings = strings,
                            .n_ops = (uint32_t)take(&input, 1) % (MAX_OPS + 1),
                            .n_strings = (uint32_t)take(&input, 2) % (MAX_LENGTH + 1),
                            .options = (uint32_t)take(&input, 1),
                            .clone_flags = take(&input, 8)};
    take_bytes(&input, ops, sizeof ops);
    take_bytes(&input, strings, sizeof strings);
    struct fns_plan sandbox = plan;
    sandbox.n_ops /= 2;
    sandbox.n_strings /= 2;
    if (flags & 1)
        plan.sandbox = &sandbox;
    goes_through_a_request(&args, flags >> 1 & 1);
    goes_through_a_file(&plan);
    free_args(&args);
    return 0;
}
