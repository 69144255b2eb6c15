"""Fixtures of the sandbox tests: a shell inside, a directory outside, a sandbox to join."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fastns
from fastns import Spec


@pytest.fixture
def shell(bash_rootfs: Path) -> Callable[..., str]:
    """`shell(script, **fields)`: what bash prints inside; ChildProcessError if it fails."""

    def run(script: str, **fields: Any) -> str:
        fields.setdefault("rootfs", bash_rootfs)
        done = fastns.run(
            ["bash", "-ec", script], spec=Spec(**fields), capture_output=True, text=True, timeout=20
        )
        if done.returncode != 0:
            raise ChildProcessError(done.stderr)
        assert done.stderr == ""
        return str(done.stdout)

    return run


@pytest.fixture
def volume(public_dir: Path) -> Iterator[Path]:
    """A directory of the host that anybody may write, with one file."""
    path = public_dir / "volume"
    path.mkdir()
    (path / "file").write_text("of the host")
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def other(probe_rootfs: Path) -> Iterator[fastns.Sandbox]:
    """A running sandbox with a new namespace of each of the eight kinds, to be joined."""
    spec = Spec(
        rootfs=probe_rootfs, namespaces={"user": "new", "time": "new"}, hostname="other", user="7:8"
    )
    with fastns.spawn(
        ["/probe", "--listen", "1"], spec=spec, stdin=fastns.PIPE, stdout=fastns.PIPE
    ) as sandbox:
        assert sandbox.stdout is not None
        assert sandbox.stdout.readline() == b"listening\n"
        yield sandbox
        sandbox.kill()
