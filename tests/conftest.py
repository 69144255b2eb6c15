"""Fixtures for all tests: programs and roots, reports from inside a sandbox, a check for leaks.

Markers: `as_root` and `as_user` restrict a test to that kind of user. `with_cgroups` restricts it
to root and users with a delegated cgroup. `leaves_traces(reason)` turns off the check for leaks
in a test that changes this process or the host on purpose.
"""

from __future__ import annotations

import gc
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import support

BASH_ROOTFS_COMMANDS = [
    "bash",
    "sh",
    "cat",
    "chroot",
    "dd",
    "df",
    "env",
    "false",
    "hostname",
    "id",
    "ip",
    "ipcmk",
    "ipcrm",
    "ipcs",
    "ls",
    "mkdir",
    "mount",
    "nft",
    "nsenter",
    "ps",
    "rm",
    "seq",
    "sleep",
    "stat",
    "touch",
    "true",
    "umount",
    "unshare",
    "wc",
]


# ---- options and markers ----


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update", action="store_true", help="rewrite the golden files")


@pytest.fixture
def update(request: pytest.FixtureRequest) -> bool:
    """Whether to rewrite the golden files instead of comparing with them."""
    return bool(request.config.getoption("--update"))


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a shell's background job
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup sets it to ignored
    config.addinivalue_line("markers", "as_root: needs uid 0")
    config.addinivalue_line("markers", "as_user: needs an unprivileged user")
    config.addinivalue_line("markers", "with_cgroups: needs uid 0 or delegated cgroups")
    config.addinivalue_line("markers", "leaves_traces(reason): not watched for leaks")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("as_root") and not support.is_root():
        support.skip_missing("root")
    if item.get_closest_marker("as_user") and support.is_root():
        support.skip_missing("an unprivileged user")
    if item.get_closest_marker("with_cgroups") and not support.has_cgroups():
        support.skip_missing("root or a delegated cgroup")


# ---- an unexpected skip fails the run in CI ----

_unexpected_skips: list[str] = []


