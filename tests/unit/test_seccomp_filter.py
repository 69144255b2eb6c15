"""Filters give the same result as a model of the profile, which does not use libseccomp: for every
call number on each architecture, with boundary and random arguments."""

import functools
import itertools
import os
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import support
from bpf import ALLOW, ARCHES, ERRNO, KILL_PROCESS, X32_BIT, Model, interpret, name_of, together

from fastns import SpecError, _filters, seccomp
from fastns._policy.seccomp_default import SETUP, anything_but, parts

EPERM, ENOSYS = ERRNO | 1, ERRNO | 38
NUMBERS = range(1024)
UNKNOWN_TO_SOME = 448  # libseccomp 2.5.2 knows all calls below
EDGES = (
    *(0, 1, 2, 3, 10, 16, 17, 38, 40, 58, 59, 132, 262, 0x5412, 0x541C, 0x5413, 0x5411, 0x80),
    *(1 << bit for bit in range(64)),
    *((1 << 32) + value for value in (0, 1, 2, 0x5412, 0x541C)),
    *(0x7E020000, 0x7E020080, 0x10000011, 0x3D0F00, 0xFFFFFFFF, 2**64 - 1, 0xFFFFFFFF80045430),
)
CAPS = {
    "none": (),
    "some": ("CAP_SYS_ADMIN", "CAP_NET_RAW"),
    "others": ("CAP_SYS_PTRACE", "CAP_SYS_CHROOT", "CAP_BPF", "CAP_NET_ADMIN"),
}
MACHINES = ("x86_64", "aarch64")
SETID = {"any mode": True, "no set-id": False}
HIGH = 1 << 32
SIZES = (0, 1, 28, 999, 1000, 1001, 65536, HIGH, HIGH | 1, 2**64 - 1)
# Values for each argument of a call, tried in all combinations. HIGH is a bit that the kernel and
# filters ignore in 32-bit arguments.
FLAGS = (0, 1, 2, 0x41, 0x4000, 0x4001, 0x40000001, HIGH, HIGH | 1, 2**64 - 1)
MODES = (0, 0o644, 0o1777, 0o2000, 0o2755, 0o4000, 0o4755, 0o6777, HIGH | 0o4711, HIGH, 2**64 - 1)
OPENED = (0, 1, 0o100, 0o101, 0o100 | HIGH, 0o20200000, 0o20040000, 0o20000000, 0o2000000, 0o100000)
COMBINED = {
    "setsockopt": {
        1: (0, 1, 2, 5, 6, 7, 17, 40, 41, 42, 255, 270, 511, 512, HIGH, HIGH | 1, 2**64 - 1),
        2: (*range(84), 128, 255, 256, 0x1A00, HIGH | 26, HIGH | 11, HIGH | 31, 2**64 - 1),
    },
    "socket": {
        0: (0, 1, 2, 3, 10, 16, 17, HIGH | 2, 38),
        1: (0, 1, 2, 3, 5, 0x80801, 0x80802, HIGH | 1),
        2: (*range(20), 47, 57, 58, 59, 132, 136, 255, 262, 511, 512, HIGH | 6, 2**64 - 1),
    },
    "ioctl": {
        1: (
            *(0, 0x5401, 0x5412, 0x541C, 0x5413, 0x5422, 0x5423, 0x5424, HIGH | 0x5423),
            *(*range(0x893E, 0x8944), *range(0x8980, 0x8986), *range(0x899E, 0x89A4), 0x89F0),
        )
    },
    "prctl": {
        0: (0, 1, 21, 22, 23, 38, 61, 62, 63, 0x53564D41, HIGH | 22, HIGH | 62, 2**64 - 1),
        1: (0, 1, 2, 3, HIGH | 2, 2**64 - 1),
    },
    "seccomp": {0: (0, 1, 2, 3, 4, 5, HIGH, HIGH | 1, 2**64 - 1)},
    **{call: {3: SIZES} for call in ("setxattr", "lsetxattr", "fsetxattr")},
    "sendto": {3: FLAGS},
    "sendmsg": {2: FLAGS},
    "sendmmsg": {3: FLAGS},
    "recvfrom": {3: FLAGS},
    "recvmsg": {2: FLAGS},
    "recvmmsg": {3: FLAGS},
    "fchmod": {1: MODES},
    "fchmodat": {2: MODES},
    "fchmodat2": {2: MODES},
    "mkdirat": {2: MODES},
    "mknodat": {2: MODES},
    "openat": {2: OPENED, 3: MODES},
    "chmod": {1: MODES},
    "creat": {1: MODES},
    "mkdir": {1: MODES},
    "mknod": {1: MODES},
    "open": {1: OPENED, 2: MODES},
}


