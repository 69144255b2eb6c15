"""Fixtures of the tests of whole containers, step by step.

The steps are those of "the seed", a series of small C programs: clone.c, uts.c, ipc.c, pid.c, fs.c
and newns.c. fastns must do all that they do. Each test runs from Python and from the command line,
and compares the host with the container.
"""

from __future__ import annotations

import pytest
from seed.ways import Outside, Way


@pytest.fixture(params=["python", "cli"])
def way(request: pytest.FixtureRequest) -> Way:
    """Run the test with fastns.run and fastns.spawn, and again with `python -m fastns run`."""
    return Way(request.param)


@pytest.fixture
def outside() -> Outside:
    """The host's state. Must be a test's last fixture: some others change the host on purpose."""
    return Outside()
