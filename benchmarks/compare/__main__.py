"""The whole race: checks what each contender isolates, times all in turn, writes the report.

python -m compare [--quick] [--rounds N] [--to DIRECTORY], in benchmarks/, as root.
"""

import argparse
import datetime
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from compare import isolation, layers, measures, plots, report, rivals
from compare.measures import say

HERE = Path(__file__).resolve().parent
PROBE = HERE.parents[1] / "tests" / "probe.c"
PROGRAMS = {
    "true": "int main(void) { return 0; }\n",
    "sleep": "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n",
}


def build(root: Path) -> None:
    """Make a root with static programs and the mount points."""
    compiler = os.environ.get("CC") or shutil.which("cc") or "cc"
    flags = ["-O2", "-static", "-o"]
    for name in ("proc", "sys", "tmp", "run", "dev", "etc"):
        (root / name).mkdir(parents=True)
    for name, code in PROGRAMS.items():
        command = [compiler, *flags, str(root / name), "-x", "c", "-"]
        subprocess.run(command, input=code, text=True, check=True)
    subprocess.run([compiler, *flags, str(root / "probe"), str(PROBE)], check=True)
    root.chmod(0o755)


def machine() -> dict[str, Any]:
    with open("/proc/cpuinfo") as file:
        models = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages / 2**30, 1),
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }


def run(root: Path, quick: bool, rounds: int, seed: int) -> dict[str, Any]:
    dice = random.Random(seed)
    here, missing = measures.present()
    say("what each isolates, from inside")
    inside, failed = measures.look_inside(here, root)
    data: dict[str, Any] = {"machine": machine(), "seed": seed, "rounds": rounds, "quick": quick}
    data["contenders"] = {
        name: {
            "name": rivals.load(name).NAME,
            "note": rivals.load(name).NOTE,
            "version": rivals.load(name).version(),
            "isolates": found,
            "equal": isolation.is_equal(found),
        }
        for name, found in inside.items()
    }
    data["missing"] = missing | failed
    say(f"latency, {rounds} rounds of {len(inside)}")
    data["latency_us"] = measures.latency(list(inside), root, rounds, dice)
    say("starts a second")
    data["rate"] = measures.rates(root, 0.1 if quick else 4, 50 if quick else 4000)
    few = 5 if quick else 100
    own = [measures.BARE, "subprocess_run", "fastns_direct", measures.FASTNS]
    say("against the caller's memory")
    sizes = [10, 64] if quick else [10, 256, 1024, 4096]
    data["memory_mib"] = measures.against("mib", sizes, own, root, few, dice)
    say("against the host's mounts")
    sizes = [20, 40] if quick else [20, 250, 500, 1000]
    names = ["fastns_direct", measures.FASTNS, *(["bubblewrap"] if "bubblewrap" in inside else [])]
    data["mounts"] = measures.against("mounts", sizes, names, root, few, dice)
    say("beside live sandboxes")
    sizes = [0, 20] if quick else [0, 1000, 5000, 10000, 20000]
    data["live"] = measures.live(root, sizes, few)
    if os.geteuid() == 0:
        say("by root and by a user")
        data["users"] = measures.users(root, few * 3, dice)
    say("layers")
    data["layers_us"] = layers.measure(root, few * 2)
    return data


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m compare", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a quick check, not a measurement")
    parser.add_argument("--rounds", type=int, default=150, help="of the latency (default: 150)")
    parser.add_argument("--seed", type=int, default=1, help="of the order in each round")
    parser.add_argument("--to", type=Path, default=HERE.parent / "results", metavar="DIRECTORY")
    options = parser.parse_args()
    rounds = 5 if options.quick else options.rounds
    place = Path(tempfile.mkdtemp(prefix="fastns-compare-", dir="/var/tmp"))
    place.chmod(0o755)
    try:
        build(place / "root")
        data = run(place / "root", options.quick, rounds, options.seed)
    except KeyboardInterrupt:
        return 130
    finally:
        shutil.rmtree(place, ignore_errors=True)
    options.to.mkdir(parents=True, exist_ok=True)
    (options.to / "compare.json").write_text(json.dumps(data, indent=1) + "\n")
    (options.to / "compare.md").write_text(report.markdown(data))
    for name in plots.draw(data, options.to):
        say(f"drawn {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