def _note_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail") and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if reason not in support.allowed_skips():
            _unexpected_skips.append(f"{report.nodeid}: {reason}")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _note_skip(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    _note_skip(report)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _unexpected_skips and support.strict_skips() and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _unexpected_skips and support.strict_skips():
        terminalreporter.section("skips that tests/allowed_skips.txt does not list", red=True)
        for line in _unexpected_skips:
            terminalreporter.line(line)


# ---- a check for leaks ----


@pytest.fixture(scope="module", autouse=True)
def collected_so_far() -> Iterator[None]:
    """Speed up the garbage collections of nothing_left(): exclude all objects that existed before
    the module, such as thousands of tests and their reports."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves an fd, a child, a mount, a queue or a changed setting behind."""
    if request.node.get_closest_marker("leaves_traces"):
        yield
        return
    before = support.host_state()
    yield
    change = support.host_change(before)
    if change:
        pytest.fail("the test changed the host:\n" + "\n".join(change), pytrace=False)


@pytest.fixture(scope="session", autouse=True)
def user_namespace() -> None:
    """Open the fd of the range's user namespace, which stays open, before nothing_left() first
    lists the fds."""
    import fastns

    plan = fastns.compile(fastns.Spec())
    if plan.ids is not None:
        fastns._core.user_namespace(plan.ids, plan.inotify)


# ---- programs and roots ----


@pytest.fixture(scope="session")
def public_dir() -> Iterator[Path]:
    """A directory that any user may enter, but that a sandbox without a rootfs does not see."""
    path = Path(tempfile.mkdtemp(prefix="fastns-", dir="/var/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def probe(public_dir: Path) -> Path:
    """The static program that reports what it sees (tests/probe.c)."""
    built = support.compile_static(support.TESTS / "probe.c", support.BUILD / "tests" / "probe")
    copy = Path(shutil.copy(built, public_dir / "probe"))
    copy.chmod(0o755)
    return copy


@pytest.fixture(scope="session")
def probe_rootfs(public_dir: Path, probe: Path) -> Path:
    """A root with /probe, a static /true, empty directories and three files in /etc.

    All tests share it, so a test that writes into it must use overlay=True or a copy.
    """
    root = public_dir / "probe-rootfs"
    for name in ("dev", "etc", "mnt", "proc", "run", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    for name in ("hosts", "hostname", "resolv.conf"):
        (root / "etc" / name).write_text(f"the root's own {name}\n")
    shutil.copy(probe, root / "probe")
    source = public_dir / "true.c"
    source.write_text("int main(void) { return 0; }\n")
    support.compile_static(source, root / "true")
    for path in (root, *root.rglob("*")):
        path.chmod(0o644 if path.parent.name == "etc" else 0o755)  # regardless of the umask
    return root


@pytest.fixture(scope="session")
def exhaust_root(public_dir: Path) -> Path:
    """A root with only /exhaust, a program that uses up a resource. Shared, as above."""
    return _small_root(public_dir, "exhaust")


@pytest.fixture(scope="session")
def networks_root(public_dir: Path) -> Path:
    """A root with only /networks, a program that uses the network. Shared, as above."""
    return _small_root(public_dir, "networks")


@pytest.fixture(scope="session")
def bash_rootfs(public_dir: Path) -> Path:
    """A root made by fastns.rootfs.build from this machine's bash and tools. Shared, as above."""
    from fastns import rootfs

    dest = public_dir / "bash-rootfs"
    commands = []
    for name in BASH_ROOTFS_COMMANDS:
        found = shutil.which(name, path=support.HOST_PATH)
        if found is None:
            support.skip_missing(f"{name} (tests/setup.sh installs it)")
        commands.append(found)
    rootfs.build(dest, commands)
    return dest


@pytest.fixture(scope="session")
def debian_rootfs(public_dir: Path) -> Path:
    """A minimal Debian with python3. Shared, as above."""
    return _prepared_rootfs("debian", public_dir)


@pytest.fixture(scope="session")
def busybox_rootfs(public_dir: Path) -> Path:
    """A root with busybox and a link for each of its commands. Shared, as above."""
    root = _prepared_rootfs("busybox", public_dir)
    support.read_through(root, "bin/busybox")
    return root


def _small_root(public_dir: Path, program: str) -> Path:
    """A root with empty directories and one program, compiled from the C file of this name."""
    root = public_dir / f"{program}-root"
    for name in ("dev", "proc", "run", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    source = support.TESTS / f"{program}.c"
    shutil.copy(support.compile_static(source, support.BUILD / "tests" / program), root / program)
    for path in (root, *root.rglob("*")):
        path.chmod(0o755)  # regardless of the umask
    return root


def _prepared_rootfs(name: str, public_dir: Path) -> Path:
    path = support.BUILD / "rootfs" / name
    if not path.exists():
        support.skip_missing(f"{path} (tests/setup.sh makes it)")
    if support.reachable_by_all(path):
        return path
    # Unprivileged and mapped ids cannot enter the path.
    return support.copy_tree(path, public_dir / name)


# ---- reports ----


@pytest.fixture
def report(probe: Path, probe_rootfs: Path) -> Callable[..., dict[str, Any]]:
    """`report(*args, run={}, **fields)`: the probe's report from inside a sandbox, parsed.

    `fields` are fields of the Spec. `rootfs` defaults to probe_rootfs; None means the host's
    system directories plus the probe. Instead of fields, `spec=` takes a Spec or Plan that has
    /probe. `run` holds arguments of fastns.run (env, cwd, …), `args` extra words of argv.
    """
    import fastns

    def run_probe(*args: str, run: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
        if "spec" in fields:
            spec = fields.pop("spec")
            assert not fields, "give a spec or its fields"
        else:
            fields.setdefault("rootfs", probe_rootfs)
            if fields["rootfs"] is None:
                shown = fastns.Mount("/probe", source=probe, options=["ro"])
                fields["mounts"] = [*fields.get("mounts", ()), shown]
            spec = fastns.Spec(**fields)
        argv = ["/probe"]
        if args:
            argv += ["--", *args]
        done = fastns.run(argv, spec=spec, capture_output=True, timeout=20, **(run or {}))
        assert done.returncode == 0, (done.returncode, done.stderr)
        return support.parse_report(done.stdout)

    return run_probe


@pytest.fixture
def host_report(probe: Path) -> dict[str, Any]:
    """The probe's report from the host, for comparison."""
    return support.parse_report(subprocess.run([probe], check=True, capture_output=True).stdout)
