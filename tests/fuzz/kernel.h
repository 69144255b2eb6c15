/* A fake kernel, which the fuzz targets call instead of the real one.
 *
 * -include puts this header first in each file of csrc/ that is part of a target: it renames the
 * functions of sys.h, so that their calls go to kernel.c. kernel.c reads what the kernel would
 * read, so that AddressSanitizer checks each byte, and takes the results from the input.
 */
#ifndef FNS_FUZZ_KERNEL_H
#define FNS_FUZZ_KERNEL_H

#define fns_sys6 fns_real_sys6
#define fns_sys_clone_call fns_real_clone_call
#define fns_lock fns_real_lock
#include "shared/sys.h"
#undef fns_sys6
#undef fns_sys_clone_call
#undef fns_lock

#include "input.h"

long fns_sys6(long n, long a, long b, long c, long d, long e, long f);
long fns_sys_clone_call(long n, long a, long b, long c, long d, long e, int (*fn)(void *),
                        void *arg);
int fns_lock(int fd, int command, short type);

/* Sets the input that the results of calls are taken from. */
void kernel_begin(struct input input);

/* Runs act(arg) until it returns, executes or exits. 1: it returned. */
int kernel_run(void (*act)(void *arg), void *arg);

/* Reads bytes as the kernel would, a text to its end. */
void kernel_read(const void *from, uint64_t size);
void kernel_read_text(const char *text);

#endif
