"""Fixtures of the seed's tests: each test runs in both ways and compares the host with the
container."""

from __future__ import annotations

import pytest
from seed.ways import Outside, Way


@pytest.fixture(params=["python", "cli"])
def way(request: pytest.FixtureRequest) -> Way:
    """fastns.run and fastns.spawn, then `python -m fastns run`."""
    return Way(request.param)


@pytest.fixture
def outside() -> Outside:
    """The host as it is now. Ask for it last: other fixtures change the host on purpose."""
    return Outside()