def by_the_library(caps, machine, setid=True):
    """The filter that libseccomp makes of the default profile."""
    return [seccomp.build(seccomp.default_profile(setid=setid), caps, machine=machine)]


def split_by_the_library(caps, machine, setid=True):
    return [seccomp.build(part, caps, machine=machine) for part in parts(setid=setid)]


def packaged(caps, machine, setid=True):
    """The package's filter files, which are for sandboxes without capabilities."""
    return [Path(_filters.path(machine, _filters.WHOLE, setid)).read_bytes()]


def packaged_split(caps, machine, setid=True):
    names = (_filters.FIRST, _filters.REST)
    return [Path(_filters.path(machine, part, setid)).read_bytes() for part in names]


@functools.cache
def arguments(seed, count):
    rng = random.Random(seed)
    return [
        tuple(rng.choice((rng.choice(EDGES), rng.getrandbits(64))) for _ in range(6))
        for _ in range(count)
    ]


def whole(caps, machine, setid=True):
    return [seccomp.build("default", caps, machine=machine, setid=setid)]


def split(caps, machine, setid=True):
    return list(seccomp.build_parts(caps, setid=setid, machine=machine))


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("caps", CAPS.values(), ids=CAPS)
@pytest.mark.parametrize("filters", [whole, split])
@pytest.mark.parametrize("setid", SETID.values(), ids=SETID)
def test_every_call_is_judged_as_the_profile_says(setid, filters, caps, machine) -> None:
    codes = filters(caps, machine, setid)
    model = Model(seccomp.default_profile(setid=setid), machine, caps)
    for number in NUMBERS:
        name = name_of(number, machine)
        for args in arguments(number, 6 if support.LONG else 3 if name else 1):
            said = together([interpret(code, ARCHES[machine], number, args) for code in codes])
            assert said == model.action(number, args), (number, name, args, hex(said))


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", ["fcntl", "ioctl", "socket", "clone", "unshare", "personality"])
def test_calls_with_rules_for_arguments(name, machine) -> None:
    """Calls whose result depends on arguments are tried with more of them."""
    number = next(number for number in NUMBERS if name_of(number, machine) == name)
    codes = whole((), machine)
    model = Model(seccomp.default_profile(), machine)
    seen = set()
    rng = random.Random(name)
    for _ in range(3000):
        args = tuple(rng.choice(EDGES) for _ in range(6))
        said = interpret(codes[0], ARCHES[machine], number, args)
        assert said == model.action(number, args), args
        seen.add(said)
    assert ALLOW in seen
    assert len(seen) > 1


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("caps", CAPS.values(), ids=CAPS)
@pytest.mark.parametrize("filters", [whole, split])
def test_arguments_in_every_combination(filters, caps, machine) -> None:
    codes = filters(caps, machine, setid=False)
    model = Model(seccomp.default_profile(setid=False), machine, caps)
    for number in NUMBERS:
        tried = COMBINED.get(name_of(number, machine), {})
        combinations = list(itertools.product(*tried.values())) if tried else []
        if not support.LONG:
            combinations = random.Random(number).sample(combinations, min(len(combinations), 400))
        for values in combinations:
            given = dict(zip(tried, values, strict=True))
            args = tuple(given.get(index, 0) for index in range(6))
            said = together([interpret(code, ARCHES[machine], number, args) for code in codes])
            assert said == model.action(number, args), (name_of(number, machine), args, hex(said))


def combinations(name, number):
    """Arguments of one call: from COMBINED or, for other calls, boundary and random values."""
    tried = COMBINED.get(name)
    if tried is None:
        yield from arguments(number, 2)
        return
    every = list(itertools.product(*tried.values()))
    for values in random.Random(number).sample(every, min(len(every), 400)):
        given = dict(zip(tried, values, strict=True))
        yield tuple(given.get(index, 0) for index in range(6))


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("setid", SETID.values(), ids=SETID)
@pytest.mark.parametrize(
    ("filters", "others"), [(packaged, by_the_library), (packaged_split, split_by_the_library)]
)
def test_packaged_filters_answer_like_libseccomps(filters, others, setid, machine) -> None:
    """Leaves out calls that an old libseccomp cannot filter for a foreign architecture."""
    ours, theirs = filters((), machine, setid), others((), machine, setid)
    compared = 0
    for number in (*NUMBERS, X32_BIT, X32_BIT | 1, 2**32 - 1):
        name = name_of(number, machine)
        if number >= UNKNOWN_TO_SOME and machine != os.uname().machine:
            continue
        for args in combinations(name, number):
            answers = [
                hex(together([interpret(code, ARCHES[machine], number, args) for code in codes]))
                for codes in (ours, theirs)
            ]
            assert answers[0] == answers[1], (number, name, args)
            compared += 1
    assert compared > len(NUMBERS)
    for arch in ARCHES.values():
        if arch != ARCHES[machine]:
            for codes in (ours, theirs):
                assert interpret(codes[0], arch, 0) == KILL_PROCESS


