/* The start of a program without libc, and what gcc expects of a libc.
 *
 * Included by main.c alone: it defines functions.
 */
#ifndef FNS_RUNTIME_H
#define FNS_RUNTIME_H

#include "shared/sys.h"

void *memcpy(void *restrict to, const void *restrict from, size_t size)
{
    char *t = to;
    const char *f = from;
    while (size--)
        *t++ = *f++;
    return to;
}

void *memset(void *to, int byte, size_t size)
{
    char *t = to;
    while (size--)
        *t++ = (char)byte;
    return to;
}

/* The entry point: `main` gets the stack as the kernel leaves it, argc first, and does not return. */
#if defined(__x86_64__)
#define FNS_PROGRAM(main)                                                                          \
    __asm__(".globl _start\n_start: xorl %ebp, %ebp\n movq %rsp, %rdi\n andq $-16, %rsp\n"         \
            "call " #main "\n hlt\n");
#else
#define FNS_PROGRAM(main)                                                                          \
    __asm__(".globl _start\n_start: mov x29, xzr\n mov x30, xzr\n mov x0, sp\n"                    \
            "bl " #main "\n brk #1\n");
#endif

#endif
