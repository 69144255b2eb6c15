"""Prints interleaved timings as a table of medians, spread and ratios."""

import statistics


def table(title: str, times: dict[str, list[float]], base: str) -> str:
    """One line per contender: median, 10th and 90th percentile in µs, ratio to `base`'s median."""
    reference = statistics.median(times[base])
    width = max(map(len, times))
    lines = [f"{title}", f"{'':{width}}  median    p10    p90  ratio"]
    for name, values in times.items():
        cuts = statistics.quantiles(values, n=10)
        median = statistics.median(values)
        lines.append(
            f"{name:{width}}  {median * 1e6:6.0f} {cuts[0] * 1e6:6.0f} {cuts[-1] * 1e6:6.0f}"
            f"  {median / reference:5.2f}"
        )
    return "\n".join(lines)


def ratio(times: dict[str, list[float]], name: str, base: str) -> float:
    return statistics.median(times[name]) / statistics.median(times[base])
