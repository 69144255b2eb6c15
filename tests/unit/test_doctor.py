"""`fastns doctor` with fake checks, and those real checks that start no sandbox."""

from __future__ import annotations

import errno
import io
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from plans import Caller

import fastns
from fastns import SpawnError, Spec, _machine, doctor
from fastns._policy import owners
from fastns._surroundings import OUT_OF_A_FILTER, Surroundings
from fastns.cli import main
from fastns.cli.doctor import _printed
from fastns.doctor import Check, Finding

GOOD = Check("kernel", True, "basic", "6.1.0")
BAD_BASIC = Check("mount namespace", False, "basic", "clone: EPERM", "sysctl a.b=1")
BAD_EXTRA = Check("id ranges", False, "extra", "no newuidmap", "install uidmap")
INFO = Check("cgroup", None, "extra", "version 2")


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Check]:
    """The result of examine(). The test fills it."""
    checks: list[Check] = []
    monkeypatch.setattr("fastns.cli.doctor.examine", lambda: iter(checks))
    return checks


@pytest.mark.parametrize(
    ("checks", "exit_code"),
    [
        ([GOOD, INFO], 0),
        ([GOOD, BAD_EXTRA, INFO], 0),
        ([GOOD, BAD_BASIC], 1),
        ([BAD_BASIC, GOOD, INFO], 1),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_it_fails_only_without_a_basic_feature(
    found: list[Check], checks: list[Check], exit_code: int, flags: list[str]
) -> None:
    found.extend(checks)
    assert main(["doctor", *flags]) == exit_code


def test_each_check_has_a_line_and_the_fix_below(
    found: list[Check], capsys: pytest.CaptureFixture[str]
) -> None:
    found.extend([GOOD, BAD_BASIC, BAD_EXTRA, INFO])
    main(["doctor"])
    assert capsys.readouterr().out.splitlines() == [
        "✓ kernel                   6.1.0",
        "✗ mount namespace          clone: EPERM",
        "  fix: sysctl a.b=1",
        "✗ id ranges                no newuidmap (extra)",
        "  fix: install uidmap",
        "\N{EN DASH} cgroup                   version 2",
    ]


def test_marks_fit_the_encoding_of_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert [*_printed([GOOD, BAD_BASIC, INFO])] == [GOOD, BAD_BASIC, INFO]
    marks = [line[:1] for line in raw.getvalue().decode().splitlines()]
    assert marks == ["+", "x", " ", "-"]


def test_json_has_every_field(found: list[Check], capsys: pytest.CaptureFixture[str]) -> None:
    found.extend([BAD_BASIC, INFO])
    main(["doctor", "--json"])
    assert json.loads(capsys.readouterr().out) == [
        {
            "name": "mount namespace",
            "ok": False,
            "level": "basic",
            "detail": "clone: EPERM",
            "fix": "sysctl a.b=1",
        },
        {"name": "cgroup", "ok": None, "level": "extra", "detail": "version 2", "fix": None},
    ]


def test_unknown_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--jsn"]) == 125
    assert capsys.readouterr().err.splitlines() == [
        "fastns: unknown option: --jsn",
        "hint: did you mean --json?",
    ]


@pytest.fixture
def nothing_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace everything that the checks try, except attempt()."""
    monkeypatch.setattr(owners, "plain", lambda *_args: None)
    monkeypatch.setattr(doctor, "tried", lambda _run: Finding(True, "works"))


@pytest.mark.usefixtures("nothing_tried")
def test_each_namespace_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def attempt(**fields: Any) -> Finding:
        spec = Spec(**fields)
        tried.append([name for name in doctor.NAMESPACES if spec.namespace(name) == "new"])
        return Finding(True, "works")

    monkeypatch.setattr(doctor, "attempt", attempt)
    monkeypatch.setattr(doctor, "has_sys_admin", lambda: True)
    checks = list(doctor.examine())
    for name in doctor.NAMESPACES:
        assert [name] in tried
        assert f"{name} namespace" in [check.name for check in checks]
    tried.clear()
    monkeypatch.setattr(doctor, "has_sys_admin", lambda: False)
    doctor.namespace("pid")
    assert tried == [["user", "pid"]]


@pytest.mark.usefixtures("nothing_tried")
def test_names_are_unique_and_levels_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "attempt", lambda **fields: Finding(True, "works"))
    checks = list(doctor.examine())
    names = [check.name for check in checks]
    assert len(names) == len(set(names))
    assert {check.level for check in checks} == {"basic", "extra"}


def test_a_failed_attempt_carries_the_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    error = SpawnError("clone", errno.ENOSPC, hint="raise the limit")

    def run(args: list[str], **options: Any) -> None:
        raise error

    monkeypatch.setattr(fastns, "run", run)
    assert doctor.attempt() == Finding(False, str(error), "raise the limit")


@pytest.mark.parametrize(
    ("returncode", "ok", "detail"),
    [(0, True, "works (2.5 ms)"), (127, False, "`true` ended with 127 lib.so: not there")],
)
def test_the_result_of_an_attempt(
    monkeypatch: pytest.MonkeyPatch, returncode: int, ok: bool, detail: str
) -> None:
    done = SimpleNamespace(returncode=returncode, stderr=b"lib.so: not there\n", wall_time=0.0025)
    monkeypatch.setattr(fastns, "run", lambda args, **options: done)
    found = doctor.attempt()
    assert (found.ok, found.detail) == (ok, detail)


def test_an_attempt_without_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert doctor.attempt().ok is False


@pytest.mark.parametrize(
    ("release", "ok"),
    [
        ("5.11.0-generic", False),
        ("4.19", False),
        ("5.12.0", True),
        ("6.1.0-9-amd64", True),
        ("odd", False),
    ],
)
def test_kernel_version(monkeypatch: pytest.MonkeyPatch, release: str, ok: bool) -> None:
    monkeypatch.setattr(platform, "release", lambda: release)
    found = _machine.kernel()
    assert found.ok is ok
    assert (found.fix is None) is ok


@pytest.mark.parametrize(
    ("settings", "privileged", "ok"),
    [
        ({}, False, True),
        ({"user/max_user_namespaces": "0"}, True, False),
        ({"kernel/unprivileged_userns_clone": "0"}, False, False),
        ({"kernel/unprivileged_userns_clone": "0"}, True, True),
        ({"kernel/apparmor_restrict_unprivileged_userns": "1"}, False, False),
        ({"kernel/apparmor_restrict_unprivileged_userns": "0"}, False, True),
    ],
)
def test_settings_of_user_namespaces(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], privileged: bool, ok: bool
) -> None:
    monkeypatch.setattr("fastns._surroundings.sysctl", settings.get)
    monkeypatch.setattr(_machine, "has_sys_admin", lambda: privileged)
    found = _machine.user_namespace_settings()
    assert found.ok is ok
    if not ok:
        (path,) = settings
        assert path.replace("/", ".") in found.detail
        assert path.replace("/", ".") in (found.fix or "")


def test_missing_system_calls_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in _machine.SYSTEM_CALLS:
        assert _machine.system_call(name) == Finding(True, "available")
    monkeypatch.setitem(_machine.SYSTEM_CALLS, "clone3", 4000)  # no call has this number
    assert _machine.system_call("clone3").detail == "Function not implemented (ENOSYS)"


def test_missing_devices_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_machine, "DEVICES", ("null", "nonesuch"))
    found = _machine.devices()
    assert found.ok is False
    assert "/dev/nonesuch" in found.detail
    assert "/dev/null" not in found.detail


def test_id_ranges_name_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 2**31)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "newuidmap, newgidmap" in _machine.id_ranges().detail
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    found = _machine.id_ranges()
    assert found.detail == "no range for 2147483648 in /etc/subuid and /etc/subgid"
    monkeypatch.setattr(_machine, "_has_range", lambda path, user, uid: True)
    assert _machine.id_ranges().ok is True


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ann:100000:65536\n", True),
        ("7:100000:65536\n", True),
        ("anna:100000:65536\n", False),
        ("ann\n", False),
        ("", False),
    ],
)
def test_ranges_are_found_by_name_or_number(tmp_path: Path, text: str, expected: bool) -> None:
    (tmp_path / "subuid").write_text(text)
    assert _machine._has_range(str(tmp_path / "subuid"), "ann", 7) is expected


def test_overlay_leaves_no_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    seen = []

    def attempt(**fields: Any) -> Finding:
        seen.append(Spec(**fields))
        return Finding(True, "works")

    monkeypatch.setattr(doctor, "attempt", attempt)
    assert doctor.overlay().ok is True
    (spec,) = seen
    assert spec.overlay
    assert spec.mounts
    assert list(tmp_path.iterdir()) == []


def test_python_m_fastns_is_the_same_program() -> None:
    command = [sys.executable, "-m", "fastns", "doctor", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: fastns doctor")


STATUS = "CapEff:\t{caps:016x}\nNoNewPrivs:\t{nnp}\nSeccomp:\t{mode}\nSeccomp_filters:\t{mode}\n"
HOSTS = "         0          0 4294967295\n"


def around(
    monkeypatch: pytest.MonkeyPatch,
    uid_map: str = HOSTS,
    mode: int = 0,
    nnp: int = 0,
    caps: int = 0,
) -> Surroundings:
    files = {
        "status": STATUS.format(caps=caps, nnp=nnp, mode=mode),
        "uid_map": uid_map,
        "gid_map": uid_map,
        "attr/current": "unconfined\n",
    }
    monkeypatch.setattr("fastns._surroundings._read", files.__getitem__)
    return Surroundings.current()


def test_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert around(monkeypatch).words() == "the host's ids, no filter of system calls"
    found = around(monkeypatch, "0 100000 1000\n1000 5 1\n", 2, 1, 1 << 7)
    assert found == Surroundings(True, True, 1 << 7, 1001, 1001)
    assert found.words() == (
        "a container or a sandbox: a user namespace with 1001 ids, a filter of system calls, "
        "no_new_privileges"
    )
    monkeypatch.undo()
    assert around(monkeypatch, "").words() == "a user namespace with 0 ids"


@pytest.mark.parametrize(
    ("uid_map", "nnp", "caps", "detail"),
    [
        ("0 1000 1\n", 0, 0xC0, "this user namespace has one id: it has no range to map"),
        ("0 1000 500\n", 0, 0xC0, "the 500 ids of this user namespace, without newuidmap"),
        ("0 1000 500\n", 1, 0, "newuidmap gains no rights under no_new_privileges"),
        (HOSTS, 1, 0, "newuidmap gains no rights under no_new_privileges"),
    ],
)
def test_id_ranges_in_surroundings(
    monkeypatch: pytest.MonkeyPatch, uid_map: str, nnp: int, caps: int, detail: str
) -> None:
    around(monkeypatch, uid_map, 0, nnp, caps)
    assert _machine.id_ranges().detail == detail


def test_no_fix_mentions_the_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    around(monkeypatch)
    fix = doctor.failed(SpawnError("clone", errno.EPERM)).fix or ""
    assert "security module" in fix
    assert "doctor" not in fix
    around(monkeypatch, mode=2)
    assert doctor.failed(SpawnError("clone", errno.EPERM)).fix == OUT_OF_A_FILTER
    assert doctor.failed(SpawnError("exec", errno.EACCES)).fix != OUT_OF_A_FILTER
    assert doctor.failed(SpawnError("clone", errno.ENOSPC)).fix != OUT_OF_A_FILTER


def test_a_check_that_raises_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Finding:
        raise ValueError("odd")

    monkeypatch.setattr(doctor, "_probes", lambda: [("a", "basic", broken)])
    assert list(doctor.examine()) == [Check("a", False, "basic", "ValueError('odd')", None)]


@pytest.mark.parametrize(
    ("caller", "groups", "words"),
    [
        (Caller(1000, 1000, True, 0, True), [1000, 2**31, 0], "keeps root, 2147483648: "),
        (Caller(1000, 1000, True, 0, True), [1000], "none to keep"),
        (Caller(0, 0, True, 2**41 - 1, True), [0, 5], "has none"),
        (Caller(0, 0, True, 2**41 - 1, False, may_setgroups=False), [0, 1000, 0], "keeps"),
    ],
)
def test_supplementary_groups_that_stay_are_named(
    monkeypatch: pytest.MonkeyPatch, caller: Caller, groups: list[int], words: str
) -> None:
    monkeypatch.setattr(Caller, "current", lambda: caller)
    monkeypatch.setattr(os, "getgroups", lambda: groups)
    monkeypatch.setattr(os, "getegid", lambda: caller.gid)
    found = _machine.supplementary_groups()
    assert found.ok is None
    assert words in found.detail
