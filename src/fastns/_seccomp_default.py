"""The profile of a sandbox that is given no other, as data in the OCI/Docker format.

What a program needs to compute, read, write, talk and start others is allowed. What reaches past
the sandbox, or into parts of the kernel that only an administrator's program needs, is refused
with EPERM, unless the sandbox has the capability it belongs to. Whatever is not named here is
unknown, ENOSYS: a C library then falls back to an older call.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

EPERM, ENOSYS, EPROTONOSUPPORT, EAFNOSUPPORT = 1, 38, 93, 97

ALLOWED = {
    "files": """
        access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat
        faccessat2 fadvise64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat
        fdatasync fgetxattr flistxattr flock fremovexattr fsetxattr fstat fstatfs fsync ftruncate
        futimesat getcwd getdents getdents64 getxattr getxattrat lchown lgetxattr link linkat
        listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat mkdir mkdirat mknod
        mknodat name_to_handle_at newfstatat open openat openat2 pread64 preadv preadv2 pwrite64
        pwritev pwritev2 read readahead readlink readlinkat readv removexattr removexattrat rename
        renameat renameat2 rmdir sendfile setxattr setxattrat splice stat statfs statx symlink
        symlinkat sync sync_file_range syncfs tee truncate umask unlink unlinkat utime utimensat
        utimes vmsplice write writev
    """,
    "waiting and events": """
        epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait
        epoll_wait_old eventfd eventfd2 fanotify_mark inotify_add_watch inotify_init inotify_init1
        inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit pipe
        pipe2 poll ppoll pselect6 select signalfd signalfd4 timerfd_create timerfd_gettime
        timerfd_settime
    """,
    "memory": """
        brk cachestat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock
        mlock2 mlockall mmap mprotect mremap mseal msync munlock munlockall munmap pkey_alloc
        pkey_free pkey_mprotect remap_file_pages
    """,
    "processes and threads": """
        arch_prctl execve execveat exit exit_group fork futex futex_requeue futex_wait futex_waitv
        futex_wake get_robust_list get_thread_area getcpu getpgid getpgrp getpid getppid
        getpriority getrlimit getrusage getsid gettid ioprio_get ioprio_set pidfd_open
        pidfd_send_signal prctl process_mrelease restart_syscall rseq
        sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr
        sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr
        sched_setparam sched_setscheduler sched_yield set_robust_list set_thread_area
        set_tid_address setpgid setpriority setsid vfork wait4 waitid
    """,
    "signals": """
        alarm kill pause rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn
        rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sigaltstack tgkill tkill
    """,
    "time": """
        clock_getres clock_gettime clock_nanosleep getitimer gettimeofday nanosleep setitimer time
        timer_create timer_delete timer_getoverrun timer_gettime timer_settime times
    """,
    "ids, as far as there are any": """
        capget capset getegid geteuid getgid getgroups getresgid getresuid getuid landlock_add_rule
        landlock_create_ruleset landlock_restrict_self seccomp setfsgid setfsuid setgid setgroups
        setregid setresgid setresuid setreuid setuid
    """,
    "sockets": """
        accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg
        recvmsg sendmmsg sendmsg sendto setsockopt shutdown
    """,
    "messages, semaphores and shared memory": """
        mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv
        msgsnd semctl semget semop semtimedop shmat shmctl shmdt shmget
    """,
    "what there is": "getrandom sysinfo uname",
}

# What is refused -> the capability with which it is not; None: always.
REFUSED = {
    "fsconfig fsmount fsopen fspick mount mount_setattr move_mount open_tree open_tree_attr "
    "pivot_root umount2 quotactl quotactl_fd setns sethostname setdomainname fanotify_init "
    "swapon swapoff vhangup lookup_dcookie": "CAP_SYS_ADMIN",
    "ptrace process_vm_readv process_vm_writev process_madvise pidfd_getfd kcmp": "CAP_SYS_PTRACE",
    "bpf": "CAP_BPF",
    "perf_event_open": "CAP_PERFMON",
    "init_module finit_module delete_module": "CAP_SYS_MODULE",
    "kexec_load kexec_file_load reboot": "CAP_SYS_BOOT",
    "acct": "CAP_SYS_PACCT",
    "adjtimex clock_adjtime clock_settime settimeofday": "CAP_SYS_TIME",
    "iopl ioperm": "CAP_SYS_RAWIO",
    "syslog": "CAP_SYSLOG",
    "chroot": "CAP_SYS_CHROOT",
    "open_by_handle_at": "CAP_DAC_READ_SEARCH",
    "get_mempolicy mbind migrate_pages move_pages set_mempolicy set_mempolicy_home_node": (
        "CAP_SYS_NICE"
    ),
    "add_key keyctl request_key userfaultfd io_uring_enter io_uring_register io_uring_setup "
    "modify_ldt create_module get_kernel_syms query_module nfsservctl uselib ustat sysfs _sysctl": (
        None
    ),
}

CLONE_NAMESPACES = {  # those that clone(2) can make
    "CLONE_NEWNS": 0x00020000,
    "CLONE_NEWCGROUP": 0x02000000,
    "CLONE_NEWUTS": 0x04000000,
    "CLONE_NEWIPC": 0x08000000,
    "CLONE_NEWUSER": 0x10000000,
    "CLONE_NEWPID": 0x20000000,
    "CLONE_NEWNET": 0x40000000,
}
CLONE_PARENT = 0x00008000  # the child would be the caller's, outside of a pid namespace of its own
CLONE_NEWTIME = 0x00000080  # unshare(2) only: to clone(2) it is part of a signal's number
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
F_SETLEASE, F_NOTIFY = 1024, 1026
# (bits, value) of the other commands of fcntl(2): below 1024, F_GETLEASE, 1027 to 1039.
FCNTL = ((~0x3FF, 0), (~0, 1025), (~0, 1027), (~3, 1028), (~7, 1032))  # of an int
RLIMIT_CORE = 4
# (bits, value) of the other resources of setrlimit(2): 0 to 3, 5, 6 and 7, 8 to 15.
RESOURCES = ((~3, 0), (~0, 5), (~1, 6), (~7, 8))  # of an int
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET = 1, 2, 10, 16, 17
SOCK_STREAM, SOCK_DGRAM, SOCK_TYPE = 1, 2, 0xF
LAST_PROTOCOL = 58  # IPPROTO_ICMPV6; beyond are SCTP, UDP-Lite and MPTCP
# What a template's server and its sandboxes call before the command, and the command may not.
SETUP_TEXT = """
    chroot clone clone3 fsconfig fsmount fsopen mount mount_setattr move_mount open_tree
    pivot_root setdomainname sethostname setns umount2 unshare
