"""What a template's server does once, and what is left for each sandbox."""

from __future__ import annotations

from typing import Any

import pytest

import fastns
from fastns import Mount, Rlimit, Spec, SpecError, _core
from fastns._compile import Caller
from fastns._compile_template import _TemplateCompiler

ALL = 2**41 - 1
ROOT = Caller(0, 0, True, ALL, True)
USER = Caller(1000, 1000, True, 0, True)
FRESH = [
    "mount /proc",
    "mount /sys",
    "mount /tmp",
    "mount /run",
    "mount /dev/pts",
    "mount /dev/shm",
]


def template(caller: Caller, **fields: Any) -> _core.Plan:
    return _TemplateCompiler(Spec(rootfs="/srv/root", **fields), caller).template()


def steps(plan: _core.Plan | None) -> list[str]:
    assert plan is not None
    return [f"{op.code} {(op.target or b'').decode()}".strip() for op in plan.ops]


@pytest.mark.parametrize(("caller", "maps"), [(ROOT, 0), (USER, 3)], ids=["root", "user"])
def test_each_sandbox_mounts_what_it_could_write(caller: Caller, maps: int) -> None:
    plan = template(caller)
    each = steps(plan.sandbox)
    assert (
        each[:maps]
        == [f"write /proc/self/{name}" for name in ("setgroups", "gid_map", "uid_map")][:maps]
    )
    assert each[maps : maps + 1 + len(FRESH)] == ["root_tree", *FRESH]
    masks = ["mask /proc", "read_only_paths /proc", "mask /sys"]
    assert each[maps + 1 + len(FRESH) :][:9] == [*masks, "loopback", *["rlimit"] * 4, "umask"]
    tmpfs = [op.target for op in plan.ops if op.type == b"tmpfs"]
    assert tmpfs == [b"/dev"]
    last = ["read_only /dev", "pivot_root", "keyring", "no_new_privileges", "seccomp"]
    assert steps(plan)[-5:] == last


@pytest.mark.parametrize(
    "rlimits", [[], [Rlimit("RLIMIT_CORE", 0, -1), Rlimit("RLIMIT_NOFILE", 9, 9)]]
)
def test_the_limit_on_core_dumps_is_the_servers(rlimits: list[Rlimit]) -> None:
    """Its filter, which all of its sandboxes have from the start, refuses to change it."""
    plan = template(ROOT, rlimits=rlimits)
    assert plan.sandbox is not None
    core = [op for op in plan.ops if op.code == "rlimit"]
    each = [op.note for op in plan.sandbox.ops if op.code == "rlimit"]
    assert [op.note for op in core] == ["RLIMIT_CORE 0:-1" if rlimits else "RLIMIT_CORE 1:1"]
    assert plan.ops[0] == core[0]
    assert len(each) == 4
    assert not [note for note in each if note.startswith("RLIMIT_CORE")]


def test_the_namespaces_of_both() -> None:
    plan = template(USER, namespaces={"time": "new"})
    assert plan.sandbox is not None
    assert {"user", "time", "pid", "mount"} <= set(plan.namespaces)
    assert "time" not in plan.sandbox.namespaces
    assert {"user", "pid", "mount", "ipc", "uts", "cgroup", "network"} == set(
        plan.sandbox.namespaces
    )
    assert (plan.method, plan.sandbox.method) == ("staged", "template")
    assert "user" not in template(ROOT).namespaces


def test_in_a_user_namespace_a_proc_lies_beneath_that_shows_nobody() -> None:
    assert b"hidepid=2" in [op.data for op in template(USER).ops if op.type == b"proc"]
    assert not [op for op in template(ROOT).ops if op.type == b"proc"]


def test_names_are_given_once_and_files_are_read_only() -> None:
    plan = template(ROOT, hostname="box", domainname="example", files={"/etc/x": "y"})
    assert {"hostname", "domainname"} <= set(steps(plan))
    assert not {"hostname", "domainname"} & set(steps(plan.sandbox))
    (file,) = [op for op in plan.ops if op.code == "file_bind"]
    assert file.flags == 1  # MOUNT_ATTR_RDONLY


def test_binds_are_the_servers_and_every_tmpfs_a_sandboxs() -> None:
    mounts = [Mount("/data", source="/srv"), Mount("/scratch", type="tmpfs")]
    plan = template(ROOT, mounts=mounts)
    assert "bind /data" in steps(plan)
    assert "mount /scratch" not in steps(plan)
    assert "mount /scratch" in steps(plan.sandbox)


@pytest.mark.parametrize("spec", ["x", {}, [], fastns.Template])
def test_of_a_spec_alone(spec: Any) -> None:
    with pytest.raises(SpecError, match="a Spec, or None, expected") as caught:
        fastns.Template(spec)
    assert caught.value.field == "spec"
