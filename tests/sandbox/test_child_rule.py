"""Code between clone and exec follows its rule: raw system calls, no libc, no static data.

The checks read object code compiled with setup.py's flags. Controls show that they find code that
breaks the rule.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import support
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

import fastns
from fastns import _core

ROOT = support.TESTS.parent
CSRC = ROOT / "csrc"
ALLOWED = {"memcpy", "memset"}
PF_X, PF_W = 1, 2


def setting(name: str) -> list[str]:
    """Return a list that setup.py defines, without running setup()."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            found: list[str] = eval(ast.unparse(node.value), {"os": os})
            return found
    raise AssertionError(f"setup.py has no {name}")


def compiled(source: Path, dest: Path) -> Path:
    command = ["gcc", "-std=gnu11", "-fPIC", f"-I{CSRC}", *setting("CHILD"), "-Wall", "-Wextra"]
    subprocess.run([*command, "-c", str(source), "-o", str(dest)], check=True)
    return dest


def output(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def violations(code: Path) -> set[str]:
    """Return the calls and data of an object file that code in shared memory must not have."""
    found = set()
    for line in output("nm", code).splitlines():
        kind, name = line.split()[-2:]
        if kind in "Uw" and name not in ALLOWED and name != "_GLOBAL_OFFSET_TABLE_":
            found.add(f"calls {name}")
        if kind in "bBdDC":
            found.add(f"writes {name}")
    if re.search(r"R_\w*(TLS|TPOFF|DTPMOD|TPREL)", output("readelf", "-rW", code)):
        found.add("TLS relocation")
    if re.search(r"%fs:|%gs:|tpidr_el0", output("objdump", "-d", code)):
        found.add("TLS access")
    return found


# Files of the program that may have state: they run only in a process that owns its memory, or
# that shares the state on purpose. All other files also run in the sandboxes of a server, which
# use the server's memory.
WITH_STATE = {
    "init",
    "serve",
    "keeper",
    "proof",
    "networks",
    "sandboxes",
    "kill",
    "connections",
    "tables",
    "closer",
    "container",
}
FOREIGN = sorted(
    f"{folder}/{file.stem}"
    for folder in setting("PROGRAM_FOLDERS")
    for file in (CSRC / folder).glob("*.c")
    if file.stem not in WITH_STATE
)


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The object file of each source that runs in the memory of another process."""
    place = tmp_path_factory.mktemp("objects")
    return {name: compiled(CSRC / f"{name}.c", place / f"{Path(name).name}.o") for name in FOREIGN}


@pytest.mark.parametrize("name", ["border/border", "border/stay"])
def test_the_border_has_no_calls_and_no_data(objects: dict[str, Path], name: str) -> None:
    assert violations(objects[name]) == set()


def defined(code: Path) -> set[str]:
    return set(re.findall(r" T (\w+)", output("nm", code)))


@pytest.mark.parametrize("name", FOREIGN)
def test_code_that_runs_in_a_servers_memory(objects: dict[str, Path], name: str) -> None:
    """Such code calls only code under the same rule, and has no data. main.c may also call the
    reaper and the server, because a server's sandboxes never get there."""
    ours = {symbol for code in objects.values() for symbol in defined(code)}
    allowed = {f"calls {symbol}" for symbol in ours}
    if name == "program/main":
        allowed |= {"calls fns_serve", "calls fns_run_init"}
    assert violations(objects[name]) <= allowed


def test_the_rule_covers_the_way_to_the_command() -> None:
    assert {"border/border", "program/ops", "program/mounts", "program/sandbox"} <= {*FOREIGN}


def test_the_border_is_short() -> None:
    assert len((CSRC / "border/border.c").read_text().splitlines()) <= 150


@pytest.mark.parametrize(
    ("code", "violation"),
    [
        ("#include <stdlib.h>\nvoid *f(void) { return malloc(7); }", "calls malloc"),
        ("#include <errno.h>\nint f(void) { return errno; }", "calls __errno_location"),
        ("static int n; int f(void) { return n++; }", "writes n"),
        ("_Thread_local int n; int f(void) { return n++; }", "TLS relocation"),
    ],
)
def test_a_broken_rule_is_found(tmp_path: Path, code: str, violation: str) -> None:
    source = tmp_path / "bad.c"
    source.write_text(code + "\n")
    assert violation in violations(compiled(source, tmp_path / "bad.o"))


def test_a_stack_protector_is_found(tmp_path: Path) -> None:
    source, dest = tmp_path / "bad.c", tmp_path / "bad.o"
    source.write_text("void g(char *); void f(void) { char b[64]; g(b); }\n")
    subprocess.run(["gcc", "-fPIC", "-O2", "-fstack-protector-all", "-c", source, "-o", dest])
    assert "calls __stack_chk_fail" in violations(dest)


@pytest.mark.parametrize(
    ("folder", "others"),
    [
        ("shared", set()),
        ("border", {"shared"}),
        ("program", {"shared", "border"}),
        ("caller", {"shared", "border"}),
    ],
)
def test_the_includes_of_each_folder(folder: str, others: set[str]) -> None:
    """A folder includes its own headers and those of the listed folders."""
    for file in (CSRC / folder).glob("*.[ch]"):
        for name in re.findall(r'#include "(\S+)"', file.read_text()):
            parts = Path(name).parts
            assert len(parts) == 1 or parts[0] in others, f"{file} includes {name}"


def test_the_border_includes_no_header_of_libc() -> None:
    shared = [file for file in (CSRC / "shared").glob("*.h") if file.name != "sys.h"]
    for file in [*(CSRC / "border").glob("*.[ch]"), *shared]:
        found = re.findall(r"#include <(\S+)>", file.read_text())
        assert {*found} <= {"stddef.h", "stdint.h"}, file
    found = re.findall(r"#include <(\S+)>", (CSRC / "shared/sys.h").read_text())
    libc = {name for name in found if not name.startswith(("asm/", "linux/"))}
    assert libc == {"stddef.h", "stdint.h"}


def elf(path: Path) -> Any:
    return ELFFile.load_from_path(str(path))


def test_the_program_is_static_and_has_no_writable_code() -> None:
    with elf(Path(fastns.__file__).with_name("_program")) as program:
        segments = list(program.iter_segments())
        kinds = [segment["p_type"] for segment in segments]
        assert program["e_type"] == "ET_EXEC"
        assert not {"PT_DYNAMIC", "PT_INTERP", "PT_TLS"} & set(kinds)
        assert "PT_GNU_STACK" in kinds  # without it the stack would be executable
        for segment in segments:
            assert segment["p_flags"] & (PF_W | PF_X) != PF_W | PF_X, segment["p_type"]
        assert program.get_section_by_name(".dynsym") is None


def test_the_program_has_no_undefined_symbol(tmp_path: Path) -> None:
    sources = [
        file for folder in setting("PROGRAM_FOLDERS") for file in (CSRC / folder).glob("*.c")
    ]
    symbols = {file: output("nm", compiled(file, tmp_path / f"{file.stem}.o")) for file in sources}
    own = {name for listed in symbols.values() for name in re.findall(r" T (fns_\w+)", listed)}
    for listed in symbols.values():
        undefined = set(re.findall(r" U (\w+)", listed))
        assert undefined <= ALLOWED | own | {"_GLOBAL_OFFSET_TABLE_"}


def test_the_extension_binds_at_load() -> None:
    with elf(Path(_core.__file__)) as extension:
        dynamic = extension.get_section_by_name(".dynamic")
        assert isinstance(dynamic, DynamicSection)
        tags = {tag.entry.d_tag: tag.entry.d_val for tag in dynamic.iter_tags()}
        assert tags.get("DT_FLAGS", 0) & 0x8 or tags.get("DT_FLAGS_1", 0) & 0x1  # BIND_NOW, NOW


# ---- system calls of a start ----


def traced(tmp_path: Path, code: str) -> str:
    if shutil.which("strace") is None:
        support.skip_missing("strace (tests/setup.sh installs it)")
    log = tmp_path / "strace"
    calls = "trace=tgkill,tkill,rt_tgsigqueueinfo,setuid,setresuid,setresgid,setgroups,execve"
    command = ["strace", "-f", "-qq", "-e", calls, "-o", str(log)]
    subprocess.run([*command, sys.executable, "-c", code], check=True, timeout=60)
    return log.read_text()


WITH_A_THREAD = """
import threading, ctypes, sys
stop = threading.Event()
threading.Thread(target=stop.wait).start()
{body}
stop.set()
"""


@pytest.mark.as_root
def test_changed_ids_are_raw_calls(tmp_path: Path, probe_rootfs: Path) -> None:
    """Raw calls change the ids of one thread only."""
    body = (
        "import fastns\n"
        f"spec = fastns.Spec(rootfs={str(probe_rootfs)!r}, user='1234:2345')\n"
        "assert fastns.run(['/true'], spec=spec).returncode == 0"
    )
    log = traced(tmp_path, WITH_A_THREAD.format(body=body))
    assert re.search(r"setresuid\(1234, 1234, 1234\) += 0", log)
    assert re.search(r"setresgid\(2345, 2345, 2345\) += 0", log)
    assert re.search(r'execve\("/true"', log)
    assert "tgkill" not in log
    assert "tkill" not in log


@pytest.mark.as_root
def test_libc_would_signal_every_thread(tmp_path: Path) -> None:
    """Control for test_changed_ids_are_raw_calls."""
    body = "assert ctypes.CDLL(None).setuid(0) == 0"
    assert "tgkill" in traced(tmp_path, WITH_A_THREAD.format(body=body))
