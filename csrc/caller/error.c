/* Names of the stages. Runs in the parent. */
#include "fastns.h"

const char *fns_stage_name(unsigned stage)
{
    static const char *const names[] = {
#define X(name, text) text,
        FNS_STAGES(X)
#undef X
    };
    return stage < FNS_STAGE_COUNT ? names[stage] : "unknown";
}

int fns_set_error(struct fns_error *error, enum fns_stage stage, int op_index, int err)
{
    error->stage = (uint16_t)stage;
    error->detail = FNS_DETAIL_NONE;
    error->op_index = op_index;
    error->err = err < 0 ? -err : err;
    return -error->err;
}
