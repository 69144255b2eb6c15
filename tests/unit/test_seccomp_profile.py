"""Profiles in the format of OCI and Docker: the effect of each key, and what is refused."""

import copy
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from bpf import ALLOW, ARCHES, ERRNO, KILL_PROCESS, interpret, name_of

import fastns
from fastns import Spec, SpecError, seccomp
from fastns._policy import libseccomp

NATIVE = ARCHES["x86_64"]
NUMBERS = {name_of(number, "x86_64"): number for number in range(470)}


def judge(rules, call, args=(), *, caps=(), machine="x86_64", kernel=None, **profile):
    given = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules, **profile}
    code = seccomp.build(given, caps, machine=machine, kernel=kernel)
    return interpret(code, ARCHES[machine], NUMBERS[call], args)


def refuse(**more):
    return {"names": ["getppid"], "action": "SCMP_ACT_ERRNO", **more}


@pytest.mark.parametrize(
    ("rule", "action"),
    [
        (refuse(), ERRNO | 1),
        (refuse(errnoRet=5), ERRNO | 5),
        (refuse(errno="ENOSYS"), ERRNO | 38),
        ({"name": "getppid", "action": "SCMP_ACT_KILL_PROCESS"}, KILL_PROCESS),
        ({"names": ["getppid"], "action": "SCMP_ACT_KILL"}, 0),
        ({"names": ["getppid"], "action": "SCMP_ACT_KILL_THREAD"}, 0),
        ({"names": ["getppid"], "action": "SCMP_ACT_TRAP"}, 0x30000),
        ({"names": ["getppid"], "action": "SCMP_ACT_LOG"}, 0x7FFC0000),
        ({"names": ["getppid"], "action": "SCMP_ACT_TRACE", "errnoRet": 7}, 0x7FF00007),
        ({"names": ["getppid"], "action": "SCMP_ACT_ALLOW"}, ALLOW),
        (refuse(names=["no_such_call", "getppid"], comment="", args=None, includes={}), ERRNO | 1),
    ],
)
def test_actions(rule, action) -> None:
    """Each action of a rule becomes its SECCOMP_RET_*, for the named calls only."""
    assert judge([rule], "getppid") == action
    assert judge([rule], "getpid") == ALLOW


def test_the_default_action_and_its_errno() -> None:
    allowed = [{"names": ["getpid"], "action": "SCMP_ACT_ALLOW"}]
    for keys, action in (
        ({}, ERRNO | 1),
        ({"defaultErrnoRet": 38}, ERRNO | 38),
        ({"defaultErrno": "ENOSYS"}, ERRNO | 38),
    ):
        keys = {"defaultAction": "SCMP_ACT_ERRNO", **keys}
        assert judge(allowed, "getppid", **keys) == action
        assert judge(allowed, "getpid", **keys) == ALLOW
    assert judge([], "getpid", defaultAction="SCMP_ACT_KILL_PROCESS") == KILL_PROCESS


@pytest.mark.parametrize(
    ("op", "value", "second", "met"),
    [
        ("NE", 5, 0, {4, 6}),
        ("LT", 5, 0, {4}),
        ("LE", 5, 0, {4, 5}),
        ("EQ", 5, 0, {5}),
        ("GE", 5, 0, {5, 6}),
        ("GT", 5, 0, {6}),
        ("MASKED_EQ", 6, 4, {4, 5}),
    ],
)
def test_comparisons(op, value, second, met) -> None:
    arg = {"index": 1, "value": value, "valueTwo": second, "op": f"SCMP_CMP_{op}"}
    found = {n for n in (4, 5, 6) if judge([refuse(args=[arg])], "getppid", (9, n)) != ALLOW}
    assert found == met


def test_all_comparisons_must_hold_but_of_one_argument_any() -> None:
    def equal(index, value):
        return {"index": index, "value": value, "op": "SCMP_CMP_EQ"}

    both = [refuse(args=[equal(0, 1), equal(1, 2)])]
    assert [judge(both, "getppid", args) != ALLOW for args in ((1, 2), (1, 3), (3, 2))] == [
        True,
        False,
        False,
    ]
    either = [refuse(args=[equal(0, 1), equal(0, 2)])]
    assert [judge(either, "getppid", (n,)) != ALLOW for n in (1, 2, 3)] == [True, True, False]


@pytest.mark.parametrize(
    ("condition", "counts"),
    [
        ({"includes": {"caps": ["CAP_SYS_ADMIN"]}}, True),
        ({"includes": {"caps": ["CAP_SYS_ADMIN", "CAP_BPF"]}}, False),
        ({"excludes": {"caps": ["CAP_SYS_ADMIN", "CAP_BPF"]}}, False),
        ({"excludes": {"caps": ["CAP_BPF"]}}, True),
        ({"includes": {"arches": ["arm64", "amd64"]}}, True),
        ({"includes": {"arches": ["arm64"]}}, False),
        ({"excludes": {"arches": ["amd64"]}}, False),
        ({"excludes": {"arches": ["s390", "s390x"]}}, True),
        ({"includes": {"minKernel": "4.8"}}, True),
        ({"includes": {"minKernel": "6.1"}}, True),
        ({"includes": {"minKernel": "6.2"}}, False),
        ({"includes": {"minKernel": "10.0"}}, False),
        ({"excludes": {"minKernel": "4.8"}}, False),
        ({"includes": None, "excludes": {}}, True),
    ],
)
def test_conditions(condition, counts) -> None:
    """A rule counts only if its `includes` hold and its `excludes` do not."""
    kernel = "6.1.0-13-amd64"
    action = judge([refuse(**condition)], "getppid", caps=["CAP_SYS_ADMIN"], kernel=kernel)
    assert (action != ALLOW) == counts


