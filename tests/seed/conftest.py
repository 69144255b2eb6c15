"""Fixtures of the seed's tests. Each test runs from Python and from the command line, and compares
the host with the container."""

from __future__ import annotations

import pytest
from seed.ways import Outside, Way


@pytest.fixture(params=["python", "cli"])
def way(request: pytest.FixtureRequest) -> Way:
    """fastns.run and fastns.spawn, then `python -m fastns run`."""
    return Way(request.param)


@pytest.fixture
def outside() -> Outside:
    """The host's state. Must be a test's last fixture: others change the host on purpose."""
    return Outside()
