/* One run of a plan's command. */
#ifndef FNS_RUN_H
#define FNS_RUN_H

#include "options.h"
#include "planfile.h"
#include "report.h"

/* Runs the command of the options to its end. `outcome`, which may point to `result`, says how it ended or why it has
 * not started; an error has been printed to stderr. */
void fns_run_plan(struct fns_planfile *file, const struct options *options, struct outcome *outcome,
                  struct fns_result *result);

#endif
