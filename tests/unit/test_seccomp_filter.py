"""The bytes of filters, against a model of the profile that does not use the library: every system
call's number, on each architecture, with arguments at the edges and at random."""

import random

import pytest
import support
from bpf import ALLOW, ARCHES, ERRNO, KILL_PROCESS, X32_BIT, Model, interpret, name_of, together

from fastns import seccomp
from fastns._seccomp_default import SETUP, anything_but, parts

EPERM, ENOSYS = ERRNO | 1, ERRNO | 38
NUMBERS = range(1024)
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


def arguments(seed, count):
    rng = random.Random(seed)
    for _ in range(count):
        yield tuple(rng.choice((rng.choice(EDGES), rng.getrandbits(64))) for _ in range(6))


def whole(caps, machine):
    return [seccomp.build("default", caps, machine=machine)]


def split(caps, machine):
    return [seccomp.build(part, caps, machine=machine) for part in parts()]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("caps", CAPS.values(), ids=CAPS)
@pytest.mark.parametrize("filters", [whole, split])
def test_every_call_is_judged_as_the_profile_says(filters, caps, machine) -> None:
    codes = filters(caps, machine)
    model = Model(seccomp.default_profile(), machine, caps)
    for number in NUMBERS:
        for args in arguments(number, 6 if support.LONG else 3):
            said = together([interpret(code, ARCHES[machine], number, args) for code in codes])
            told = (number, name_of(number, machine), args)
            assert (told, hex(said)) == (told, hex(model.action(number, args)))


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", ["fcntl", "ioctl", "socket", "clone", "unshare", "personality"])
def test_calls_with_rules_for_arguments(name, machine) -> None:
    """More tries where something depends on them; and that it does depend."""
    number = next(number for number in NUMBERS if name_of(number, machine) == name)
    codes = whole((), machine)
    model = Model(seccomp.default_profile(), machine)
    seen = set()
    for seed in range(3000):
        args = tuple(random.Random(seed).choice(EDGES) for _ in range(6))
        said = interpret(codes[0], ARCHES[machine], number, args)
        assert said == model.action(number, args), args
        seen.add(said)
    assert ALLOW in seen
    assert len(seen) > 1


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
        ("fcntl", (0, 0), ALLOW),
        ("fcntl", (0, 38), ALLOW),  # F_OFD_SETLKW
        ("fcntl", (0, 1023), ALLOW),
        ("fcntl", (0, 1024), EPERM),  # F_SETLEASE
        ("fcntl", (0, 1024 | 1 << 32), EPERM),
        ("fcntl", (0, 3 | 1 << 32), ALLOW),  # the kernel sees F_GETFL
        ("fcntl", (0, 1025), ALLOW),
        ("fcntl", (0, 1026), EPERM),  # F_NOTIFY
        ("fcntl", (0, 1027), ALLOW),
        ("fcntl", (0, 1030), ALLOW),  # F_DUPFD_CLOEXEC
        ("fcntl", (0, 1038), ALLOW),  # F_SET_FILE_RW_HINT
        ("fcntl", (0, 1040), ENOSYS),  # F_SETDELEG
        ("socket", (1, 5, 0), ALLOW),
        ("socket", (2, 1, 6), ALLOW),
        ("socket", (10, 0x80802, 0), ALLOW),
        ("socket", (16, 3, 0), ALLOW),
        ("socket", (16, 3, 12), ERRNO | 93),
        ("socket", (2, 3, 1), EPERM),
        ("socket", (2, 1, 262), ERRNO | 93),
        ("socket", (17, 3, 0), ERRNO | 97),
        ("socket", (38, 5, 0), ERRNO | 97),
        ("socket", (40, 1, 0), ERRNO | 97),
        ("socketpair", (1, 1, 0), ALLOW),
        ("socketpair", (30, 1, 0), ERRNO | 97),
    ],
)
def test_what_the_profile_promises(call, args, action) -> None:
    words = (*args, *[0] * (6 - len(args)))
    for codes in (whole((), "x86_64"), split((), "x86_64")):
        found = together([interpret(c, ARCHES["x86_64"], number_of(call), words) for c in codes])
        assert hex(found) == hex(action)


def test_a_number_no_kernel_has_is_unknown() -> None:
    assert interpret(whole((), "x86_64")[0], ARCHES["x86_64"], 1000) == ENOSYS


def test_capabilities_open_their_calls_and_no_others() -> None:
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


def test_the_first_part_lets_a_sandbox_be_made_and_the_rest_does_not() -> None:
    first, rest = split((), "x86_64")
    for name in SETUP:
        assert interpret(first, ARCHES["x86_64"], number_of(name), (2**64 - 1,) * 6) == ALLOW
        assert interpret(rest, ARCHES["x86_64"], number_of(name), (2**64 - 1,) * 6) != ALLOW
    assert len(rest) < len(first) / 5


@pytest.mark.parametrize("values", [(0,), (5,), (1, 2, 10, 16), (0x12, 0x1C), tuple(range(32))])
def test_anything_but(values) -> None:
    pairs = anything_but(values, 0x1F)
    for number in range(32):
        matched = [pair for pair in pairs if number & pair[0] == pair[1]]
        assert len(matched) == (number not in values)
