"""The root file system the benchmarks run in."""

import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a static /true and the mount points of the default mounts."""
    root = tmp_path_factory.mktemp("rootfs")
    for name in ("proc", "sys", "tmp", "run", "dev"):
        (root / name).mkdir()
    source = root / "true.c"
    source.write_text("int main(void) { return 0; }\n")
    subprocess.run(
        [shutil.which("cc") or "cc", "-O2", "-static", "-o", root / "true", source], check=True
    )
    source.unlink()
    root.chmod(0o755)
    return root
