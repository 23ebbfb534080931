"""Rows -> docs/performance.md and its chart; nothing is measured here."""

import json
import math
import statistics
from pathlib import Path

from measure import ratio, resolved


def best(seconds, names):
    """The contender of `names` with the smallest median."""
    present = [n for n in names if n in seconds]
    return min(present, key=lambda n: statistics.median(seconds[n]), default=None)


def shown(interval):
    """A ratio with its interval."""
    value, low, high = interval
    text = f"{value:.2f} ({low:.2f}-{high:.2f})"
    return text if resolved(interval) else f"{text}, not resolved"


def figures(row):
    """What the table says of one row: name -> (ratio, low, high)."""
    seconds = row["seconds"]
    ours = seconds["ours"]
    found = {}
    same = f"torch eager, {row['layout']}"
    if same in seconds:
        found["eager"] = ratio(seconds[same], ours)
    peers = [n for n in seconds if n not in ("ours", "copy")]
    fastest = best(seconds, peers)
    found["fastest"] = ratio(seconds[fastest], ours)
    found["fastest_name"] = fastest
    floor = [t * row["passes"] / 2 for t in seconds["copy"]]
    found["floor"] = ratio(ours, floor)
    return found


def geometric_mean(values):
    values = list(values)
    return math.exp(statistics.fmean(map(math.log, values))) if values else math.nan


def summary(rows):
    """The targets and what was reached."""
    resnets = [r for r in rows if r.get("group", "").startswith("ResNet") and r["work"] == "training"
               and r["dtype"] == "float32" and r["relu"] and not r["residual"]]  # fmt: skip
    lines = ["| what | geometric mean | least | most |", "| --- | ---: | ---: | ---: |"]
    for layout in ("contiguous", "channels_last"):
        mine = [figures(r) for r in resnets if r["layout"] == layout]
        for key, words in (("eager", "times torch eager's speed in the same layout"),
                           ("fastest", "times the fastest peer's speed, whatever its layout")):  # fmt: skip
            values = [f[key][0] for f in mine if key in f]
            if values:
                lines.append(
                    f"| {layout}: {words} | {geometric_mean(values):.2f} | {min(values):.2f} | {max(values):.2f} |"
                )
    large = [figures(r)["floor"][0] for r in resnets if r["megabytes"] > 64]
    if large:
        lines.append(
            f"| over 64 MB: time over the traffic floor | {geometric_mean(large):.2f} | {min(large):.2f} | {max(large):.2f} |"
        )
    return lines


def table(rows):
    """A line for each row."""
    lines = [
        "| case | ours, ms | times torch eager's speed | times the fastest peer's | that peer | over the floor |",
        "| --- | ---: | ---: | ---: | --- | ---: |",
    ]
    for row in rows:
        if "failed" in row:
            lines.append(f"| {row['case']} | not timed: {row['failed']} | | | | |")
            continue
        f = figures(row)
        ours = statistics.median(row["seconds"]["ours"]) * 1e3
        eager = shown(f["eager"]) if "eager" in f else ""
        lines.append(
            f"| {row['case']} | {ours:.3f} | {eager} | {shown(f['fastest'])} | {f['fastest_name']} | {f['floor'][0]:.2f} |"
        )
    return lines


def steps(rows):
    """The whole training step."""
    lines = ["| training step | with ours | with torch's |", "| --- | ---: | ---: |"]
    for row in rows:
        seconds = row["seconds"]
        cells = [shown(ratio(seconds[n], seconds["without"])) for n in ("ours", "torch")]
        lines.append(f"| {row['case']} | {cells[0]} | {cells[1]} |")
    return lines


def draw(path):
    """Write performance.md beside the rows."""
    run = json.loads(Path(path).read_text())
    kernels = [r for r in run["rows"] if "group" in r]
    models = [r for r in run["rows"] if "group" not in r]
    e = run["environment"]
    text = [
        "# Performance",
        "",
        f"Measured on {e['date']} by `make bench`: {e['cpu']}, {e['threads']} threads, {e['system']}, "
        f"Python {e['python']}, torch {e['torch']}, batchnorm {e['batchnorm']}.",
        "",
        "Each case was checked against float64 before it was timed. Contenders ran in one process in turn, "
        "in random order; ratios are medians over rounds with a bootstrap 95 % interval, and \"not resolved\" "
        "where the interval holds 1. The traffic floor is the reads and writes that no implementation can "
        "avoid, at the speed at which this machine copied a tensor of that size in the same run.",
        "",
        "## At a glance",
        "",
        *summary([r for r in kernels if "failed" not in r]),
        "",
        "Time of a training step of ResNet-18 over the same network without any batch norm:",
        "",
        *(steps(models) if models else ["(not run)"]),
        "",
        "## Every case",
        "",
        *table(kernels),
        "",
    ]  # fmt: skip
    Path(path).with_suffix(".md").write_text("\n".join(text))
