"""A judge: compiles a submission in a sandbox, and runs it on each test case in another.

    python judge.py SUBMISSION.c|SUBMISSION.py TESTS

TESTS is a directory with NAME.in and NAME.out for each test case. Prints a verdict for each. The
exit code is 0 if all are accepted.
"""

import argparse
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import fastns
from fastns import Job, Mount, Spec

TIME = 2.0  # seconds of CPU time for a test case; its timeout is five times as long
LIMITS = {"memory": "256m", "pids_limit": 16, "cpu_time": TIME}
COMPILER = ["gcc", "-O2", "-o", "/out/program", "/in/submission.c", "-lm"]
VERDICTS = {
    "timeout": "time limit",
    "cpu_time": "time limit",
    "oom": "memory limit",
    "pids": "process limit",
    "output_limit": "output limit",
    "seccomp": "forbidden system call",
}


def prepare(submission: Path, box: Path) -> list[str]:
    """Put the program into `box` and return the command. Exits if it does not compile."""
    if submission.suffix == ".py":
        shutil.copy(submission, box / "submission.py")
        return ["python3", "/box/submission.py"]
    spec = Spec(
        mounts=[
            Mount("/in/submission.c", source=submission.resolve(), options=["ro"]),
            Mount("/out", source=box),
        ],
        # The compiler needs limits, too: a submission can make it use any amount of memory.
        **LIMITS | {"memory": "1g", "pids_limit": 64, "cpu_time": 20.0},
        max_output="64k",
        require_limits=False,
    )
    done = fastns.run(COMPILER, spec=spec, capture_output=True, timeout=60)
    if done.returncode != 0:
        sys.exit(f"compilation failed ({done.cause})\n{done.stderr.decode(errors='replace')}")
    return ["/box/program"]


def verdict(done: fastns.CompletedSandbox | fastns.FastnsError, expected: str) -> str:
    """Return the verdict on a test case, in a word or two."""
    if isinstance(done, fastns.SpawnError):
        return f"not started: {done}"
    if done.cause in VERDICTS:
        return VERDICTS[done.cause]
    if done.returncode < 0:
        return f"runtime error ({signal.Signals(-done.returncode).name})"
    if done.returncode > 0:
        return f"runtime error (exit code {done.returncode})"
    return "accepted" if done.stdout.split() == expected.split() else "wrong answer"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("submission", type=Path)
    parser.add_argument("tests", type=Path)
    arguments = parser.parse_args()
    cases = sorted(arguments.tests.glob("*.in"))

    with tempfile.TemporaryDirectory() as directory:
        box = Path(directory)
        box.chmod(0o755)
        command = prepare(arguments.submission, box)
        spec = Spec(
            mounts=[Mount("/box", source=box, options=["ro"])],
            init=True,  # as pid 1, a command could not be killed by its own SIGABRT
            max_output="1m",
            on_output_limit="kill",
            # A user without cgroups cannot have these limits. The judge says so below.
            require_limits=False,
            **LIMITS,
        )
        plan = fastns.compile(spec)
        missing = sorted(set(LIMITS) - set(plan.limits))
        if missing:
            print(f"not enforced here: {', '.join(missing)} (fastns doctor)", file=sys.stderr)
        jobs = [Job(command, input=case.read_text()) for case in cases]
        results = fastns.run_batch(jobs, spec=plan, text=True, errors="replace", timeout=5 * TIME)

    accepted = 0
    for case, done in zip(cases, results, strict=True):
        found = verdict(done, case.with_suffix(".out").read_text())
        accepted += found == "accepted"
        print(f"{case.stem}: {found}")
    print(f"{accepted} of {len(cases)}")
    return 0 if accepted == len(cases) else 1


if __name__ == "__main__":
    sys.exit(main())
