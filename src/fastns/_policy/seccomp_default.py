"""The default profile, as data in the format of OCI and Docker.

It allows the calls that programs need to compute, read, write, communicate and start other
programs. Calls that reach past the sandbox, or into parts of the kernel that only an
administrator's programs need, fail with EPERM, unless the sandbox has the capability for them. A
call that programs can do without fails as on a kernel that lacks it. Any call that is not named
here fails with ENOSYS; a C library then falls back to an older call.
"""

from __future__ import annotations

import errno as E

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any

    Rules = Iterator[dict[str, Any]]

DONE = 0  # instead of an errno: the call does nothing and reports success
INT = 0xFFFFFFFF  # mask of an int: the kernel ignores the upper half of the register

ALLOWED = {
    "files": """
        access chdir chown close close_range copy_file_range dup dup2 dup3 faccessat faccessat2
        fadvise64 fallocate fchdir fchown fchownat fdatasync fgetxattr flistxattr flock fremovexattr
        fstat fstatfs fsync ftruncate futimesat getcwd getdents getdents64 getxattr getxattrat
        lchown lgetxattr link linkat listxattr listxattrat llistxattr lremovexattr lseek lstat
        name_to_handle_at newfstatat pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead
        readlink readlinkat readv removexattr removexattrat rename renameat renameat2 rmdir sendfile
        splice stat statfs statx symlink symlinkat sync_file_range tee truncate umask unlink
        unlinkat utime utimensat utimes vmsplice write writev
    """,
    "waiting and events": """
        epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait
        epoll_wait_old eventfd eventfd2 fanotify_mark inotify_add_watch inotify_init inotify_init1
        inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit pipe
        pipe2 poll ppoll pselect6 select signalfd signalfd4 timerfd_create timerfd_gettime
        timerfd_settime
    """,
    "memory": """
        brk cachestat madvise map_shadow_stack membarrier memfd_create mincore mlock mlock2 mlockall
        mmap mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free
        pkey_mprotect remap_file_pages
    """,
    "processes and threads": """
        arch_prctl execve execveat exit exit_group fork futex futex_requeue futex_wait futex_waitv
        futex_wake get_robust_list get_thread_area getcpu getpgid getpgrp getpid getppid getpriority
        getrlimit getrusage getsid gettid ioprio_get ioprio_set pidfd_open pidfd_send_signal
        process_mrelease restart_syscall rseq sched_get_priority_max sched_get_priority_min
        sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval
        sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield
        set_robust_list set_thread_area set_tid_address setpgid setpriority setsid vfork wait4
        waitid
    """,
    "signals": """
        alarm kill pause rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn
        rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sigaltstack tgkill tkill
    """,
    "time": """
        clock_getres clock_gettime clock_nanosleep getitimer gettimeofday nanosleep setitimer time
        timer_create timer_delete timer_getoverrun timer_gettime timer_settime times
    """,
    "ids and Landlock": """
        capget capset getegid geteuid getgid getgroups getresgid getresuid getuid landlock_add_rule
        landlock_create_ruleset landlock_restrict_self setfsgid setfsuid setgid setgroups setregid
        setresgid setresuid setreuid setuid
    """,
    "sockets": """
        accept accept4 bind connect getpeername getsockname getsockopt listen shutdown
    """,
    "messages, semaphores and shared memory": """
        mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv
        msgsnd semctl semget semop semtimedop shmat shmctl shmdt shmget
    """,
    "system information and random numbers": "getrandom sysinfo uname",
}

