/* One run of a plan's command. */
#ifndef FNS_RUN_H
#define FNS_RUN_H

#include "options.h"
#include "planfile.h"
#include "report.h"

/* Runs the command of the options to its end. How it ended, or that it has not started, is in `outcome`,
 * which may lead to `result`; an error was said on stderr. */
void fns_run_plan(struct fns_planfile *file, const struct options *options, struct outcome *outcome,
                  struct fns_result *result);

#endif
