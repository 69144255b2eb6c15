/* Stage names and error records. Runs in the caller. */
#include "fastns.h"

const char *fns_stage_name(unsigned stage)
{
    static const char *const names[] = {
#define FNS_STAGE(stage, name, ...) #name,
#include "shared/stages.def"
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
