/* The loopback interface of a network namespace. */
#ifndef FNS_LOOPBACK_H
#define FNS_LOOPBACK_H

#include "linux.h"

/* Brings lo of the current network namespace up: a socket in that namespace, or -errno. */
FNS_INLINE FNS_CHECKED int fns_loopback_up(void)
{
    struct { /* struct ifreq */
        char name[16];
        short flags;
        char rest[22];
    } request = {.name = "lo"};
    int socket = (int)fns_sys3(__NR_socket, FNS_AF_INET, FNS_SOCK_DGRAM | O_CLOEXEC, 0);
    if (socket < 0)
        return socket;
    int result = (int)fns_sys3(__NR_ioctl, socket, SIOCGIFFLAGS, &request);
    request.flags |= FNS_IFF_UP;
    if (result >= 0)
        result = (int)fns_sys3(__NR_ioctl, socket, SIOCSIFFLAGS, &request);
    if (result < 0)
        fns_close(socket);
    return result < 0 ? result : socket;
}

#endif
