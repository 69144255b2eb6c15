"""Code inside must not get hold of the caller's program, directories or fds."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import inside
import pytest
import support
from elftools.elf.elffile import ELFFile

import fastns
from fastns import SpawnError, Spec

Report = Callable[..., dict[str, Any]]
# Ways of starting.
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "user namespace": {"namespaces": {"user": "new"}},
    "init": {"init": True},
    "range": {},  # see fields()
    "chroot": {"root_mode": "chroot"},
}


def fields(way: str) -> dict[str, Any]:
    return dict(inside.ranges()) if way == "range" else WAYS[way]


Identity = tuple[int, int, int]


def identity(path: str | Path) -> Identity:
    st = os.stat(path)
    return os.major(st.st_dev), os.minor(st.st_dev), st.st_ino


# ---- the caller's program (CVE-2019-5736) ----


def files_of_the_caller() -> dict[Identity, str]:
    """The files that this process has mapped: the interpreter, libraries and extensions."""
    paths = set(re.findall(r" (/\S+)$", Path("/proc/self/maps").read_text(), re.MULTILINE))
    paths.add(os.path.realpath("/proc/self/exe"))
    return {identity(path): path for path in paths if os.path.exists(path)}


def interpreter_of(program: str) -> str:
    with open(program, "rb") as file:
        for segment in ELFFile(file).iter_segments("PT_INTERP"):
            return str(segment.get_interp_name())
    support.skip_missing(f"{program} with a dynamic loader")


@pytest.fixture(scope="module")
def traps(public_dir: Path, probe_rootfs: Path) -> Iterator[Path]:
    """A root with an attacker's dynamic loader. If a dynamic program of the host were executed
    inside, the loader would run with that program as its /proc/self/exe."""
    root = support.copy_tree(probe_rootfs, public_dir / "traps")
    loader = public_dir / "loader"
    csrc = support.TESTS.parent / "csrc"
    subprocess.run(
        ["gcc", "-O2", "-fPIE", "-fno-stack-protector", "-nostdlib", "-static-pie",
         "-Wl,--no-dynamic-linker", f"-I{csrc}", "-o", loader, support.TESTS / "loader.c"],
        check=True,
    )  # fmt: skip
    for program in (os.path.realpath(sys.executable), chroot_program()):
        place = root / interpreter_of(program)[1:]
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(loader, place)
    (root / "link").symlink_to("/proc/self/exe")
    (root / "script").write_text("#!/proc/self/exe\n")
    (root / "through-link").write_text("#!/link argument\n")
    (root / "thread").write_text("#!/proc/thread-self/exe\n")
    (root / "nested").write_text("#!/script\n")
    for name in ("script", "through-link", "thread", "nested"):
        (root / name).chmod(0o755)
    yield root
    shutil.rmtree(root)


def chroot_program() -> str:
    found = shutil.which("chroot", path=support.HOST_PATH)
    assert found
    return os.path.realpath(found)


TRAPS = ["/proc/self/exe", "/proc/thread-self/exe", "/proc/1/exe", "/link", "/script",
         "/through-link", "/thread", "/nested"]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("trap", TRAPS)
def test_the_callers_program_is_out_of_reach(traps: Path, trap: str, way: str) -> None:
    """No process inside has a file of the caller as its /proc/self/exe, which it could open for
    writing once the caller has ended."""
    theirs = files_of_the_caller()
    spec = Spec(rootfs=traps, **fields(way))
    try:
        done = fastns.run([trap], spec=spec, capture_output=True, text=True, timeout=20)
    except SpawnError as exc:
        assert exc.stage == "exec", exc
        return
    words = [int(word) for word in done.stdout.split()]
    assert len(words) in (0, 3), done
    if words:
        assert tuple(words) not in theirs, theirs[words[0], words[1], words[2]]


def test_the_traps_work(traps: Path) -> None:
    """The negative control: with chroot(1), /proc/self/exe inside is chroot's own file."""
    user = [] if support.is_root() else ["--user", "--map-root-user"]
    script = 'mount -t proc proc "$1/proc" && exec chroot "$1" "$2"'
    for trap in ("/proc/self/exe", "/script"):
        done = subprocess.run(
            ["unshare", *user, "--mount", "--pid", "--fork", "sh", "-c", script, "sh", traps, trap],
            capture_output=True, text=True, env={**os.environ, "PATH": support.HOST_PATH},
        )  # fmt: skip
        assert done.stderr == ""
        assert tuple(map(int, done.stdout.split())) == identity(chroot_program())


