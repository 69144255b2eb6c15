"""Compares two sandboxes by their results and the probe's reports, except what always differs."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

_NUMBER = re.compile(r"\[\d+\]")
_GROUP = re.compile(r"/\d+-[0-9a-f]{8}/\d+")
_FLEETING = ("boottime", "monotonic", "queues")
_OF_STAT = ("inode", "device", "nlink", "size")


def normalised(report: dict[str, Any], host: dict[str, str]) -> dict[str, Any]:
    """The report without what always differs. Each namespace becomes the host's, which are given in
    `host`, or the sandbox's own."""
    report = {name: value for name, value in report.items() if name not in _FLEETING}
    own = report["pid"]
    if own > 1:  # in a room, each command has another
        for name in ("pid", "sid", "pgid"):
            report[name] = "its own" if report[name] == own else "another's"
        if report["proc_pids"]:
            report["proc_pids"] = ["its own" if pid == own else pid for pid in report["proc_pids"]]
    for fd in report["fds"]:
        fd["target"] = fd["target"] and _NUMBER.sub("", fd["target"])
    if report["namespaces"]:
        report["namespaces"] = {
            kind: "the host's" if link == host[kind] else "its own"
            for kind, link in report["namespaces"].items()
        }
    for mount in report["mounts"] or ():
        del mount["id"], mount["parent"], mount["device"]
        mount["propagation"] = [_NUMBER.sub("", part) for part in mount["propagation"]]
        for name in ("options", "super_options"):
            mount[name] = sorted(mount[name])
        mount["propagation"] = [re.sub(r"\d+", "N", part) for part in mount["propagation"]]
    if report["cgroup"]:
        report["cgroup"] = _GROUP.sub("/N-N/N", report["cgroup"])
    for name in ("root", "dev"):
        for stat in (report[name] or {}).values():
            for field in _OF_STAT:
                if stat:
                    stat.pop(field, None)
    if isinstance(report["keyring"], int):
        report["keyring"] = "one"
    return report


def seen_by(one: Any, host: dict[str, str]) -> Any:
    """One sandbox's result, with its output parsed as a report if it is one."""
    seen = dict(one)
    with contextlib.suppress(ValueError):
        seen["out"] = normalised(json.loads(one["out"]), host)
    return seen


def difference(want: Any, have: Any, place: str = "") -> list[str]:
    """The differences between two postures, one per line."""
    if isinstance(want, dict) and isinstance(have, dict):
        lines = []
        for key in {**want, **have}:
            if key not in have:
                lines.append(f"{place}.{key}: missing")
            elif key not in want:
                lines.append(f"{place}.{key}: {have[key]!r} besides")
            else:
                lines += difference(want[key], have[key], f"{place}.{key}")
        return lines
    if isinstance(want, list) and isinstance(have, list) and len(want) == len(have):
        lines = []
        for i, (one, other) in enumerate(zip(want, have, strict=True)):
            lines += difference(one, other, f"{place}[{i}]")
        return lines
    if want == have:
        return []
    return [f"{place}: {_short(have)} instead of {_short(want)}"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "..."
