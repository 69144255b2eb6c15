/* A program interpreter that replaces ld.so in a hostile root. It reports which file it was
 * started for.
 *
 * Prints the device and inode of /proc/self/exe as "MAJOR MINOR INODE" on stdout and exits 0.
 * Opens nothing for writing. Uses no libc, because it runs before any relocation.
 * tests/sandbox/test_hostile_handles.py compiles it.
 */
#include "shared/sys.h"

static char *put(char *to, uint64_t value)
{
    char digits[20];
    int n = 0;
    do
        digits[n++] = (char)('0' + value % 10);
    while (value /= 10);
    while (n)
        *to++ = digits[--n];
    *to++ = ' ';
    return to;
}

__attribute__((used)) _Noreturn void loader_main(void)
{
    static const char exe[] = "/proc/self/exe";
    struct statx st;
    char line[80];
    long failed = fns_sys5(__NR_statx, AT_FDCWD, exe, 0, STATX_INO, &st);
    if (failed == 0) {
        char *end = put(put(put(line, st.stx_dev_major), st.stx_dev_minor), st.stx_ino);
        fns_sys3(__NR_write, 1, line, end - line);
    }
    for (;;)
        fns_sys1(__NR_exit_group, failed ? 1 : 0);
}

#if defined(__x86_64__)
__asm__(".globl _start\n_start: xorl %ebp, %ebp\n andq $-16, %rsp\n call loader_main\n hlt\n");
#else
__asm__(".globl _start\n_start: mov x29, xzr\n mov x30, xzr\n bl loader_main\n brk #1\n");
#endif
