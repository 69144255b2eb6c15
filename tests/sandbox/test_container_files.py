"""Files into a container and out of it: what is inside may be an attacker's."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import support
from processes import eventually

from fastns import ClosedError, Container, SpawnError, Spec, SpecError

TIMEOUT = 60


@pytest.fixture
def box() -> Iterator[Container]:
    with Container() as container:
        yield container


def sh(container: Container, text: str) -> str:
    done = container.run(["sh", "-c", text], capture_output=True, text=True, timeout=TIMEOUT)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# ---- single files ----


@pytest.mark.parametrize("data", [b"", b"text", bytes(range(256)) * 1000, os.urandom(50 << 20)],
                         ids=["empty", "text", "binary", "50 MB"])  # fmt: skip
def test_content(box: Container, data: bytes) -> None:
    box.write_file("/tmp/file", data)
    assert box.read_file("/tmp/file") == data
    assert sh(box, "wc -c </tmp/file").strip() == str(len(data))


def test_modes_owners_and_directories(box: Container) -> None:
    box.write_file("/tmp/a/b/c", "grüße", mode=0o640)
    assert box.read_file("/tmp/a/b/c") == "grüße".encode()
    assert sh(box, "stat -c '%a %u %g' /tmp/a /tmp/a/b/c") == "755 0 0\n640 0 0\n"
    box.write_file("/tmp/a/b/c", b"short")  # an existing file
    assert box.read_file("/tmp/a/b/c") == b"short"
    assert box.listdir("/tmp/a") == ["b"]
    assert box.listdir("/tmp/a/b") == ["c"]


def test_a_program_that_runs_is_replaced(box: Container) -> None:
    sh(box, "cp /bin/sleep /tmp/program; /tmp/program 60 >/dev/null 2>&1 &")
    box.write_file("/tmp/program", "#!/bin/sh\necho new\n", mode=0o755)
    assert sh(box, "/tmp/program") == "new\n"


def test_names(box: Container) -> None:
    names = ["new\nline", " ", "-rf", os.fsdecode(b"\xff\xfe"), "ä", "x" * 255]
    for name in names:
        box.write_file(f"/tmp/names/{name}", name.encode(errors="surrogateescape"))
    assert box.listdir("/tmp/names") == sorted(names)
    for name in names:
        assert box.read_file(f"/tmp/names/{name}") == name.encode(errors="surrogateescape")


@pytest.mark.parametrize(
    ("path", "error", "number"),
    [
        ("/missing", FileNotFoundError, errno.ENOENT),
        ("/tmp", IsADirectoryError, errno.EISDIR),
        ("/etc/passwd/x", NotADirectoryError, errno.ENOTDIR),
        ("/tmp/locked", PermissionError, errno.EACCES),
        ("/tmp/fifo", OSError, errno.EOPNOTSUPP),
        ("/tmp/socket", OSError, errno.EOPNOTSUPP),
        ("/dev/null", OSError, errno.EOPNOTSUPP),
        ("/tmp/loop", OSError, errno.ELOOP),
        ("/tmp/" + "x" * 300, OSError, errno.ENAMETOOLONG),
    ],
)
def test_what_cannot_be_read(box: Container, path: str, error: type[OSError], number: int) -> None:
    make = (
        "import os, socket; os.mkfifo('/tmp/fifo'); os.symlink('loop', '/tmp/loop'); "
        "socket.socket(socket.AF_UNIX).bind('/tmp/socket'); "
        "open('/tmp/locked', 'w').close(); os.chmod('/tmp/locked', 0)"
    )
    sh(box, f'python3 -c "{make}"')
    with pytest.raises(error) as caught:
        box.read_file(path)
    assert (caught.value.errno, caught.value.filename) == (number, path)


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("/etc/new", errno.EROFS),
        ("/usr/bin/new", errno.EROFS),
        ("/tmp/fifo", errno.EOPNOTSUPP),
        ("/dev/null", errno.EOPNOTSUPP),
        ("/tmp/file/new", errno.ENOTDIR),
        ("/tmp", errno.EISDIR),
    ],
)
def test_what_cannot_be_written(box: Container, path: str, number: int) -> None:
    sh(box, "mkfifo /tmp/fifo; touch /tmp/file")
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is checked
        box.write_file(path, b"x")
    assert caught.value.errno == number
    assert path.startswith(caught.value.filename)


def test_the_largest_size(box: Container) -> None:
    sh(box, "head -c 1000 /dev/zero >/tmp/file; truncate -s 1T /tmp/sparse")
    assert len(box.read_file("/tmp/file", max_size=1000)) == 1000
    with pytest.raises(OSError) as caught:  # noqa: PT011
        box.read_file("/tmp/file", max_size=999)
    assert caught.value.errno == errno.EFBIG
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(OSError) as caught:  # noqa: PT011
        box.read_file("/tmp/sparse")
    assert caught.value.errno == errno.EFBIG
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + (50 << 10)


def test_links_stay_inside(box: Container, tmp_path: Path) -> None:
    """A link to a path of the host leads to the path inside."""
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    sh(box, f"ln -s {secret} /tmp/link; ln -s /proc/1/root{secret} /tmp/magic; ln -s / /tmp/top")
    for path in ("/tmp/link", "/tmp/magic", f"/tmp/top{secret}", f"/tmp/../..{secret}"):
        with pytest.raises(OSError) as caught:  # noqa: PT011
            box.read_file(path)
        assert caught.value.errno in (errno.ENOENT, errno.EACCES)
    for path in ("/tmp/link", "/tmp/link/x", f"/tmp/top{secret}", f"/proc/1/root{secret}"):
        with contextlib.suppress(OSError):
            box.write_file(path, b"changed")
    assert secret.read_text() == "of the host"
    assert [*tmp_path.iterdir()] == [secret]
    box.write_file("/tmp/target", b"inside")
    sh(box, "ln -sf /tmp/target /tmp/link")
    assert box.read_file("/tmp/link") == b"inside"  # a control: links inside work


def test_a_file_that_changes_while_it_is_read(box: Container) -> None:
    change = "while :; do head -c 3000000 /dev/zero >/tmp/file; : >/tmp/file; done"
    sandbox = box.spawn(["sh", "-c", change])
    assert eventually(lambda: "file" in box.listdir("/tmp"))
    sizes = {len(box.read_file("/tmp/file")) for _ in range(100)}
    sandbox.kill()
    sandbox.wait()
    assert max(sizes) <= 3_000_000
    assert len(sizes) > 1  # a control: it has changed


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda box: box.read_file("relative"), "path"),
        (lambda box: box.read_file(5), "path"),
        (lambda box: box.read_file("/a\0b"), "path"),
        (lambda box: box.read_file("/a", max_size=-1), "max_size"),
        (lambda box: box.write_file("/tmp/a", 5), "data"),
        (lambda box: box.write_file("/tmp/a", b"", mode=0o1000), "mode"),
        (lambda box: box.write_file("/tmp/a", b"", mode="644"), "mode"),
        (lambda box: box.upload("/etc/passwd", "relative"), "dst"),
        (lambda box: box.download("relative", "/tmp"), "src"),
        (lambda box: box.listdir(""), "path"),
    ],
)
def test_bad_input(box: Container, call: object, field: str) -> None:
    with pytest.raises(SpecError) as caught:
        call(box)  # type: ignore[operator]
    assert caught.value.field == field


# ---- trees ----


def make_tree(top: Path) -> None:
    (top / "empty").mkdir(parents=True)
    (top / "deep" / "er").mkdir(parents=True)
    (top / "deep" / "er" / "file").write_bytes(b"x" * 100_000)
    (top / "run").write_text("#!/bin/sh\necho run\n")
    (top / "run").chmod(0o755)
    (top / "link").symlink_to("deep/er")
    (top / "deep" / "up").symlink_to("../run")
    (top / "new\nline").touch()
    with (top / "sparse").open("wb") as file:
        file.seek(1 << 30)
        file.write(b"end")
    os.utime(top / "run", ns=(10**18, 10**18))


def described(top: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(top.rglob("*")):
        about = path.lstat()
        name = str(path.relative_to(top))
        if path.is_symlink():
            found[name] = ("link", os.readlink(path))
        elif path.is_dir():
            found[name] = ("directory", about.st_mode & 0o777)
        else:
            content = path.read_bytes() if about.st_size < 1 << 20 else b""
            found[name] = (about.st_mode & 0o777, about.st_size, content, about.st_mtime_ns)
    return found


def test_a_tree_there_and_back(box: Container, tmp_path: Path) -> None:
    top = tmp_path / "top"
    make_tree(top)
    box.upload(top, "/tmp/tree")
    assert sh(box, "/tmp/tree/link/../../run") == "run\n"
    assert sh(box, "stat -c %b /tmp/tree/sparse") < "9"  # blocks
    box.download("/tmp/tree", tmp_path / "back")
    assert described(tmp_path / "back") == described(top)
    assert (tmp_path / "back" / "sparse").stat().st_blocks < 100
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back", "top"]


def test_where_a_copy_goes(box: Container, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    sh(box, "mkdir /tmp/there")
    box.upload(tmp_path / "file", "/tmp/there")
    box.upload(tmp_path / "file", "/tmp/other/name")
    assert (box.listdir("/tmp/there"), box.listdir("/tmp/other")) == (["file"], ["name"])
    box.upload(tmp_path, "/tmp/there")
    assert box.listdir("/tmp/there") == sorted(["file", tmp_path.name])
    out = tmp_path / "out"
    out.mkdir()
    box.download("/tmp/there/file", out)
    box.download("/tmp/there/file", out / "again")
    box.download("/tmp/there/file", out / "again")  # replaces it
    assert sorted(p.name for p in out.iterdir()) == ["again", "file"]
    (out / "there" / "x").mkdir(parents=True)
    with pytest.raises(OSError) as caught:  # noqa: PT011 - a directory is not merged
        box.download("/tmp/there", out)
    assert caught.value.errno in (errno.ENOTEMPTY, errno.EEXIST)
    assert sorted(p.name for p in out.iterdir()) == ["again", "file", "there"]


OUT = {
    "absolute": "/etc/passwd",
    "up": "../../x",
    "through another": "here/../../x",
    "far up": "../" * 30 + "etc/passwd",
}


@pytest.mark.parametrize("target", OUT.values(), ids=OUT)
def test_a_link_that_may_lead_out_is_not_copied(
    box: Container, tmp_path: Path, target: str
) -> None:
    sh(box, f"mkdir -p /tmp/tree/sub; ln -s . /tmp/tree/sub/here; ln -s {target} /tmp/tree/sub/bad")
    with pytest.raises(OSError) as caught:  # noqa: PT011
        box.download("/tmp/tree", tmp_path / "out")
    assert (caught.value.errno, caught.value.filename) == (errno.EXDEV, "bad")
    assert not list(tmp_path.iterdir())
    sh(box, "ln -sfn ../file /tmp/tree/sub/bad")  # a control
    box.download("/tmp/tree", tmp_path / "out")
    assert os.readlink(tmp_path / "out" / "sub" / "bad") == "../file"


@pytest.mark.parametrize("make", ["mkfifo /tmp/tree/odd", "python3 -c \"import socket; "
                         "socket.socket(socket.AF_UNIX).bind('/tmp/tree/odd')\""],
                         ids=["fifo", "socket"])  # fmt: skip
def test_other_kinds_of_files(box: Container, tmp_path: Path, make: str) -> None:
    sh(box, f"mkdir /tmp/tree; echo a >/tmp/tree/a; {make}")
    with pytest.raises(OSError) as caught:  # noqa: PT011
        box.download("/tmp/tree", tmp_path / "out")
    assert (caught.value.errno, caught.value.filename) == (errno.EOPNOTSUPP, "/tmp/tree/odd")
    assert not list(tmp_path.iterdir())
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as here:
        here.bind(str(tmp_path / "socket"))
        for name in ("fifo", "socket"):
            with pytest.raises(OSError) as caught:  # noqa: PT011
                box.upload(tmp_path / name, "/tmp/up")
            assert caught.value.errno == errno.EOPNOTSUPP


def test_deep_trees(box: Container, tmp_path: Path) -> None:
    deep = "/".join("d" for _ in range(60))
    sh(box, f"mkdir -p /tmp/tree/{deep}; echo x >/tmp/tree/{deep}/file")
    box.download("/tmp/tree", tmp_path / "out")
    assert (tmp_path / "out" / deep / "file").read_text() == "x\n"
    box.upload(tmp_path / "out", "/tmp/again")
    sh(box, f"mkdir -p /tmp/tree/{deep}/{deep}")
    with pytest.raises(OSError) as caught:  # noqa: PT011
        box.download("/tmp/tree", tmp_path / "more")
    assert caught.value.errno == errno.ENAMETOOLONG
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_download_that_fails_leaves_nothing(box: Container, tmp_path: Path) -> None:
    """Even if it has come to directories without permissions."""
    sh(
        box,
        "mkdir -p /tmp/tree/a/b; chmod 0 /tmp/tree/a/b; mkfifo /tmp/tree/z; chmod 500 /tmp/tree/a",
    )
    with pytest.raises(OSError):  # noqa: PT011
        box.download("/tmp/tree", tmp_path / "out")
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError) as caught:
        box.download("/tmp/tree", tmp_path / "missing" / "out")
    assert caught.value.filename == str(tmp_path / "missing")


def test_the_size_of_a_download(box: Container, tmp_path: Path) -> None:
    sh(box, "mkdir /tmp/tree; for i in 1 2 3; do head -c 1000 /dev/zero >/tmp/tree/$i; done")
    box.download("/tmp/tree", tmp_path / "out", max_size=3000)
    with pytest.raises(OSError) as caught:  # noqa: PT011
        box.download("/tmp/tree", tmp_path / "less", max_size=2999)
    assert caught.value.errno == errno.EFBIG
    assert not (tmp_path / "less").exists()


def test_a_tree_that_changes_while_it_is_copied(box: Container, tmp_path: Path) -> None:
    """Directories and links to directories of the host take each other's place. Nothing is written
    outside the destination."""
    outside = tmp_path / "outside"
    outside.mkdir()
    swap = (
        f"import os\nos.makedirs('/tmp/tree/a')\nopen('/tmp/tree/a/evil', 'w').close()\n"
        f"os.symlink('{outside}', '/tmp/tree/link')\n"
        "while True:\n"
        " os.rename('/tmp/tree/a', '/tmp/tree/b'); os.rename('/tmp/tree/link', '/tmp/tree/a')\n"
        " os.rename('/tmp/tree/a', '/tmp/tree/link'); os.rename('/tmp/tree/b', '/tmp/tree/a')\n"
    )
    sandbox = box.spawn(["python3", "-c", swap])
    assert eventually(lambda: "tree" in box.listdir("/tmp"))
    for number in range(50):
        try:
            box.download("/tmp/tree", tmp_path / f"out{number}")
        except OSError as error:
            found = (errno.EXDEV, errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.EEXIST)
            assert error.errno in found
    sandbox.kill()
    assert not list(outside.iterdir())
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".fastns")]


# ---- the end of a container, and of processes inside ----


def test_the_container_ends_meanwhile(tmp_path: Path) -> None:
    with Container() as box:
        box.write_file("/tmp/large", bytes(200 << 20))
        timer = threading.Timer(0.05, box.close)
        timer.start()
        error: Exception | None = None
        while error is None:
            try:
                box.download("/tmp/large", tmp_path / "out")
            except (ClosedError, OSError) as caught:
                error = caught
        timer.join()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".fastns")]


@pytest.mark.as_user  # whose commands have the same id as the process that moves files
def test_a_process_that_moves_files_is_killed(box: Container, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(100 << 20))
    kill = (
        "while :; do for p in /proc/[0-9]*; do p=${p#/proc/}; "
        "case $p in 1|$$|$PPID) ;; *) kill -9 $p;; esac; done; done"
    )
    sandbox = box.spawn(["sh", "-c", kill], stderr=-3)
    outcomes = set()
    for _ in range(20):
        try:
            box.upload(tmp_path / "large", "/tmp/up")
            outcomes.add("done")
        except (ClosedError, SpawnError, OSError) as error:
            outcomes.add(type(error).__name__)
    assert outcomes != {"done"}
    sandbox.kill()


def test_of_a_spec_with_limits_on_files() -> None:
    if not support.has_cgroups():
        support.skip_missing("root or a delegated cgroup")
    with Container(Spec(memory="24m", memory_swap="24m")) as box:
        data = os.urandom(8 << 20)
        box.write_file("/tmp/a", data)
        assert box.read_file("/tmp/a") == data  # not through memory of the container's
        assert box.run(["true"]).returncode == 0
