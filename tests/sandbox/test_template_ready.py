"""A template makes sandboxes ahead. Also: a layer per sandbox."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import support
from processes import children

from fastns import Mount, SpawnError, Spec, Template

HOST_NET: dict[str, Any] = {"network": "host"}


def sh(template: Template, script: str) -> str:
    done = template.run(["sh", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    out: str = done.stdout
    return out


def wait_until(true: Any, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.002)
    return bool(true())


# ---- ready sandboxes ----


def test_ready_sandboxes_are_made_before_they_are_requested(busybox_rootfs: Path) -> None:
    with Template(Spec(rootfs=busybox_rootfs, **HOST_NET), ready=3) as template:
        assert template._server is not None
        server = template._server.pid
        assert wait_until(lambda: len(children(server)) == 3)
        ahead = children(server)
        with template.spawn(["sleep", "60"]) as sandbox:
            assert sandbox.pid in ahead
            assert wait_until(lambda: len(children(server)) == 4)  # it has been replaced
            sandbox.kill()
        for _ in range(10):
            assert template.run(["true"]).returncode == 0
        assert wait_until(lambda: len(children(server)) == 3)
        assert not set(ahead) & set(children(server))  # each was used once
    assert not os.path.exists(f"/proc/{server}")


def test_a_killed_ready_sandbox_is_not_used(busybox_rootfs: Path) -> None:
    with Template(Spec(rootfs=busybox_rootfs, **HOST_NET), ready=2) as template:
        assert template._server is not None
        server = template._server.pid
        for _ in range(5):
            assert wait_until(lambda: len(children(server)) == 2)
            for pid in children(server):
                os.kill(pid, signal.SIGKILL)
            for _ in range(3):
                assert sh(template, "echo fine") == "fine\n"


def test_the_error_of_a_failed_ready_sandbox_goes_to_the_next_request(
    busybox_rootfs: Path,
) -> None:
    spec = Spec(rootfs=busybox_rootfs, mounts=[Mount("/missing", type="tmpfs")], **HOST_NET)
    with Template(spec, ready=2) as template:
        for _ in range(4):
            with pytest.raises(SpawnError) as caught:
                template.run(["true"])
            assert (caught.value.stage, caught.value.path) == ("mount", "/missing")


def test_more_concurrent_runs_than_ready_sandboxes(busybox_rootfs: Path) -> None:
    """Runs that find no ready sandbox work too."""
    with Template(Spec(rootfs=busybox_rootfs, **HOST_NET), ready=2) as template:
        found: list[str] = []
        threads = [
            threading.Thread(target=lambda n=n: found.append(sh(template, f"sleep 0.1; echo {n}")))
            for n in range(10)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(found) == [f"{n}\n" for n in range(10)]


def test_a_killed_closer_is_replaced(busybox_rootfs: Path) -> None:
    """The closer takes mount namespaces down."""
    with Template(Spec(rootfs=busybox_rootfs)) as template:
        assert template._server is not None
        server = template._server.pid
        for _ in range(5):
            (closer,) = children(server, of_its_own=False)
            os.kill(closer, signal.SIGKILL)
            for _ in range(5):
                assert sh(template, "echo fine") == "fine\n"
            assert wait_until(lambda old=closer: children(server, False) not in ([], [old]))


def test_ready_sandboxes_leave_nothing(busybox_rootfs: Path) -> None:
    before = support.host_state()
    for _ in range(3):
        with Template(Spec(rootfs=busybox_rootfs), ready=4) as template:
            assert sh(template, "echo fine") == "fine\n"
    assert support.host_change(before) == []


# ---- a layer per sandbox ----


def test_a_layer_is_seen_by_one_sandbox(busybox_rootfs: Path, tmp_path: Path) -> None:
    root = support.copy_tree(busybox_rootfs, tmp_path / "root")
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/shared").write_text("original\n")
    before = sorted(path.relative_to(root) for path in root.rglob("*"))
    spec = Spec(rootfs=root, overlay=True, files={"/new/file": "put\n"}, **HOST_NET)
    with Template(spec) as template:
        change = "echo changed >/etc/shared; mkdir /made; rm /bin/ls; cat /etc/shared /new/file"
        assert sh(template, change) == "changed\nput\n"
        assert sh(template, "cat /etc/shared; test ! -e /made; ls / | wc -l") != ""
        assert sh(template, "cat /etc/shared") == "original\n"
        with template.spawn(["sh", "-c", "echo 1 >/mine; sleep 60"]) as first:
            time.sleep(0.05)
            assert sh(template, "test -e /mine || echo no") == "no\n"
            first.kill()
    assert sorted(path.relative_to(root) for path in root.rglob("*")) == before
    assert (root / "etc/shared").read_text() == "original\n"


def test_a_read_only_root_over_a_layer_has_its_mounts(busybox_rootfs: Path) -> None:
    spec = Spec(
        rootfs=busybox_rootfs,
        overlay=True,
        read_only=True,
        mounts=[Mount("/not/there", source="/etc", options=["ro"])],
        **HOST_NET,
    )
    with Template(spec) as template:
        script = "ls -d /not/there; touch /x 2>/dev/null || echo refused; echo x >/dev/null"
        assert sh(template, script) == "/not/there\nrefused\n"
        assert "passwd" in sh(template, "ls /not/there")


def test_the_parts_of_the_root_are_invisible(busybox_rootfs: Path) -> None:
    """The parts are those from which the server builds the root, and the lower layer itself."""
    spec = Spec(rootfs=busybox_rootfs, overlay=True, files={"/x": "y"}, **HOST_NET)
    with Template(spec) as template:
        assert sh(template, "ls -d /lower /parts /upper /work 2>/dev/null || true") == ""
        assert "/lower" not in sh(template, "cut -d' ' -f5 /proc/self/mountinfo")
