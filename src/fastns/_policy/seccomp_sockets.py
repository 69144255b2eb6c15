"""The rules of the default profile for sockets."""

from __future__ import annotations

from fastns._policy.seccomp_rules import (
    DONE,
    INT,
    allow,
    anything_but,
    compare,
    masked,
    others,
    refuse,
    same,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

EPERM, ENOPROTOOPT, EPROTONOSUPPORT, EOPNOTSUPP, EAFNOSUPPORT = 1, 92, 93, 95, 97
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET = 1, 2, 10, 16, 17
SOCK_STREAM, SOCK_DGRAM, SOCK_TYPE = 1, 2, 0xF
NETLINK_ROUTE = 0
# The kernel may load a module for a protocol that is not in PROTOCOLS. All are below ALL_PROTOCOLS.
ALL_PROTOCOLS = 512
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
PROTOCOLS = {
    (AF_INET, SOCK_STREAM): (0, TCP),
    (AF_INET, SOCK_DGRAM): (0, UDP, ICMP),
    (AF_INET6, SOCK_STREAM): (0, TCP),
    (AF_INET6, SOCK_DGRAM): (0, UDP, ICMPV6),
}
SOL_IP, SOL_SOCKET, SOL_TCP, SOL_IPV6 = 0, 1, 6, 41
LEVELS, OPTIONS = 512, 256  # more than any kernel has
# Filters: the kernel compiles all of the host's into memory of a fixed size.
ATTACH_FILTER = (26, 50, 51, 52)  # SO_ATTACH_FILTER, _BPF, _REUSEPORT_CBPF, _REUSEPORT_EBPF
# They fill a socket's error queue with memory that no limit counts.
IP_ERRORS = (11, 26)  # IP_RECVERR, IP_RECVERR_RFC4884
IPV6_ERRORS = (25, 31)  # IPV6_RECVERR, IPV6_RECVERR_RFC4884
REPORTS = (
    *(37, 65),  # SO_TIMESTAMPING, its old and its new form: the flags lie in memory
    *(41, 60, 61),  # SO_WIFI_STATUS, SO_ZEROCOPY, SO_TXTIME
)
# Options of TCP for which the kernel loads a module, or a cipher, by name.
TCP_LOADS = (14, 31, 32, 38)  # TCP_MD5SIG, TCP_ULP, TCP_MD5SIG_EXT, TCP_AO_ADD_KEY
MSG_OOB = 1
FLAGS_AT = {  # the argument with MSG_*
    "recvfrom": 3,
    "recvmmsg": 3,
    "recvmsg": 2,
    "sendmmsg": 3,
    "sendmsg": 2,
    "sendto": 3,
}


def rules() -> Iterable[dict[str, Any]]:
    yield from _kinds()
    yield from _options()
    yield from _flags()


def _kinds() -> Iterable[dict[str, Any]]:
    yield allow(["socketpair"], args=[compare(0, "EQ", AF_UNIX)])
    yield refuse(["socketpair"], EAFNOSUPPORT, args=[compare(0, "NE", AF_UNIX)])
    plain = {"caps": ["CAP_NET_RAW", "CAP_NET_ADMIN"]}  # excluded with either
    for capability in plain["caps"]:
        usual = [same(0, family) for family in (AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET)]
        yield allow(["socket"], args=usual, includes={"caps": [capability]})
    yield allow(["socket"], args=[same(0, AF_UNIX)], excludes=plain)
    families = (AF_UNIX, AF_INET, AF_INET6, AF_NETLINK)
    yield refuse(["socket"], EAFNOSUPPORT, args=others(0, families), excludes=plain)
    netlink = same(0, AF_NETLINK)
    route = compare(2, "EQ", NETLINK_ROUTE)
    yield allow(["socket"], args=[netlink, route], excludes=plain)
    not_route = compare(2, "NE", NETLINK_ROUTE)
    yield refuse(["socket"], EPROTONOSUPPORT, args=[netlink, not_route], excludes=plain)
    for (family, kind), protocols in PROTOCOLS.items():
        wanted = [same(0, family), masked(1, SOCK_TYPE, kind)]
        for protocol in protocols:
            yield allow(["socket"], args=[*wanted, same(2, protocol)], excludes=plain)
        for other in others(2, protocols, ALL_PROTOCOLS):
            yield refuse(["socket"], EPROTONOSUPPORT, args=[*wanted, other], excludes=plain)
    for family in (AF_INET, AF_INET6):
        for bits in anything_but((SOCK_STREAM, SOCK_DGRAM), SOCK_TYPE):
            raw = [same(0, family), masked(1, *bits)]
            yield refuse(["socket"], EPERM, args=raw, excludes=plain)


def _options() -> Iterable[dict[str, Any]]:
    """Options that programs can do without fail as on a kernel that lacks them. IP_RECVERR reports
    success, as the C library's resolver gives up otherwise."""
    levels: dict[int, dict[int, int]] = {
        SOL_SOCKET: dict.fromkeys(REPORTS, ENOPROTOOPT),
        SOL_IP: dict.fromkeys(IP_ERRORS, DONE),
        SOL_IPV6: dict.fromkeys(IPV6_ERRORS, DONE),
        SOL_TCP: {},
    }
    with_capability = {  # level -> capability that allows more, and what is refused without it
        SOL_SOCKET: ("CAP_NET_RAW", dict.fromkeys(ATTACH_FILTER, EPERM)),
        SOL_TCP: ("CAP_NET_ADMIN", dict.fromkeys(TCP_LOADS, ENOPROTOOPT)),
    }
    yield allow(["setsockopt"], args=others(1, levels, LEVELS))
    for level, always in levels.items():
        if level not in with_capability:
            yield from _level(level, always)
            continue
        capability, more = with_capability[level]
        caps = {"caps": [capability]}
        yield from _level(level, always, includes=caps)
        yield from _level(level, {**always, **more}, excludes=caps)


def _level(level: int, refused: dict[int, int], **when: Any) -> Iterable[dict[str, Any]]:
    """All options of a level but these."""
    at = same(1, level)
    for other in others(2, refused, OPTIONS) if refused else [masked(2, INT & -OPTIONS, 0)]:
        yield allow(["setsockopt"], args=[at, other], **when)
    for option, errno in refused.items():
        yield refuse(["setsockopt"], errno, args=[at, same(2, option)], **when)


def _flags() -> Iterable[dict[str, Any]]:
    """Urgent data (MSG_OOB) is hardly used, and unix sockets have been attacked by it. It fails as
    on a kernel built without it."""
    for name, index in FLAGS_AT.items():
        yield allow([name], args=[masked(index, MSG_OOB, 0)])
        yield refuse([name], EOPNOTSUPP, args=[masked(index, MSG_OOB, MSG_OOB)])
