"""The ops that a template's server runs once, and those that each sandbox runs.

test_golden_plans.py compares whole lists of ops.
"""

from __future__ import annotations

from typing import Any

import plans
import pytest
from plans import ROOT, USER, Caller, steps

import fastns
from fastns import Mount, Rlimit, Spec, SpecError, _core

pytestmark = pytest.mark.usefixtures("made_up_host")


def template(caller: Caller, **fields: Any) -> _core.Plan:
    return plans.template(Spec(rootfs="/srv/root", **fields), caller)


def mounted(plan: _core.Plan | None) -> list[str]:
    """The destinations of the plan's mounts."""
    return [step.split()[1] for step in steps(plan) if step.startswith("mount ")]


@pytest.mark.parametrize("caller", [ROOT, USER])
def test_each_sandbox_makes_the_mounts_that_it_can_write_to(caller: Caller) -> None:
    plan = template(caller)
    fresh = ["/proc", "/sys", "/tmp", "/run", "/dev/pts", "/dev/shm"]
    assert mounted(plan.sandbox) == fresh
    assert [op.target for op in plan.ops if op.type == b"tmpfs"] == [b"/dev"]
    assert "read_only /dev" in steps(plan)
    maps = ["id_map setgroups: deny", "id_map gid_map: 0 0 1", "id_map uid_map: 0 0 1"]
    found = [step for step in steps(plan.sandbox) if step in maps]
    assert found == (maps if caller is USER else [])


def test_a_dev_of_the_spec_is_mounted_by_each_sandbox() -> None:
    """The server, which has no /dev then, must not make it read-only."""
    dev = Mount("/dev", type="tmpfs", source="tmpfs", options=["nosuid", "noexec", "mode=755"])
    plan = template(ROOT, overlay=True, default_mounts=False, mounts=[dev])
    assert "read_only /dev" not in steps(plan)
    assert mounted(plan.sandbox) == ["/dev"]


@pytest.mark.parametrize(
    "rlimits", [[], [Rlimit("RLIMIT_CORE", 0, -1), Rlimit("RLIMIT_NOFILE", 9, 9)]]
)
def test_the_server_sets_the_limit_on_core_dumps(rlimits: list[Rlimit]) -> None:
    """The sandboxes cannot set it, because they inherit the server's filter, which refuses this."""
    plan = template(ROOT, rlimits=rlimits)
    assert plan.sandbox is not None
    core = [op for op in plan.ops if op.code == "rlimit"]
    each = [op.note for op in plan.sandbox.ops if op.code == "rlimit"]
    assert [op.note for op in core] == ["RLIMIT_CORE 0:-1" if rlimits else "RLIMIT_CORE 1:1"]
    assert plan.ops[0] == core[0]
    assert len(each) == 4
    assert not [note for note in each if note.startswith("RLIMIT_CORE")]


def test_namespaces_of_the_server_and_of_the_sandboxes() -> None:
    plan = template(USER, namespaces={"time": "new"})
    assert plan.sandbox is not None
    assert {"user", "time", "pid", "mount"} <= set(plan.namespaces)
    assert "time" not in plan.sandbox.namespaces
    assert {"user", "pid", "mount", "ipc", "uts", "cgroup", "network"} == set(
        plan.sandbox.namespaces
    )
    assert (plan.method, plan.sandbox.method) == ("direct", "template")
    assert "user" not in template(ROOT).namespaces


def test_in_a_user_namespace_the_server_mounts_a_proc_with_hidepid() -> None:
    assert b"hidepid=2" in [op.data for op in template(USER).ops if op.type == b"proc"]
    assert not [op for op in template(ROOT).ops if op.type == b"proc"]


def test_the_server_sets_names_and_binds_files_read_only() -> None:
    plan = template(ROOT, hostname="box", domainname="example", files={"/etc/x": "y"})
    names = {"hostname box", "domainname example"}
    assert names <= set(steps(plan))
    assert not names & set(steps(plan.sandbox))
    (file,) = [op for op in plan.ops if op.code == "file_bind"]
    assert file.flags == 1  # MOUNT_ATTR_RDONLY


def test_the_server_makes_binds_and_each_sandbox_its_tmpfs() -> None:
    mounts = [Mount("/data", source="/srv"), Mount("/scratch", type="tmpfs")]
    plan = template(ROOT, mounts=mounts)
    assert "mount /data bind from /srv" in steps(plan)
    assert "/scratch" not in mounted(plan)
    assert "/scratch" in mounted(plan.sandbox)


def test_the_bind_of_the_servers_sysfs_follows_no_links() -> None:
    plan = plans.template(Spec(rootfs="/srv/root", overlay=True), USER)
    assert plan.sandbox is not None
    (bound,) = [op for op in plan.sandbox.ops if (op.code, op.target) == ("bind", b"/sys")]
    assert bound.how & _core.HOW_NO_SYMLINKS


@pytest.mark.parametrize("spec", ["x", {}, [], fastns.Template])
def test_only_a_spec_is_accepted(spec: Any) -> None:
    with pytest.raises(SpecError, match="expected a Spec, or None") as caught:
        fastns.Template(spec)
    assert caught.value.field == "spec"
