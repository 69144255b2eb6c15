/* Raw system calls that return -errno, and the kernel constants libc's headers may lack.
 *
 * Used by every process. Nothing here touches errno, TLS, locks or the heap, so that it can run in a child
 * that shares the memory of a threaded process (vfork(2), signal-safety(7)).
 */
#ifndef FNS_SYS_H
#define FNS_SYS_H

#include <asm/unistd.h>
#include <linux/capability.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/prctl.h>
#include <linux/stat.h>
#include <linux/types.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

/* Always inline, because a child that shares memory must not call a function that sanitizers have
 * instrumented. */
#define FNS_INLINE static inline __attribute__((always_inline, unused))

/* Ignores a result; the text says why a failure is harmless. A cast to void does not satisfy gcc. */
#define FNS_IGNORE(call, reason)                                                                   \
    do {                                                                                           \
        long ignored_ = (call);                                                                    \
        (void)ignored_;                                                                            \
        (void)sizeof(reason); /* for the reader */                                                 \
    } while (0)

#if defined(__x86_64__)

FNS_INLINE FNS_CHECKED long fns_sys6(long n, long a, long b, long c, long d, long e, long f)
{
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    long ret;
    __asm__ volatile("syscall"
                     : "=a"(ret)
                     : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return ret;
}

/* A clone whose child continues in fn(arg) on its own stack, and exits with the result. The child must not
 * return through the caller's stack frame, which CLONE_VM shares. */
FNS_INLINE FNS_CHECKED long fns_sys_clone_call(long n, long a, long b, long c, long d, long e,
                                               int (*fn)(void *), void *arg)
{
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register void *r12 __asm__("r12") = (void *)fn;
    register void *r13 __asm__("r13") = arg;
    long ret;
    __asm__ volatile("syscall\n\t"
                     "testq %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "xorl %%ebp, %%ebp\n\t"
                     "andq $-16, %%rsp\n\t"
                     "movq %%r13, %%rdi\n\t"
                     "callq *%%r12\n\t"
                     "movl %%eax, %%edi\n\t"
                     "movl %[nr_exit], %%eax\n\t"
                     "syscall\n\t"
                     "hlt\n"
                     "1:"
                     : "=a"(ret)
                     : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r12),
                       "r"(r13), [nr_exit] "i"(__NR_exit_group)
                     : "rcx", "r11", "memory", "cc");
    return ret;
}

#define FNS_CLONE_TLS_LAST 1

#elif defined(__aarch64__)

FNS_INLINE FNS_CHECKED long fns_sys6(long n, long a, long b, long c, long d, long e, long f)
{
    register long x8 __asm__("x8") = n;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc #0"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                     : "memory", "cc");
    return x0;
}

FNS_INLINE FNS_CHECKED long fns_sys_clone_call(long n, long a, long b, long c, long d, long e,
                                               int (*fn)(void *), void *arg)
{
    register long x8 __asm__("x8") = n;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register void *x19 __asm__("x19") = (void *)fn;
    register void *x20 __asm__("x20") = arg;
    __asm__ volatile("svc #0\n\t"
                     "cbnz x0, 1f\n\t"
                     "mov x29, xzr\n\t"
                     "mov x30, xzr\n\t"
                     "mov x0, x20\n\t"
                     "blr x19\n\t"
                     "mov x8, %[nr_exit]\n\t"
                     "svc #0\n\t"
                     "brk #1\n"
                     "1:"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x19),
                       "r"(x20), [nr_exit] "i"(__NR_exit_group)
                     : "memory", "cc");
    return x0;
}

#define FNS_CLONE_TLS_LAST 0

#else
#error "fastns supports x86-64 and aarch64"
#endif