# Capability -> calls that are refused without it. None: calls that are always refused.
REFUSED = {
    "CAP_SYS_ADMIN": "fsconfig fsmount fsopen fspick mount mount_setattr move_mount open_tree "
    "open_tree_attr pivot_root umount2 quotactl quotactl_fd setns sethostname setdomainname "
    "fanotify_init swapon swapoff vhangup lookup_dcookie",
    "CAP_SYS_PTRACE": "ptrace process_vm_readv process_vm_writev process_madvise pidfd_getfd kcmp",
    "CAP_BPF": "bpf",
    "CAP_PERFMON": "perf_event_open",
    "CAP_SYS_MODULE": "init_module finit_module delete_module",
    "CAP_SYS_BOOT": "kexec_load kexec_file_load reboot",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_TIME": "adjtimex clock_adjtime clock_settime settimeofday",
    "CAP_SYS_RAWIO": "iopl ioperm",
    "CAP_SYSLOG": "syslog",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_SYS_NICE": "get_mempolicy mbind migrate_pages move_pages set_mempolicy "
    "set_mempolicy_home_node",
    None: "add_key keyctl request_key userfaultfd io_uring_enter io_uring_register io_uring_setup "
    "modify_ldt create_module get_kernel_syms query_module nfsservctl uselib ustat sysfs _sysctl",
}

# CLONE_NEWNS, _NEWCGROUP, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET
CLONE_NAMESPACES = (0x20000, *(1 << bit for bit in range(25, 31)))
CLONE_PARENT = 0x00008000  # without a pid namespace, the new process would be the caller's child
CLONE_NEWTIME = 0x00000080  # for unshare(2) only; clone(2) takes it as part of a signal's number
TERMINAL = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: put input into a terminal that others read
LOADS = (  # ioctls for which the kernel loads a module
    *(0x5423,),  # TIOCSETD: a line discipline, by number
    *(0x8940, 0x8941, 0x89A0, 0x89A1),  # SIOCGIFBR, SIOCSIFBR, SIOCBRADDBR, SIOCBRDELBR
    *(0x8980, 0x8981),  # SIOCADDDLCI, SIOCDELDLCI: before Linux 5.16
    *(0x8982, 0x8983),  # SIOCGIFVLAN, SIOCSIFVLAN
)
SECCOMP_SET_MODE_FILTER = 1
PR_SET_SECCOMP, SECCOMP_MODE_FILTER, PR_SCHED_CORE = 22, 2, 62
# Calls that set the mode of a file -> the argument with the mode.
MODE_AT = {
    **dict.fromkeys(("chmod", "creat", "fchmod", "mkdir", "mknod"), 1),
    **dict.fromkeys(("fchmodat", "fchmodat2", "mkdirat", "mknodat"), 2),
}
OPENS = {"open": (1, 2), "openat": (2, 3)}  # the arguments with the flags and with the mode
CREATES = (0o100, 0o20000000)  # O_CREAT, and O_TMPFILE without O_DIRECTORY
S_ISUID, S_ISGID = 0o4000, 0o2000
MAX_ATTRIBUTE = 1000  # bytes; an ACL of that size takes 1 KiB of the kernel's memory
F_SETLEASE, F_NOTIFY, F_SET_RW_HINT, F_SET_FILE_RW_HINT = 1024, 1026, 1036, 1038
# (mask, value) pairs for the other commands of fcntl(2): below 1024, F_GETLEASE, 1027 to 1039. The
# argument is an int.
FCNTL = ((~0x3FF, 0), (~0, 1025), (~0, 1027), (~3, 1028), (~3, 1032), (~0, 1037), (~0, 1039))
RLIMIT_CORE = 4
# (mask, value) pairs for the other resources of setrlimit(2): 0 to 3, 5, 6 and 7, 8 to 15. The
# argument is an int.
RESOURCES = ((~3, 0), (~0, 5), (~1, 6), (~7, 8))
# Calls that set up a sandbox. A template's server and its sandboxes need them, so only the second
# part of the filter restricts them: see parts().
SETUP_TEXT = """
    chroot clone clone3 fsconfig fsmount fsopen mount mount_setattr move_mount open_tree openat2
    pivot_root prctl seccomp setdomainname sethostname setns umount2 unshare
"""
SETUP = frozenset(SETUP_TEXT.split())
# PER_LINUX, PER_LINUX32, UNAME26, the last two together; ADDR_NO_RANDOMIZE; a query.
PERSONALITIES = (0, 0x8, 0x20000, 0x20008, 0x40000, 0xFFFFFFFF)
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET = 1, 2, 10, 16, 17
SOCK_STREAM, SOCK_DGRAM, SOCK_TYPE = 1, 2, 0xF
NETLINK_ROUTE = 0
# The kernel may load a module for a protocol that is not in PROTOCOLS.
ALL_PROTOCOLS = 512  # more than any protocol's number
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
PROTOCOLS = {
    (AF_INET, SOCK_STREAM): (0, TCP),
    (AF_INET, SOCK_DGRAM): (0, UDP, ICMP),
    (AF_INET6, SOCK_STREAM): (0, TCP),
    (AF_INET6, SOCK_DGRAM): (0, UDP, ICMPV6),
}
SOL_IP, SOL_SOCKET, SOL_TCP, SOL_IPV6 = 0, 1, 6, 41
LEVELS, OPTIONS = 512, 256  # more than any kernel has
# These attach filters. The kernel compiles all filters of the host into memory of a fixed size.
ATTACH_FILTER = (26, 50, 51, 52)  # SO_ATTACH_FILTER, _BPF, _REUSEPORT_CBPF, _REUSEPORT_EBPF
# The options below fill a socket's error queue, whose memory no limit counts.
IP_ERRORS = (11, 26)  # IP_RECVERR, IP_RECVERR_RFC4884
IPV6_ERRORS = (25, 31)  # IPV6_RECVERR, IPV6_RECVERR_RFC4884
IPV6_FLOWLABEL_MGR = 32  # a label can stay in the network namespace when its process has ended
REPORTS = (
    *(37, 65),  # SO_TIMESTAMPING, old and new: its flags are in memory, unseen by a filter
    *(41, 60, 61),  # SO_WIFI_STATUS, SO_ZEROCOPY, SO_TXTIME
)
# Options by which a socket joins a multicast or anycast group: IP_ADD_MEMBERSHIP,
# IP_ADD_SOURCE_MEMBERSHIP, IPV6_JOIN_GROUP, IPV6_JOIN_ANYCAST, MCAST_JOIN_GROUP,
# MCAST_JOIN_SOURCE_GROUP.
JOINS = {SOL_IP: (35, 39, 42, 46), SOL_IPV6: (20, 27, 42, 46)}
# TCP options for which the kernel loads a module, or a cipher, by name.
TCP_LOADS = (14, 31, 32, 38)  # TCP_MD5SIG, TCP_ULP, TCP_MD5SIG_EXT, TCP_AO_ADD_KEY
MSG_OOB = 1
FLAGS_AT = {  # the argument with MSG_*
    **dict.fromkeys(("recvmsg", "sendmsg"), 2),
    **dict.fromkeys(("recvfrom", "recvmmsg", "sendmmsg", "sendto"), 3),
}


