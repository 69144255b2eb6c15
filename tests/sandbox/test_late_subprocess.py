"""A result is an instance of subprocess.CompletedProcess, even if it was made before `subprocess`
was imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

LINKED_LATE = """
import sys
import fastns
early = fastns.run(["/bin/sh", "-c", "exit 3"])
assert "subprocess" not in sys.modules
assert type(early).__name__ == "CompletedSandbox"
{looked}
import copy, pickle, subprocess
assert isinstance(early, subprocess.CompletedProcess)
assert isinstance(early, fastns.CompletedSandbox)
assert early.__class__ is fastns.CompletedSandbox
for other in (pickle.loads(pickle.dumps(early)), copy.copy(early), copy.deepcopy(early)):
    assert type(other) is fastns.CompletedSandbox
    assert vars(other) == vars(early)
    assert repr(other) == repr(early)
try:
    early.check_returncode()
except subprocess.CalledProcessError as error:
    assert error.returncode == 3
else:
    raise AssertionError
match early:
    case subprocess.CompletedProcess(returncode=3):
        pass
    case _:
        raise AssertionError
assert early.usage.max_rss > 0 and early.exit_code == 3
assert type(fastns.run(["/bin/true"])) is fastns.CompletedSandbox
assert type(fastns.run(["/bin/true"], capture_output=True)) is fastns.CompletedSandbox
assert issubclass(fastns.CompletedSandbox, subprocess.CompletedProcess)
"""
LOOKS = {
    "nothing": "",
    "its class": "assert isinstance(early, fastns.CompletedSandbox)",
    "repr": "assert '3' in repr(early)",
    "another error": "try: fastns.run(['/bin/sleep', '9'], timeout=0.01)\n"
    "except fastns.TimeoutExpired: pass",
}


@pytest.mark.parametrize("looked", LOOKS.values(), ids=LOOKS)
def test_an_early_result_is_a_completed_process(looked: str) -> None:
    # -S: the site module may import subprocess.
    start = f"import sys; sys.path[:] = {sys.path!r}\n"
    script = start + LINKED_LATE.replace("{looked}", looked)
    done = subprocess.run([sys.executable, "-S", "-c", script], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr.decode()) == (0, "")
