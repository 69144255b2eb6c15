"""Without a rootfs only the host's system directories are in view. If a start fails because
something is missing, a hint says what to mount, and the suggested mounts work."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import inside
import pytest
import support
from plans import of_this_caller
from processes import script

import fastns
from fastns import Mount, SpawnError, Spec, _view

WAYS = (*inside.WAYS, "chroot")
ELSEWHERE = ("/home", "/srv", "/var", "/mnt", "/media", "/boot")


def started(way: str, **fields: Any) -> Any:
    """Like runner(), with one more way: chroot."""
    if way == "chroot":
        return inside.runner("direct", root_mode="chroot", **fields)
    return inside.runner(way, **fields)


def sh(run: Any, code: str) -> tuple[int, str]:
    done = run(["sh", "-c", code], capture_output=True, text=True, stdin=fastns.DEVNULL, timeout=20)
    return done.returncode, done.stdout + done.stderr


def hint_of(args: list[str], **fields: Any) -> str:
    """The hint of a start that fails because something is missing inside."""
    with pytest.raises(SpawnError) as caught:
        fastns.run(args, spec=Spec(**fields))
    assert caught.value.errno == errno.ENOENT
    return caught.value.hint or ""


def mounts_of(hint: str) -> list[Mount]:
    """The mounts that a hint suggests."""
    (listed,) = re.findall(r"mounts=\[.*\]", hint)
    found = eval(listed.removeprefix("mounts="), {"Mount": Mount})
    assert isinstance(found, list)
    return found


@pytest.fixture
def place(public_dir: Path) -> Iterator[Path]:
    """A directory of the host with a file and a server's socket that any local user could use."""
    path = public_dir / "place"
    path.mkdir()
    (path / "file").write_text("of the host\n")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path / "socket"))
        server.listen()
        (path / "socket").chmod(0o777)
        yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("way", WAYS)
def test_other_directories_are_out_of_view(place: Path, way: str) -> None:
    """The control is a mount that shows it at the same path."""
    code = f"cat {place}/file && test -S {place}/socket"
    with started(way) as run:
        status, seen = sh(run, code)
        assert (status != 0, "No such file" in seen) == (True, True), seen
        for directory in ELSEWHERE:
            assert sh(run, f"test -e {directory}")[0] == 1, directory
    with started(way, mounts=[Mount(str(place), source=place, options=["ro"])]) as run:
        assert sh(run, code) == (0, "of the host\n")


@pytest.mark.parametrize("way", WAYS)
def test_system_directories_are_read_only(way: str) -> None:
    with started(way) as run:
        assert sh(run, "ls / /usr /etc >/tmp/list && /bin/cat /etc/passwd | head -c 5")[0] == 0
        for path in ("/", "/usr", "/etc", "/root", "/bin"):
            status, seen = sh(run, f"echo x >{path}/new")
            assert (status != 0, "Read-only" in seen) == (True, True), seen


@pytest.mark.parametrize("way", WAYS)
def test_targets_are_made_for_mounts_and_files(place: Path, way: str) -> None:
    mounts = [
        Mount("/srv/data", source=place),
        Mount("/data/deep/file", source=place / "file"),
        Mount("/scratch/t", type="tmpfs"),
    ]
    with started(way, mounts=mounts, files={"/conf/d/f": "put\n", "/etc/hosts": "own\n"}) as run:
        code = "cat /srv/data/file /data/deep/file /conf/d/f /etc/hosts; echo >/scratch/t/x"
        assert sh(run, code) == (0, "of the host\n" * 2 + "put\nown\n")
        assert "Read-only" in sh(run, "echo >/scratch/x")[1]


