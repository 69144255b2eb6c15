"""Direct starts whose new mount namespace contains only the root (Linux 7.0)."""

import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support import skip_missing

import fastns
from fastns import Mount, Spec, _core

Report = Callable[..., Any]


@pytest.fixture
def trees() -> None:
    if not _core.has_tree_namespaces():
        skip_missing("Linux 7.0 (OPEN_TREE_NAMESPACE)")


def test_the_result_says_how_the_mount_namespace_was_made(probe_rootfs: Path) -> None:
    """It says "tree" for root on Linux 7. For other callers, specs and kernels, the caller's mounts
    are copied."""
    able = _core.has_tree_namespaces() and os.geteuid() == 0
    for spec, way in (
        (Spec(rootfs=probe_rootfs), "tree" if able else "copied"),
        (Spec(rootfs=probe_rootfs, overlay=True), "copied"),
        (Spec(), "copied"),
    ):
        command = ["/probe"] if spec.rootfs else ["true"]
        done = fastns.run(command, spec=spec, capture_output=True)
        assert (done.returncode, done.mount_namespace) == (0, way)
        with fastns.spawn(command, spec=spec, stdout=fastns.DEVNULL) as sandbox:
            assert sandbox.mount_namespace == way
    with fastns.Template(Spec(rootfs=probe_rootfs)) as template:
        done = template.run(["/probe"], stdout=fastns.DEVNULL)
        assert done.mount_namespace == "template"


@pytest.mark.as_root
@pytest.mark.usefixtures("trees")
def test_only_the_root_and_the_specs_mounts(report: Report, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    tmp_path.chmod(0o755)
    mounts = [
        Mount("/proc", type="proc"),
        Mount("/tmp", source=str(tmp_path), options=["ro"]),
        Mount("/run", type="tmpfs", options=["size=1m"]),
    ]
    nothing: dict[str, Any] = {"default_mounts": False, "masked_paths": [], "readonly_paths": []}
    points = [mount["point"] for mount in report(mounts=mounts, **nothing)["mounts"]]
    assert sorted(points) == ["/", "/proc", "/run", "/tmp"]


@pytest.mark.as_root
@pytest.mark.usefixtures("trees")
def test_files_are_masked_if_the_root_has_no_dev_null(report: Report) -> None:
    """The caller's /dev/null masks them. The start opens it while it is still visible."""
    paths = ["/proc/cpuinfo", "/proc/meminfo", "/proc/version"]
    fields: dict[str, Any] = {"mounts": [Mount("/dev", type="tmpfs")], "readonly_paths": []}
    for masked in (paths, paths[:1], []):
        seen = report(masked_paths=masked, **fields)["mounts"]
        assert [m["point"] for m in seen if m["root"] == "/null"] == masked


@pytest.mark.as_root
@pytest.mark.usefixtures("trees")
def test_a_missing_source(probe_rootfs: Path, tmp_path: Path) -> None:
    """The error has the op index and the path of the mount."""
    missing = str(tmp_path / "missing")
    mounts = [Mount("/tmp", source=str(tmp_path)), Mount("/run", source=missing)]
    with pytest.raises(fastns.SpawnError) as caught:
        fastns.run(["/probe"], spec=Spec(rootfs=probe_rootfs, default_mounts=False, mounts=mounts))
    error = caught.value
    assert (error.stage, error.op_index, error.errno) == ("mount", 1, errno.ENOENT)
    assert error.path == missing


@pytest.mark.as_root
@pytest.mark.usefixtures("trees")
def test_many_threads(probe_rootfs: Path) -> None:
    """Threads can start sandboxes of one plan at once."""
    plan = fastns.compile(Spec(rootfs=probe_rootfs, network="host"))
    assert plan.mount_namespace == "tree"
    with ThreadPoolExecutor(4) as pool:
        codes = pool.map(
            lambda _: fastns.run(["/probe"], spec=plan, stdout=fastns.DEVNULL).returncode,
            range(40),
        )
        assert set(codes) == {0}
