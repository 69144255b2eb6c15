/* Runs as a sandbox's command and uses its network in the way it is told: `networks ACTION [WORD]`.
 *
 * Prints its network namespace, then what the action prints, then "done", or "refused" and why. It
 * keeps its sockets open until stdin is closed, unless the word is "leave". */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { LO = 1 /* its interface index */, CLOSED_PORT = 9, OPEN_PORT = 7000, DEPTH = 8 };

static const char *word = "";

/* ---- steps: each returns a number below 0, with errno, if it fails ---- */

struct address {
    socklen_t size;
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
        struct sockaddr_un local;
    };
};

static struct address address(const char *text, int port)
{
    struct address to = {.size = sizeof to.v4};
    to.v4.sin_family = AF_INET;
    to.v4.sin_port = htons((uint16_t)port);
    if (inet_pton(AF_INET, text, &to.v4.sin_addr) == 1)
        return to;
    memset(&to, 0, sizeof to);
    to.size = sizeof to.v6;
    to.v6.sin6_family = AF_INET6;
    to.v6.sin6_port = htons((uint16_t)port);
    inet_pton(AF_INET6, text, &to.v6.sin6_addr);
    return to;
}

static int opened(const struct address *at, int type)
{
    return socket(at->any.sa_family, type, 0);
}

static int bound(const struct address *at, int type)
{
    int fd = opened(at, type);
    return fd < 0 || bind(fd, &at->any, at->size) < 0 ? -1 : fd;
}

static int listening(const char *text)
{
    struct address at = address(text, OPEN_PORT);
    int fd = bound(&at, SOCK_STREAM);
    return fd < 0 || listen(fd, 1) < 0 ? -1 : fd;
}

static int connected(const char *text, int type, int port)
{
    struct address to = address(text, port);
    int fd = opened(&to, type);
    return fd < 0 || connect(fd, &to.any, to.size) < 0 ? -1 : fd;
}

/* Connects to a port on which it listens, and closes both ends: one is in TIME_WAIT then. */
static int talk(const char *text)
{
    int server = listening(text);
    int client = server < 0 ? -1 : connected(text, SOCK_STREAM, OPEN_PORT);
    int peer = client < 0 ? -1 : accept(server, NULL, NULL);
    return peer < 0 || close(client) < 0 ? -1 : close(peer);
}

static int send_to(const char *text)
{
    struct address to = address(text, CLOSED_PORT);
    int fd = opened(&to, SOCK_DGRAM);
    return fd < 0 ? -1 : (int)sendto(fd, "x", 1, 0, &to.any, to.size);
}

/* Whether the error is `expected`. */
static int fails_with(int expected, int result)
{
    if (result < 0 && errno == expected)
        return 0;
    errno = result < 0 ? errno : EPROTO;
    return -1;
}

static int send_fds(int over, const int fds[2])
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(2 * sizeof *fds)];
    } rights = {.header = {CMSG_LEN(2 * sizeof *fds), SOL_SOCKET, SCM_RIGHTS}};
    struct iovec vector = {(char *)"x", 1};
    struct msghdr message = {.msg_iov = &vector,
                             .msg_iovlen = 1,
                             .msg_control = &rights,
                             .msg_controllen = sizeof rights};
    memcpy(CMSG_DATA(&rights.header), fds, 2 * sizeof *fds);
    return (int)sendmsg(over, &message, 0);
}

/* Leaves two sockets that contain each other and one more fd. Only the kernel's garbage collector
 * frees them. */
static int cycle_with(int fd)
{
    int pair[2];
    if (fd < 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0)
        return -1;
    return send_fds(pair[0], (int[]){pair[1], fd}) < 0 ? -1
                                                       : send_fds(pair[1], (int[]){pair[0], fd});
}

static int option(const char *text, int level, int number, const void *value, socklen_t size)
{
    struct address at = address(text, 0);
    int fd = opened(&at, SOCK_DGRAM);
    return fd < 0 ? -1 : setsockopt(fd, level, number, value, size);
}

/* ---- actions ---- */

static int nothing(void)
{
    return 0;
}

static int tcp(void)
{
    return talk("127.0.0.1");
}