def test_packaged_filters_are_up_to_date() -> None:
    """Fails if the profile was changed without a build (`make install`)."""
    packaged = {path.name: path.read_bytes() for path in Path(_filters.DIRECTORY).iterdir()}
    assert packaged == _filters.make_all()


def test_filters_are_made_without_libseccomp(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ctypes", None)
    monkeypatch.setitem(sys.modules, "fastns._policy.libseccomp", None)
    assert len(_filters.make_all()) == 2 * (2 * 3 + 1)


def test_another_machine_has_no_default_filter(monkeypatch) -> None:
    with pytest.raises(SpecError, match=r"is for x86_64 and aarch64, not 'riscv64'"):
        seccomp.build("default", machine="riscv64")
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="riscv64"))
    for build in (_filters.default, _filters.default_parts):
        with pytest.raises(SpecError, match=r"seccomp: no default filter for riscv64: .*'unconf"):
            build(setid=True)


@pytest.mark.parametrize("machine", MACHINES)
def test_other_architectures_end_the_process(machine) -> None:
    for code in (whole((), machine)[0], split((), machine)[0]):
        for arch in (*ARCHES.values(), 0, 0xFFFFFFFF):
            if arch != ARCHES[machine]:
                assert {interpret(code, arch, number) for number in NUMBERS} == {KILL_PROCESS}


def test_the_numbers_of_x32_end_the_process() -> None:
    (code,) = whole((), "x86_64")
    for number in NUMBERS:
        assert interpret(code, ARCHES["x86_64"], number | X32_BIT) == KILL_PROCESS


def number_of(name):
    return next(number for number in NUMBERS if name_of(number, "x86_64") == name)


