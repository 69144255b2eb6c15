"""Runs the steps of a build, each in a sandbox that sees no home and, by default, no network.

    python ci.py STEPS.toml [SOURCE]

Works on a copy of SOURCE (default: the working directory). The steps share the copy, which is
deleted at the end. Stops at the first step that fails, with that step's exit code.

    [[step]]
    name = "test"
    run = "make test"
    network = false     # the default
    timeout = 600       # seconds, the default
    memory = "2g"       # no default
"""

import shutil
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import fastns
from fastns import Mount, Spec

PLACE = "/src"


def spec_of(step: dict[str, Any], source: Path) -> Spec:
    """The sandbox of a step."""
    return Spec(
        mounts=[Mount(PLACE, source=source)],
        cwd=PLACE,
        env={"HOME": "/tmp", "CI": "true"},
        network="host" if step.get("network") else "none",
        memory=step.get("memory"),
        init=True,  # builds leave daemons and other children, which the init reaps
        die_with_parent=True,  # if this program is killed, its step ends too
    )


def main() -> int:
    steps = tomllib.loads(Path(sys.argv[1]).read_text())["step"]
    source = Path(sys.argv[2] if len(sys.argv) > 2 else ".")
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "src"
        shutil.copytree(source, copy, symlinks=True)
        for step in steps:
            name, timeout = step["name"], step.get("timeout", 600)
            print(f"--- {name}", flush=True)
            try:
                done = fastns.run(
                    ["sh", "-ec", step["run"]], spec=spec_of(step, copy), timeout=timeout
                )
            except fastns.TimeoutExpired:
                print(f"--- {name}: over {timeout} s", flush=True)
                return 124
            print(f"--- {name}: {done.cause} {done.exit_code}, {done.wall_time:.1f} s", flush=True)
            if done.exit_code != 0:
                return done.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
