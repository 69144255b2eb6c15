"""Attempts to escape from a default sandbox, in every way of starting. The control of each is the
same attempt without the one defence against it, which must work unless the kernel refuses it to all
processes. If the user namespace of root's sandboxes also stops the control, it is repeated with the
host's ids."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import support
from escape.results import RESULTS
from inside import runner

import fastns
from fastns import Mount, Rlimit, Spec

WAYS = ("direct", "init", "template", "ready", "rooms", "container")
OPEN = {"seccomp": "unconfined"}
ADMIN = {"capabilities": ["SYS_ADMIN"]}
RAW = {"capabilities": ["NET_RAW"]}
FREE = {"capabilities": ["SYS_ADMIN"], "seccomp": "unconfined"}
HOSTS_IDS = {"namespaces": {"user": "host"}}
X86 = "x86_64"
FEW = {"rlimits": [Rlimit("RLIMIT_NPROC", 24, 24)]}
SMALL = {"rlimits": [Rlimit("RLIMIT_AS", 64 << 20, 64 << 20)], "tmpfs_size": "16m"}


class Case(NamedTuple):
    name: str  # begins with the number of the case
    attack: str
    argument: str  # a format string for the fixture `aims`
    control: Any  # fields of a Spec with which it works, or a word: see control_of()
    fields: dict[str, Any] = {}  # noqa: RUF012 - of the sandbox under test
    needs_root: bool = False  # the control must work for root; the kernel may refuse it to users


BOUND = Mount("/mnt", source="/usr")
BOUND_READ_ONLY = Mount("/mnt", source="/usr", options=["ro"])


def bound_device(*options: str) -> dict[str, Any]:
    return {"mounts": [Mount("/full", source="/dev/full", options=["X-mount.mkdir", *options])]}


CASES = [
    Case("A3 fds of the caller", "open_fds", "", "pass_fds"),
    Case("C1 chroot twice", "chroot_twice", "{file}",
         {"root_mode": "chroot", "namespaces": {"mount": "host"}, "capabilities": ["SYS_CHROOT"]},
         needs_root=True),
    Case("C1 chroot twice, by who may", "chroot_twice", "{file}",
         {"root_mode": "chroot", "namespaces": {"mount": "host"}},
         {"capabilities": ["SYS_CHROOT"]}, needs_root=True),
    Case("C1 dots above the root", "dots", "{file}", "bind"),
    Case("C1 /proc/1/root", "root_of_pid_1", "{file}", "bind"),
    Case("C2 umount /proc/sys", "take_away", "/proc/sys", ADMIN),
    Case("C2 umount /proc", "take_away", "/proc", ADMIN),
    Case("C2 umount /sys/firmware", "take_away", "/sys/firmware", ADMIN),
    Case("C3 remount read-write", "remount", "", ADMIN, {"read_only": True}),
    Case("C3 mount_setattr", "set_attributes", "", ADMIN, {"read_only": True}),
    Case("C3 another /proc", "mount_proc", "", ADMIN),
    Case("C5 cgroup to mount", "mount_cgroup", "", ADMIN, needs_root=True),
    Case("C7 core_pattern", "open_for_writing", "/proc/sys/kernel/core_pattern",
         {"readonly_paths": [], "mounts": [Mount("/proc", type="proc", options=["rw"])]},
         needs_root=True),
    Case("C7 sysctl of the network", "open_for_writing", "/proc/sys/net/ipv4/ip_default_ttl",
         {"readonly_paths": [], "capabilities": ["NET_ADMIN"]}),
    Case("C7 files of the kernel", "open_for_writing", "/sys/kernel/profiling",
         {"mounts": [Mount("/sys", type="sysfs", options=["rw"])]}, needs_root=True),
    Case("C9 block device", "make_device", "", {"capabilities": ["MKNOD"]}, needs_root=True),
    Case("C9 a device in the root", "open_for_writing", "/device", {"default_mounts": False},
         needs_root=True),
    Case("C9 a device beneath a layer", "open_for_writing", "/device", {"default_mounts": False},
         {"overlay": True}, needs_root=True),
    Case("C9 a device that is bound", "open_for_writing", "/full", bound_device("dev"),
         bound_device()),
    Case("C11 setuid, with argc 0", "no_arguments", "", {"no_new_privileges": False},
         {"user": "7:7"}, needs_root=True),
    Case("C13 a program in memory", "through_memory", "new_user_namespace", OPEN),
    Case("C13 a chain of scripts", "through_scripts", "new_user_namespace", OPEN),
    Case("C15 nested user namespace", "new_user_namespace", "", OPEN),
    Case("C15 by clone", "clone_user_namespace", "", OPEN),
    Case("D1 i386 call", "other_abi", "", OPEN),
    Case("D1 x32 call", "x32", "", OPEN),
    Case("D2 clone3", "clone3_user_namespace", "", OPEN),
    Case("D5 io_uring_setup", "call", "425", OPEN),
    Case("D5 bpf", "call", "321", FREE, needs_root=True),
    Case("D5 perf_event_open", "call", "298", FREE),
    Case("D5 userfaultfd", "call", "323", OPEN),
    Case("D5 keyctl", "call", "250", OPEN),
    Case("D5 add_key", "call", "248", OPEN),
    Case("D5 kexec_load", "call", "246", {**OPEN, "capabilities": ["SYS_BOOT"]}, needs_root=True),
    Case("D5 init_module", "call", "175", {**OPEN, "capabilities": ["SYS_MODULE"]},
         needs_root=True),
    Case("D5 process_vm_writev", "call", "311", OPEN),
    Case("D5 pidfd_getfd", "call", "438", OPEN),
    Case("D5 ptrace", "trace_a_child", "", OPEN),
    Case("D5 F_SETLEASE", "lease", "", OPEN),
    Case("D5 F_NOTIFY", "watch_directory", "", OPEN),
    Case("D5 move_mount", "call", "429", FREE),
    Case("D5 open_by_handle_at", "call", "304",
         {**OPEN, "capabilities": ["DAC_READ_SEARCH"]}, needs_root=True),
    Case("D6 AF_VSOCK", "other_socket", "40:1:0", OPEN),
    Case("D6 AF_ALG", "other_socket", "38:5:0", OPEN),
    Case("D6 AF_PACKET", "other_socket", "17:3:0", {**OPEN, "capabilities": ["NET_RAW"]}),
    Case("D6 raw socket", "other_socket", "2:3:1", {"capabilities": ["NET_RAW"]}),
    Case("D6 netfilter", "other_socket", "16:3:12", OPEN),
    Case("D6 SCTP", "other_socket", "2:1:132", OPEN),
    Case("D6 UDP-Lite", "other_socket", "2:2:136", OPEN),
    Case("D6 MPTCP", "other_socket", "2:1:262", OPEN),
    Case("D6 MSG_OOB", "out_of_band", "", OPEN),
    Case("D6 MSG_OOB by sendmmsg", "out_of_band_by_sendmmsg", "", OPEN),
    Case("G2 SO_ATTACH_FILTER", "attach_filter", "26", RAW),
    Case("G2 SO_ATTACH_BPF", "attach_filter", "50", RAW),
    Case("G2 SO_ATTACH_REUSEPORT_CBPF", "attach_filter", "51", RAW),
    Case("G2 SO_ATTACH_REUSEPORT_EBPF", "attach_filter", "52", RAW),
    Case("G2 a filter of its own", "own_filter", "", ADMIN),
    Case("G2 the same by prctl", "own_filter_by_prctl", "", ADMIN),
    Case("G3 IP_RECVERR", "socket_option", "2:2:0:11", OPEN),
    Case("G3 IP_RECVERR_RFC4884", "socket_option", "2:2:0:26", OPEN),
    Case("G3 IPV6_RECVERR", "socket_option", "10:2:41:25", OPEN),
    Case("G3 IPV6_RECVERR_RFC4884", "socket_option", "10:2:41:31", OPEN),
    Case("G3 SO_TIMESTAMPING", "socket_option", "2:2:1:37", OPEN),
    Case("G3 SO_TIMESTAMPING_NEW", "socket_option", "2:2:1:65", OPEN),
    Case("G3 SO_WIFI_STATUS", "socket_option", "2:2:1:41", OPEN),
    Case("G3 SO_ZEROCOPY", "socket_option", "2:1:1:60", OPEN),
    Case("G3 SO_TXTIME", "option_reached", "1:61", OPEN),
    *(Case(f"G3 a long ACL by {how}", "long_acl", how, OPEN) for how in ("path", "link", "fd")),
    Case("G6 TCP_ULP", "option_reached", "6:31", OPEN),
    Case("G6 TCP_ULP, to who may", "option_reached", "6:31", {"capabilities": ["NET_ADMIN"]}),
    Case("G6 TCP_AO_ADD_KEY", "option_reached", "6:38", OPEN),
    Case("G6 TIOCSETD", "ioctl_reached", "0x5423", OPEN),
    Case("G6 SIOCGIFBR", "ioctl_reached", "0x8940", OPEN),
    Case("G6 SIOCBRADDBR", "ioctl_reached", "0x89a0", {**OPEN, "capabilities": ["NET_ADMIN"]}),
    Case("G6 SIOCGIFVLAN", "ioctl_reached", "0x8982", OPEN),
    *(Case(f"G7 set-id by {how}", "make_setid", how, {"allow_setid": True})
      for how in ("chmod", "fchmod", "fchmodat2", "creat", "open", "tmpfile", "openat2", "mknod",
                  "mkdir")),
    Case("G7 a layer is thrown away", "make_setid", "fchmod", {"overlay": True}),
    Case("G7 a writable bind", "make_setid", "fchmod", {"mounts": [BOUND_READ_ONLY]},
         {"read_only": True, "mounts": [BOUND]}),
    Case("E4 abstract socket", "abstract_socket", "{socket}", {"network": "host"}),
    Case("E4 loopback", "loopback", "{port}", {"network": "host"}),
    Case("E4 interfaces by netlink", "links", "", {"network": "host"}),
    Case("E6 signal to the host", "signal_host", "{pid}", {"namespaces": {"pid": "host"}}),
    Case("E6 processes of the host", "look_at_host", "{pid}", {"namespaces": {"pid": "host"}}),
    Case("E7 sethostname", "rename_host", "", ADMIN),
    Case("E7 clock_settime", "set_clock", "", {**OPEN, "capabilities": ["SYS_TIME"]},
         needs_root=True),
    # Resources limited without a cgroup. The argument is a number of children or MiB.
    Case("F1 children, by RLIMIT_NPROC", "many_children", "100", {"rlimits": []}, FEW),
    Case("F2 heap, by RLIMIT_AS", "fill_heap", "96", {"rlimits": []}, SMALL),
    Case("F2 memfd, by RLIMIT_FSIZE", "fill_memory_file", "96", {"rlimits": []},
         {"rlimits": [Rlimit("RLIMIT_FSIZE", 8 << 20, 8 << 20)]}),
    Case("F2 tmpfs, by its size", "fill_tmp", "96", {"tmpfs_size": "128m"}, SMALL),
    Case("F2 shared memory, by its size", "fill_shared_memory", "96", {"tmpfs_size": "128m"},
         SMALL),
    Case("F7 zombies, by RLIMIT_NPROC", "many_zombies", "100", {"rlimits": []}, FEW),
]  # fmt: skip


def attempted(case: Case, run: Any, argument: str) -> tuple[bool, str]:
    """Run the attack. Return whether it worked, and its output or the cause of its end."""
    done = run(["/attack", case.attack, argument], capture_output=True, text=True)
    assert done.returncode in (0, 1) or done.returncode < 0, (done.returncode, done.stdout)
    return done.returncode == 0, done.stdout.strip() or done.cause


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_an_attack_fails(case: Case, attack_root: Path, aims: dict[str, str]) -> None:
    seen, argument = set(), case.argument.format(**aims)
    fields = {"rootfs": attack_root, **case.fields}
    for way in WAYS:
        if way == "rooms" and case.attack == "make_setid":
            continue  # it works in a layer, which is thrown away: the control of such a case
        with runner(way, **fields) as run:
            worked, what = attempted(case, run, argument)
        RESULTS[case.name] = ("FAILED" if worked else "blocked", f"{way}: {what}")
        assert not worked, (way, what)
        seen.add(what)
    told = " ".join(sorted(seen))
    RESULTS[case.name] = ("blocked", told)
    worked, what = control_of(case, fields, argument)
    if not worked and support.is_root():
        first = what
        worked, what = control_of(case, {**fields, **HOSTS_IDS}, argument)
        if worked:
            RESULTS[case.name] = ("blocked twice", f"{told}; in its user namespace: {first}")
    if not worked:
        RESULTS[case.name] = ("kernel refuses anyway", f"{told}; control: {what}")
    assert worked or (case.needs_root and not support.is_root()) or what in BLOCKED, what


def control_of(case: Case, fields: dict[str, Any], argument: str) -> tuple[bool, str]:
    """Make the same attempt without the defence; return what attempted() returns."""
    if case.control == "pass_fds":
        with open("/dev/null") as file:
            args, passed = ["/attack", case.attack], [file.fileno()]
            with fastns.spawn(args, spec=Spec(**fields), pass_fds=passed) as sandbox:
                return sandbox.wait() == 0, ""
    control = case.control
    if control == "bind":
        there = str(Path(argument).parent)
        control = {"mounts": [Mount(there, source=there, options=["X-mount.mkdir"])]}
    namespaces = {**fields.get("namespaces", {}), **control.get("namespaces", {})}
    with runner("direct", **{**fields, **control, "namespaces": namespaces}) as run:
        return attempted(case, run, argument)


# Results on a kernel whose build or settings refuse the call to all processes.
BLOCKED = {"ENOSYS", "EAFNOSUPPORT", "EPROTONOSUPPORT", "seccomp", "signaled"}
