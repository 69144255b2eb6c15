/* fns_plan_check() refuses what it must, and every random plan that it accepts is safe to run.
 *
 * The test reads every byte that a child would read. Strings are in memory of their exact size, so
 * AddressSanitizer detects a read beyond them.
 */
#include <errno.h>
#include <string.h>

#include "caller/fastns.h"
#include "check.h"
#include "shared/sys.h"

static const char arena[] = "\0text\0/path\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
enum { TEXT = 1, PATH = 6, DATA = 12 };

static struct fns_plan plan_of(const struct fns_op *ops, uint32_t n)
{
    return (struct fns_plan){.ops = ops, .n_ops = n, .strings = arena, .n_strings = sizeof arena};
}

static int check(const struct fns_plan *plan, int expected_op)
{
    int bad = 4242, ret = fns_plan_check(plan, &bad);
    CHECK(ret == 0 || ret == -EINVAL);
    CHECK_EQUAL(bad, expected_op);
    return ret;
}

static int check_one(struct fns_op op)
{
    struct fns_plan plan = plan_of(&op, 1);
    int bad;
    if (op.stage == 0)
        op.stage = FNS_STAGE_MOUNT;
    return fns_plan_check(&plan, &bad);
}

static void refuses_what_an_op_lacks(void)
{
    CHECK_EQUAL(check_one((struct fns_op){.code = FNS_OP_UMASK}), 0);
    CHECK_EQUAL(check_one((struct fns_op){.code = FNS_OP_COUNT}), -EINVAL);
    CHECK_EQUAL(check_one((struct fns_op){.code = 65535}), -EINVAL);
    CHECK_EQUAL(check_one((struct fns_op){.code = FNS_OP_UMASK, .stage = FNS_STAGE_COUNT}),
                -EINVAL);
    CHECK_EQUAL(check_one((struct fns_op){.code = FNS_OP_HOSTNAME}), -EINVAL);
    CHECK_EQUAL(check_one((struct fns_op){.code = FNS_OP_HOSTNAME, .data = TEXT}), 0);
    CHECK_EQUAL(check_one((struct fns_op){.code = FNS_OP_MOUNT, .target = PATH}), -EINVAL);
    CHECK_EQUAL(check_one((struct fns_op){.code = FNS_OP_MOUNT, .target = PATH, .type = TEXT}), 0);
    CHECK_EQUAL(check_one((struct fns_op){.code = FNS_OP_BIND, .target = PATH}), -EINVAL);
    CHECK_EQUAL(check_one((struct fns_op){.code = FNS_OP_BIND, .target = sizeof arena}), -EINVAL);
    CHECK_EQUAL(check_one((struct fns_op){.code = FNS_OP_BIND, .target = ~0u, .source = 1}),
                -EINVAL);
    /* bytes, groups, limits */
    struct fns_op file = {
        .code = FNS_OP_FILE_BIND, .source = TEXT, .target = PATH, .data = DATA, .arg = 8};
    CHECK_EQUAL(check_one(file), 0);
    file.arg = sizeof arena - DATA + 1;
    CHECK_EQUAL(check_one(file), -EINVAL);
    file.arg = ~0ull;
    CHECK_EQUAL(check_one(file), -EINVAL);
    CHECK_EQUAL(check_one((struct fns_op){.code = FNS_OP_SETGROUPS, .data = DATA, .arg = 2}), 0);
    CHECK_EQUAL(check_one((struct fns_op){.code = FNS_OP_SETGROUPS, .data = DATA, .arg = 65}),
                -EINVAL);
    CHECK_EQUAL(check_one((struct fns_op){.code = FNS_OP_SETGROUPS, .arg = 1ull << 62}), -EINVAL);
    CHECK_EQUAL(check_one((struct fns_op){.code = FNS_OP_RLIMIT, .data = DATA}), 0);
    CHECK_EQUAL(check_one((struct fns_op){.code = FNS_OP_PIVOT_ROOT, .arg = 2}), 0);
    CHECK_EQUAL(check_one((struct fns_op){.code = FNS_OP_PIVOT_ROOT, .arg = 3}), -EINVAL);
    CHECK_EQUAL(check_one((struct fns_op){.code = FNS_OP_RLIMIT, .data = sizeof arena - 15}),
                -EINVAL);
}

