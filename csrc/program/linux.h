/* Kernel constants and structs for the program: the kernel's own headers, and what they may lack.
 *
 * Only for csrc/program: these headers clash with libc's in the same file.
 */
#ifndef FNS_LINUX_H
#define FNS_LINUX_H

#include <asm/ioctls.h>
#include <linux/eventpoll.h>
#include <linux/futex.h>
#include <linux/keyctl.h>
#include <linux/magic.h>
#include <linux/mman.h>
#include <linux/mount.h>
#include <linux/net_namespace.h>
#include <linux/nsfs.h>
#include <linux/personality.h>
#include <linux/rtnetlink.h>
#include <linux/seccomp.h>
#include <linux/sockios.h>
#include <linux/wait.h>

#include "shared/sys.h"

/* Sockets (libc's <sys/socket.h>, the kernel's private linux/socket.h). */
enum { FNS_AF_UNIX = 1, FNS_AF_INET = 2, FNS_AF_NETLINK = 16 };
enum { FNS_SOCK_DGRAM = 2, FNS_SOCK_RAW = 3, FNS_SOCK_SEQPACKET = 5 };
enum { FNS_SOL_SOCKET = 1, FNS_SO_RCVBUF = 8, FNS_SO_RCVTIMEO = 20, FNS_SOL_NETLINK = 270 };
enum {
    FNS_MSG_PEEK = 0x2,
    FNS_MSG_DONTWAIT = 0x40,
    FNS_MSG_NOSIGNAL = 0x4000,
    FNS_SHUT_RDWR = 2,
    FNS_IFF_UP = 1,
};

/* pidfd ioctls, since Linux 6.11. */
enum { FNS_PIDFD_GET_MNT_NAMESPACE = 0xff03, FNS_PIDFD_GET_PID_NAMESPACE = 0xff05 };

enum { FNS_SIGCONT = 18, FNS_LAST_SIGNAL = 64, FNS_SI_KERNEL = 0x80, FNS_CLD_EXITED = 1 };
enum { FNS_RLIMIT_NOFILE = 7, FNS_MNT_DETACH = 2 /* umount2(2) */, FNS_CLOCK_MONOTONIC = 1 };
enum { FNS_PAGE = 4096, FNS_NS = 1000000000 /* in a second */ };

struct fns_siginfo { /* siginfo_t: the fields that waitid(2) and the sender of a signal fill in */
    int number, error, code, padding;
    int pid, uid, status;
    char rest[100];
};

/* Whether a result of mmap(2) is an address. Otherwise it is -errno. */
FNS_INLINE int fns_is_address(long result)
{
    return result >= 0 || result <= -4096;
}

/* A seqpacket socket pair, close-on-exec. 0 or -errno. */
FNS_INLINE FNS_CHECKED int fns_socket_pair(int ends[2])
{
    return (int)fns_sys4(__NR_socketpair, FNS_AF_UNIX, FNS_SOCK_SEQPACKET | O_CLOEXEC, 0, ends);
}

FNS_INLINE _Noreturn void fns_quit(int code)
{
    for (;;)
        FNS_IGNORE(fns_sys1(__NR_exit_group, code), "does not return");
}

#endif