static int tcp6(void)
{
    return talk("::1");
}

static int tcp_listen(void)
{
    return listening("127.0.0.1");
}

static int tcp6_listen(void)
{
    return listening("::1");
}

static int tcp_refused(void)
{
    return fails_with(ECONNREFUSED, connected("127.0.0.1", SOCK_STREAM, CLOSED_PORT));
}

static int tcp_without_route(void)
{
    return fails_with(ENETUNREACH, connected("192.0.2.1", SOCK_STREAM, CLOSED_PORT));
}

static int udp(void)
{
    return send_to("127.0.0.1");
}

static int udp6(void)
{
    return send_to("::1");
}

static int udp_bind(void)
{
    struct address at = address("127.0.0.1", OPEN_PORT);
    return bound(&at, SOCK_DGRAM);
}

static int udp6_bind(void)
{
    struct address at = address("::1", OPEN_PORT);
    return bound(&at, SOCK_DGRAM);
}

static int udp_connect(void)
{
    return connected("127.0.0.1", SOCK_DGRAM, CLOSED_PORT);
}

static int udp6_connect(void)
{
    return connected("::1", SOCK_DGRAM, CLOSED_PORT);
}

static int udp_without_route(void)
{
    return fails_with(ENETUNREACH, send_to("192.0.2.1"));
}

static int udp6_without_route(void)
{
    return fails_with(ENETUNREACH, send_to("2001:db8::1"));
}

static int udp_without_memory(void) /* the kernel fails to copy the datagram */
{
    int fd = udp_connect();
    return fd < 0 ? -1 : fails_with(EFAULT, (int)send(fd, (void *)1, 100, 0));
}

static int ping(void)
{
    const unsigned char echo[8] = {8};
    struct address to = address("127.0.0.1", 0);
    int fd = socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP);
    return fd < 0 ? -1 : (int)sendto(fd, echo, sizeof echo, 0, &to.any, to.size);
}

static int join(void)
{
    struct ip_mreqn group = {.imr_ifindex = LO};
    inet_pton(AF_INET, "224.0.0.9", &group.imr_multiaddr);
    return option("127.0.0.1", IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof group);
}

static int join6(void)
{
    struct ipv6_mreq group = {.ipv6mr_interface = LO};
    inet_pton(AF_INET6, "ff02::99", &group.ipv6mr_multiaddr);
    return option("::1", IPPROTO_IPV6, IPV6_ADD_MEMBERSHIP, &group, sizeof group);
}

static int label(void) /* an IPv6 flow label, which outlives its socket */
{
    struct {
        struct in6_addr to;
        uint32_t label;
        uint8_t action, share;
        uint16_t flags, expires, linger;
        uint32_t padding;
    } lease = {.share = 255 /* anyone */, .flags = 1 /* create */, .linger = 6};
    inet_pton(AF_INET6, "::1", &lease.to);
    return option("::1", IPPROTO_IPV6, 32 /* IPV6_FLOWLABEL_MGR */, &lease, sizeof lease);
}

static int local(void) /* an abstract name and a port, which only one process can have */
{
    struct address at = {.local = {.sun_family = AF_UNIX}};
    strncpy(at.local.sun_path + 1, word, sizeof at.local.sun_path - 2);
    at.size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(word));
    int fd = bound(&at, SOCK_STREAM);
    return fd < 0 ? -1 : listen(fd, 1);
}

static int pair(void)
{
    int fds[2];
    return socketpair(AF_UNIX, SOCK_STREAM, 0, fds);
}

static int cycle(void)
{
    return cycle_with(open("/dev/null", O_RDONLY));
}

static int cycle_listener(void)
{
    return cycle_with(listening("127.0.0.1"));
}

static int cycle_namespace(void)
{
    return cycle_with(open("/proc/self/ns/net", O_RDONLY));
}

static int links(void) /* asks for the list of network interfaces */
{
    struct {
        struct nlmsghdr header;
        struct ifinfomsg of;
    } request = {.header = {sizeof request, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 1, 0}};
    char reply[8192];
    int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    if (fd < 0 || send(fd, &request, sizeof request, 0) < 0)
        return -1;
    return (int)recv(fd, reply, sizeof reply, 0);
}

