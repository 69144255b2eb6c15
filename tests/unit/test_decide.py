"""The decisions for each kind of caller, as tables. test_compile.py tests the resulting ops."""

from __future__ import annotations

from typing import Any

import pytest
from plans import ALL, CAP_SETUID, CAP_SYS_PTRACE, NESTED, ROOT, TREES, USER, Caller, decided

from fastns import _core
from fastns.errors import SpecError
from fastns.spec import IDMapping, Mount, Spec

pytestmark = pytest.mark.usefixtures("made_up_host")

BARE: dict[str, Any] = {"rootfs": "/srv/root", "default_mounts": False}
MAPS: dict[str, Any] = {
    "uid_mappings": [IDMapping(0, 100000, 1000)],
    "gid_mappings": [IDMapping(0, 100000, 1000)],
}
HOSTS_USER: dict[str, Any] = {"namespaces": {"user": "host"}}
NEW_USER: dict[str, Any] = {"namespaces": {"user": "new"}}
JOINED: dict[str, Any] = {"namespaces": {"pid": "/n/pid", "network": "/n/net"}}
JOINED_USER: dict[str, Any] = {"namespaces": {"user": "/n/user", "network": "/n/net"}}
JOINED_AND_NEW: dict[str, Any] = {"namespaces": {"pid": "/n/pid", "user": "new"}}
NO_SETUID = Caller(0, 0, True, ALL & ~CAP_SETUID, True)
SEVERAL_IDS = Caller(0, 0, False, ALL, True)


@pytest.mark.parametrize(
    ("fields", "caller", "id_map", "groups", "ids", "pipes"),
    [
        # who writes the id maps, whether groups are set, whether ids are set, the owner of pipes
        ({}, ROOT, "range", True, True, (200000, 300000)),
        ({"user": "5:6"}, ROOT, "range", True, True, (200005, 300006)),
        ({}, USER, "self", False, False, None),
        ({"user": "5:6"}, USER, "self", False, False, None),
        ({}, NESTED, "none", False, False, None),
        ({"user": "5:6"}, NESTED, "none", False, True, (5, 6)),
        ({"additional_gids": [7]}, NESTED, "none", True, False, None),
        (HOSTS_USER, ROOT, "none", True, False, None),
        (HOSTS_USER, SEVERAL_IDS, "none", True, True, None),
        ({**HOSTS_USER, "user": "5:6"}, ROOT, "none", True, True, (5, 6)),
        (NEW_USER, ROOT, "self", False, False, None),
        (JOINED_AND_NEW, ROOT, "self", False, False, None),
        (MAPS, ROOT, "parent", True, True, (100000, 100000)),
        (MAPS, USER, "newuidmap", True, True, None),
        ({}, NO_SETUID, "none", True, False, None),
        (JOINED_USER, ROOT, "none", False, True, None),
    ],
)
def test_ids(
    fields: dict[str, Any],
    caller: Caller,
    id_map: str,
    groups: bool,
    ids: bool,
    pipes: tuple[int, int] | None,
) -> None:
    """Who writes the id maps, which ids the sandbox sets, and who owns its pipes."""
    d = decided(Spec(**fields), caller)
    found = (d.id_map, d.sets_groups, d.sets_ids, d.pipe_owner)
    assert found == (id_map, groups, ids, pipes)
    assert (d.ids is not None) == (id_map == "range")


@pytest.mark.parametrize(
    ("fields", "caller", "first", "later", "user_last"),
    [
        ({}, ROOT, "", "", False),
        (JOINED, ROOT, "pid", "network", False),  # setns(2) to a pid namespace: for later clones
        (JOINED, USER, "pid network", "", False),  # a new user namespace could not join them
        (JOINED_USER, ROOT, "user network", "", True),
        (JOINED_USER, USER, "user network", "", False),
        ({"namespaces": {"mount": "/n/mnt", "uts": "/n/uts"}}, ROOT, "", "uts mount", False),
    ],
)
def test_when_namespaces_are_joined(
    fields: dict[str, Any], caller: Caller, first: str, later: str, user_last: bool
) -> None:
    d = decided(Spec(**fields), caller)
    names = [" ".join(kind for kind, _ in joined) for joined in (d.join_first, d.join)]
    assert (*names, d.user_last) == (first, later, user_last)


@pytest.mark.parametrize(
    ("fields", "caller", "by_range", "copied"),
    [
        ({}, ROOT, "", ""),
        ({"capabilities": ["NET_RAW"]}, ROOT, "network uts ipc", "cgroup"),
        ({"capabilities": ["NET_RAW"], "network": "host"}, ROOT, "uts ipc", "cgroup"),
        ({"capabilities": ["SYS_ADMIN"]}, ROOT, "network uts ipc", "mount cgroup"),
        ({"capabilities": ["SYS_ADMIN"]}, USER, "", ""),  # it owns its user namespace
        ({"capabilities": ["SYS_ADMIN"], **HOSTS_USER}, ROOT, "", ""),
    ],
)
def test_who_owns_the_namespaces(
    fields: dict[str, Any], caller: Caller, by_range: str, copied: str
) -> None:
    d = decided(Spec(**fields), caller)
    assert (" ".join(d.by_range), " ".join(d.copied)) == (by_range, copied)


