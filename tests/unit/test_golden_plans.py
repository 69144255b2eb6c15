"""Golden plans: the ops of a spec, as `fastns run --dry-run` prints them.

Each is a text file in golden_plans/. `pytest tests/unit/test_golden_plans.py --update` rewrites
them. `git diff` then shows what a change to the compiler has changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from plans import NESTED, ROOT, TREES, USER, Caller, compiled, container, template

from fastns.spec import IDMapping, Mount, Rlimit, Spec

pytestmark = pytest.mark.usefixtures("made_up_host")

FILES = Path(__file__).parent / "golden_plans"
HOSTED = dict.fromkeys(("pid", "mount", "uts", "ipc", "network", "cgroup"), "host")
RANGE = [IDMapping(0, 100000, 1000)]
PROC = Mount("/proc", type="proc")
BARE: dict[str, Any] = {"rootfs": "/srv/root", "default_mounts": False}

PLANS: dict[str, tuple[Spec, Caller]] = {
    "default-root": (Spec(), ROOT),
    "default-user": (Spec(), USER),
    "default-nested": (Spec(), NESTED),
    "hosts-pid-and-network-user": (Spec(namespaces={"pid": "host"}, network="host"), USER),
    "hosts-ids-root": (Spec(**BARE, user="5:6", namespaces={"user": "host"}), ROOT),
    "dev-replaced-root": (
        Spec(
            rootfs="/srv/root", mounts=[Mount("/dev", source="/dev", options=["rbind", "rslave"])]
        ),
        ROOT,
    ),
    "overlay-root": (
        Spec(
            **BARE,
            overlay=True,
            read_only=True,
            files={"/etc/hosts": "a", "/new/file": b"\0"},
            mounts=[Mount("/mnt", source="/srv"), Mount("/mnt/t", "tmpfs")],
        ),
        ROOT,
    ),
    "tree-namespace-root": (
        Spec(**BARE, mounts=[Mount("/mnt", source="/srv"), Mount("/t", "tmpfs")]),
        TREES,
    ),
    "capabilities-root": (Spec(**BARE, capabilities=["NET_ADMIN"]), ROOT),
    "other-user-root": (Spec(**BARE, user="5:6", additional_gids=[7, 8]), ROOT),
    "mapped-range-user": (
        Spec(**BARE, user="5:6", uid_mappings=RANGE, gid_mappings=RANGE),
        USER,
    ),
    "joined-root": (
        Spec(
            namespaces={
                **HOSTED,
                "mount": "/n/mnt",
                "pid": "/n/pid",
                "user": "/n/user",
                "network": "/n/net",
            }
        ),
        ROOT,
    ),
    "names-and-limits-user": (
        Spec(
            **BARE,
            hostname="box",
            domainname="dom",
            network="host",
            rlimits=[Rlimit("RLIMIT_NOFILE", 64, 64), Rlimit("RLIMIT_CORE", 0, -1)],
        ),
        USER,
    ),
}
TEMPLATES: dict[str, tuple[Spec, Caller]] = {
    "template-root": (Spec(rootfs="/srv/root", hostname="box"), ROOT),
    "template-overlay-user": (
        Spec(
            rootfs="/srv/root",
            overlay=True,
            files={"/etc/hosts": "a"},
            mounts=[Mount("/mnt", source="/srv"), Mount("/t", "tmpfs")],
        ),
        USER,
    ),
    "template-networks-root": (Spec(rootfs="/srv/root", read_only=True), ROOT),
    "template-networks-user": (Spec(rootfs="/srv/root", overlay=True), USER),
}
ROOMS: dict[str, tuple[Spec, Caller]] = {
    f"rooms-{kind}-{name}": (spec, caller)
    for kind, spec in {
        "host": Spec(),
        "overlay": Spec(rootfs="/srv/root", overlay=True, mounts=[Mount("/t", "tmpfs")]),
    }.items()
    for name, caller in {"root": ROOT, "user": USER}.items()
}
CONTAINERS: dict[str, tuple[Spec, Caller]] = {
    "container-root": (Spec(rlimits=[Rlimit("RLIMIT_NOFILE", 64, 64)]), ROOT),
    "container-user": (Spec(rootfs="/srv/root", overlay=True), USER),
    "container-mapped-range-user": (
        Spec(**BARE, mounts=[PROC], user="5:6", uid_mappings=RANGE, gid_mappings=RANGE),
        USER,
    ),
    "container-new-privileges-root": (
        Spec(**BARE, mounts=[PROC], no_new_privileges=False, landlock={"read": ["/"]}),
        ROOT,
    ),
}
ALL = (*PLANS, *TEMPLATES, *ROOMS, *CONTAINERS)


def listed(name: str) -> str:
    if name in PLANS:
        return "\n".join(compiled(*PLANS[name]).describe()) + "\n"
    spec, caller = {**TEMPLATES, **ROOMS, **CONTAINERS}[name]
    if name in CONTAINERS:
        server = container(spec, caller)
    else:
        server = template(spec, caller, reuse=name in ROOMS)
    assert server.sandbox is not None
    lines = [
        "---- server ----",
        *server.describe(),
        "---- each sandbox ----" if name not in CONTAINERS else "---- each command ----",
    ]
    return "\n".join([*lines, *server.sandbox.describe()]) + "\n"


@pytest.mark.parametrize("name", ALL)
def test_the_plan_is_the_golden_one(name: str, update: bool) -> None:
    file = FILES / f"{name}.txt"
    if update:
        file.parent.mkdir(exist_ok=True)
        file.write_text(listed(name))
    assert listed(name).splitlines() == file.read_text().splitlines()


def test_no_unused_files(update: bool) -> None:
    left = {file for file in FILES.iterdir() if file.stem not in ALL}
    if update:
        for file in left:
            file.unlink()
        left.clear()
    assert not left
