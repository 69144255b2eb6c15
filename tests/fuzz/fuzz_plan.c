/* fns_plan_check(): no plan that it accepts makes the child read outside the plan.
 *
 * The input is made into two plans: a server's, and that of its sandboxes. The program's own code
 * runs each accepted plan on the fake kernel. Ops and strings are in memory of their exact size.
 */
#include <stdlib.h>
#include <string.h>

#include "caller/fastns.h"
#include "kernel.h"
#include "program/child.h"

enum { MAX_OPS = 24, MAX_STRINGS = 1024 };

static struct fns_plan take_plan(struct input *input)
{
    struct fns_plan plan = {.n_ops = (uint32_t)take(input, 1) % MAX_OPS,
                            .n_strings = (uint32_t)take(input, 2) % MAX_STRINGS,
                            .n_early = (uint32_t)take(input, 1),
                            .options = (uint32_t)take(input, 1),
                            .id_map = (uint32_t)take(input, 1),
                            .uid_map = (uint32_t)take(input, 2),
                            .gid_map = (uint32_t)take(input, 2),
                            .clone_flags = take(input, 4)};
    struct fns_op *ops = malloc(plan.n_ops * sizeof *ops + 1);
    char *strings = malloc(plan.n_strings + 1u);
    if (!ops || !strings)
        abort();
    for (uint32_t i = 0; i < plan.n_ops; i++)
        ops[i] = (struct fns_op){.code = (uint16_t)take(input, 1),
                                 .stage = (uint16_t)take(input, 1),
                                 .how = (uint32_t)take(input, 2),
                                 .flags = take(input, take(input, 1) & 7),
                                 .arg = take(input, take(input, 1) & 7),
                                 .source = (uint32_t)take(input, 2),
                                 .target = (uint32_t)take(input, 2),
                                 .type = (uint32_t)take(input, 2),
                                 .data = (uint32_t)take(input, 2)};
    take_bytes(input, strings, plan.n_strings);
    plan.ops = realloc(ops, plan.n_ops * sizeof *ops + !plan.n_ops);
    plan.strings = realloc(strings, plan.n_strings + !plan.n_strings);
    if (!plan.ops || !plan.strings)
        abort();
    return plan;
}

static void run(void *arg)
{
    struct fns_child *child = arg;
    if (fns_run_ops(child, 0, child->plan->n_ops) == 0 && fns_change_directory(child) == 0)
        fns_execute(child);
}

static void run_plan(const struct fns_plan *plan)
{
    static char *const words[] = {(char *)"word", NULL};
    const struct fns_args args = {.argv = words, .envp = words, .paths = words, .cwd = "/"};
    struct fns_child child = FNS_CHILD(plan, &args, -1);
    if (kernel_run(run, &child) && child.progress != FNS_PROGRESS_FAILED)
        abort(); /* it neither executed nor reported an error */
    if (child.error.op_index < -1 || child.error.op_index >= (int)plan->n_ops ||
        child.error.stage >= FNS_STAGE_COUNT)
        abort();
    kernel_read_text(plan->strings + plan->uid_map);
    kernel_read_text(plan->strings + plan->gid_map);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, data + size};
    unsigned use = (unsigned)take(&input, 1);
    struct fns_plan first = take_plan(&input), second = take_plan(&input);
    int bad_first, bad_second;
    if (use & 2)
        first.sandbox = &second;
    int second_is_good = fns_plan_check(&second, &bad_second) == 0;
    int first_is_good = fns_plan_check(&first, &bad_first) == 0;
    if (bad_first < -1 || bad_first >= (int)first.n_ops)
        abort();
    kernel_begin(input);
    if (first_is_good)
        run_plan(&first);
    if (second_is_good)
        run_plan(&second);
    free((void *)(uintptr_t)first.ops);
    free((void *)(uintptr_t)first.strings);
    free((void *)(uintptr_t)second.ops);
    free((void *)(uintptr_t)second.strings);
    return 0;
}