@pytest.mark.parametrize(
    ("call", "args", "action"),
    [
        ("read", (), ALLOW),
        ("execve", (), ALLOW),
        ("clone3", (), ENOSYS),
        ("mount", (), EPERM),
        ("move_mount", (), EPERM),
        ("ptrace", (), EPERM),
        ("keyctl", (), EPERM),
        ("bpf", (), EPERM),
        ("perf_event_open", (), EPERM),
        ("userfaultfd", (), EPERM),
        ("io_uring_setup", (), EPERM),
        ("init_module", (), EPERM),
        ("kexec_load", (), EPERM),
        ("clone", (0x11,), ALLOW),
        ("clone", (0x10000011,), EPERM),
        ("clone", (0x8011,), EPERM),
        ("unshare", (0x200,), ALLOW),
        ("unshare", (0x10000000,), EPERM),
        ("unshare", (0x80,), EPERM),
        ("ioctl", (0, 0x5401), ALLOW),
        ("ioctl", (0, 0x5412), EPERM),
        ("ioctl", (0, 0x5412 | 1 << 32), EPERM),
        ("ioctl", (0, 0x541C | 0xABCD << 32), EPERM),
        ("ioctl", (0, 0xFFFFFFFF80045430), ALLOW),
        ("ioctl", (0, 0x5423), EPERM),  # TIOCSETD
        ("ioctl", (0, 0x5424), ALLOW),  # TIOCGETD
        ("ioctl", (0, 0x8940), EPERM),  # SIOCGIFBR
        ("ioctl", (0, 0x89A1), EPERM),  # SIOCBRDELBR
        ("ioctl", (0, 0x8980), EPERM),  # SIOCADDDLCI
        ("ioctl", (0, 0x8982), EPERM),  # SIOCGIFVLAN
        ("ioctl", (0, 0x8912), ALLOW),  # SIOCGIFCONF
        ("fcntl", (0, 0), ALLOW),
        ("fcntl", (0, 38), ALLOW),  # F_OFD_SETLKW
        ("fcntl", (0, 1023), ALLOW),
        ("fcntl", (0, 1024), EPERM),  # F_SETLEASE
        ("fcntl", (0, 1024 | 1 << 32), EPERM),
        ("fcntl", (0, 3 | 1 << 32), ALLOW),  # F_GETFL for the kernel
        ("fcntl", (0, 1025), ALLOW),
        ("fcntl", (0, 1026), EPERM),  # F_NOTIFY
        ("fcntl", (0, 1027), ALLOW),
        ("fcntl", (0, 1030), ALLOW),  # F_DUPFD_CLOEXEC
        ("fcntl", (0, 1035), ALLOW),  # F_GET_RW_HINT
        ("fcntl", (0, 1036), ERRNO | 22),  # F_SET_RW_HINT
        ("fcntl", (0, 1037), ALLOW),  # F_GET_FILE_RW_HINT
        ("fcntl", (0, 1038), ERRNO | 22),  # F_SET_FILE_RW_HINT
        ("fcntl", (0, 1039), ALLOW),
        ("fcntl", (0, 1040), ENOSYS),  # F_SETDELEG
        ("socket", (1, 5, 0), ALLOW),
        ("socket", (2, 1, 6), ALLOW),
        ("socket", (10, 0x80802, 0), ALLOW),
        ("socket", (16, 3, 0), ALLOW),
        ("socket", (16, 3, 12), ERRNO | 93),
        ("socket", (2, 3, 1), EPERM),
        ("socket", (2, 1, 262), ERRNO | 93),  # MPTCP
        ("socket", (2, 2, 136), ERRNO | 93),  # UDP-Lite
        ("socket", (2, 2, 17), ALLOW),
        ("socket", (2, 2, 1), ALLOW),  # ping
        ("socket", (10, 2, 58), ALLOW),
        ("socket", (2, 2, 58), ERRNO | 93),
        ("socket", (2, 2, 6), ERRNO | 93),
        ("socket", (2, 1, 33), ERRNO | 93),  # DCCP
        ("setsockopt", (0, 1, 2), ALLOW),  # SO_REUSEADDR
        ("setsockopt", (0, 1, 26), EPERM),  # SO_ATTACH_FILTER
        ("setsockopt", (0, 1, 50), EPERM),
        ("setsockopt", (0, 1, 51), EPERM),
        ("setsockopt", (0, 1, 52), EPERM),
        ("setsockopt", (0, 1 | HIGH, 26 | HIGH), EPERM),
        ("setsockopt", (0, 2, 26), ALLOW),  # another level
        ("setsockopt", (0, 1, 29), ALLOW),  # SO_TIMESTAMP
        ("setsockopt", (0, 1, 35), ALLOW),  # SO_TIMESTAMPNS
        ("setsockopt", (0, 1, 37), ERRNO | 92),  # SO_TIMESTAMPING
        ("setsockopt", (0, 1, 65), ERRNO | 92),
        ("setsockopt", (0, 1, 60), ERRNO | 92),  # SO_ZEROCOPY
        ("setsockopt", (0, 0, 11), ERRNO | 0),  # IP_RECVERR
        ("setsockopt", (0, 41, 25), ERRNO | 0),
        ("setsockopt", (0, 41, 32), ERRNO | 92),  # IPV6_FLOWLABEL_MGR
        ("setsockopt", (0, 6, 31), ERRNO | 92),  # TCP_ULP
        ("setsockopt", (0, 6, 38), ERRNO | 92),  # TCP_AO_ADD_KEY
        ("setsockopt", (0, 6, 1), ALLOW),  # TCP_NODELAY
        ("setsockopt", (0, 270, 1), ALLOW),  # netlink
        ("sendto", (0, 0, 0, 0x4001), ERRNO | 95),  # MSG_OOB
        ("sendto", (0, 0, 0, 0x4000), ALLOW),
        ("recvmsg", (0, 0, 1), ERRNO | 95),
        ("seccomp", (0,), ALLOW),  # strict mode
        ("seccomp", (1,), ERRNO | 22),
        ("seccomp", (2,), ALLOW),
        ("prctl", (22, 2), ERRNO | 22),
        ("prctl", (22, 1), ALLOW),
        ("prctl", (21,), ALLOW),
        ("prctl", (62,), ERRNO | 22),  # PR_SCHED_CORE
        ("setxattr", (0, 0, 0, 1000), ALLOW),
        ("setxattr", (0, 0, 0, 1001), ERRNO | 7),
        ("lsetxattr", (0, 0, 0, HIGH), ERRNO | 7),
        ("fsetxattr", (0, 0, 0, 65536), ERRNO | 7),
        ("setxattrat", (), ENOSYS),
        ("sync", (), ERRNO | 0),
        ("syncfs", (), ENOSYS),
        ("memfd_secret", (), ENOSYS),
        ("chmod", (0, 0o6777), ALLOW),
        ("openat2", (), ALLOW),
        ("socket", (17, 3, 0), ERRNO | 97),
        ("socket", (38, 5, 0), ERRNO | 97),
        ("socket", (40, 1, 0), ERRNO | 97),
        ("socketpair", (1, 1, 0), ALLOW),
        ("socketpair", (30, 1, 0), ERRNO | 97),
    ],
)
def test_the_default_profile(call, args, action) -> None:
    words = (*args, *[0] * (6 - len(args)))
    for codes in (whole((), "x86_64"), split((), "x86_64")):
        found = together([interpret(c, ARCHES["x86_64"], number_of(call), words) for c in codes])
        assert hex(found) == hex(action)