@pytest.mark.parametrize(
    "keys",
    [
        {"architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_UNHEARD"]},
        {
            "archMap": [
                {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
                {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
                {"architecture": "SCMP_ARCH_RISCV64", "subArchitectures": None},
            ]
        },
    ],
)
def test_other_architectures_are_filtered_if_they_are_named(keys) -> None:
    given = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [refuse()], **keys}
    code = seccomp.build(given, machine="x86_64")
    getppid = {"x86_64": 110, "x86": 64, "aarch64": 173}
    found = {name: interpret(code, ARCHES[name], number) for name, number in getppid.items()}
    assert found == {"x86_64": ERRNO | 1, "x86": ERRNO | 1, "aarch64": KILL_PROCESS}


@pytest.mark.parametrize("name", libseccomp.NEWER)
def test_what_is_refused_on_several_architectures_is_refused_or_an_error(name) -> None:
    rule = {"names": [name], "action": "SCMP_ACT_ERRNO"}
    given = {"architectures": ["SCMP_ARCH_X86"], "syscalls": [rule]}
    try:
        code = seccomp.build({"defaultAction": "SCMP_ACT_ALLOW", **given}, machine="x86_64")
    except SpecError as exc:
        assert "unknown to this libseccomp for several architectures" in str(exc)
    else:
        number = libseccomp.NEWER[name]
        assert interpret(code, ARCHES["x86_64"], number) == ERRNO | 1
    rule["action"] = "SCMP_ACT_ALLOW"  # ignored: the default action is stricter
    assert seccomp.build({"defaultAction": "SCMP_ACT_ERRNO", **given}, machine="x86_64")


class OldLibrary:
    """libseccomp, except that it knows no name of a call with a number from 440 on, as 2.5.1 of
    Debian 11."""

    def __init__(self, library: Any) -> None:
        self.library = library

    def __getattr__(self, name: str) -> Any:
        return getattr(self.library, name)

    def seccomp_syscall_resolve_name(self, name: bytes) -> int:
        number = int(self.library.seccomp_syscall_resolve_name(name))
        return number if number < 440 else libseccomp.UNKNOWN


def test_calls_that_the_library_is_too_old_for(monkeypatch: pytest.MonkeyPatch) -> None:
    old = OldLibrary(libseccomp._library())
    monkeypatch.setattr(libseccomp, "_library", lambda: old)
    names = ["process_madvise", "epoll_pwait2", "mount_setattr", "quotactl_fd"]
    names += ["landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"]
    names += ["memfd_secret", "process_mrelease", "futex_waitv"]
    machine = os.uname().machine
    given = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [refuse(names=names)]}
    code = seccomp.build(given, machine=machine)
    assert {interpret(code, ARCHES[machine], number) for number in range(440, 450)} == {ERRNO | 1}


