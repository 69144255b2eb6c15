"""The default profile, as data in the format of OCI and Docker.

Calls that programs need to compute, read, write, communicate and start others are allowed. Calls
that reach past the sandbox, or into parts of the kernel that only an administrator's programs need,
fail with EPERM, unless the sandbox has the capability for them. A call that programs can do without
fails as on a kernel that lacks it. Any call that is not named here fails with ENOSYS, and a C
library then falls back to an older one.
"""

from __future__ import annotations

from fastns._policy import seccomp_sockets
from fastns._policy.seccomp_rules import (
    DONE,
    INT,
    all_but,
    allow,
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

EPERM, E2BIG, EINVAL, ENOSYS = 1, 7, 22, 38

ALLOWED = {
    "files": """
        access chdir chown close close_range copy_file_range dup dup2 dup3 faccessat faccessat2
        fadvise64 fallocate fchdir fchown fchownat fdatasync fgetxattr flistxattr flock
        fremovexattr fstat fstatfs fsync ftruncate futimesat getcwd getdents getdents64
        getxattr getxattrat lchown lgetxattr link linkat listxattr listxattrat llistxattr
        lremovexattr lseek lstat name_to_handle_at newfstatat pread64 preadv preadv2
        pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv removexattr
        removexattrat rename renameat renameat2 rmdir sendfile splice stat
        statfs statx symlink symlinkat sync_file_range tee truncate umask unlink unlinkat utime
        utimensat utimes vmsplice write writev
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
        futex_wake get_robust_list get_thread_area getcpu getpgid getpgrp getpid getppid
        getpriority getrlimit getrusage getsid gettid ioprio_get ioprio_set pidfd_open
        pidfd_send_signal process_mrelease restart_syscall rseq
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
    "what there is": "getrandom sysinfo uname",
}

# Calls that are refused -> the capability with which they are allowed; None: none.
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

CLONE_NAMESPACES = {  # the namespaces that clone(2) can make
    "CLONE_NEWNS": 0x00020000,
    "CLONE_NEWCGROUP": 0x02000000,
    "CLONE_NEWUTS": 0x04000000,
    "CLONE_NEWIPC": 0x08000000,
    "CLONE_NEWUSER": 0x10000000,
    "CLONE_NEWPID": 0x20000000,
    "CLONE_NEWNET": 0x40000000,
}
CLONE_PARENT = 0x00008000  # with no pid namespace of its own, the child would be the caller's
CLONE_NEWTIME = 0x00000080  # for unshare(2) only; clone(2) takes it as part of a signal's number
TERMINAL = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: type into a terminal, for others to read
LOADS = (  # the kernel loads a module for them
    *(0x5423,),  # TIOCSETD: a line discipline, by number
    *(0x8940, 0x8941, 0x89A0, 0x89A1),  # SIOCGIFBR, SIOCSIFBR, SIOCBRADDBR, SIOCBRDELBR
    *(0x8980, 0x8981),  # SIOCADDDLCI, SIOCDELDLCI: before Linux 5.16
    *(0x8982, 0x8983),  # SIOCGIFVLAN, SIOCSIFVLAN
)
SECCOMP_SET_MODE_FILTER = 1
PR_SET_SECCOMP, SECCOMP_MODE_FILTER, PR_SCHED_CORE = 22, 2, 62
# Calls that give a file its mode -> which argument that is.
MODE_AT = {
    **dict.fromkeys(("chmod", "creat", "fchmod", "mkdir", "mknod"), 1),
    **dict.fromkeys(("fchmodat", "fchmodat2", "mkdirat", "mknodat"), 2),
}
OPENS = {"open": (1, 2), "openat": (2, 3)}  # flags, and the mode of a file that they make
CREATES = (0o100, 0o20000000)  # O_CREAT, and O_TMPFILE without O_DIRECTORY
S_ISUID, S_ISGID = 0o4000, 0o2000
MAX_ATTRIBUTE = 1000  # bytes; an ACL of that size takes 1 KiB of the kernel's memory
F_SETLEASE, F_NOTIFY = 1024, 1026
# (bits, value) of the other commands of fcntl(2): below 1024, F_GETLEASE, 1027 to 1039.
FCNTL = ((~0x3FF, 0), (~0, 1025), (~0, 1027), (~3, 1028), (~7, 1032))  # of an int
RLIMIT_CORE = 4
# (bits, value) of the other resources of setrlimit(2): 0 to 3, 5, 6 and 7, 8 to 15.
RESOURCES = ((~3, 0), (~0, 5), (~1, 6), (~7, 8))  # of an int
# Calls that a template's server makes, and its sandboxes before the command, but no command may.
SETUP_TEXT = """
    chroot clone clone3 fsconfig fsmount fsopen mount mount_setattr move_mount open_tree openat2
    pivot_root prctl seccomp setdomainname sethostname setns umount2 unshare
"""
SETUP = frozenset(SETUP_TEXT.split())
# PER_LINUX, PER_LINUX32, UNAME26, both; ADDR_NO_RANDOMIZE; a query.
PERSONALITIES = (0, 0x8, 0x20000, 0x20008, 0x40000, 0xFFFFFFFF)


def default_profile(*, setid: bool = True) -> dict[str, Any]:
    """A new copy, which may be changed and given as Spec(seccomp=...).

    Args: setid: whether set-user-ID and set-group-ID files may be made. A sandbox that can write to
        the host's files has False, unless its Spec says allow_setid=True.
    """
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": ENOSYS,
        "syscalls": [
            *(allow(names.split(), comment=comment) for comment, names in ALLOWED.items()),
            *_refused(),
            *_namespaces(),
            *seccomp_sockets.rules(),
            *_ioctl(),
            *_fcntl(),
            *_attributes(),
            *_core_limit(),
            *_own_filters(),
            *_modes(setid),
            refuse(["sync"], DONE),  # it writes back all file systems, also the host's
            allow(["personality"], args=[compare(0, "EQ", known) for known in PERSONALITIES]),
        ],
    }


def parts(*, setid: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
    """The profile in two parts, to be loaded one after the other.

    Under the first a sandbox can still be made, and inherits it at no cost. The second is small,
    and so is loaded quickly."""
    whole = default_profile(setid=setid)
    rules = [
        {**rule, "names": names}
        for rule in whole["syscalls"]
        if (names := [name for name in rule["names"] if name not in SETUP])
    ]
    first = {**whole, "syscalls": [*rules, allow(sorted(SETUP))]}
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
            yield refuse(names, EPERM)
        else:
            yield allow(names, includes={"caps": [capability]})
            yield refuse(names, EPERM, excludes={"caps": [capability]})


def _namespaces() -> Iterable[dict[str, Any]]:
    """clone3 is refused, as its flags lie in memory, where no filter sees them."""
    admin = {"caps": ["CAP_SYS_ADMIN"]}
    yield allow(["clone", "clone3", "unshare"], includes=admin)
    yield refuse(["clone3"], ENOSYS, excludes=admin)
    for name, more in (("clone", CLONE_PARENT), ("unshare", CLONE_NEWTIME)):
        flags = [*CLONE_NAMESPACES.values(), more]
        none = compare(0, "MASKED_EQ", sum(flags), 0)
        yield allow([name], args=[none], excludes=admin)
        given = [compare(0, "MASKED_EQ", flag, flag) for flag in flags]
        yield refuse([name], EPERM, args=given, excludes=admin)


def _ioctl() -> Iterable[dict[str, Any]]:
    yield from all_but("ioctl", 1, dict.fromkeys((*TERMINAL, *LOADS), EPERM))


def _own_filters() -> Iterable[dict[str, Any]]:
    """The kernel compiles all filters of the host into memory of a fixed size, charged to nobody.
    The calls fail as on a kernel without filters, and programs then do without."""
    admin = {"caps": ["CAP_SYS_ADMIN"]}
    yield allow(["seccomp"], includes=admin)
    yield from all_but("seccomp", 0, {SECCOMP_SET_MODE_FILTER: EINVAL}, excludes=admin)
    yield allow(["prctl"], args=others(0, [PR_SET_SECCOMP, PR_SCHED_CORE]))
    yield refuse(["prctl"], EINVAL, args=[same(0, PR_SCHED_CORE)])
    sets = same(0, PR_SET_SECCOMP)
    yield allow(["prctl"], args=[sets], includes=admin)
    other = compare(1, "NE", SECCOMP_MODE_FILTER)  # an unsigned long
    yield allow(["prctl"], args=[sets, other], excludes=admin)
    filters = [sets, compare(1, "EQ", SECCOMP_MODE_FILTER)]
    yield refuse(["prctl"], EINVAL, args=filters, excludes=admin)


def _modes(setid: bool) -> Iterable[dict[str, Any]]:
    """Where set-id files are refused, so is openat2: its mode lies in memory."""
    if setid:
        yield allow([*MODE_AT, *OPENS, "openat2"])
        return
    yield refuse(["openat2"], ENOSYS)
    both = S_ISUID | S_ISGID
    for name, mode in MODE_AT.items():
        yield allow([name], args=[masked(mode, both, 0)])
        for bit in (S_ISUID, S_ISGID):
            yield refuse([name], EPERM, args=[masked(mode, bit, bit)])
    for name, (flags, mode) in OPENS.items():
        yield allow([name], args=[masked(flags, sum(CREATES), 0)])
        for creates in (masked(flags, bit, bit) for bit in CREATES):
            yield allow([name], args=[creates, masked(mode, both, 0)])
            for bit in (S_ISUID, S_ISGID):
                yield refuse([name], EPERM, args=[creates, masked(mode, bit, bit)])


def _fcntl() -> Iterable[dict[str, Any]]:
    """A lease makes whoever opens the file wait, on the host too; F_NOTIFY watches directories."""
    yield from (allow(["fcntl"], args=[masked(1, bits & INT, value)]) for bits, value in FCNTL)
    refused = (F_SETLEASE, F_NOTIFY)
    yield refuse(["fcntl"], EPERM, args=[same(1, command) for command in refused])


def _attributes() -> Iterable[dict[str, Any]]:
    """The ACL of a file in a tmpfs takes memory that is charged to nobody: up to 64 KiB, twice that
    for a directory. A filter sees the length of an attribute, but not its name."""
    names = ["setxattr", "lsetxattr", "fsetxattr"]
    yield allow(names, args=[compare(3, "LE", MAX_ATTRIBUTE)])  # a size_t
    yield refuse(names, E2BIG, args=[compare(3, "GT", MAX_ATTRIBUTE)])
    yield refuse(["setxattrat"], ENOSYS)


def _core_limit() -> Iterable[dict[str, Any]]:
    """RLIMIT_CORE keeps the host's core handler from running. A call that would change it, as gpg
    and ssh-agent make one, reports success and changes nothing. It fails if it also asks for the
    old limit, which no filter can return."""
    for bits, value in RESOURCES:
        yield allow(["setrlimit"], args=[masked(0, bits & INT, value)])
        yield allow(["prlimit64"], args=[masked(1, bits & INT, value)])
    yield refuse(["setrlimit"], DONE, args=[same(0, RLIMIT_CORE)])
    core = same(1, RLIMIT_CORE)
    yield allow(["prlimit64"], args=[core, compare(2, "EQ", 0)])  # a query
    for old, errno in (("EQ", DONE), ("NE", EPERM)):
        changed = [core, compare(2, "NE", 0), compare(3, old, 0)]
        yield refuse(["prlimit64"], errno, args=changed)