/* ---- what can be seen, and changed ---- */

/* Prints what a network namespace counts, but no addresses of the kernel's memory. */
static int look(void)
{
    static const char *const files[] = {
        "arp",       "dev",   "dev_mcast",     "icmp",       "icmp6",    "if_inet6",
        "igmp",      "igmp6", "ip6_flowlabel", "ipv6_route", "mcfilter", "mcfilter6",
        "netstat",   "route", "rt6_stats",     "snmp",       "snmp6",    "sockstat",
        "sockstat6", "tcp",   "tcp6",          "udp",        "udp6",     "unix"};
    for (unsigned i = 0; i < sizeof files / sizeof *files; i++) {
        char path[64], line[4096];
        snprintf(path, sizeof path, "/proc/net/%s", files[i]);
        FILE *file = fopen(path, "re");
        while (file && fgets(line, sizeof line, file))
            printf("%s: %s", files[i], line);
        if (file)
            fclose(file);
    }
    return 0;
}

static int try_to_change(const char *path, const struct stat *about, int type, struct FTW *at)
{
    (void)at;
    if (type != FTW_F && type != FTW_D)
        return 0;
    if (chmod(path, about->st_mode ^ S_IXOTH) == 0)
        printf("chmod %s\n", path);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd >= 0)
        printf("open %s\n", path);
    if (fd >= 0)
        close(fd);
    return 0;
}

static int change(void)
{
    static const char *const places[] = {"/proc/self/net/", "/proc/sys/net/", "/sys/class/net/lo/"};
    for (unsigned i = 0; i < sizeof places / sizeof *places; i++)
        nftw(places[i], try_to_change, DEPTH, FTW_PHYS);
    struct ifreq lo = {.ifr_name = "lo", .ifr_mtu = 1500};
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd < 0)
        return -1;
    if (ioctl(fd, SIOCSIFMTU, &lo) == 0)
        puts("set the MTU");
    lo.ifr_flags = 0;
    if (ioctl(fd, SIOCSIFFLAGS, &lo) == 0)
        puts("set lo down");
    return 0;
}

static int change_new(void)
{
    return unshare(CLONE_NEWNET) < 0 ? -1 : change();
}

#define ACTION(function)                                                                           \
    {                                                                                              \
#function, function                                                                        \
    }
static const struct {
    const char *name;
    int (*act)(void);
} actions[] = {
    ACTION(nothing),
    ACTION(tcp),
    ACTION(tcp6),
    ACTION(tcp_listen),
    ACTION(tcp6_listen),
    ACTION(tcp_refused),
    ACTION(tcp_without_route),
    ACTION(udp),
    ACTION(udp6),
    ACTION(udp_bind),
    ACTION(udp6_bind),
    ACTION(udp_connect),
    ACTION(udp6_connect),
    ACTION(udp_without_route),
    ACTION(udp6_without_route),
    ACTION(udp_without_memory),
    ACTION(ping),
    ACTION(join),
    ACTION(join6),
    ACTION(label),
    ACTION(local),
    ACTION(pair),
    ACTION(cycle),
    ACTION(cycle_listener),
    ACTION(cycle_namespace),
    ACTION(links),
    ACTION(look),
    ACTION(change),
    ACTION(change_new),
};

int main(int argc, char **argv)
{
    char namespace[64] = "", byte;
    setvbuf(stdout, NULL, _IOFBF, 1 << 16);
    if (readlink("/proc/self/ns/net", namespace, sizeof namespace - 1) < 0)
        return 2;
    puts(namespace);
    word = argc > 2 ? argv[2] : word;
    for (unsigned i = 0; argc > 1 && i < sizeof actions / sizeof *actions; i++) {
        if (strcmp(argv[1], actions[i].name) != 0)
            continue;
        if (actions[i].act() < 0)
            printf("refused %s\n", strerrorname_np(errno));
        else
            puts("done");
        fflush(stdout);
        while (strcmp(word, "leave") != 0 && read(STDIN_FILENO, &byte, 1) > 0)
            ;
        return 0;
    }
    fprintf(stderr, "usage: networks ACTION [WORD]\n");
    return 2;
}