def test_flags() -> None:
    """The flags of a profile become those of seccomp(2). TSYNC has no effect."""
    flags = [
        "SECCOMP_FILTER_FLAG_LOG",
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
        "SECCOMP_FILTER_FLAG_TSYNC",
    ]
    given = {"defaultAction": "SCMP_ACT_ALLOW", "flags": flags}
    plan = fastns.compile(Spec(seccomp=given))
    (op,) = [op for op in plan.ops if op.code == "seccomp"]
    assert op.flags == 2 | 4


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        ({}, "defaultAction is missing"),
        ({"defaultAction": "ALLOW"}, "defaultAction: 'ALLOW': expected one of SCMP_ACT_KILL"),
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "defaultAction: not supported: fastns has no"),
        ({"defaultAction": 1}, "defaultAction: 1: expected one of"),
        ({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 5000}, "defaultErrnoRet: 5000"),
        ({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrno": "EWHAT"}, "defaultErrno: 'EWHAT'"),
        ({"defaultAction": "SCMP_ACT_ERRNO", "sycalls": []}, "'sycalls': expected one of"),
        ({"listenerPath": "/x"}, "listenerPath: not supported: fastns has no listener"),
        ({"architectures": "x86"}, "architectures: 'x86': expected a list"),
        ({"architectures": ["SCMP_ARCH_\ud800"]}, "such as SCMP_ARCH_X86_64"),
        ({"syscalls": [refuse(includes={"minKernel": "9" * 5000})]}, "such as '4.8'"),
        (
            {"architectures": ["x86"]},
            "architectures: 'x86': expected a name such as SCMP_ARCH_X86_64",
        ),
        ({"architectures": ["SCMP_ARCH_X86"], "archMap": [{}]}, "give one of them"),
        ({"archMap": [{"architecture": 3}]}, "archMap[0].architecture: 3"),
        ({"archMap": [{"arch": 3}]}, "archMap[0]: 'arch': expected one of"),
        ({"flags": ["X"]}, "flags: 'X': expected one of"),
        ({"syscalls": {}}, "syscalls: {}: expected a list"),
        ({"syscalls": [3]}, "syscalls[0]: 3: expected a mapping"),
        ({"syscalls": [{"action": "SCMP_ACT_ALLOW"}]}, "syscalls[0].names"),
        ({"syscalls": [{"names": ["x y"], "action": "SCMP_ACT_ALLOW"}]}, "'x y'"),
        ({"syscalls": [{"names": [b"x"], "action": "SCMP_ACT_ALLOW"}]}, "b'x'"),
        ({"syscalls": [{"names": ["read"]}]}, "syscalls[0].action is missing"),
        ({"syscalls": [refuse(errnoRet=-1)]}, "syscalls[0].errnoRet: -1"),
        ({"syscalls": [refuse(), refuse(args=[{}])]}, "syscalls[1].args[0].index: None"),
        (
            {"syscalls": [refuse(args=[{"index": 6}])]},
            "args[0].index: 6: expected a whole number from 0",
        ),
        ({"syscalls": [refuse(args=[{"index": 0, "value": -1}])]}, "args[0].value: -1"),
        (
            {"syscalls": [refuse(args=[{"index": 0, "value": 1}])]},
            "args[0].op: None: expected one of",
        ),
        ({"syscalls": [refuse(includes={"caps": "X"})]}, "includes.caps: 'X': expected a list"),
        ({"syscalls": [refuse(includes={"cap": []})]}, "includes: 'cap': expected one of"),
        (
            {"syscalls": [refuse(excludes={"arches": [1]})]},
            "excludes.arches: expected a list of names",
        ),
        ({"syscalls": [refuse(includes={"minKernel": "new"})]}, "minKernel: 'new'"),
    ],
)
def test_invalid_profiles(profile, words, tmp_path: Path) -> None:
    if "defaultAction" not in profile and profile:
        profile = {"defaultAction": "SCMP_ACT_ALLOW", **profile}
    with pytest.raises(SpecError) as caught:
        Spec(seccomp=profile)
    assert caught.value.field == "seccomp"
    assert words in str(caught.value)
    try:
        text = json.dumps(profile)
    except TypeError:
        return
    file = tmp_path / "profile.json"
    file.write_text(text)
    with pytest.raises(SpecError) as caught:
        fastns.compile(Spec(seccomp=file))
    assert words in str(caught.value)
    assert str(file) in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for name, content, words in (
        (
            "missing.json",
            None,
            "No such file or directory: expected 'default', 'unconfined' or a JSON",
        ),
        ("broken.json", "{", "not JSON"),
        ("deep.json", "[" * 100_000, "not JSON"),
        ("long.json", " " * (5 << 20), "more than"),
        ("list.json", "[]", "expected a mapping"),
    ):
        file = tmp_path / name
        if content is not None:
            file.write_text(content)
        with pytest.raises(SpecError) as caught:
            fastns.compile(Spec(seccomp=file))
        assert words in str(caught.value)


def test_a_file_is_read_at_each_compile_relative_to_the_cwd(tmp_path, monkeypatch) -> None:
    file = tmp_path / "profile.json"
    monkeypatch.chdir(tmp_path)
    spec = Spec(seccomp="profile.json")
    sizes = []
    for syscalls in ([], [refuse()]):
        file.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": syscalls}))
        sizes.append(fastns.compile(spec).ops[-1].arg)
    assert sizes[0] < sizes[1]


def test_a_spec_with_a_profile_is_a_value() -> None:
    profile = seccomp.default_profile()
    one, two = Spec(seccomp=profile), Spec(seccomp=copy.deepcopy(profile))
    assert one == two
    assert hash(one) == hash(two)
    assert pickle.loads(pickle.dumps(one)) == one
    profile["syscalls"].clear()
    assert one == two
    assert fastns.compile(one) is fastns.compile(two)


def test_too_many_rules_are_refused() -> None:
    rules = [
        refuse(args=[{"index": 0, "value": n * 0x100010001, "op": "SCMP_CMP_EQ"}])
        for n in range(3000)
    ]
    with pytest.raises(SpecError, match="the kernel takes 4096"):
        seccomp.build({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules})


def test_without_the_library(monkeypatch) -> None:
    from fastns._policy import libseccomp

    monkeypatch.setattr(libseccomp, "LIBRARY", "libseccomp-is-not-here.so")
    seccomp._build.cache_clear()
    libseccomp._library.cache_clear()
    try:
        with pytest.raises(SpecError, match=r"install libseccomp .*seccomp='unconfined'"):
            seccomp.build({"defaultAction": "SCMP_ACT_LOG"})
    finally:
        libseccomp._library.cache_clear()