def default_profile(*, setid: bool = True) -> dict[str, Any]:
    """A new copy of the default profile, to change and pass as Spec(seccomp=...).

    Args: setid: whether set-user-ID and set-group-ID files may be made. The default filter has
        False in a sandbox that can write to the host's files, unless its Spec has allow_setid=True.
    """
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": E.ENOSYS,
        "syscalls": [
            *(allow(names.split(), comment=comment) for comment, names in ALLOWED.items()),
            *_refused(),
            *_namespaces(),
            *_socket_kinds(),
            *_socket_options(),
            *_message_flags(),
            *all_but("ioctl", 1, dict.fromkeys((*TERMINAL, *LOADS), E.EPERM)),
            *_fcntl(),
            *_attributes(),
            *_core_limit(),
            *_own_filters(),
            *_modes(setid),
            refuse(["sync"], DONE),  # it would write back all file systems, even the host's
            allow(["personality"], args=[compare(0, "EQ", known) for known in PERSONALITIES]),
        ],
    }


def parts(*, setid: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
    """The profile in two parts, to be loaded one after the other.

    A sandbox inherits the first part at no cost, and can still be set up under it. The second part
    is small, so it is loaded quickly."""
    whole = default_profile(setid=setid)

    def rules(for_setup: bool) -> Rules:
        for rule in whole["syscalls"]:
            names = [name for name in rule["names"] if (name in SETUP) is for_setup]
            if names:
                yield {**rule, "names": names}

    first = {**whole, "syscalls": [*rules(False), allow(sorted(SETUP))]}
    refusals = [rule for rule in rules(True) if rule["action"] != "SCMP_ACT_ALLOW"]
    return first, {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": refusals}


def network_profile() -> dict[str, Any]:
    """What is also refused in a network namespace that serves again. The kernel reports a group
    over lo for seconds after its socket is gone. The calls fail as if no interface had groups."""
    joins = [
        refuse(["setsockopt"], E.ENODEV, args=[same(1, level), same(2, option)])
        for level, options in JOINS.items()
        for option in options
    ]
    return {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": joins}


def _refused() -> Rules:
    for capability, text in REFUSED.items():
        names = text.split()
        if capability is None:
            yield refuse(names, E.EPERM)
        else:
            yield allow(names, includes={"caps": [capability]})
            yield refuse(names, E.EPERM, excludes={"caps": [capability]})


def _namespaces() -> Rules:
    """clone3 is refused: its flags are in memory, which a filter cannot read."""
    admin = {"caps": ["CAP_SYS_ADMIN"]}
    yield allow(["clone", "clone3", "unshare"], includes=admin)
    yield refuse(["clone3"], E.ENOSYS, excludes=admin)
    for name, more in (("clone", CLONE_PARENT), ("unshare", CLONE_NEWTIME)):
        flags = [*CLONE_NAMESPACES, more]
        none = compare(0, "MASKED_EQ", sum(flags), 0)
        yield allow([name], args=[none], excludes=admin)
        given = [compare(0, "MASKED_EQ", flag, flag) for flag in flags]
        yield refuse([name], E.EPERM, args=given, excludes=admin)


def _own_filters() -> Rules:
    """Without CAP_SYS_ADMIN, a sandbox cannot load filters of its own. The kernel compiles all
    filters of the host into memory of a fixed size, which no limit counts. The calls fail as on a
    kernel without filters; programs then run without one."""
    admin = {"caps": ["CAP_SYS_ADMIN"]}
    yield allow(["seccomp"], includes=admin)
    yield from all_but("seccomp", 0, {SECCOMP_SET_MODE_FILTER: E.EINVAL}, excludes=admin)
    yield allow(["prctl"], args=others(0, [PR_SET_SECCOMP, PR_SCHED_CORE]))
    yield refuse(["prctl"], E.EINVAL, args=[same(0, PR_SCHED_CORE)])
    sets = same(0, PR_SET_SECCOMP)
    yield allow(["prctl"], args=[sets], includes=admin)
    other = compare(1, "NE", SECCOMP_MODE_FILTER)  # an unsigned long, so all 64 bits count
    yield allow(["prctl"], args=[sets, other], excludes=admin)
    filters = [sets, compare(1, "EQ", SECCOMP_MODE_FILTER)]
    yield refuse(["prctl"], E.EINVAL, args=filters, excludes=admin)


def _modes(setid: bool) -> Rules:
    """Where set-id files are refused, so is openat2: a filter cannot see its mode in memory."""
    if setid:
        yield allow([*MODE_AT, *OPENS, "openat2"])
        return
    yield refuse(["openat2"], E.ENOSYS)
    both = S_ISUID | S_ISGID
    makes: list[tuple[str, list[dict[str, Any]], int]] = [
        (n, [], mode) for n, mode in MODE_AT.items()
    ]
    for name, (flags, mode) in OPENS.items():
        yield allow([name], args=[masked(flags, sum(CREATES), 0)])
        makes += [(name, [masked(flags, bit, bit)], mode) for bit in CREATES]
    for name, creates, mode in makes:
        yield allow([name], args=[*creates, masked(mode, both, 0)])
        for bit in (S_ISUID, S_ISGID):
            yield refuse([name], E.EPERM, args=[*creates, masked(mode, bit, bit)])


def _fcntl() -> Rules:
    """Refuses F_SETLEASE, as a lease makes others who open the file wait, even on the host; and
    F_NOTIFY, which watches directories. A hint stays with the file when its process has ended, even
    with a file of the host; setting one fails as on a kernel without hints."""
    yield from (allow(["fcntl"], args=[masked(1, bits & INT, value)]) for bits, value in FCNTL)
    refused = {F_SETLEASE: E.EPERM, F_NOTIFY: E.EPERM}
    refused |= dict.fromkeys((F_SET_RW_HINT, F_SET_FILE_RW_HINT), E.EINVAL)
    for command, errno in refused.items():
        yield refuse(["fcntl"], errno, args=[same(1, command)])


def _attributes() -> Rules:
    """No limit counts the memory of an ACL in a tmpfs: up to 64 KiB for a file, twice that for a
    directory. So long attributes are refused: a filter sees their length, but not their name."""
    names = ["setxattr", "lsetxattr", "fsetxattr"]
    yield allow(names, args=[compare(3, "LE", MAX_ATTRIBUTE)])  # a size_t
    yield refuse(names, E.E2BIG, args=[compare(3, "GT", MAX_ATTRIBUTE)])
    yield refuse(["setxattrat"], E.ENOSYS)


def _core_limit() -> Rules:
    """RLIMIT_CORE keeps the host's core handler from running. gpg and ssh-agent change it: such a
    call reports success and changes nothing. It fails if it also asks for the old limit, which a
    filter cannot return."""
    for bits, value in RESOURCES:
        yield allow(["setrlimit"], args=[masked(0, bits & INT, value)])
        yield allow(["prlimit64"], args=[masked(1, bits & INT, value)])
    yield refuse(["setrlimit"], DONE, args=[same(0, RLIMIT_CORE)])
    core = same(1, RLIMIT_CORE)
    yield allow(["prlimit64"], args=[core, compare(2, "EQ", 0)])  # a query
    for old, errno in (("EQ", DONE), ("NE", E.EPERM)):
        changed = [core, compare(2, "NE", 0), compare(3, old, 0)]
        yield refuse(["prlimit64"], errno, args=changed)


# ---- sockets ----


def _socket_kinds() -> Rules:
    yield allow(["socketpair"], args=[compare(0, "EQ", AF_UNIX)])
    yield refuse(["socketpair"], E.EAFNOSUPPORT, args=[compare(0, "NE", AF_UNIX)])
    plain = {"caps": ["CAP_NET_RAW", "CAP_NET_ADMIN"]}  # as excludes: for sandboxes with neither
    for capability in plain["caps"]:
        usual = [same(0, family) for family in (AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET)]
        yield allow(["socket"], args=usual, includes={"caps": [capability]})
    yield allow(["socket"], args=[same(0, AF_UNIX)], excludes=plain)
    families = (AF_UNIX, AF_INET, AF_INET6, AF_NETLINK)
    yield refuse(["socket"], E.EAFNOSUPPORT, args=others(0, families), excludes=plain)
    netlink = same(0, AF_NETLINK)
    route = compare(2, "EQ", NETLINK_ROUTE)
    yield allow(["socket"], args=[netlink, route], excludes=plain)
    not_route = compare(2, "NE", NETLINK_ROUTE)
    yield refuse(["socket"], E.EPROTONOSUPPORT, args=[netlink, not_route], excludes=plain)
    for (family, kind), protocols in PROTOCOLS.items():
        wanted = [same(0, family), masked(1, SOCK_TYPE, kind)]
        for protocol in protocols:
            yield allow(["socket"], args=[*wanted, same(2, protocol)], excludes=plain)
        for other in others(2, protocols, ALL_PROTOCOLS):
            yield refuse(["socket"], E.EPROTONOSUPPORT, args=[*wanted, other], excludes=plain)
    for family in (AF_INET, AF_INET6):
        for bits in anything_but((SOCK_STREAM, SOCK_DGRAM), SOCK_TYPE):
            raw = [same(0, family), masked(1, *bits)]
            yield refuse(["socket"], E.EPERM, args=raw, excludes=plain)


def _socket_options() -> Rules:
    """Options that programs can do without fail as on a kernel that lacks them. IP_RECVERR reports
    success, as the C library's resolver would otherwise give up."""
    # level -> the options always refused, a capability, and the options refused without it
    levels: dict[int, tuple[dict[int, int], str, dict[int, int]]] = {
        SOL_SOCKET: (
            dict.fromkeys(REPORTS, E.ENOPROTOOPT),
            "CAP_NET_RAW",
            dict.fromkeys(ATTACH_FILTER, E.EPERM),
        ),
        SOL_IP: (dict.fromkeys(IP_ERRORS, DONE), "", {}),
        SOL_IPV6: (
            {**dict.fromkeys(IPV6_ERRORS, DONE), IPV6_FLOWLABEL_MGR: E.ENOPROTOOPT},
            "",
            {},
        ),
        SOL_TCP: ({}, "CAP_NET_ADMIN", dict.fromkeys(TCP_LOADS, E.ENOPROTOOPT)),
    }
    yield allow(["setsockopt"], args=others(1, levels, LEVELS))
    for level, (always, capability, more) in levels.items():
        at = [same(1, level)]
        if not capability:
            yield from all_but("setsockopt", 2, always, OPTIONS, at)
            continue
        caps = {"caps": [capability]}
        yield from all_but("setsockopt", 2, always, OPTIONS, at, includes=caps)
        yield from all_but("setsockopt", 2, {**always, **more}, OPTIONS, at, excludes=caps)


def _message_flags() -> Rules:
    """Refuses urgent data (MSG_OOB): hardly any program uses it, and it has been used to attack
    unix sockets. The calls fail as on a kernel built without it."""
    for name, index in FLAGS_AT.items():
        yield allow([name], args=[masked(index, MSG_OOB, 0)])
        yield refuse([name], E.EOPNOTSUPP, args=[masked(index, MSG_OOB, MSG_OOB)])


# ---- rules in the format of OCI and Docker ----


def allow(names: list[str], **more: Any) -> dict[str, Any]:
    return {"names": names, "action": "SCMP_ACT_ALLOW", **more}


def refuse(names: list[str], errno: int, **more: Any) -> dict[str, Any]:
    """A rule that makes the calls fail with `errno`. With DONE they report success."""
    return {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": errno, **more}


def compare(index: int, op: str, value: int, second: int = 0) -> dict[str, Any]:
    return {"index": index, "value": value, "valueTwo": second, "op": f"SCMP_CMP_{op}"}


def masked(index: int, mask: int, value: int) -> dict[str, Any]:
    return compare(index, "MASKED_EQ", mask, value)


def same(index: int, value: int) -> dict[str, Any]:
    return masked(index, INT, value)


def others(index: int, values: Iterable[int], below: int = INT + 1) -> list[dict[str, Any]]:
    """Comparisons of an int argument. One of them holds if the argument is less than `below`, a
    power of two, and equals none of the values. A smaller `below` gives fewer comparisons."""
    upper = INT & -below
    return [masked(index, upper | mask, value) for mask, value in anything_but(values, below - 1)]


def all_but(
    name: str,
    index: int,
    refused: dict[int, int],
    below: int = INT + 1,
    at: Sequence[dict[str, Any]] = (),
    **when: Any,
) -> Rules:
    """Rules for calls for which the comparisons `at` hold. If the argument, an int, is a key of
    `refused`, the call fails with the value there as errno. If the argument is any other number
    less than `below`, the call is allowed."""
    for other in others(index, refused, below):
        yield allow([name], args=[*at, other], **when)
    for value, errno in refused.items():
        yield refuse([name], errno, args=[*at, same(index, value)], **when)


def anything_but(values: Iterable[int], mask: int) -> list[tuple[int, int]]:
    """(mask, value) pairs. A number matches one of them if and only if its bits in `mask` differ
    from those of every value.

    The format can compare bits, but cannot say "none of these". So this walks the values' bits from
    the highest. Where the rest agree on a bit, one pair covers all numbers that differ in it."""
    bits = [1 << n for n in reversed(range(mask.bit_length())) if mask >> n & 1]
    found = []

    def walk(left: list[int], depth: int, known: int, value: int) -> None:
        if not left:
            found.append((known, value))
        elif depth < len(bits):
            bit = bits[depth]
            for way in (0, bit):
                there = [number for number in left if number & bit == way]
                walk(there, depth + 1, known | bit, value | way)

    walk([number & mask for number in values], 0, 0, 0)
    return found