"""
SETUP = frozenset(SETUP_TEXT.split())
INT = 0xFFFFFFFF  # the kernel looks at these bits of an int, whatever the others are
# Linux, 32 bits, the release as 2.6, both; addresses not random; the question what it is.
PERSONALITIES = (0, 0x8, 0x20000, 0x20008, 0x40000, 0xFFFFFFFF)


def default_profile() -> dict[str, Any]:
    """A new copy, to be altered at will and given as Spec(seccomp=...)."""
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": ENOSYS,
        "syscalls": [
            *(_allow(names.split(), comment=comment) for comment, names in ALLOWED.items()),
            *_refused(),
            *_namespaces(),
            *_sockets(),
            *_ioctl(),
            *_fcntl(),
            *_core_limit(),
            _allow(["personality"], args=[_compare(0, "EQ", known) for known in PERSONALITIES]),
        ],
    }


def parts() -> tuple[dict[str, Any], dict[str, Any]]:
    """The profile as two that say the same together: one with which a sandbox can still be made,
    and the rest, which is small and so is loaded quickly. The first is inherited at no cost."""
    whole = default_profile()
    rules = [
        {**rule, "names": names}
        for rule in whole["syscalls"]
        if (names := [name for name in rule["names"] if name not in SETUP])
    ]
    first = {**whole, "syscalls": [*rules, _allow(sorted(SETUP))]}
    refusals = [
        {**rule, "names": names}
        for rule in whole["syscalls"]
        if rule["action"] != "SCMP_ACT_ALLOW"
        and (names := [name for name in rule["names"] if name in SETUP])
    ]
    return first, {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": refusals}


def _refused() -> Iterable[dict[str, Any]]:
    for text, capability in REFUSED.items():
        names = text.split()
        if capability is None:
            yield _errno(names, EPERM)
        else:
            yield _allow(names, includes={"caps": [capability]})
            yield _errno(names, EPERM, excludes={"caps": [capability]})


def _namespaces() -> Iterable[dict[str, Any]]:
    """The flags of clone3 lie in memory, where no filter sees them."""
    admin = {"caps": ["CAP_SYS_ADMIN"]}
    yield _allow(["clone", "clone3", "unshare"], includes=admin)
    yield _errno(["clone3"], ENOSYS, excludes=admin)
    for name, more in (("clone", CLONE_PARENT), ("unshare", CLONE_NEWTIME)):
        flags = [*CLONE_NAMESPACES.values(), more]
        none = _compare(0, "MASKED_EQ", sum(flags), 0)
        yield _allow([name], args=[none], excludes=admin)
        given = [_compare(0, "MASKED_EQ", flag, flag) for flag in flags]
        yield _errno([name], EPERM, args=given, excludes=admin)


def _sockets() -> Iterable[dict[str, Any]]:
    yield _allow(["socketpair"], args=[_compare(0, "EQ", AF_UNIX)])
    yield _errno(["socketpair"], EAFNOSUPPORT, args=[_compare(0, "NE", AF_UNIX)])
    plain = {"caps": ["CAP_NET_RAW", "CAP_NET_ADMIN"]}  # excluded with either
    for capability in plain["caps"]:
        usual = [_same(0, family) for family in (AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET)]
        yield _allow(["socket"], args=usual, includes={"caps": [capability]})
    yield _allow(["socket"], args=[_same(0, AF_UNIX)], excludes=plain)
    families = (AF_UNIX, AF_INET, AF_INET6, AF_NETLINK)
    others = [_masked(0, *bits) for bits in anything_but(families, INT)]
    yield _errno(["socket"], EAFNOSUPPORT, args=others, excludes=plain)
    route = [_same(0, AF_NETLINK), _compare(2, "EQ", 0)]  # NETLINK_ROUTE
    yield _allow(["socket"], args=route, excludes=plain)
    other = [_same(0, AF_NETLINK), _compare(2, "NE", 0)]
    yield _errno(["socket"], EPROTONOSUPPORT, args=other, excludes=plain)
    types = (SOCK_STREAM, SOCK_DGRAM)
    for family in (AF_INET, AF_INET6):
        for kind in types:
            wanted = [_same(0, family), _masked(1, SOCK_TYPE, kind)]
            known = [*wanted, _compare(2, "LE", LAST_PROTOCOL)]
            yield _allow(["socket"], args=known, excludes=plain)
            beyond = [*wanted, _compare(2, "GT", LAST_PROTOCOL)]
            yield _errno(["socket"], EPROTONOSUPPORT, args=beyond, excludes=plain)
        for bits in anything_but(types, SOCK_TYPE):
            other = [_same(0, family), _masked(1, *bits)]
            yield _errno(["socket"], EPERM, args=other, excludes=plain)


def _ioctl() -> Iterable[dict[str, Any]]:
    """Nothing may be typed into a terminal for others to read."""
    refused = (TIOCSTI, TIOCLINUX)
    yield _allow(["ioctl"], args=[_masked(1, *bits) for bits in anything_but(refused, INT)])
    yield _errno(["ioctl"], EPERM, args=[_same(1, request) for request in refused])


def _fcntl() -> Iterable[dict[str, Any]]:
    """A lease makes whoever opens the file wait, on the host too; F_NOTIFY watches directories."""
    yield from (_allow(["fcntl"], args=[_masked(1, bits & INT, value)]) for bits, value in FCNTL)
    refused = (F_SETLEASE, F_NOTIFY)
    yield _errno(["fcntl"], EPERM, args=[_same(1, command) for command in refused])


def _core_limit() -> Iterable[dict[str, Any]]:
    """RLIMIT_CORE is what keeps the host's core handler from running. Who changes it (gpg, ssh-agent)
    is told that it was done, unless the old limit is asked for as well, which no filter can write."""
    for bits, value in RESOURCES:
        yield _allow(["setrlimit"], args=[_masked(0, bits & INT, value)])
        yield _allow(["prlimit64"], args=[_masked(1, bits & INT, value)])
    yield _errno(["setrlimit"], 0, args=[_same(0, RLIMIT_CORE)])
    core = _same(1, RLIMIT_CORE)
    yield _allow(["prlimit64"], args=[core, _compare(2, "EQ", 0)])  # it is only asked for
    for old, errno in (("EQ", 0), ("NE", EPERM)):
        changed = [core, _compare(2, "NE", 0), _compare(3, old, 0)]
        yield _errno(["prlimit64"], errno, args=changed)


def anything_but(values: Iterable[int], mask: int) -> list[tuple[int, int]]:
    """(mask, value) pairs of which every number but these matches one, bits outside `mask` apart.

    The format can say that bits are so, not that a number is none of several: this walks the
    values' bits from the highest, and where all values go one way the other is free."""
    bits = [1 << n for n in reversed(range(mask.bit_length())) if mask >> n & 1]
    found = []

    def walk(left: list[int], depth: int, known: int, value: int) -> None:
        if depth == len(bits):
            return
        bit = bits[depth]
        for way in (0, bit):
            there = [number for number in left if number & bit == way]
            if there:
                walk(there, depth + 1, known | bit, value | way)
            else:
                found.append((known | bit, value | way))

    walk([value & mask for value in values], 0, 0, 0)
    return found


def _allow(names: list[str], **more: Any) -> dict[str, Any]:
    return {"names": names, "action": "SCMP_ACT_ALLOW", **more}


def _errno(names: list[str], errno: int, **more: Any) -> dict[str, Any]:
    return {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": errno, **more}


def _compare(index: int, op: str, value: int, second: int = 0) -> dict[str, Any]:
    return {"index": index, "value": value, "valueTwo": second, "op": f"SCMP_CMP_{op}"}


def _masked(index: int, mask: int, value: int) -> dict[str, Any]:
    return _compare(index, "MASKED_EQ", mask, value)


def _same(index: int, value: int) -> dict[str, Any]:
    return _masked(index, INT, value)
