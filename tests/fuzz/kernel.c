/* The fake kernel that the fuzz targets call: see kernel.h. */
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include "kernel.h"

static struct input answers;
static jmp_buf end;
static int next_fd;
static volatile uint8_t sink;

void kernel_begin(struct input input)
{
    answers = input;
    next_fd = 100;
}

int kernel_run(void (*act)(void *arg), void *arg)
{
    if (setjmp(end))
        return 0;
    act(arg);
    return 1;
}

/* ---- what the kernel reads and writes -------------------------------------------------------- */

void kernel_read(const void *from, uint64_t size)
{
    const uint8_t *bytes = from;
    for (uint64_t i = 0; i < size; i++)
        sink ^= bytes[i];
}

void kernel_read_text(const char *text)
{
    kernel_read(text, strlen(text));
}

static void read_texts(char *const *texts)
{
    for (; *texts; texts++)
        kernel_read_text(*texts);
}

static long one_of(const long *values, unsigned n)
{
    return values[take(&answers, 1) % n];
}

/* Decides by the input whether a call fails: most succeed. */
static long failure(void)
{
    static const long errors[] = {EPERM,  ENOENT, EACCES, ENOTDIR, EINVAL,
                                  ENOSYS, EAGAIN, ELOOP,  ETXTBSY, EOVERFLOW};
    return take(&answers, 1) < 224 ? 0 : -one_of(errors, sizeof errors / sizeof *errors);
}

static long new_fd(void)
{
    long result = failure();
    return result < 0 ? result : next_fd++;
}

static long stat_of(struct statx *to)
{
    static const long types[] = {FNS_S_IFDIR, FNS_S_IFDIR, FNS_S_IFDIR,
                                 FNS_S_IFLNK, FNS_S_IFCHR, 0100000};
    memset(to, 0, sizeof *to);
    to->stx_mode = (uint16_t)one_of(types, sizeof types / sizeof *types);
    to->stx_ino = take(&answers, 1) % 4;
    return failure();
}

static long link_text(char *to, uint64_t size)
{
    uint64_t n = take(&answers, 2) % (size + 1);
    const uint8_t unit = (uint8_t)take(&answers, 1);
    for (uint64_t i = 0; i < n; i++)
        to[i] = unit & 1 ? "/a/../b"[i % 7] : unit & 2 ? "../"[i % 3] : 'x';
    return (long)n;
}

long fns_sys6(long n, long a, long b, long c, long d, long e, long f)
{
    (void)f;
    switch (n) {
    case __NR_openat:
    case __NR_openat2:
        kernel_read_text((const char *)b);
        if (n == __NR_openat2)
            kernel_read((const void *)c, (uint64_t)d);
        return new_fd();
    case __NR_fcntl:
        if (c == F_DUPFD_CLOEXEC)
            return new_fd();
        return failure();
    case __NR_socketpair:
        ((int *)d)[0] = next_fd++;
        ((int *)d)[1] = next_fd++;
        return failure();
    case __NR_socket:
    case __NR_fsmount:
    case __NR_dup3: return new_fd();
    case __NR_fsopen: kernel_read_text((const char *)a); return new_fd();
    case __NR_open_tree: kernel_read_text((const char *)b); return new_fd();
    case __NR_landlock_create_ruleset: kernel_read((const void *)a, (uint64_t)b); return new_fd();
    case __NR_landlock_add_rule: kernel_read((const void *)c, 12); return failure();
    case __NR_statx: kernel_read_text((const char *)b); return stat_of((void *)e);
    case __NR_readlinkat:
        kernel_read_text((const char *)b);
        return link_text((char *)c, (uint64_t)d);
    case __NR_write: kernel_read((const void *)b, (uint64_t)c); return failure() < 0 ? -EIO : c;
    case __NR_fsconfig:
        if (c)
            kernel_read_text((const char *)c);
        if (d)
            kernel_read_text((const char *)d);
        return failure();
    case __NR_mount:
        kernel_read_text((const char *)b);
        if (a)
            kernel_read_text((const char *)a);
        if (c)
            kernel_read_text((const char *)c);
        if (e)
            kernel_read_text((const char *)e);
        return failure();
    case __NR_move_mount:
        kernel_read_text((const char *)b);
        kernel_read_text((const char *)d);
        return failure();
    case __NR_mount_setattr:
        kernel_read_text((const char *)b);
        kernel_read((const void *)d, (uint64_t)e);
        return failure();
    case __NR_mknodat:
    case __NR_mkdirat:
    case __NR_fchownat:
    case __NR_faccessat: kernel_read_text((const char *)b); return failure();
    case __NR_symlinkat:
        kernel_read_text((const char *)a);
        kernel_read_text((const char *)c);
        return failure();
    case __NR_pivot_root:
        kernel_read_text((const char *)a);
        kernel_read_text((const char *)b);
        return failure();
    case __NR_chroot:
    case __NR_chdir:
    case __NR_umount2: kernel_read_text((const char *)a); return failure();
    case __NR_sethostname:
    case __NR_setdomainname: kernel_read((const void *)a, (uint64_t)b); return failure();
    case __NR_getcwd: memcpy((void *)a, "/x", 3); return failure() < 0 ? -ENOENT : 3;
    case __NR_fstatfs: *(int64_t *)b = (int64_t)take(&answers, 4); return failure();
    case __NR_prlimit64:
        if (c)
            kernel_read((const void *)c, 16);
        if (d)
            take_bytes(&answers, (void *)d, 16);
        return failure();
    case __NR_setgroups: kernel_read((const void *)b, (uint64_t)a * 4); return failure();
    case __NR_capget: take_bytes(&answers, (void *)b, 24); return failure();
    case __NR_capset: kernel_read((const void *)b, 24); return failure();
    case __NR_seccomp: { /* struct sock_fprog */
        const struct {
            uint16_t size;
            const void *filter;
        } *program = (const void *)c;
        kernel_read(program->filter, program->size * 8u);
        return failure();
    }
    case __NR_execve:
    case __NR_execveat: {
        int at = n == __NR_execveat;
        kernel_read_text((const char *)(at ? b : a));
        read_texts((char *const *)(at ? c : b));
        read_texts((char *const *)(at ? d : c));
        long result = failure();
        if (result == 0)
            longjmp(end, 1);
        return result;
    }
    case __NR_waitid: /* stopped, exited or killed */
        memset((void *)c, 0, 128);
        ((int *)c)[2] = (int)(take(&answers, 1) % 6);
        ((int *)c)[6] = (int)take(&answers, 1);
        return failure();
    case __NR_clone: return failure() < 0 ? -EAGAIN : 4242;
    case __NR_exit_group: longjmp(end, 1);
    default: return failure();
    }
}

long fns_sys_clone_call(long n, long a, long b, long c, long d, long e, int (*fn)(void *),
                        void *arg)
{
    (void)n, (void)a, (void)b, (void)c, (void)d, (void)e, (void)fn, (void)arg;
    return failure() < 0 ? -EAGAIN : 4242;
}

int fns_lock(int fd, int command, short type)
{
    (void)fd, (void)command, (void)type;
    return (int)failure();
}