#define fns_sys0(n) fns_sys6((n), 0, 0, 0, 0, 0, 0)
#define fns_sys1(n, a) fns_sys6((n), (long)(a), 0, 0, 0, 0, 0)
#define fns_sys2(n, a, b) fns_sys6((n), (long)(a), (long)(b), 0, 0, 0, 0)
#define fns_sys3(n, a, b, c) fns_sys6((n), (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define fns_sys4(n, a, b, c, d) fns_sys6((n), (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)
#define fns_sys5(n, a, b, c, d, e)                                                                 \
    fns_sys6((n), (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)

/* read(2) and write(2), retried on EINTR. With all signals blocked, a stop and SIGCONT can still cause it
 * (signal(7)). */
FNS_INLINE FNS_CHECKED long fns_read(int fd, void *bytes, size_t size)
{
    long n;
    do
        n = fns_sys3(__NR_read, fd, bytes, size);
    while (n == -EINTR);
    return n;
}

FNS_INLINE FNS_CHECKED long fns_write(int fd, const void *bytes, size_t size)
{
    long n;
    do
        n = fns_sys3(__NR_write, fd, bytes, size);
    while (n == -EINTR);
    return n;
}

/* write(2), tried up to FNS_TRIES times, but not again after EPIPE: a lost report looks like a process that was
 * killed. */
FNS_INLINE FNS_CHECKED long fns_write_retrying(int fd, const void *bytes, size_t size)
{
    long n = -EINTR;
    for (int tries = 0; n < 0 && n != -EPIPE && tries < FNS_TRIES; tries++)
        n = fns_write(fd, bytes, size);
    return n;
}

FNS_INLINE void fns_close(int fd)
{
    FNS_IGNORE(fns_sys1(__NR_close, fd), "Linux frees the fd in any case");
}

/* Sets close-on-exec, and checks that it is set, because a seccomp filter can fake success. 0 or -errno. */
FNS_INLINE FNS_CHECKED long fns_close_on_exec(int fd)
{
    long result = fns_sys3(__NR_fcntl, fd, F_SETFD, FD_CLOEXEC);
    if (result >= 0)
        result = fns_sys3(__NR_fcntl, fd, F_GETFD, 0);
    return result < 0 ? result : result & FD_CLOEXEC ? 0 : -EPERM;
}

FNS_INLINE FNS_CHECKED long fns_prctl(int option, unsigned long value, unsigned long more)
{
    return fns_sys5(__NR_prctl, option, value, more, 0, 0);
}

/* capget(2) and capset(2) of the calling thread; one bit per capability. */
struct fns_capabilities {
    uint64_t effective, permitted, inheritable;
};
enum { FNS_MAX_CAPABILITIES = 64 };

FNS_INLINE FNS_CHECKED long fns_capget(struct fns_capabilities *sets)
{
    const struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct words[2] = {{0, 0, 0}, {0, 0, 0}}; /* low, high */
    long result = fns_sys2(__NR_capget, &header, words);
    sets->effective = words[0].effective | (uint64_t)words[1].effective << 32;
    sets->permitted = words[0].permitted | (uint64_t)words[1].permitted << 32;
    sets->inheritable = words[0].inheritable | (uint64_t)words[1].inheritable << 32;
    return result;
}

FNS_INLINE FNS_CHECKED long fns_capset(const struct fns_capabilities *sets)
{
    const struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    const struct __user_cap_data_struct words[2] = {
        {(uint32_t)sets->effective, (uint32_t)sets->permitted, (uint32_t)sets->inheritable},
        {(uint32_t)(sets->effective >> 32), (uint32_t)(sets->permitted >> 32),
         (uint32_t)(sets->inheritable >> 32)}};
    return fns_sys2(__NR_capset, &header, words);
}

/* Sets or releases a record lock on a whole file (fcntl(2)). Unlike an fd, it is not inherited by a process
 * forked meanwhile. */
struct fns_flock { /* struct flock of 64-bit kernels */
    short type, whence;
    long start, length;
    int pid;
};

FNS_INLINE FNS_CHECKED int fns_lock(int fd, int command, short type)
{
    struct fns_flock lock = {.type = type};
    return (int)fns_sys3(__NR_fcntl, fd, command, &lock);
}

/* Whether another process holds a write lock on a file: 1, 0 or -errno. */
FNS_INLINE FNS_CHECKED int fns_is_locked(int fd)
{
    struct fns_flock lock = {.type = F_RDLCK};
    int result = (int)fns_sys3(__NR_fcntl, fd, F_GETLK, &lock);
    return result < 0 ? result : lock.type != F_UNLCK;
}

/* clone3(2) */
struct fns_clone_args {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid,
        set_tid_size, cgroup;
};
enum { FNS_CLONE_NEWTIME = 0x80, FNS_CLONE_VM = 0x100, FNS_CLONE_FILES = 0x400 };
enum { FNS_CLONE_SIGHAND = 0x800, FNS_CLONE_PIDFD = 0x1000, FNS_CLONE_VFORK = 0x4000 };
enum {
    FNS_CLONE_PARENT = 0x8000,
    FNS_CLONE_THREAD = 0x10000,
    FNS_CLONE_NEWNS = 0x20000,
    FNS_CLONE_PARENT_SETTID = 0x100000
};
enum { FNS_CLONE_CHILD_CLEARTID = 0x200000, FNS_CLONE_NEWCGROUP = 0x2000000 };
enum { FNS_CLONE_NEWUTS = 0x4000000, FNS_CLONE_NEWIPC = 0x8000000, FNS_CLONE_NEWUSER = 0x10000000 };
enum { FNS_CLONE_NEWPID = 0x20000000, FNS_CLONE_NEWNET = 0x40000000 };
#define FNS_CLONE_INTO_CGROUP 0x200000000ull

/* clone3(2), or clone(2) where the kernel lacks it. The child continues in fn(arg) on args->stack, and exits
 * with the result. -ENOSYS: a flag needs clone3(2). clone(2) has no bit for a cgroup, and takes the bit of
 * CLONE_NEWTIME as part of the exit signal. */
FNS_INLINE FNS_CHECKED long fns_clone_call(const struct fns_clone_args *args, int (*fn)(void *),
                                           void *arg)
{
    long result = fns_sys_clone_call(__NR_clone3, (long)args, sizeof *args, 0, 0, 0, fn, arg);
    if (result != -ENOSYS || args->flags & (FNS_CLONE_INTO_CGROUP | FNS_CLONE_NEWTIME))
        return result;
    return fns_sys_clone_call(__NR_clone, (long)(args->flags | args->exit_signal),
                              (long)(args->stack + args->stack_size), (long)args->pidfd,
                              FNS_CLONE_TLS_LAST ? (long)args->child_tid : 0,
                              FNS_CLONE_TLS_LAST ? 0 : (long)args->child_tid, fn, arg);
}

/* openat2(2) */
struct fns_open_how {
    uint64_t flags, mode, resolve;
};
enum { FNS_RESOLVE_NO_MAGICLINKS = 2, FNS_RESOLVE_NO_SYMLINKS = 4, FNS_RESOLVE_IN_ROOT = 16 };

/* open_tree(2), mount_setattr(2) */
struct fns_mount_attr {
    uint64_t attr_set, attr_clr, propagation, userns_fd;
};
#define FNS_OPEN_TREE_CLONE 1
#define FNS_OPEN_TREE_NAMESPACE 2 /* since Linux 7.0 */
#define FNS_MOUNT_ATTR_IDMAP 0x00100000

/* linux/mount.h takes headers of Linux 5.12 in any case, so only newer calls are defined here. */
#ifndef __NR_landlock_create_ruleset
#define __NR_landlock_create_ruleset 444
#define __NR_landlock_add_rule 445
#define __NR_landlock_restrict_self 446
#endif

/* Types in st_mode. */
enum { FNS_S_IFMT = 0170000, FNS_S_IFLNK = 0120000, FNS_S_IFREG = 0100000 };
enum { FNS_S_IFDIR = 040000, FNS_S_IFCHR = 020000, FNS_S_IFIFO = 010000 };

enum { FNS_SIG_BLOCK = 0, FNS_SIG_SETMASK = 2, FNS_SIGSET_SIZE = 8 /* bytes */ };
enum { FNS_SIGKILL = 9, FNS_SIGCHLD = 17, FNS_SIGSTOP = 19 };

/* si_code of waitid(2): from this value on, the process has not ended but stopped or continued. Stops are
 * reported to a tracer even with WEXITED alone, and any child can make its parent its tracer (PTRACE_TRACEME). */
#define FNS_CLD_TRAPPED 4

FNS_INLINE size_t fns_length(const char *text)
{
    size_t n = 0;
    while (text[n])
        n++;
    return n;
}

FNS_INLINE int fns_equal(const void *a, const void *b, size_t size)
{
    const char *x = a, *y = b;
    while (size > 0 && *x == *y)
        x++, y++, size--;
    return size == 0;
}

/* -EXDEV unless the file is on a file system with this f_type (statfs(2)); 0 accepts any. Otherwise a mount
 * over /proc could redirect a write (CVE-2025-52881). */
FNS_INLINE FNS_CHECKED int fns_check_type(int fd, uint64_t type)
{
    uint64_t about[16] = {0}; /* struct statfs: its type comes first */
    int result = type ? (int)fns_sys2(__NR_fstatfs, fd, about) : 0;
    return result >= 0 && about[0] != type ? -EXDEV : result;
}

/* Checks an open file's f_type, writes a text to it, and closes it. 0 or -errno. */
FNS_INLINE FNS_CHECKED int fns_write_text(int fd, uint64_t type, const char *text)
{
    long size = (long)fns_length(text), result = fns_check_type(fd, type);
    if (result >= 0)
        result = fns_write(fd, text, (size_t)size);
    fns_close(fd);
    return result == size ? 0 : result < 0 ? (int)result : -EIO;
}

/* Whether an error means that a file in /proc is missing, or that this process cannot write to it. */
FNS_INLINE int fns_is_out_of_reach(long result)
{
    return result == -ENOENT || result == -EROFS || result == -EACCES || result == -EPERM;
}

#endif