static void names_the_bad_op(void)
{
    struct fns_op ops[3] = {{.code = FNS_OP_UMASK, .stage = FNS_STAGE_UMASK},
                            {.code = FNS_OP_HOSTNAME, .stage = FNS_STAGE_HOSTNAME},
                            {.code = FNS_OP_COUNT, .stage = FNS_STAGE_UMASK}};
    struct fns_plan plan = plan_of(ops, 3);
    CHECK_EQUAL(check(&plan, 1), -EINVAL);
    ops[1].data = TEXT;
    CHECK_EQUAL(check(&plan, 2), -EINVAL);
    plan.n_ops = 2;
    CHECK_EQUAL(check(&plan, -1), 0);
}

static void refuses_options_that_do_not_fit(void)
{
    struct fns_plan good = plan_of(NULL, 0), plan = good;
    CHECK_EQUAL(check(&plan, -1), 0);
    plan.clone_flags = FNS_CLONE_VM;
    CHECK_EQUAL(check(&plan, -1), -EINVAL);
    plan = good;
    plan.n_early = 1;
    CHECK_EQUAL(check(&plan, -1), -EINVAL);
    plan = good;
    plan.options = FNS_PLAN_INIT;
    plan.clone_flags = FNS_CLONE_NEWPID;
    CHECK_EQUAL(check(&plan, -1), 0);
    plan.clone_flags = 0;
    CHECK_EQUAL(check(&plan, -1), -EINVAL);
    plan = good;
    plan.options = FNS_PLAN_NETWORKS | FNS_PLAN_ROOMS;
    CHECK_EQUAL(check(&plan, -1), 0);
    plan.options = FNS_PLAN_ROOMS;
    CHECK_EQUAL(check(&plan, -1), -EINVAL);
    plan = good;
    plan.id_map = FNS_ID_MAP_PARENT;
    plan.uid_map = plan.gid_map = TEXT;
    plan.clone_flags = FNS_CLONE_NEWUSER;
    CHECK_EQUAL(check(&plan, -1), 0);
    plan.gid_map = 0;
    CHECK_EQUAL(check(&plan, -1), -EINVAL);
    plan = good;
    plan.options = FNS_PLAN_MAPS_FIRST;
    CHECK_EQUAL(check(&plan, -1), -EINVAL);
    plan.id_map = FNS_ID_MAP_SELF;
    CHECK_EQUAL(check(&plan, -1), 0);
    plan.clone_flags = FNS_CLONE_NEWPID;
    plan.options |= FNS_PLAN_INIT; /* root inside could attack pid 1 */
    CHECK_EQUAL(check(&plan, -1), -EINVAL);
    plan = good;
    plan.id_map = FNS_ID_MAP_RANGE + 1;
    CHECK_EQUAL(check(&plan, -1), -EINVAL);
    plan = good;
    plan.n_strings = 0;
    CHECK_EQUAL(check(&plan, -1), -EINVAL);
    plan.strings = "x";
    plan.n_strings = 2;
    CHECK_EQUAL(check(&plan, -1), -EINVAL);
    plan.strings = "\0x";
    CHECK_EQUAL(check(&plan, -1), -EINVAL);
}

/* ---- random plans --------------------------------------------------------------------------- */

static volatile unsigned long sink;

static void read_text(const struct fns_plan *plan, uint32_t offset)
{
    if (offset)
        sink += strlen(plan->strings + offset);
}

static void read_bytes(const struct fns_plan *plan, uint32_t offset, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        sink += (unsigned char)plan->strings[offset + i];
}

