"""Fixtures for the unit tests, which start no sandbox and need no privileges."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import plans
import pytest

from fastns import _core, _view
from fastns._compile import userns
from fastns._policy import owners

STARTS = ("Server", "run", "run_batch", "run_plain", "setns", "spawn", "spawn_batch", "unshare",
          "user_namespace")  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def user_namespace() -> None:
    """Override the fixture that opens the range's user namespace: no unit test joins it."""


@pytest.fixture(scope="module", autouse=True)
def nothing_starts() -> Iterator[None]:
    """Make it an error to start a sandbox or to change the namespaces of this process."""

    def refuse(*_args: Any, **_options: Any) -> Any:
        pytest.fail("a unit test starts a sandbox: move it to tests/sandbox")

    with pytest.MonkeyPatch.context() as patch:
        for name in STARTS:
            patch.setattr(_core, name, refuse)
        yield


@pytest.fixture
def made_up_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace what plans read from the host: root's range, the limit on inotify instances, links
    that leave the system directories, mounts below these, and the owners of binds."""
    monkeypatch.setattr(userns, "range_of_root", lambda: plans.IDS)
    monkeypatch.setattr(userns, "inotify_limit", lambda: b"64")
    monkeypatch.setattr(_view, "LINKS_OUT", ())
    monkeypatch.setattr(_view, "has_mounts_below", lambda _directories: False)
    monkeypatch.setattr(owners, "notes", lambda _plan: {})