@pytest.mark.parametrize(
    ("fields", "caller", "of_host", "alone", "nodes"),
    [
        ({}, ROOT, True, False, True),
        ({}, USER, True, False, False),
        ({}, TREES, True, False, True),
        (BARE, ROOT, False, False, True),
        (BARE, TREES, False, True, True),
        (BARE, NESTED, False, False, False),
        ({**BARE, "init": True}, TREES, False, False, True),
        ({"namespaces": {"mount": "host"}}, ROOT, False, False, True),
    ],
)
def test_root(
    fields: dict[str, Any], caller: Caller, of_host: bool, alone: bool, nodes: bool
) -> None:
    """Whether the root shows the host, starts its mount namespace, and gets device nodes."""
    d = decided(Spec(**fields), caller)
    assert (d.layout is not None, d.root_alone, d.makes_nodes) == (of_host, alone, nodes)
    assert bool(d.points) == of_host


def test_mounts() -> None:
    """The spec's mounts replace the default ones at and below their destination."""
    default = ["/proc", "/sys", "/tmp", "/run", "/dev", "/dev/pts", "/dev/shm"]
    own = [Mount("/dev", source="/dev"), Mount("/tmp/a", "tmpfs")]
    for fields, expected in (
        ({}, default),
        ({"mounts": own}, [*default[:4], "/dev", "/tmp/a"]),  # /dev also replaces mounts below it
        ({"mounts": own, "default_mounts": False}, ["/dev", "/tmp/a"]),
    ):
        d = decided(Spec(**fields), USER)  # type: ignore[arg-type]
        assert [mount.destination for mount in d.mounts] == expected


@pytest.mark.parametrize(
    ("fields", "caller", "types"),
    [
        ({}, ROOT, "proc sysfs"),
        ({"network": "host"}, ROOT, "proc bind"),
        ({"namespaces": {"pid": "host"}}, USER, "bind sysfs"),
    ],
)
def test_the_hosts_proc_and_sys_are_bound(
    fields: dict[str, Any], caller: Caller, types: str
) -> None:
    assert " ".join(mount.type for mount in decided(Spec(**fields), caller).mounts[:2]) == types


@pytest.mark.parametrize(
    ("fields", "caller", "read_only"),
    [
        ({}, ROOT, False),
        ({}, NESTED, True),
        (HOSTS_USER, ROOT, True),
        (NEW_USER, ROOT, True),
        ({}, USER, False),  # uid 0 inside is not the host's root
        ({**HOSTS_USER, "capabilities": ["SYS_ADMIN"]}, ROOT, False),
        ({**HOSTS_USER, "mounts": [Mount("/proc", "proc", options=["rw"])]}, ROOT, False),
    ],
)
def test_proc_is_read_only_where_the_hosts_root_may_be_inside(
    fields: dict[str, Any], caller: Caller, read_only: bool
) -> None:
    (proc,) = [m for m in decided(Spec(**fields), caller).mounts if m.destination == "/proc"]
    assert ("ro" in proc.options) == read_only


@pytest.mark.parametrize(
    ("fields", "caller", "bounding", "keep", "filter", "maps_first"),
    [
        ({}, ROOT, True, 0, "whole", False),
        ({}, USER, True, 0, "whole", True),
        ({"init": True}, USER, True, 0, "whole", False),
        ({}, Caller(1000, 1000, True, 0, True, owns_its_proc=False), True, 0, "whole", False),
        ({"no_new_privileges": False}, ROOT, True, _core.HOW_KEEP, "whole", False),
        ({"no_new_privileges": False, "seccomp": "unconfined"}, ROOT, True, 0, "none", False),
        ({"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}}, ROOT, True, 0, "profile", False),
    ],
)
def test_rights(
    fields: dict[str, Any],
    caller: Caller,
    bounding: bool,
    keep: int,
    filter: str,
    maps_first: bool,
) -> None:
    """How capabilities are dropped, which filter is used, and whether ids are mapped first."""
    d = decided(Spec(**fields), caller)
    assert (d.bounding, d.keep, d.filter, d.maps_first) == (bounding, keep, filter, maps_first)


@pytest.mark.parametrize(
    ("fields", "caller", "field"),
    [
        (HOSTS_USER, USER, "namespaces"),
        (JOINED_AND_NEW, Caller(1000, 1000, True, ALL, True), "namespaces"),
        ({"user": "65536"}, ROOT, "user"),
        ({"additional_gids": [65536]}, ROOT, "additional_gids"),
        ({"additional_gids": [5]}, USER, "additional_gids"),
        (
            {"capabilities": ["NET_RAW"]},
            Caller(0, 0, True, ALL & ~CAP_SYS_PTRACE, True),
            "capabilities",
        ),
    ],
)
def test_what_a_caller_may_not_use(fields: dict[str, Any], caller: Caller, field: str) -> None:
    with pytest.raises(SpecError) as caught:
        decided(Spec(**fields), caller)
    assert caught.value.field == field