/* Reads everything that the program and userns.c would read. */
static void read_plan(const struct fns_plan *plan)
{
    CHECK(plan->n_early <= plan->n_ops);
    read_text(plan, plan->uid_map);
    read_text(plan, plan->gid_map);
    for (uint32_t i = 0; i < plan->n_ops; i++) {
        const struct fns_op *op = &plan->ops[i];
        CHECK(op->code < FNS_OP_COUNT);
        CHECK(op->stage > 0 && op->stage < FNS_STAGE_COUNT);
        read_text(plan, op->source);
        read_text(plan, op->target);
        read_text(plan, op->type);
        read_text(plan, op->data);
        if (op->code == FNS_OP_FILE_BIND)
            read_bytes(plan, op->data, op->arg);
        if (op->code == FNS_OP_RLIMIT)
            read_bytes(plan, op->data, 16);
        if (op->code == FNS_OP_SETGROUPS) {
            CHECK(op->arg <= 64);
            read_bytes(plan, op->data, op->arg * 4);
        }
        if (op->code == FNS_OP_HOSTNAME || op->code == FNS_OP_WRITE)
            CHECK(op->data != 0);
        if (op->code == FNS_OP_MOUNT || op->code == FNS_OP_BIND || op->code == FNS_OP_SYMLINK)
            CHECK(op->target != 0);
    }
}

static uint64_t random_number(uint32_t arena_size)
{
    switch (random_below(6)) {
    case 0: return 0;
    case 1: return ~0ull - random_below(3);
    case 2: return 1ull << random_below(64);
    case 3: return arena_size - 2 + random_below(4);
    default: return random_below(arena_size + 2);
    }
}

static int one_random_plan(void)
{
    uint32_t size = random_below(64) + (random_below(50) != 0), n = random_below(5);
    char *strings = malloc(size ? size : 1);
    struct fns_op *ops = malloc((n + 1) * sizeof *ops);
    CHECK(strings && ops);
    for (uint32_t i = 0; i < size; i++)
        strings[i] = (char)random_below(3);
    if (size && random_below(20)) {
        strings[0] = 0;
        strings[size - 1] = 0;
    }
    for (uint32_t i = 0; i < n; i++)
        ops[i] = (struct fns_op){
            .code = (uint16_t)random_below(FNS_OP_COUNT + (random_below(20) == 0)),
            .stage = (uint16_t)(1 + random_below(FNS_STAGE_COUNT - (random_below(20) != 0))),
            .how = random_below(64),
            .flags = random_number(size),
            .arg = random_number(size),
            .source = (uint32_t)random_number(size),
            .target = (uint32_t)random_number(size),
            .type = (uint32_t)random_number(size),
            .data = (uint32_t)random_number(size),
        };
    struct fns_plan plan = {.ops = ops,
                            .strings = strings,
                            .n_ops = n,
                            .n_strings = size,
                            .n_early = random_below(3),
                            .options = random_below(4),
                            .id_map = random_below(5),
                            .uid_map = (uint32_t)random_number(size),
                            .gid_map = (uint32_t)random_number(size),
                            .clone_flags = random_below(2) ? random_number(size)
                                                           : FNS_CLONE_NEWPID | FNS_CLONE_NEWUSER};
    int bad, ret = fns_plan_check(&plan, &bad);
    CHECK(bad >= -1 && bad < (int)n);
    if (ret == 0)
        read_plan(&plan);
    free(ops);
    free(strings);
    return ret == 0;
}

int main(void)
{
    refuses_what_an_op_lacks();
    names_the_bad_op();
    refuses_options_that_do_not_fit();
    int accepted = 0;
    for (int i = 0; i < 1000000; i++)
        accepted += one_random_plan();
    CHECK(accepted > 1000); /* otherwise the random plans test too little */
    CHECK(strcmp(fns_op_name(FNS_OP_COUNT), "unknown") == 0);
    CHECK(strcmp(fns_stage_name(FNS_STAGE_COUNT), "unknown") == 0);
    for (unsigned i = 0; i < FNS_STAGE_COUNT; i++)
        CHECK(strlen(fns_stage_name(i)) > 1);
    printf("test_plan: %d random plans accepted\n", accepted);
    return 0;
}
