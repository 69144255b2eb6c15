/* A fake kernel: what the fuzz targets put in the place of system calls.
 *
 * Included before all else in every file of csrc/ that a target is made of (-include): sys.h's functions
 * get other names, and their own go to kernel.c. That reads what the kernel would read, so that
 * AddressSanitizer sees each byte, and answers as the input says.
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

/* Calls are answered from this input from now on. */
void kernel_begin(struct input input);

/* Runs act(arg) until it returns, executes or exits. 1: it returned. */
int kernel_run(void (*act)(void *arg), void *arg);

/* Reads bytes as the kernel would, a text to its end. */
void kernel_read(const void *from, uint64_t size);
void kernel_read_text(const char *text);

#endif
