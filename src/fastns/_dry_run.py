"""Plan.describe(): a plan as text, which `fastns run --dry-run` prints."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastns._core import Plan


def lines(plan: Plan) -> list[str]:
    """The ops in order, a line each."""
    found = []
    if plan.hop:
        found.append("hop: a process that joins namespaces first clones the sandbox")
    found.append("clone: " + (" ".join(plan.namespaces) or "no new namespace"))
    if plan.ids is not None:
        uid, gid, size = plan.ids
        found.append(f"id_map: range uids 0 {uid} {size}, gids 0 {gid} {size}")
    elif plan.id_map != "none":
        found.append(f"id_map: {plan.id_map}")
    owners = {}
    if plan.binds:
        from fastns._policy.owners import notes

        owners = notes(plan)
    for i, op in enumerate(plan.ops):
        kept = owners.get(op.target or b"", "") if op.code == "bind" else ""
        found.append(f"{op.stage}[{i}] {op}{kept}".rstrip())
    found.append("chdir " + os.fsdecode(plan.cwd))
    return found
