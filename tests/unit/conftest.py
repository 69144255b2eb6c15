"""Fixtures of the unit tests."""

from __future__ import annotations

import plans
import pytest

from fastns import _owners, _userns, _view


@pytest.fixture
def made_up_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives what plans take from the host: ids, a limit, the targets of links, owners of binds."""
    monkeypatch.setattr(_userns, "range_of_root", lambda: plans.IDS)
    monkeypatch.setattr(_userns, "inotify_limit", lambda: b"64")
    monkeypatch.setattr(_view, "LINKS_OUT", ())
    monkeypatch.setattr(_owners, "notes", lambda _plan: {})
