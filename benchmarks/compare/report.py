"""Writes the race as a page of Markdown."""

from typing import Any

BARE = "posix_spawn"


def markdown(data: dict[str, Any]) -> str:
    parts = [head(data), latency(data), isolation(data), rates(data), growth(data), layers(data)]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(header: list[str], rows: list[list[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def name_of(data: dict[str, Any], key: str) -> str:
    first, *rest = key.split(" ")
    found = data["contenders"].get(first)
    return " ".join([found["name"] if found else first, *rest])


def head(data: dict[str, Any]) -> str:
    machine = data["machine"]
    text = (
        "# The race\n\n"
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, Linux "
        f"{machine['kernel']}, Python {machine['python']}, {machine['date']}. Each contender runs "
        "in a process of its own. In each round each has a turn of four starts, in a random order; "
        "nothing else runs. The first start of a turn is reported separately, because it finds the "
        "caches and idle CPUs as another contender left them. Programs are started by "
        "`subprocess.run`. A start is timed from the call to the reaped process; all start the "
        "same static `true`.\n\n"
        "`make compare` writes this page again. The data are in `compare.json`."
    )
    return text + ("\n\n**A quick look, not a measurement.**" if data["quick"] else "")


def latency(data: dict[str, Any]) -> str:
    times = data["latency_us"]
    bare = times[BARE]["median"]
    best = times.get("fastns_template", times[BARE])["median"]
    rows: list[list[object]] = []
    for key in sorted(times, key=lambda key: times[key]["median"]):
        found = times[key]
        rows.append(
            [
                name_of(data, key),
                round(found["median"]),
                *(round(found[name]) for name in ("p10", "p90", "p95", "p99", "first")),
                f"{found['median'] / bare:.2f}",
                f"{found['median'] / best:.1f}",
                "yes" if data["contenders"][key]["equal"] else "no",
            ]
        )
    header = ["", "median, µs", "p10", "p90", "p95", "p99", "first of a turn", "÷ bare"]
    header += ["÷ Template.run", "equal"]
    missing = "\n".join(f"- {name}: {why}" for name, why in sorted(data["missing"].items()))
    return (
        f"## One start at a time\n\n![latency](latency.svg)\n\n{table(header, rows)}\n\n"
        "*equal*: isolates at least new pid, mount, uts, ipc and cgroup namespaces, the root, "
        "`/proc` and `/tmp`, as a probe saw from inside (next table)."
        + (f"\n\nNot raced:\n\n{missing}" if missing else "")
    )


def isolation(data: dict[str, Any]) -> str:
    def yes(value: object) -> str:
        return "own" if value else "-"

    rows: list[list[object]] = []
    for found in data["contenders"].values():
        seen = found["isolates"]
        rows.append(
            [
                found["name"],
                ", ".join(seen["namespaces"]) or "-",
                yes(seen["network"]),
                yes(seen["root"]),
                yes(seen["proc"]),
                yes(seen["tmp"]),
                "kept" if seen["capabilities"] else "dropped",
                "yes" if seen["seccomp"] else "-",
                found["note"],
                found["version"],
            ]
        )
    header = ["", "namespaces", "network", "root", "/proc", "/tmp", "capabilities", "seccomp"]
    return (
        "## What each isolates\n\nWhat a static program saw inside, compared with what it saw "
        + ("outside.\n\n" + table([*header, "note", "version"], rows))
    )


def rates(data: dict[str, Any]) -> str:
    found = data["rate"]
    columns = list(found[BARE])
    bare = found[BARE]["1"]
    rows: list[list[object]] = [
        [name_of(data, key), *(f"{rate} ({rate / bare:.2f})" for rate in values.values())]
        for key, values in found.items()
    ]
    return (
        "## Starts a second\n\n![rate](rate.svg)\n\nThe columns are the number of threads, or of "
        "sandboxes alive at once in `run_batch`. In brackets: the ratio to one thread of "
        "`os.posix_spawn`.\n\n" + table(["", *columns], rows)
    )


def growth(data: dict[str, Any]) -> str:
    parts = []
    for key, title, unit in (
        ("memory_mib", "The caller's memory", "MiB touched"),
        ("mounts", "The host's mounts", "more mounts"),
    ):
        found = data[key]
        columns = list(next(iter(found.values())))
        rows: list[list[object]] = [
            [name_of(data, name), *(round(value) for value in values.values())]
            for name, values in found.items()
        ]
        header = ["median, µs", *(f"{column} {unit}" for column in columns)]
        parts.append(f"## {title}\n\n![{title}]({key}.svg)\n\n{table(header, rows)}")
    live = data["live"]
    rows = [
        [size, round(start), live["spawn_us"].get(size, ""), live["kib_each"].get(size, "")]
        for size, start in live["start_us"].items()
    ]
    header = ["live", "one more start, µs", "start of the last 1,000, µs", "KiB each"]
    text = f"## Live sandboxes\n\nOf one template.\n\n![live](live.svg)\n\n{table(header, rows)}"
    if "stopped" in live:
        text += f"\n\nStopped at {live['stopped']}"
    parts.append(text)
    if "failed" in data.get("users", {}):
        parts.append(f"## By a user\n\nNot measured: {data['users']['failed']}")
    elif "users" in data:
        users = data["users"]
        ratio = users["unprivileged"]["median"] / users["root"]["median"]
        parts.append(
            f"## By a user\n\n`Template.run` takes an unprivileged user, whose sandboxes have a "
            f"user namespace each, {users['unprivileged']['median']:.0f} µs, and root "
            f"{users['root']['median']:.0f} µs: a ratio of {ratio:.2f}."
        )
    return "\n\n".join(parts)


def layers(data: dict[str, Any]) -> str:
    rows: list[list[object]] = []
    before = 0.0
    for name, value in data["layers_us"].items():
        rows.append([name, round(value), f"{value - before:+.0f}"])
        before = value
    return (
        "## Where the microseconds go\n\n![layers](layers.svg)\n\nEach row has everything above "
        "it. All are direct starts but the last.\n\n" + table(["", "median, µs", "added"], rows)
    )
