"""--with: an interpreter or a compiler works in a root, or the build says why it cannot."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from support import skip_missing

from fastns import Spec, run
from fastns.cli import main
from fastns.rootfs import BUNDLES, RootfsError, _bundles, build

PROGRAMS = {
    "python": (
        "/usr/bin/python3",
        ["python3", "-c", "import json, ssl, ctypes; print([ctypes.sizeof(ctypes.c_int64)])"],
        "Fatal Python error",
    ),
    "perl": (
        "/usr/bin/perl",
        ["perl", "-MPOSIX", "-MJSON::PP", "-e", 'print encode_json([POSIX::floor(2.5)]), "\\n"'],
        "Can't locate POSIX.pm",
    ),
    "gcc": (
        "/usr/bin/gcc",
        ["sh", "-c", "cd /tmp && echo 'int main(void){return puts(\"[7]\") < 0;}' >a.c && "
         "gcc -w -include stdio.h a.c -o a && ./a"],
        "cannot execute",
    ),
}  # fmt: skip
SAID = {"python": "[8]\n", "perl": "[2]\n", "gcc": "[7]\n"}


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_runs(name: str, tmp_path: Path) -> None:
    """The control: without its bundle it does not work, and a hint of the build says so."""
    path, command, error = PROGRAMS[name]
    if not os.path.exists(path):
        skip_missing(path)
    bare = build(tmp_path / "bare", [path])
    assert [hint for hint in bare.hints if hint.endswith(f"to run: add --with {name}")] != []
    done = run(command, spec=Spec(rootfs=bare.path), capture_output=True, text=True)
    assert done.returncode != 0
    assert error in done.stderr
    whole = build(bare.path, [], bundles=[name])  # extends the root
    assert whole.hints == ()
    done = run(command, spec=Spec(rootfs=whole.path), capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == (SAID[name], "", 0)
    shutil.rmtree(whole.path)


def test_a_network_needs_certificates_and_name_servers(tmp_path: Path) -> None:
    if not os.path.exists("/etc/ssl/certs/ca-certificates.crt"):
        skip_missing("CA certificates (Debian's ca-certificates)")
    build(tmp_path / "root", [])
    assert (tmp_path / "root/etc/resolv.conf").read_text() == ""
    build(tmp_path / "root", [], bundles=["network"])
    servers = Path("/etc/resolv.conf").read_text()
    assert (tmp_path / "root/etc/resolv.conf").read_text() == servers
    bundle = "etc/ssl/certs/ca-certificates.crt"
    assert (tmp_path / "root" / bundle).read_bytes() == Path("/", bundle).read_bytes()
    (tmp_path / "root/etc/resolv.conf").write_text("nameserver 192.0.2.1\n")
    build(tmp_path / "root", [], bundles=["network"])  # the user's changes stay
    assert "192.0.2.1" in (tmp_path / "root/etc/resolv.conf").read_text()


def test_the_named_interpreter_brings_its_own_library(tmp_path: Path) -> None:
    """The interpreters are fake, so none is run."""
    for place in ("bin", "lib/python3.77", "lib64/python3.77", "lib/python3.5"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "bin/python3.77").write_bytes(b"\x7fELF")
    (tmp_path / "bin/python3").symlink_to("python3.77")
    for place in ("lib/python3.77", "lib/python3.5"):
        (tmp_path / place / "os.py").touch()
    found = _bundles.bundle_of("python", ["sh", f"{tmp_path}/bin/python3"])
    assert found == _bundles.Bundle(extra=(f"{tmp_path}/lib/python3.77",))
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "lib").mkdir()
    (venv / "pyvenv.cfg").touch()
    (venv / "bin/python").symlink_to("../../bin/python3")
    found = _bundles.bundle_of("python", [f"{venv}/bin/python"])
    own = (f"{tmp_path}/lib/python3.77", f"{venv}/pyvenv.cfg", f"{venv}/lib")
    assert found == _bundles.Bundle(extra=own)


def test_a_shim_is_reported(tmp_path: Path) -> None:
    shim = tmp_path / "python3"
    shim.write_text("#!/bin/sh\nexec true\n")
    shim.chmod(0o755)
    (hint,) = build(tmp_path / "root", [shim]).hints
    assert hint == f"{shim} is a script that finds an interpreter elsewhere: name that interpreter"


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RootfsError, match="'pyhton': expected one of gcc, network, perl, python"):
        build(tmp_path / "root", [], bundles=["pyhton"])
    monkeypatch.setattr(_bundles, "INSIDE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in PROGRAMS:
        with pytest.raises(RootfsError, match=f"needed by the bundle {name}") as caught:
            build(tmp_path / "root", [], bundles=[name])
        assert caught.value.missing != ()
    with pytest.raises(TypeError, match="bundles: expected several"):
        build(tmp_path / "root", [], bundles="perl")
    assert not (tmp_path / "root").exists()


def test_the_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(BUNDLES) == {*PROGRAMS, "network"}
    assert main(["rootfs", "build", str(tmp_path / "root")]) == 125
    assert "required: COMMAND, or --with BUNDLE" in capsys.readouterr().err
    assert main(["rootfs", "build", str(tmp_path / "root"), "--with", "ruby"]) == 125
    assert "'ruby': expected one of gcc" in capsys.readouterr().err
    if not os.path.exists("/usr/bin/perl"):
        skip_missing("/usr/bin/perl")
    assert main(["rootfs", "build", str(tmp_path / "root"), "/usr/bin/perl"]) == 0
    assert "to run: add --with perl" in capsys.readouterr().err
    assert main(["rootfs", "build", str(tmp_path / "root"), "--with", "perl"]) == 0
    assert capsys.readouterr().err == ""
