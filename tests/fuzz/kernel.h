/* A fake kernel, which the fuzz targets call instead of the real one.
 *
 * The compiler's -include puts this header first in each file of csrc/ that is part of a target. It
 * renames the functions of sys.h, whose calls then go to kernel.c. kernel.c reads all that the
 * kernel would read, so AddressSanitizer checks each byte. The results come from the input.
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

/* Sets the input from which the results of calls are taken. */
void kernel_begin(struct input input);

/* Runs act(arg) until it returns, executes a program or exits. Returns 1 if it returned. */
int kernel_run(void (*act)(void *arg), void *arg);

/* Reads bytes, or a text up to its NUL, as the kernel would. */
void kernel_read(const void *from, uint64_t size);
void kernel_read_text(const char *text);

#endif
