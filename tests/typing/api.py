"""The API as a type checker sees it. mypy checks this file; it is never run (test_types.py)."""

from pathlib import Path
from typing import Any, Literal, assert_type

import fastns
from fastns import CompletedSandbox, Job, Mount, Sandbox, Spec, Template
from fastns.batch import Result

some: bool = bool(input())
template = Template()

assert_type(fastns.run(["a"]), CompletedSandbox[bytes])
assert_type(fastns.run(["a"], text=False, spec=Spec(), timeout=1), CompletedSandbox[bytes])
assert_type(fastns.run(["a"], capture_output=True, text=True, check=True).stdout, str)
assert_type(fastns.run(["a"], text=some), CompletedSandbox[Any])
assert_type(fastns.run(["a"], encoding="utf-8"), CompletedSandbox[Any])
assert_type(template.run(["a"], stdout=fastns.PIPE), CompletedSandbox[bytes])
assert_type(template.run(["a"], text=True, input="x").stderr, str)

assert_type(fastns.spawn(["a"]), Sandbox[bytes])
assert_type(fastns.spawn(["a"], text=True, pass_fds=[3]).communicate("x"), tuple[str, str])
assert_type(template.spawn(["a"], text=True), Sandbox[str])
with fastns.spawn(["a"], stdout=fastns.PIPE) as handle:
    assert_type(handle.communicate(), tuple[bytes, bytes])

assert_type(fastns.run_batch([["a"], Job(["b"], cwd=Path("/"))]), list[Result[bytes]])
assert_type(fastns.run_batch([["a"]], text=True, concurrency=2), list[Result[str]])
assert_type(template.run_batch([["a"]], text=True), list[Result[str]])


def bare(done: CompletedSandbox, handle: Sandbox) -> Any:
    """The type parameters may be omitted."""
    return done.stdout, handle.stdin


assert_type(Spec().on_output_limit, Literal["truncate", "kill"])
Spec(root_mode="chroot", on_output_limit="kill", mounts=[Mount("/a", type="tmpfs")])

# Each line below must be an error: mypy reports an unneeded `type: ignore`.
Spec(root_mode="chrot")  # type: ignore[arg-type]
Spec(on_output_limit="stop")  # type: ignore[arg-type]
Spec(hostnam="x")  # type: ignore[call-arg]
Mount("/a", type="tmp")  # type: ignore[arg-type]
fastns.run(["a"], txt=True)  # type: ignore[call-overload]
fastns.run("a b", text=1)  # type: ignore[call-overload]
template.run(["a"], spec=Spec())  # type: ignore[call-overload]
fastns.spawn(["a"], text=True).communicate(b"x")  # type: ignore[arg-type]
