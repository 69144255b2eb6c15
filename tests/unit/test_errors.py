"""The exceptions: classes, texts, pickling, and the table of hints."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import subprocess

import pytest

import fastns
from fastns import _core, errors
from fastns._surroundings import Surroundings
from fastns.errors import FastnsError, SpawnError, SpecError, hint_for

# ---- classes and texts ----


def test_all_are_fastns_errors_and_builtin_exceptions() -> None:
    for error, builtin in (
        (SpecError, ValueError),
        (SpawnError, OSError),
        (fastns.TimeoutExpired, subprocess.TimeoutExpired),
        (fastns.CalledProcessError, subprocess.CalledProcessError),
    ):
        assert issubclass(error, FastnsError)
        assert issubclass(error, builtin)
    assert not issubclass(FastnsError, OSError)


def test_spec_error() -> None:
    error = SpecError("umask", "9: from 0 to 7")
    assert (error.field, error.reason) == ("umask", "9: from 0 to 7")
    assert str(error) == "umask: 9: from 0 to 7"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            SpawnError("mount", errno.EPERM, op_index=4, path="/proc"),
            "mount[4] /proc: Operation not permitted (EPERM)",
        ),
        (
            SpawnError("mount", errno.EPERM, op_index=0),
            "mount[0]: Operation not permitted (EPERM)",
        ),
        (
            SpawnError("exec", errno.ENOENT, path="nope"),
            "exec nope: No such file or directory (ENOENT)",
        ),
        (SpawnError("clone", errno.ENOSPC), "clone: No space left on device (ENOSPC)"),
        (SpawnError("clone", 4095), "clone: Unknown error 4095 (4095)"),
    ],
)
def test_spawn_error_in_words(error: SpawnError, text: str) -> None:
    assert str(error) == text
    assert repr(error) == f"SpawnError({text!r})"


def test_spawn_error_is_an_os_error() -> None:
    error = SpawnError("chdir", errno.ENOENT, op_index=7, path="/nope")
    assert type(error) is SpawnError
    assert (error.errno, error.strerror) == (errno.ENOENT, os.strerror(errno.ENOENT))
    assert (error.stage, error.op_index, error.path) == ("chdir", 7, "/nope")
    assert error.filename == error.path
    plain = SpawnError("clone", errno.EAGAIN)
    assert (plain.op_index, plain.path, plain.filename, plain.found) == (-1, None, None, False)


def test_a_hint_is_looked_up_unless_given() -> None:
    looked_up = SpawnError("clone", errno.ENOSPC)
    assert looked_up.hint == hint_for("clone", errno.ENOSPC)
    assert looked_up.hint is not None
    assert "max_*_namespaces" in looked_up.hint
    assert SpawnError("clone", errno.ENOSPC, hint="ask").hint == "ask"
    assert SpawnError("umask", errno.EIO).hint is None


# ---- pickling ----


def found() -> SpawnError:
    error = SpawnError("exec", errno.ENOENT, op_index=9, path="/x", hint="the loader")
    error.found = True
    return error


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("error", [SpawnError("clone", errno.EPERM), found()], ids=str)
def test_spawn_error_is_pickled(error: SpawnError, protocol: int) -> None:
    for copied in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error)):
        assert type(copied) is SpawnError
        assert str(copied) == str(error)
        for name in ("errno", "strerror", "stage", "op_index", "path", "filename", "hint", "found"):
            assert getattr(copied, name) == getattr(error, name)


def test_the_others_are_pickled() -> None:
    copied = pickle.loads(pickle.dumps(SpecError("user", "no")))
    assert (type(copied), copied.field, copied.reason) == (SpecError, "user", "no")
    late = pickle.loads(pickle.dumps(fastns.TimeoutExpired(["a"], 2.5, b"out", b"err")))
    assert type(late) is fastns.TimeoutExpired
    assert (late.cmd, late.timeout, late.stdout, late.stderr) == (["a"], 2.5, b"out", b"err")
    failed = pickle.loads(pickle.dumps(fastns.CalledProcessError(3, ["a"], b"out", b"err")))
    assert type(failed) is fastns.CalledProcessError
    assert (failed.returncode, failed.cmd, failed.output, failed.stderr) == (
        3,
        ["a"],
        b"out",
        b"err",
    )


# ---- hints ----

HINTS = [
    ("clone", errno.ENOSPC, None, "not about disk space"),
    ("clone", errno.EAGAIN, None, "pids.max"),
    ("clone", errno.EAGAIN, None, "RLIMIT_NPROC"),
    ("clone", errno.ENOMEM, None, "pid namespace has ended"),
    ("clone", errno.EUSERS, None, "nested too deep"),
    ("clone", errno.ENOSYS, None, "clone3"),
    ("id_map", errno.EPERM, None, "/etc/subuid"),
    ("id_map", errno.ENOENT, None, "uidmap package"),
    ("setns", errno.EPERM, None, "CAP_SYS_ADMIN"),
    ("rootfs", errno.ENOENT, "/r", "fastns rootfs build"),
    ("overlay", errno.EPERM, None, "Linux 5.11"),
    ("overlay", errno.ENODEV, None, "modprobe overlay"),
    ("mount", errno.ENOENT, "/proc", "at least /proc, /sys, /dev, /tmp and /run"),
    ("mount", errno.EPERM, "/proc", "systempaths=unconfined"),
    ("mount", errno.EPERM, "/sys", "network namespace of its own"),
    ("mount", errno.EPERM, "/mnt", "does not allow this mount"),
    ("mount", errno.ENOENT, "/mnt", "X-mount.mkdir"),
    ("mount", errno.ENOENT, "/mnt", "overlay=True"),
    ("mount", errno.ENOTDIR, "/mnt", "a file and a directory"),
    ("mount", errno.ELOOP, "/mnt", "symbolic link"),
    ("mount", errno.EINVAL, "/mnt", "use rbind"),
    ("file", errno.ENOENT, "/f", "overlay=True"),
    ("pivot_root", errno.EINVAL, None, "root_mode='chroot'"),
    ("rlimit", errno.EPERM, None, "CAP_SYS_RESOURCE"),
    ("setuid", errno.EINVAL, None, "uid_mappings"),
    ("setgid", errno.EINVAL, None, "gid_mappings"),
    ("chdir", errno.ENOENT, "/w", "inside the root"),
    ("chdir", errno.ENOTDIR, "/w", "a file"),
    ("exec", errno.ENOENT, "nope", "PATH is the sandbox's own"),
    ("exec", errno.EACCES, "/x", "noexec"),
    ("exec", errno.EACCES, "/x", "closed to the sandbox's user"),
    ("exec", errno.ENOEXEC, "/x", "without #!"),
    ("exec", errno.ENOEXEC, "/x", "another architecture"),
    ("exec", errno.E2BIG, "/x", "too long"),
    ("exec", errno.ENOMEM, "/x", "RLIMIT_AS"),
    ("seccomp", 524, None, "net.core.bpf_jit_limit"),
    ("wait", errno.ECHILD, None, "SIGCHLD"),
]


@pytest.mark.parametrize(("stage", "code", "path", "words"), HINTS)
def test_hints(stage: str, code: int, path: str | None, words: str) -> None:
    hint = hint_for(stage, code, path)
    assert hint is not None
    assert words in hint


@pytest.mark.parametrize(
    ("stage", "code"), [row[:2] for row in errors._hints() if row[2] == errors.HOST]
)
def test_hints_in_the_hosts_root(stage: str, code: int) -> None:
    hint = hint_for(stage, code, "/data", host_root=True)
    assert hint is not None
    assert "the host's system directories" in hint
    assert "overlay" not in hint
    assert hint_for(stage, code, "/data") != hint
    assert hint_for("mount", errno.EPERM, "/proc", host_root=True) == hint_for(
        "mount", errno.EPERM, "/proc"
    )


@pytest.mark.parametrize("stage", ["clone", "propagation", "rootfs"])
@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("kernel/unprivileged_userns_clone=0", "sysctl kernel.unprivileged_userns_clone=1"),
        ("kernel/apparmor_restrict_unprivileged_userns=1", "AppArmor profile"),
        ("user/max_user_namespaces=0", "sysctl user.max_user_namespaces="),
        ("", "security module"),
    ],
)
def test_the_hint_names_what_refuses_namespaces(
    monkeypatch: pytest.MonkeyPatch, stage: str, setting: str, words: str
) -> None:
    """It names a sysctl or, failing that, a security module. For a filter see
    tests/sandbox/test_surroundings.py."""
    path, _, value = setting.partition("=")
    monkeypatch.setattr("fastns._surroundings.sysctl", {path: value}.get)
    monkeypatch.setattr(Surroundings, "current", Surroundings)
    assert words in (hint_for(stage, errno.EPERM) or "")


@pytest.mark.parametrize("stage", ["id_map", "setns"])
def test_the_hint_without_a_proc(monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    usual = hint_for(stage, errno.ENOENT)
    monkeypatch.setattr(errors, "_has_proc", lambda: False)
    hint = hint_for(stage, errno.ENOENT)
    assert hint != usual
    assert "mount -t proc" in (hint or "")


@pytest.mark.parametrize("stage", sorted({row[0] for row in errors._hints()}))
def test_the_stages_of_the_hints_exist(stage: str) -> None:
    assert stage in _core.STAGES


def test_a_hint_is_one_line_that_does_not_repeat_the_error() -> None:
    for _, code, _, hint in errors.known_hints(host_root=False):
        assert code in errno.errorcode or code in errors.UNNAMED
        assert "\n" not in hint
        assert not hint.endswith(".")
        assert os.strerror(code).lower() != hint.lower()


def test_errors_without_a_hint() -> None:
    assert hint_for("umask", errno.EIO) is None
    assert hint_for("no such stage", errno.EPERM) is None
    assert hint_for("clone", 0) is None