@pytest.mark.parametrize(
    ("call", "args", "action"),
    [
        ("chmod", (0, 0o1777), ALLOW),
        ("chmod", (0, 0o4755), EPERM),
        ("fchmod", (0, 0o2755), EPERM),
        ("fchmodat", (0, 0, 0o4755), EPERM),
        ("fchmodat2", (0, 0, 0o4755), EPERM),
        ("mkdir", (0, 0o2755), EPERM),
        ("mknodat", (0, 0, 0o104755), EPERM),
        ("creat", (0, 0o4755), EPERM),
        ("open", (0, 0, 0o4755), ALLOW),  # the mode is ignored
        ("open", (0, 0o101, 0o755), ALLOW),
        ("open", (0, 0o101, 0o4755), EPERM),
        ("openat", (0, 0, 0o101, 0o2755), EPERM),
        ("openat", (0, 0, 0o20200002, 0o4755), EPERM),  # O_TMPFILE
        ("openat2", (), ENOSYS),
    ],
)
def test_the_default_profile_without_set_id_files(call, args, action) -> None:
    words = (*args, *[0] * (6 - len(args)))
    for codes in (whole((), "x86_64", False), split((), "x86_64", False)):
        found = together([interpret(c, ARCHES["x86_64"], number_of(call), words) for c in codes])
        assert hex(found) == hex(action)


@pytest.mark.parametrize(
    ("capability", "call", "args"),
    [
        ("CAP_NET_RAW", "setsockopt", (0, 1, 26)),
        ("CAP_NET_RAW", "setsockopt", (0, 1, 52)),
        ("CAP_NET_ADMIN", "setsockopt", (0, 6, 31)),
        ("CAP_SYS_ADMIN", "seccomp", (1,)),
        ("CAP_SYS_ADMIN", "prctl", (22, 2)),
    ],
)
def test_a_capability_permits_refused_arguments(capability, call, args) -> None:
    words = (*args, *[0] * (6 - len(args)))
    for caps in ((), ("CAP_CHOWN",), (capability,)):
        for codes in (whole(caps, "x86_64"), split(caps, "x86_64")):
            said = [interpret(code, ARCHES["x86_64"], number_of(call), words) for code in codes]
            assert (together(said) == ALLOW) == (capability in caps)


def test_an_unknown_number() -> None:
    assert interpret(whole((), "x86_64")[0], ARCHES["x86_64"], 1000) == ENOSYS


def test_a_capability_permits_its_calls_and_no_others() -> None:
    code = seccomp.build("default", ["CAP_SYS_ADMIN"], machine="x86_64")
    judged = {
        name: interpret(code, ARCHES["x86_64"], number_of(name), (0x10000011,) + (0,) * 5)
        for name in ("mount", "clone", "clone3", "setns", "ptrace", "init_module", "bpf")
    }
    assert judged == {
        "mount": ALLOW,
        "clone": ALLOW,
        "clone3": ALLOW,
        "setns": ALLOW,
        "ptrace": EPERM,
        "init_module": EPERM,
        "bpf": EPERM,
    }


def test_only_the_first_part_permits_the_setup_of_a_sandbox() -> None:
    first, rest = split((), "x86_64", setid=False)
    by_argument = {"prctl": (22, 2, 0, 0, 0, 0), "seccomp": (1, 0, 0, 0, 0, 0)}
    for name in SETUP:
        args = by_argument.get(name, (2**64 - 1,) * 6)
        assert interpret(first, ARCHES["x86_64"], number_of(name), args) == ALLOW
        assert interpret(rest, ARCHES["x86_64"], number_of(name), args) != ALLOW
    assert len(rest) < len(first) / 5


@pytest.mark.parametrize("values", [(0,), (5,), (1, 2, 10, 16), (0x12, 0x1C), tuple(range(32))])
def test_anything_but(values) -> None:
    pairs = anything_but(values, 0x1F)
    for number in range(32):
        matched = [pair for pair in pairs if number & pair[0] == pair[1]]
        assert len(matched) == (number not in values)
