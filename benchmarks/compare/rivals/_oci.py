"""Writes a bundle for OCI runtimes: a directory with a config.json."""

import json
from pathlib import Path

SPACES = ("pid", "mount", "uts", "ipc", "cgroup")


def bundle(root: Path, at: Path, command: str, name: str) -> Path:
    """Return the directory of a bundle that runs `command`. The first call makes it."""
    directory = at / command.strip("/")
    if not directory.exists():
        directory.mkdir(parents=True)
        config = {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": [command],
                "cwd": "/",
                "env": ["PATH=/"],
            },
            "root": {"path": str(root), "readonly": False},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
            ],
            "linux": {
                "cgroupsPath": f"/fastns/{name}",
                "namespaces": [{"type": space} for space in SPACES],
            },
        }
        (directory / "config.json").write_text(json.dumps(config))
    return directory
