"""The ops that a template's server runs once, and those that each sandbox runs.

test_golden_plans.py compares whole lists of ops.
"""

from __future__ import annotations

from typing import Any

import plans
import pytest
from plans import ROOT, USER, Caller, steps

import fastns
from fastns import Mount, Rlimit, Spec, SpecError, _core, _view

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


# ---- rooms ----

HOST: dict[str, Any] = {}  # the fields of Spec()
OVERLAY: dict[str, Any] = {"rootfs": "/srv/root", "overlay": True}
ELIGIBLE: list[dict[str, Any]] = [
    {},
    {"hostname": "box", "domainname": "of.it", "umask": 0o77, "cwd": "/tmp"},
    {"env": {"A": "b"}},
    {"mounts": [Mount("/scratch", type="tmpfs", options=["size=1m"])]},
    {"mounts": [Mount("/dev/own", type="tmpfs")]},
    {"tmpfs_size": "1m"},
    {"rlimits": [Rlimit("RLIMIT_CORE", 0, 0), Rlimit("RLIMIT_FSIZE", 9, 9)]},
    {"masked_paths": ["/proc/version"]},
    {"readonly_paths": ["/proc/sys", "/tmp"]},
    {"allow_setid": True},
]
ONLY_FRESH: list[tuple[str, dict[str, Any]]] = [
    ("a rootfs without overlay", {"rootfs": "/srv/root", "overlay": False}),
    ("a rootfs without overlay", {"rootfs": "/srv/root", "overlay": False, "read_only": True}),
    ("files", {"files": {"/etc/hosts": "a"}}),
    ("mounts other than tmpfs", {"mounts": [Mount("/mnt", source="/srv", options=["ro"])]}),
    ("mounts other than tmpfs", {"mounts": [Mount("/mnt", type="proc")]}),
    ("a mount with strictatime", {"mounts": [Mount("/t", "tmpfs", options=["strictatime"])]}),
    ("a mount below a directory of the root", {"mounts": [Mount("/a/b", type="tmpfs")]}),
    ("a mount below a directory of the root", {"mounts": [Mount("/dev/a/b", type="tmpfs")]}),
    ("no /proc", {"default_mounts": False}),
    ("the host's ipc namespace", {"namespaces": {"ipc": "host"}}),
    ("the host's ipc namespace", {"namespaces": {"ipc": "/n/ipc"}}),
    ("the host's network", {"network": "host"}),
    ("the host's network", {"namespaces": {"network": "/n/net"}}),
    ("a writable /proc/sys", {"readonly_paths": []}),
    ("Landlock", {"landlock": {"read": ["/"]}}),
    ("capabilities", {"capabilities": ["CAP_CHOWN"]}),
    ("no_new_privileges=False", {"no_new_privileges": False}),
    ("a seccomp profile", {"seccomp": "unconfined"}),
    ("a seccomp profile", {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}}),
    *(
        ("rlimits that would hold for the keeper too", {"rlimits": [Rlimit(name, 99, 99)]})
        for name in ("RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_DATA", "RLIMIT_NOFILE", "RLIMIT_NPROC")
    ),
]


@pytest.mark.parametrize("caller", [ROOT, USER])
@pytest.mark.parametrize("root", [HOST, OVERLAY], ids=["host", "overlay"])
def test_which_sandboxes_can_serve_again(root: dict[str, Any], caller: Caller) -> None:
    def rooms(fields: dict[str, Any]) -> tuple[str, bool]:
        spec = Spec(**{**root, **fields})
        plan = plans.template(spec, caller, reuse=True)
        assert plan.sandbox is not None
        return plans.why_fresh(spec, caller), plan.sandbox.rooms

    for fields in ELIGIBLE:
        assert (fields, *rooms(fields)) == (fields, "", True)
    for why, fields in ONLY_FRESH:
        assert (fields, *rooms(fields)) == (fields, why, False)


def test_the_hosts_ids_are_only_fresh() -> None:
    assert plans.why_fresh(Spec(namespaces={"user": "host"}), ROOT) == "ids of the host"
    assert plans.why_fresh(Spec(namespaces={"user": "new"}), ROOT) == ""  # a control


def test_mounts_below_the_hosts_directories_are_only_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """An overlay leaves them out."""
    monkeypatch.setattr(_view, "has_mounts_below", lambda _directories: True)
    why = "mounts of the host below its directories"
    assert plans.why_fresh(Spec(), ROOT) == why
    assert plans.why_fresh(Spec(**OVERLAY), ROOT) == ""  # a control


def test_without_reuse_there_are_no_rooms() -> None:
    plan = plans.template(Spec(), ROOT)
    assert plan.sandbox is not None
    assert not plan.sandbox.rooms


@pytest.mark.parametrize("spec", ["x", {}, [], fastns.Template])
def test_only_a_spec_is_accepted(spec: Any) -> None:
    with pytest.raises(SpecError, match="expected a Spec, or None") as caught:
        fastns.Template(spec)
    assert caught.value.field == "spec"
