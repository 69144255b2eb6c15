"""The lists of ops and stages (csrc/shared/*.def), and everything that must agree with them.

`pytest tests/unit/test_ops.py --update` writes the tables in docs/architecture/ops.md from the
lists.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import support
from plans import NESTED, ROOT, TREES, USER, compiled, template

from fastns.spec import IDMapping, Mount, Rlimit, Spec

pytestmark = pytest.mark.usefixtures("made_up_host")

TOP = support.TESTS.parent
PAGE = TOP / "docs" / "architecture" / "ops.md"
FIELDS = ("source", "target", "type", "data", "flags", "arg", "how")


def entries(name: str) -> list[list[str]]:
    """The arguments of each entry of a list, with strings unquoted."""
    text = (TOP / "csrc" / "shared" / f"{name}.def").read_text()
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    found = re.findall(r'^FNS_\w+\((\w+), (\w+),((?:\s*"(?:[^"\\]|\\.)*",?)+)\)$', text, re.M)
    assert len(found) == text.count("\nFNS_"), "an entry that is not understood"
    # Python joins adjacent strings as C does.
    return [[code, op, *ast.literal_eval(f"({strings.strip()},)")] for code, op, strings in found]


@dataclass(frozen=True)
class Listed:
    code: str
    name: str
    needs: str
    stages: str
    about: str
    fields: str


OPS = [Listed(*entry) for entry in entries("ops")]
STAGES = entries("stages")
BY_NAME = {op.name: op for op in OPS}


def fields_of(op: Listed) -> set[str]:
    """The fields that an op uses. `as MASK` includes those of the op MASK."""
    named = set()
    for part in op.fields.split(";"):
        named |= {*re.findall(r"\w+", part.partition(":")[0])} & {*FIELDS}
    for other in re.findall(r"as ([A-Z_]+)\b", op.fields):
        named |= fields_of(next(listed for listed in OPS if listed.code == other))
    return named


BOX: dict[str, Any] = {"rootfs": "/srv/root", "hostname": "box", "domainname": "dom"}
RANGE = [IDMapping(0, 100000, 1000)]
SPECS = [
    (Spec(), ROOT),
    (Spec(), USER),
    (Spec(), NESTED),
    (Spec(**BOX, mounts=[Mount("/mnt", source="/srv"), Mount("/t", "tmpfs")]), TREES),
    (Spec(**BOX, overlay=True, read_only=True, files={"/a": b"a"}), ROOT),
    (Spec(**BOX, die_with_parent=True), ROOT),
    (Spec(**BOX, root_mode="chroot", landlock={"read": ["/"], "write": ["/tmp"]}), USER),
    (Spec(**BOX, capabilities=["NET_ADMIN"], user="5:6", additional_gids=[7]), ROOT),
    (Spec(uid_mappings=RANGE, gid_mappings=RANGE, rlimits=[Rlimit("nofile", 64, 64)]), USER),
    (Spec(namespaces={"pid": "/n/pid", "user": "/n/user", "network": "/n/net"}), ROOT),
]


def all_ops() -> Iterator[Any]:
    for spec, caller in SPECS:
        yield from compiled(spec, caller).ops
    for spec, caller in (*SPECS[:2], (Spec(**BOX, overlay=True), ROOT)):
        plan = template(spec, caller)
        assert plan.sandbox is not None
        yield from (*plan.ops, *plan.sandbox.ops)


def test_each_op_is_named_after_its_code() -> None:
    assert [op.code.lower() for op in OPS] == [op.name for op in OPS]
    assert len(BY_NAME) == len(OPS)


def test_python_has_the_stages_of_the_list() -> None:
    known = {name for _, name, _ in STAGES}
    assert {stage for op in OPS for stage in op.stages.split()} <= known - {"none"}


def test_plans_use_the_stages_and_fields_that_are_listed() -> None:
    ops = list(all_ops())
    missing = {*BY_NAME} - {op.code for op in ops}
    assert missing == {"cgroup"}, "SPECS has no spec with these ops"  # it needs a host with cgroups
    for op in ops:
        listed = BY_NAME[op.code]
        assert op.stage in listed.stages.split(), op
        used = {field for field in FIELDS if getattr(op, field)}
        assert used <= fields_of(listed) | {"source"}, op


def test_what_an_op_needs_is_one_of_its_fields() -> None:
    letters = {"S": "source", "T": "target", "Y": "type"} | dict.fromkeys("DBGFL", "data")
    for op in OPS:
        assert {letters[need] for need in op.needs} <= fields_of(op), op


def tables() -> str:
    ops = [
        f"| `{op.name}` | {op.about} | {' '.join(f'`{stage}`' for stage in op.stages.split())} "
        f"| {op.fields} |"
        for op in OPS
    ]
    stages = [f"| `{name}` | {about} |" for _, name, about in STAGES if name != "none"]
    return "\n".join(
        [
            "## Ops\n",
            "| op | does | stages | fields |\n| --- | --- | --- | --- |",
            *ops,
            "\n## Stages\n",
            "| stage | step |\n| --- | --- |",
            *stages,
            "",
        ]
    )


def test_the_page_has_the_tables(update: bool) -> None:
    start, _, _ = PAGE.read_text().partition("## Ops\n")
    if update:
        PAGE.write_text(start + tables())
    assert PAGE.read_text() == start + tables()
