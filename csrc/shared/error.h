/* The record of a failed step, and the list of stages.
 *
 * Used by every process. Header only, so that the border can include it.
 */
#ifndef FNS_ERROR_H
#define FNS_ERROR_H

#include <stdint.h>

/* For functions whose result must be used. */
#define FNS_CHECKED __attribute__((warn_unused_result))

/* How often to try a call whose failure may be temporary and would cost too much. */
enum { FNS_TRIES = 4 };

enum fns_stage {
#define FNS_STAGE(stage, ...) FNS_STAGE_##stage,
#include "stages.def"
    FNS_STAGE_COUNT
};

/* What is known about a failure besides its errno. */
enum fns_detail {
    FNS_DETAIL_NONE,
    FNS_DETAIL_SOURCE, /* the op's source is at fault, not its target */
    FNS_DETAIL_FOUND,  /* exec: the file exists, so its interpreter or loader is missing */
    FNS_DETAIL_BROKEN, /* the connection to a template's server broke */
    FNS_DETAIL_KILLED, /* the process was killed before the exec */
    FNS_DETAIL_ID_MAP, /* the mount cannot be idmapped */
    FNS_DETAIL_MEMORY  /* exec: the arguments do not fit into the memory limit */
};

struct fns_error {
    uint16_t stage;   /* enum fns_stage; FNS_STAGE_NONE: no error */
    uint16_t detail;  /* enum fns_detail */
    int32_t op_index; /* -1: no op */
    int32_t err;      /* errno, positive */
};

#endif
