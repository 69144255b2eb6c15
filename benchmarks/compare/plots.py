"""Draws the race as pictures (SVG)."""

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D

OURS, OTHERS, BARE = (
    "#0072b2",
    "#999999",
    "#444444",
)  # distinguishable by colour-blind people, and in grey
LINES = ["#0072b2", "#d55e00", "#009e73", "#444444", "#cc79a7"]
MARKS = "osD^v"
mpl.rcParams.update(
    {
        "font.size": 10,
        "svg.hashsalt": "fastns",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e4e4e4",
        "axes.axisbelow": True,
        "figure.constrained_layout.use": True,
    }
)


def draw(data: dict[str, Any], to: Path) -> list[str]:
    """Write all pictures; return their names."""
    drawn = {
        "latency": latency(data),
        "rate": rate(data),
        "memory_mib": lines(
            data, data["memory_mib"], "memory touched in the caller, MiB (logarithmic)", log=True
        ),
        "mounts": lines(data, data["mounts"], "mounts on the host, in addition to its own"),
        "live": live(data),
        "layers": layers(data),
    }
    for name, figure in drawn.items():
        figure.savefig(to / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)
    return [f"{name}.svg" for name in drawn]


def name_of(data: dict[str, Any], key: str) -> str:
    first, *rest = key.split(" ")
    found = data["contenders"].get(first)
    return " ".join([found["name"] if found else first, *rest])


def from_zero(axes: Any) -> None:
    """Begin the y axis at zero, and leave room above the highest mark."""
    axes.set_ylim(0, axes.get_ylim()[1] * 1.05)


def colour(key: str) -> str:
    if key.startswith("fastns"):
        return OURS
    return BARE if key in ("posix_spawn", "subprocess_run") else OTHERS


def latency(data: dict[str, Any]) -> Any:
    """Draws dots: bars need a zero, which a logarithmic scale lacks."""
    times = data["latency_us"]
    keys = sorted(times, key=lambda key: -times[key]["median"])
    figure, axes = plt.subplots(figsize=(8, 0.36 * len(keys) + 1.6))
    for row, key in enumerate(keys):
        median, late, latest = (times[key][name] / 1000 for name in ("median", "p95", "p99"))
        paint = colour(key)
        axes.plot([median, latest], [row, row], color=paint, linewidth=1.2)
        axes.plot(median, row, "o", color=paint, markersize=8)
        axes.plot(late, row, "|", color=paint, markersize=9)
        axes.plot(latest, row, "x", color=paint, markersize=6)
        axes.text(latest * 1.1, row, f"{median:.2f} ms", va="center", fontsize=9)
    axes.set_yticks(range(len(keys)), [name_of(data, key) for key in keys])
    axes.set_ylim(-0.6, len(keys) - 0.4)
    axes.set_xscale("log")
    axes.set_xlim(0.5, max(found["p99"] for found in times.values()) / 1000 * 2.4)
    axes.set_xlabel("one start, from the call to the reaped process, ms (logarithmic)")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(axis="y", visible=False)
    explain(
        figure,
        [
            ("o", OURS, "fastns, median"),
            ("o", OTHERS, "others, median"),
            ("o", BARE, "no isolation, median"),
            ("|", BARE, "95 % of starts take less"),
            ("x", BARE, "99 % of starts take less"),
        ],
    )
    return figure


def explain(figure: Any, marks: list[tuple[str, str, str]]) -> None:
    """Explain each mark and colour in words above the axes."""
    handles = [
        Line2D([], [], color=paint, marker=mark, linestyle="", markersize=7, label=words)
        for mark, paint, words in marks
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False)


def rate(data: dict[str, Any]) -> Any:
    figure, axes = plt.subplots(figsize=(8, 4.2))
    for number, (key, values) in enumerate(data["rate"].items()):
        at = [int(size) for size in values]
        style = {"color": LINES[number % 5], "marker": MARKS[number % 5]}
        dashed = "--" if "batch" in key else "-"
        axes.plot(at, list(values.values()), dashed, label=name_of(data, key), **style)
    axes.set_xscale("log", base=2)
    axes.set_xticks(at, [str(size) for size in at])
    from_zero(axes)
    axes.set_xlabel("threads (solid lines), or sandboxes alive at once in run_batch (dashed lines)")
    axes.set_ylabel("starts a second")
    axes.legend(frameon=False, loc="lower right")
    return figure


def lines(data: dict[str, Any], found: dict[str, Any], label: str, log: bool = False) -> Any:
    figure, axes = plt.subplots(figsize=(8, 4.2))
    for number, (key, values) in enumerate(found.items()):
        at = [int(size) for size in values]
        style = {"color": LINES[number % 5], "marker": MARKS[number % 5]}
        axes.plot(at, [v / 1000 for v in values.values()], label=name_of(data, key), **style)
    if log:
        axes.set_xscale("log")
        axes.set_xticks(at, [str(size) for size in at])
        axes.minorticks_off()
    from_zero(axes)
    axes.set_xlabel(label)
    axes.set_ylabel("one start, ms (median)")
    axes.legend(frameon=False)
    return figure


def live(data: dict[str, Any]) -> Any:
    found = data["live"]["start_us"]
    figure, axes = plt.subplots(figsize=(8, 3.6))
    at = [int(size) for size in found]
    axes.plot(at, [value / 1000 for value in found.values()], "o-", color=OURS)
    from_zero(axes)
    axes.set_xlabel("live sandboxes of the same template")
    axes.set_ylabel("one more start, ms (median)")
    return figure


def layers(data: dict[str, Any]) -> Any:
    """A dot is the cost of a start with all layers down to its row; its label is what that adds."""
    found = dict(data["layers_us"])
    name, by_template = found.popitem()
    figure, axes = plt.subplots(figsize=(8, 4.2))
    before = 0.0
    for row, value in enumerate(found.values()):
        axes.plot([before or value, value], [row, row], color=OURS, linewidth=1.2)
        axes.plot(value, row, "o", color=OURS if row else BARE, markersize=8)
        more = f"{value:.0f}" if row == 0 else f"{value - before:+.0f}".replace("-", "\u2212")
        axes.text(max(value, before) + 18, row, more, va="center", fontsize=9)
        before = value
    axes.plot(by_template, len(found), "D", color=OURS, markersize=7)
    axes.text(by_template + 18, len(found), f"{by_template:.0f}", va="center", fontsize=9)
    axes.set_yticks(range(len(found) + 1), [*found, name])
    axes.invert_yaxis()
    axes.set_xlim(0, max(*found.values(), by_template) * 1.12)
    axes.set_xlabel("one start, from the call to the reaped process, µs (medians of one run)")
    axes.grid(axis="y", visible=False)
    explain(
        figure,
        [
            ("o", BARE, "no isolation"),
            ("o", OURS, "fastns.run, with everything above it"),
            ("D", OURS, "Template.run, with everything"),
        ],
    )
    return figure
