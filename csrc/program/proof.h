/* The proof that a command has touched nothing of its room that the next one can see. Used by the keeper. */
#ifndef FNS_PROOF_H
#define FNS_PROOF_H

#include "child.h"

/* Opens what is looked at. `child` has run the ops that need no request, and has kept its scratch, which this closes.
 * 0 or -errno. */
FNS_CHECKED long fns_open_proof(struct fns_child *child);

/* Notes how everything looks before the first command. Returns when every later change will show in the times of files. 0
 * or -errno. */
FNS_CHECKED long fns_start_proof(void);

/* Whether everything looks as before the first command. Call it when no other process is left in the room. What cannot
 * be looked at counts as touched. */
FNS_CHECKED int fns_prove(void);

#endif