def test_a_range_of_ids(place: Path) -> None:
    """Mounts and files work with a range of ids, and the root belongs to uid 0."""
    mounts = [Mount("/srv/data", source=place)]
    spec = Spec(mounts=mounts, files={"/conf/f": "put\n"}, **inside.ranges())
    args = ["sh", "-c", "cat /srv/data/file /conf/f; stat -c %u /"]
    done = fastns.run(args, spec=spec, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("of the host\nput\n0\n", "")


def test_the_view_without_default_mounts() -> None:
    """The view has the host's system directories and /root, and no more."""
    done = fastns.run(["ls", "/"], spec=Spec(default_mounts=False), capture_output=True, text=True)
    layout = _view.layout()
    own = {path.split("/")[1] for path in (*layout.shown, *dict(layout.links))}
    assert set(done.stdout.split()) == own | {"root"}


def test_a_directory_that_is_gone_by_the_start() -> None:
    """The host's directories may change after a plan was made."""
    layout = _view.layout()
    old = _view.Layout((*layout.shown, "/gone-since"), layout.links)
    plan = of_this_caller(Spec(), old)
    done = fastns.run(["ls", "-A", "/gone-since"], spec=plan, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"")


# ---- links of the host ----


def test_links_into_the_view_stay_links() -> None:
    for path, target in _view.layout().links:
        done = fastns.run(["readlink", path], capture_output=True, text=True)
        assert done.stdout.strip() == target


LED_OUT = """
import pathlib, subprocess, sys
import fastns
base = pathlib.Path(sys.argv[1])
def mount(*args):
    subprocess.run(["mount", *args], check=True)
for place in (str(base), "/etc", "/run"):
    mount("-t", "tmpfs", "none", place)
for place in (base / "certs", pathlib.Path("/etc/ssl"), pathlib.Path("/run/resolver")):
    place.mkdir()
(base / "certs" / "one").write_text("certificate\\n")
pathlib.Path("/run/resolver/conf").write_text("nameserver 192.0.2.1\\n")
pathlib.Path("/etc/ssl/certs").symlink_to(base / "certs")
pathlib.Path("/etc/resolv.conf").symlink_to("../run/resolver/conf")
code = "cat /etc/ssl/certs/one /etc/resolv.conf; (echo >>/etc/resolv.conf) 2>/dev/null || echo ro"
for network in ("none", "host"):
    for init in (False, True):
        spec = fastns.Spec(network=network, init=init)
        done = fastns.run(["sh", "-c", code], spec=spec, capture_output=True, text=True)
        print(network, done.stdout.split())
pathlib.Path("/run/resolver/other").write_text("nameserver 192.0.2.2\\n")
pathlib.Path("/etc/resolv.conf").unlink()
pathlib.Path("/etc/resolv.conf").symlink_to("/run/resolver/other")
for init in (False, True):
    spec = fastns.Spec(network="host", init=init)
    done = fastns.run(["sh", "-c", code], spec=spec, capture_output=True, text=True)
    print("then", done.stdout.split())
"""


def test_targets_of_links_in_etc_are_shown(public_dir: Path) -> None:
    """The targets are certificates elsewhere on the host and, with the host's network,
    resolv.conf."""
    base = public_dir / "led-out"
    base.mkdir()
    words = [] if support.is_root() else ["-U", "-r"]
    out = subprocess.run(
        ["unshare", "-m", *words, sys.executable, "-c", LED_OUT, str(base)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    base.rmdir()
    assert out.stdout.splitlines() == [
        *["none ['certificate', 'ro']"] * 2,
        *["host ['certificate', 'nameserver', '192.0.2.1', 'ro']"] * 2,
        *["then ['certificate', 'nameserver', '192.0.2.2', 'ro']"] * 2,
    ]


# ---- hints ----


def test_a_later_error_does_not_name_a_links_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_view, "led_to", lambda shown, resolver: ["/run/gone since"])
    with pytest.raises(SpawnError) as caught:
        fastns.run(["true"], spec=Spec(files={"/usr/no such/file": "text"}))
    assert (caught.value.stage, caught.value.path) == ("file", "/usr/no such/file")


@pytest.fixture
def tool(public_dir: Path) -> Iterator[Path]:
    """An installation in a directory of its own: bin/tool reads lib/words. links/linked leads to
    bin/tool."""
    top = public_dir / "tool"
    for name in ("bin", "lib"):
        (top / name).mkdir(parents=True)
    (top / "lib" / "words").write_text("at work\n")
    (top / "bin" / "tool").write_text(f"#!/bin/sh\nexec cat {top}/lib/words\n")
    (top / "bin" / "tool").chmod(0o755)
    links = public_dir / "links"
    links.mkdir()
    (links / "linked").symlink_to(top / "bin" / "tool")
    yield top
    shutil.rmtree(top)
    shutil.rmtree(links)


@pytest.mark.parametrize("way", ["path", "link", "name", "relative"])
def test_the_hint_of_a_missing_program_works(
    tool: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    link = tool.parent / "links" / "linked"
    program = {
        "path": str(tool / "bin" / "tool"),
        "link": str(link),
        "name": "tool",
        "relative": "bin/tool",
    }[way]
    monkeypatch.chdir(tool)
    monkeypatch.setenv("PATH", f"{tool}/bin:{os.environ['PATH']}")
    hint = hint_of([program])
    mounts = mounts_of(hint)
    assert tool == Path(mounts[-1].destination)
    assert "/usr, " in hint
    place = str(tool / "bin" / "tool") if way in ("name", "relative") else program
    assert (f", and run {place}, because a relative path" in hint) is (way == "relative")
    done = fastns.run([place], spec=Spec(mounts=mounts), capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("at work\n", "")


def test_the_hint_of_a_program_in_tmp_or_of_a_shim() -> None:
    """The sandbox has its own /tmp. A shim needs the files beside its directory."""
    with tempfile.TemporaryDirectory(dir="/tmp") as top:
        shims = Path(top) / "shims"
        shims.mkdir()
        os.chmod(top, 0o755)
        (shims / "tool").write_text(f"#!/bin/sh\nexec cat {top}/words\n")
        (shims / "tool").chmod(0o755)
        (Path(top) / "words").write_text("at work\n")
        program = str(shims / "tool")
        mounts = mounts_of(hint_of([program]))
        done = fastns.run([program], spec=Spec(mounts=mounts), capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("at work\n", "")


def test_the_hint_of_a_python_names_all_of_it() -> None:
    """The hint names the virtual environment and the installation that it uses, unless they are in
    view."""
    code = ["-c", "import encodings, sys; print(sys.prefix)"]
    if _view.lies_in(os.path.realpath(sys.executable), _view.layout().shown):
        mounts = [] if sys.prefix.startswith("/usr") else mounts_of(hint_of([sys.executable]))
    else:
        mounts = mounts_of(hint_of([sys.executable]))
        assert sys.base_prefix in {mount.destination for mount in mounts}
    spec = Spec(mounts=mounts)
    done = fastns.run([sys.executable, *code], spec=spec, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{sys.prefix}\n", "")


def test_the_hint_of_a_missing_interpreter(tool: Path) -> None:
    other = tool / "bin" / "other"
    other.write_text(f"#!{tool.parent}/links/linked\n")
    other.chmod(0o755)
    mounts = [Mount("/srv/other", source=other)]
    assert "missing inside the root" in hint_of(
        ["/srv/other"], mounts=mounts
    )  # not the host's name
    shown = [Mount(str(other), source=other)]
    assert f"does not see {tool.parent}/links/linked: " in hint_of([str(other)], mounts=shown)


def test_the_hint_of_a_missing_directory(place: Path) -> None:
    """The suggested mounts make the start work."""
    hint = hint_of(["ls"], cwd=str(place))
    done = fastns.run(
        ["ls"], spec=Spec(cwd=str(place), mounts=mounts_of(hint)), capture_output=True
    )
    assert done.stdout == b"file\nsocket\n"


def test_the_hint_of_a_program_that_does_not_exist(probe_rootfs: Path, tool: Path) -> None:
    assert "no such command" in hint_of(["fastns-no-such-command"])
    assert "no such command" in hint_of(["/fastns/no/such"])
    assert "does not exist" in hint_of(["ls"], cwd="/fastns/no/such")
    # With a rootfs the host's directories do not matter.
    assert "mounts=" not in hint_of([str(tool / "bin" / "tool")], rootfs=probe_rootfs)


def test_the_hint_of_a_program_not_on_the_sandboxes_path(
    tool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tool}/bin:{os.environ['PATH']}")
    hint = _view.hint_of("exec", errno.ENOENT, "tool", ("/usr", str(tool)), False)
    assert f"{tool}/bin/tool, which is not on the sandbox's PATH" in (hint or "")


FASTNS = [sys.executable, "-m", "fastns", "run"]


def test_the_hint_on_the_command_line_is_a_flag(tool: Path) -> None:
    program = str(tool / "bin" / "tool")
    failed = subprocess.run([*FASTNS, "--", program], capture_output=True, text=True)
    assert failed.returncode == 127
    assert f"-v {tool}:{tool}:ro" in failed.stderr
    assert "Mount(" not in failed.stderr
    flag = f"{tool}:{tool}:ro"
    done = subprocess.run([*FASTNS, "-v", flag, "--", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("at work\n", "")


def test_the_hint_of_an_argument_out_of_view(place: Path) -> None:
    """`fastns run` hints at an argument out of view if the command fails."""
    file = place / "file"
    for word, where in ((str(file), "/"), ("file", place)):
        command = [*FASTNS, "--", "cat", word]
        done = subprocess.run(command, capture_output=True, text=True, cwd=where)
        assert done.returncode == 1
        assert f"hint: the sandbox does not see {file}: " in done.stderr
        assert f"-v {file}:{file}:ro" in done.stderr
        assert (f"; pass {file} instead, because" in done.stderr) is (word == "file")
    # There is no hint if the command succeeds, or if the file is in view.
    for words in (["echo", str(file)], ["grep", "-c", "^no such line$", "/etc/passwd"]):
        done = subprocess.run([*FASTNS, "--", *words], capture_output=True, text=True)
        assert done.stderr == ""


# ---- the code that reads the host ----

LAYOUT = """
import os
from fastns import _view
before = _view.layout()
os.mkdir(sys.argv[1] + "/root")
root = sys.argv[1] + "/root"
for name in ("usr", "usr/bin", "srv", "srv/opt"):
    os.mkdir(f"{root}/{name}")
os.symlink("usr/bin", f"{root}/bin")
os.symlink("/srv/opt", f"{root}/opt")
os.symlink("nowhere", f"{root}/lib")
os.chroot(root)
os.chdir("/")
print(_view.layout())
os.mkdir("/etc")
print(_view.layout().shown)
"""


@pytest.mark.as_root
def test_the_layout_is_read_from_the_current_root(tmp_path: Path) -> None:
    """A link that leads out of the view is bound as the directory that it leads to."""
    shown = "Layout(shown=('/usr', '/opt'), links=(('/bin', 'usr/bin'),))"
    out = script("import sys\n" + LAYOUT, str(tmp_path)).splitlines()
    assert out == [shown, "('/usr', '/etc', '/opt')"]


def test_lies_in() -> None:
    assert _view.lies_in("/usr/lib", ["/usr"])
    assert _view.lies_in("/usr", ["/usr/"])
    assert not _view.lies_in("/usrlocal", ["/usr"])
    assert _view.lies_in("/x", ["/"])


def test_a_fifo_instead_of_a_script_does_not_block(tmp_path: Path) -> None:
    """A sandbox may replace its script with a FIFO between a failed start and the hint."""
    fifo = tmp_path / "script"
    os.mkfifo(fifo)
    fd = os.open(fifo, os.O_RDWR)  # a writer, so that a reader's open does not block
    try:
        os.write(fd, b"#!/nowhere\n")
        assert _view.hint_of("exec", errno.ENOENT, str(fifo), ("/usr",), True) is None
    finally:
        os.close(fd)
