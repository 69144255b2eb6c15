"""The race as pictures (SVG)."""

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt

OURS, OTHERS, BARE = (
    "#0072b2",
    "#999999",
    "#444444",
)  # told apart by colour-blind people, and in grey
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
    """Writes all of them; their names."""
    drawn = {
        "latency": latency(data),
        "rate": rate(data),
        "memory_mib": lines(
            data, data["memory_mib"], "memory touched in the caller, MiB", log=True
        ),
        "mounts": lines(data, data["mounts"], "mounts more than the host's own"),
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


def colour(key: str) -> str:
    return OURS if key.startswith("fastns") else BARE if key == "posix_spawn" else OTHERS


def latency(data: dict[str, Any]) -> Any:
    times = data["latency_us"]
    keys = sorted(times, key=lambda key: -times[key]["median"])
    figure, axes = plt.subplots(figsize=(8, 0.42 * len(keys) + 1.2))
    for row, key in enumerate(keys):
        found = times[key]
        axes.barh(row, found["median"] / 1000, color=colour(key), height=0.62)
        for name, mark in (("p95", "|"), ("p99", "x")):
            axes.plot(found[name] / 1000, row, mark, color="black", markersize=7)
        text = f"{found['median'] / 1000:.2f} ms"
        axes.text(found["p99"] / 1000 * 1.12, row, text, va="center", fontsize=9)
    axes.set_yticks(range(len(keys)), [name_of(data, key) for key in keys])
    axes.set_xscale("log")
    axes.set_xlim(0.3, max(found["p99"] for found in times.values()) / 1000 * 2.2)
    axes.set_xlabel("one start to reaped, ms, log scale; bar: median, | p95, x p99")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(axis="y", visible=False)
    return figure


def rate(data: dict[str, Any]) -> Any:
    figure, axes = plt.subplots(figsize=(8, 4.2))
    for number, (key, values) in enumerate(data["rate"].items()):
        at = [int(size) for size in values]
        style = {"color": LINES[number % 5], "marker": MARKS[number % 5]}
        dashed = "--" if "batch" in key else "-"
        axes.plot(at, list(values.values()), dashed, label=name_of(data, key), **style)
    axes.set_xscale("log", base=2)
    axes.set_xticks(at, [str(size) for size in at])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("threads, or alive at once in run_batch")
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
    axes.set_ylim(bottom=0)
    axes.set_xlabel(label)
    axes.set_ylabel("one start to reaped, ms (median)")
    axes.legend(frameon=False)
    return figure


def live(data: dict[str, Any]) -> Any:
    found = data["live"]["start_us"]
    figure, axes = plt.subplots(figsize=(8, 3.6))
    at = [int(size) for size in found]
    axes.plot(at, [value / 1000 for value in found.values()], "o-", color=OURS)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("sandboxes of the same template that are alive")
    axes.set_ylabel("one more start, ms (median)")
    return figure


def layers(data: dict[str, Any]) -> Any:
    found = dict(data["layers_us"])
    other = found.popitem()
    figure, axes = plt.subplots(figsize=(8, 3.6))
    before = 0.0
    for row, value in enumerate(found.values()):
        axes.barh(row, value - before, left=before, color=BARE if row == 0 else OURS, height=0.62)
        more = f"{value:.0f}" if row == 0 else f"{value - before:+.0f}"
        axes.text(max(value, before) + 8, row, more, va="center", fontsize=9)
        before = value
    axes.barh(len(found), other[1], color="#56b4e9", height=0.62)
    axes.text(other[1] + 8, len(found), f"{other[1]:.0f}", va="center", fontsize=9)
    axes.set_yticks(range(len(found) + 1), [*found, other[0]])
    axes.invert_yaxis()
    axes.set_xlabel("µs (medians of one run)")
    axes.grid(axis="y", visible=False)
    return figure
