"""Subinterpreters are refused, and the main interpreter keeps working. A free-threaded Python gets
its GIL back, with a warning."""

from __future__ import annotations

import subprocess
import sys
import sysconfig

import support

SUBINTERPRETER = """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
INSIDE = '''
try:
    import fastns
    fastns.run(["true"])
except ImportError as error:
    print("refused:", error, flush=True)
'''
other = interpreters.create()
interpreters.run_string(other, INSIDE)  # even if it is the first to import fastns
import fastns
print(fastns.run(["true"]).returncode, flush=True)
interpreters.run_string(other, INSIDE)
with fastns.Template() as template:
    print(template.run(["true"]).returncode, flush=True)
"""


def test_a_subinterpreter_is_refused_and_the_main_one_works() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SUBINTERPRETER], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, main, second, template = done.stdout.splitlines()
    assert (main, template) == ("0", "0")
    for refused in (first, second):
        assert refused.startswith("refused: ")
        assert "subinterpreter" in refused


def test_the_import_enables_the_gil() -> None:
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        support.skip_missing("a free-threaded Python")
    code = "import sys, fastns; fastns.run(['true']); sys.exit(not sys._is_gil_enabled())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert "has been enabled to load module 'fastns._core'" in done.stderr
