"""A shell tool for a language model's agent: it takes commands and returns what they print.

    python agent.py WORKSPACE <calls.jsonl

Reads JSON objects, one per line, such as {"command": "ls", "timeout": 10}. Replies to each with an
object that has exit_code, output and, if the command was killed or its output cut off, a note.
Files in WORKSPACE persist between calls; nothing else does. There is no network.
"""

import json
import sys
from pathlib import Path

import fastns
from fastns import Mount, Spec, Template

PLACE = "/workspace"
NOTES = {
    "timeout": "the command took too long and was ended",
    "oom": "the command ran out of memory",
}


class Shell:
    """Runs commands in sandboxes that share a workspace. A context manager."""

    def __init__(self, workspace: Path, *, timeout: float = 30.0) -> None:
        self.timeout = timeout
        self._template = Template(
            Spec(
                mounts=[Mount(PLACE, source=workspace.resolve())],
                cwd=PLACE,
                env={"HOME": PLACE},
                memory="1g",
                pids_limit=200,
                max_output="16k",  # as much as a model should read
                require_limits=False,  # the agent may be unable to create cgroups
            )
        )

    def __enter__(self) -> "Shell":
        self._template.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._template.close()

    def call(self, command: str, timeout: float | None = None) -> dict[str, object]:
        """Run one command line. Its failure or timeout is a reply, too, not an exception."""
        try:
            done = self._template.run(
                ["sh", "-c", command],
                stdin=fastns.DEVNULL,
                stdout=fastns.PIPE,
                stderr=fastns.STDOUT,
                timeout=timeout or self.timeout,
            )
        except fastns.TimeoutExpired as error:
            return self._answer(124, error.stdout, error)
        return self._answer(done.exit_code, done.stdout, done)

    @staticmethod
    def _answer(
        exit_code: int, output: bytes | None, done: fastns.CompletedSandbox | fastns.TimeoutExpired
    ) -> dict[str, object]:
        text = (output or b"").decode(errors="replace")
        notes = [NOTES[done.cause]] if done.cause in NOTES else []
        if done.truncated:
            notes.append("the output was longer; the rest was cut off")
        return {"exit_code": exit_code, "output": text} | (
            {"note": "; ".join(notes)} if notes else {}
        )


def main() -> None:
    with Shell(Path(sys.argv[1])) as shell:
        for line in sys.stdin:
            print(json.dumps(shell.call(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