# ---- directories that the caller has open (CVE-2024-21626) ----


@pytest.fixture
def held(public_dir: Path) -> Iterator[list[int]]:
    """64 inheritable fds of a directory of the host."""
    fds = [os.open(public_dir, os.O_RDONLY | os.O_DIRECTORY) for _ in range(64)]
    for fd in fds:
        os.set_inheritable(fd, True)
    yield fds
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", ["/proc/self/fd/{}", "/proc/self/fd/{}/..", "/proc/1/fd/{}",
                                  "/dev/fd/{}", "/proc/self/fd/../fd/{}"])  # fmt: skip
def test_a_callers_directory_as_cwd(
    probe_rootfs: Path, held: list[int], form: str, way: str
) -> None:
    """A path through an fd of the caller cannot be the cwd."""
    spec = Spec(rootfs=probe_rootfs, **fields(way))
    for fd in held:
        with pytest.raises(SpawnError) as caught:
            fastns.run(["/true"], spec=spec, cwd=form.format(fd))
        assert (caught.value.stage, caught.value.op_index) == ("chdir", -1)
        assert caught.value.errno in (errno.ENOENT, errno.EACCES, errno.ENOTDIR)


@pytest.mark.parametrize("way", WAYS)
def test_a_link_to_a_callers_directory_as_cwd(
    probe_rootfs: Path, public_dir: Path, held: list[int], way: str
) -> None:
    """The cwd is a link in the root, which points to the fd."""
    root = support.copy_tree(probe_rootfs, public_dir / "led")
    try:
        for number, fd in enumerate(held[:8]):
            (root / f"work{number}").symlink_to(f"/proc/self/fd/{fd}")
            spec = Spec(rootfs=root, cwd=f"/work{number}", **fields(way))
            with pytest.raises(SpawnError) as caught:
                fastns.run(["/true"], spec=spec)
            assert caught.value.stage == "chdir"
    finally:
        shutil.rmtree(root)


@pytest.mark.parametrize("way", WAYS)
def test_a_passed_directory_as_cwd(probe_rootfs: Path, held: list[int], way: str) -> None:
    """A directory may be passed as an fd, but the command cannot start in it."""
    spec = Spec(rootfs=probe_rootfs, **fields(way))
    fd = held[0]
    for cwd, given in ((f"/proc/self/fd/{fd}", {"pass_fds": [fd]}), ("/dev/stdin", {"stdin": fd})):
        with pytest.raises(SpawnError) as caught:
            fastns.spawn(["/true"], spec=spec, cwd=cwd, **given)
        assert caught.value.stage == "chdir"
        assert caught.value.errno in (errno.ENOENT, errno.EACCES)


def test_an_ordinary_child_starts_there(held: list[int], public_dir: Path) -> None:
    """The negative control: an ordinary child inherits the directory and can enter it."""
    done = subprocess.run(
        ["pwd", "-P"], cwd=f"/proc/self/fd/{held[9]}", close_fds=False, capture_output=True
    )
    assert done.stdout.strip() == bytes(public_dir)


# ---- no other fds ----


