"""The `landlock` field: its ops, the rights of each version of Landlock, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from plans import ALL, CAP_SYS_ADMIN, ROOT, USER, Caller, Op, compiled

from fastns import _core
from fastns._policy import landlock
from fastns.errors import SpecError
from fastns.spec import Spec

GIVEN = {"read": ["/usr/", "//bin"], "write": ["/tmp"]}
READ = 0b1101
BARE: dict[str, Any] = {"rootfs": "/srv/root", "default_mounts": False, "network": "host"}


@pytest.fixture(autouse=True)
def newest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "landlock_abi", lambda: 6)


def last_ops(caller: Caller = ROOT, **fields: Any) -> list[Op]:
    plan = compiled(Spec(**BARE, **fields), caller)
    first = [op.code in ("capabilities", "landlock", "seccomp") for op in plan.ops].index(True)
    return list(plan.ops[first:])


def test_the_op_list() -> None:
    rules = [
        "landlock -",
        "landlock_path /usr",
        "landlock_path /bin",
        "landlock_path /tmp",
        "landlock_restrict -",
    ]
    for caller in (ROOT, USER):
        found = last_ops(caller, landlock=GIVEN)
        lines = [f"{op.code} {(op.target or b'-').decode()}" for op in found]
        assert lines == ["capabilities -", "no_new_privileges -", *rules, "seccomp -"]
        assert {op.stage for op in found[2:-1]} == {"landlock"}
    lines = [op.code for op in last_ops(landlock=GIVEN, no_new_privileges=False)]
    assert lines == [*(rule.split()[0] for rule in rules), "seccomp", "capabilities"]
    assert not [op for op in last_ops() if op.stage == "landlock"]


@pytest.mark.parametrize(
    ("version", "files", "scopes"),
    [(1, 0x1FFF, 0), (2, 0x3FFF, 0), (3, 0x7FFF, 0), (4, 0x7FFF, 0), (5, 0xFFFF, 0),
     (6, 0xFFFF, 3), (99, 0xFFFF, 3)],
)  # fmt: skip
def test_the_rights_of_each_version(version: int, files: int, scopes: int) -> None:
    create, usr, tmp, _restrict = landlock.ops({"read": ["/usr"], "write": ["/tmp"]}, version)
    assert (create.flags, create.arg) == (files, scopes)
    assert (usr.flags, usr.arg) == (READ, READ & 0b0101)
    assert (tmp.flags, tmp.arg) == (files, files & 0b1100000000000111)


def test_capabilities_are_kept_if_it_needs_them() -> None:
    given = {"landlock": GIVEN, "seccomp": "unconfined"}
    assert [op.how for op in last_ops(**given) if op.code == "landlock_restrict"] == [0]
    given["no_new_privileges"] = False
    plan = compiled(Spec(**BARE, user="5:5", **given), ROOT)
    kept = {op.code for op in plan.ops if op.how == _core.HOW_KEEP}
    assert kept == {"bounding", "landlock_restrict"}
    bare = Caller(0, 0, True, ALL & ~CAP_SYS_ADMIN, True)
    hosted = dict.fromkeys(("pid", "mount", "uts", "ipc", "network", "cgroup", "user"), "host")
    with pytest.raises(SpecError, match="no_new_privileges=True") as caught:
        compiled(Spec(namespaces=hosted, **given), bare)
    assert caught.value.field == "landlock"


@pytest.mark.parametrize("error", [38, 95, 1])
def test_a_kernel_without_landlock(monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    monkeypatch.setattr(_core, "landlock_abi", lambda: -error)
    with pytest.raises(SpecError, match="leave it out") as caught:
        compiled(Spec(**BARE, landlock=GIVEN), ROOT)
    assert caught.value.field == "landlock"


def test_paths_are_normalised() -> None:
    spec = Spec(landlock={"read": ["/", "/usr//lib/"]})
    assert spec.landlock == {"read": ("/", "/usr/lib")}
    assert hash(spec) == hash(Spec(landlock={"read": ["/", "/usr/lib"]}))


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({}, "landlock"),
        ({"read": []}, "landlock"),
        ({"execute": ["/"]}, "landlock"),
        (["/"], "landlock"),
        ("/", "landlock"),
        ({"read": "/usr"}, "landlock.read"),
        ({"write": ["usr"]}, "landlock.write"),
        ({"write": ["/a/../b"]}, "landlock.write"),
        ({"read": [b"/usr"]}, "landlock.read"),
        ({"read": [7]}, "landlock.read"),
        ({"read": ["/a\0b"]}, "landlock.read"),
    ],
)
def test_what_is_refused(value: Any, field: str) -> None:
    with pytest.raises(SpecError) as caught:
        Spec(landlock=value)
    assert caught.value.field == field
