"""A judge: compiles a submission in one sandbox, and runs it on each test in another.

    python judge.py SUBMISSION.c|SUBMISSION.py TESTS

TESTS is a directory with NAME.in and NAME.out for each test. Prints a verdict for each: AC
(accepted), WA (wrong answer), TLE, MLE, OLE (over the limit of time, memory, output), RE (runtime
error, with the signal or the exit code), CE (does not compile). The exit code is 0 if all are AC.
"""

import signal
import sys
from pathlib import Path

import fastns
from fastns import File, Job, Spec

TIME = 2.0  # seconds of CPU time for a test; its timeout is five times as long
# Without the right to use cgroups, these limits are not enforced. The judge says so.
LIMITS = {"memory": "256m", "pids_limit": 16, "cpu_time": TIME, "require_limits": False}
# The compiler needs limits, too: a submission can make it use any amount of memory.
COMPILER_LIMITS = {**LIMITS, "memory": "1g", "pids_limit": 64, "cpu_time": 20.0}
VERDICTS = {"timeout": "TLE", "cpu_time": "TLE", "oom": "MLE", "output_limit": "OLE"}


def build(submission: Path) -> tuple[list[str], dict[str, File]]:
    """Return the command of a submission, and the files it needs. Exit if it does not compile."""
    if submission.suffix == ".py":
        return ["python3", "/tmp/program.py"], {"/tmp/program.py": File(submission)}
    done = fastns.run(
        ["gcc", "-O2", "-o", "/tmp/program", "/tmp/submission.c", "-lm"],
        spec=Spec(**COMPILER_LIMITS),
        files={"/tmp/submission.c": submission},
        outputs=["/tmp/program"],
        capture_output=True,
        timeout=60,
    )
    if done.returncode != 0:
        sys.exit(f"CE ({done.cause})\n{done.stderr.decode(errors='replace')}")
    return ["/tmp/program"], {"/tmp/program": File(done.files["/tmp/program"], mode=0o755)}


def verdict(done: fastns.CompletedSandbox | fastns.FastnsError, expected: str) -> str:
    """Return the verdict on a test."""
    if isinstance(done, fastns.SpawnError):
        return f"not judged: {done}"
    if done.cause in VERDICTS:
        return VERDICTS[done.cause]
    if done.returncode < 0:
        return f"RE ({signal.Signals(-done.returncode).name})"
    if done.returncode > 0:
        return f"RE (exit code {done.returncode})"
    return "AC" if done.stdout.split() == expected.split() else "WA"


def main(submission: Path, tests: Path) -> int:
    command, files = build(submission)
    plan = fastns.compile(Spec(max_output="1m", on_output_limit="kill", **LIMITS))
    missing = sorted({"memory", "pids_limit", "cpu_time"} - set(plan.limits))
    if missing:
        print(f"not enforced here: {', '.join(missing)} (fastns doctor)", file=sys.stderr)
    cases = sorted(tests.glob("*.in"))
    jobs = [Job(command, input=case.read_text(), files=files) for case in cases]
    results = fastns.run_batch(jobs, spec=plan, text=True, errors="replace", timeout=5 * TIME)
    verdicts = [
        verdict(done, case.with_suffix(".out").read_text())
        for case, done in zip(cases, results, strict=True)
    ]
    for case, found in zip(cases, verdicts, strict=True):
        print(f"{case.stem}: {found}")
    print(f"{verdicts.count('AC')} of {len(cases)}")
    return 0 if verdicts.count("AC") == len(cases) else 1


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