class Opening:
    """Threads that open and close inheritable fds all the time."""

    def __init__(self, path: Path, threads: int) -> None:
        self.path = path
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self.run) for _ in range(threads)]

    def run(self) -> None:
        while not self.stop.is_set():
            fds = []
            for _ in range(20):
                fds.append(os.open(self.path, os.O_RDONLY))
                os.set_inheritable(fds[-1], True)
            for fd in fds:
                os.close(fd)

    def __enter__(self) -> None:
        for thread in self.threads:
            thread.start()

    def __exit__(self, *exc: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()


@pytest.mark.parametrize("way", WAYS)
def test_the_sandboxes_fds(probe_rootfs: Path, public_dir: Path, way: str) -> None:
    """The sandbox has fds 0, 1, 2 and the passed ones, with the right files, and no others."""
    plan = fastns.compile(Spec(rootfs=probe_rootfs, **fields(way)))
    given = []
    for _ in range(3):
        fd = os.open(public_dir, os.O_RDONLY)
        given.append(fd)
    try:
        # Numbers that are far apart and out of order.
        given += [os.dup2(given[0], 200, inheritable=False), os.dup2(given[0], 90)]
        with Opening(public_dir, threads=4):
            for turn in range(80):
                passed = given if turn % 2 else []
                with fastns.spawn(
                    ["/probe"], spec=plan, stdin=fastns.DEVNULL, stdout=fastns.PIPE,
                    stderr=fastns.DEVNULL, pass_fds=passed,
                ) as sandbox:  # fmt: skip
                    out, _ = sandbox.communicate(timeout=20)
                seen = support.parse_report(out)["fds"]
                assert [entry["fd"] for entry in seen] == sorted([0, 1, 2, *passed])
                targets = {entry["fd"]: entry["target"] for entry in seen}
                assert targets[0] == targets[2] == "/dev/null"
                assert targets[1].startswith("pipe:")
    finally:
        for fd in given:
            os.close(fd)


@pytest.mark.parametrize("way", ["direct", "init", "template"])
def test_the_highest_fd_is_passed(probe_rootfs: Path, way: str) -> None:
    """stdout and stderr trade places, so copies of both are needed. No fd above the passed one is
    free for them."""
    code = """
import resource
from fastns import Spec, Template
root, way = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
os.dup2(os.open("/dev/null", os.O_RDONLY), 255)
given = {"stdout": 2, "stderr": 1, "pass_fds": [255]}
spec = Spec(rootfs=root, init=way == "init")
if way == "template":
    with Template(spec) as template:
        print(template.spawn(["/probe"], **given).wait())
else:
    print(fastns.spawn(["/probe"], spec=spec, **given).wait())
"""
    done = subprocess.run(
        [sys.executable, "-c", "import fastns, os, sys\n" + code, str(probe_rootfs), way],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "0\n", done.stderr
    assert [entry["fd"] for entry in support.parse_report(done.stderr)["fds"]] == [0, 1, 2, 255]


def test_an_ordinary_child_has_more(public_dir: Path, probe: Path) -> None:
    """The negative control: a child that closes nothing inherits fds of those threads."""
    counts = set()
    with Opening(public_dir, threads=4):
        for _ in range(200):
            done = subprocess.run([probe], close_fds=False, capture_output=True, check=True)
            counts.add(support.parse_report(done.stdout)["fd_count"])
            if max(counts) > 3:
                break
    assert max(counts) > 3


# ---- a command that executes fastns' program ----

PLAN = "<QQIIIIIIIxxxxQQIIIIQQ"  # struct fns_plan


def executed_again(root: Path, seals: int) -> int:
    """Execute fastns' program as a command, with a plan that executes /true in a memfd with these
    seals. Return the exit code."""
    offset = 2 * struct.calcsize(PLAN)
    plan = struct.pack(PLAN, offset, offset, 0, 1, *[0] * 13)
    content = plan + plan + b"\0"
    fd = os.memfd_create("plan", os.MFD_ALLOW_SEALING)
    try:
        os.write(fd, content)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        words = f"2 0 {fd} {len(content)} 0 0 0 0 0 "
        command = ["/proc/self/exe", words, "", "/true", "", "true"]
        with fastns.spawn(
            command, spec=Spec(rootfs=root), pass_fds=[fd], stderr=fastns.PIPE
        ) as sandbox:
            sandbox.communicate(timeout=20)
        assert sandbox.returncode is not None
        return sandbox.returncode
    finally:
        os.close(fd)


def test_the_program_takes_no_plan_of_a_command(probe_rootfs: Path) -> None:
    """The program accepts a plan only in a sealed memfd, and no file of a root can be one. The
    control passes a sealed memfd in."""
    every = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    assert executed_again(probe_rootfs, 0) == 127
    assert executed_again(probe_rootfs, every & ~fcntl.F_SEAL_WRITE) == 127
    assert executed_again(probe_rootfs, every) == 0
