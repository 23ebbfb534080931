"""Rows -> docs/performance.md and its chart; nothing is measured here."""

import json
import math
import statistics
from pathlib import Path

from cases import has_target
from measure import ratio, resolved

NO_PEERS = "ours", "copy", "nothing"
WORDS = {"contiguous": "contiguous (NCHW)", "channels_last": "channels_last"}


def median_ms(seconds):
    return statistics.median(seconds) * 1e3


def best(seconds, names):
    """The contender of `names` with the smallest median."""
    return min(
        (n for n in names if n in seconds), key=lambda n: median_ms(seconds[n]), default=None
    )


def shown(interval):
    """A ratio with its interval."""
    value, low, high = interval
    text = f"{value:.2f} ({low:.2f}-{high:.2f})"
    return text if resolved(interval) else f"{text}, not resolved"


def figures(row, layout, mine="ours"):
    """What one row says of ours in one layout: ratios with their intervals."""
    seconds = row["seconds"]
    ours = seconds[f"{mine}, {layout}"]
    fastest = best(seconds, [n for n in seconds if not n.startswith(NO_PEERS)])
    floor = [t * row["passes"] / 2 for t in seconds["copy"]]
    return {
        "ms": median_ms(ours),
        "eager": ratio(seconds[f"torch eager, {layout}"], ours),
        "fastest": ratio(seconds[fastest], ours),
        "peer": fastest,
        "floor": ratio(ours, floor),
        "nothing": f"{share:.2f}" if (share := over_nothing(row, layout, mine)) else "",
    }


def over_nothing(row, layout, mine="ours"):
    """The time of an autograd function that computes nothing, over ours; in place makes no room."""
    seconds = row["seconds"]
    if mine != "ours":
        return None
    return ratio(seconds[f"nothing, {layout}"], seconds[f"ours, {layout}"])[0]


def over_floor(row):
    """Time over that of the reads and writes that no implementation can avoid."""
    floor = [t * row["passes"] / 2 for t in row["seconds"]["copy"]]
    return ratio(row["seconds"]["ours"], floor)[0]


def geometric_mean(values):
    return math.exp(statistics.fmean(map(math.log, values)))


def summary(rows, kept):
    """The targets and what was reached; `kept` are rows measured where freed memory is kept."""
    lines = ["| forward + backward with ReLU, float32, shapes of the ResNets | aimed at | geometric mean | least | most |",
             "| --- | --- | ---: | ---: | ---: |"]  # fmt: skip
    chosen = [r for r in rows if has_target(**r)]

    def line(words, aim, values):
        if values:
            mean = geometric_mean(values)
            lines.append(
                f"| {words} | {aim} | {mean:.2f} | {min(values):.2f} | {max(values):.2f} |"
            )

    for layout, aim in (("contiguous", "4, never below 1"), ("channels_last", "2, never below 1")):
        found = [figures(r, layout) for r in chosen if layout in r["layouts"]]
        line(f"times torch eager's speed, {WORDS[layout]}", aim, [f["eager"][0] for f in found])
    for row in kept:
        found = [ratio(r["seconds"]["torch"], r["seconds"]["ours"])[0] for r in row["cases"]]
        line(f"the same where freed memory is kept, {WORDS[row['kept']]}", "", found)
    for layout in WORDS:
        found = [over_nothing(r, layout) for r in chosen if layout in r["layouts"]]
        line(f"an empty autograd function's time over ours, {WORDS[layout]}", "", found)
    either = [max(figures(r, k)["fastest"][0] for k in r["layouts"]) for r in chosen]
    line("times the fastest peer's, each in its best layout", "1.5", either)
    large = [r for r in rows if r["megabytes"] > 64 and r["work"] == "training"]
    line("over 64 MB: time over the traffic floor", "1.5",
         [figures(r, k)["floor"][0] for r in large for k in r["layouts"]])  # fmt: skip
    for row in kept:
        found = [over_floor(r) for r in row["cases"] if r["megabytes"] > 64]
        line(f"over 64 MB where freed memory is kept, {WORDS[row['kept']]}", "1.5", found)
    line("over 64 MB, in place: time over the traffic floor", "1.5",
         [figures(r, k, "ours in place")["floor"][0]
          for r in large for k in r["layouts"] if f"ours in place, {k}" in r["seconds"]])  # fmt: skip
    return [*lines, "", *halves(rows), "", *small(rows)]


def halves(rows):
    """bfloat16 against float32 of the same values, timed in the same rounds."""
    lines = ["| bfloat16's time over float32's (aimed at 0.7) | contiguous | channels_last |",
             "| --- | ---: | ---: |"]  # fmt: skip
    for row in (r for r in rows if r["dtype"] == "bfloat16"):
        seconds = row["seconds"]
        cells = [
            shown(ratio(seconds[f"ours, {k}"], seconds[f"ours in float32, {k}"]))
            if k in row["layouts"] else ""
            for k in WORDS
        ]  # fmt: skip
        lines.append(f"| {row['case'].replace(' bfloat16', '')} | {' | '.join(cells)} |")
    return lines


def small(rows):
    """Inputs so small that what surrounds the kernels decides."""
    lines = ["| small inputs, training step of one layer | aimed at | ours over torch's time |",
             "| --- | --- | ---: |"]  # fmt: skip
    for row in (r for r in rows if r["group"] == "small"):
        aim = "1.5" if tuple(row["shape"]) == (32, 64) else "1.0"
        seconds = row["seconds"]
        interval = ratio(seconds["ours, contiguous"], seconds["torch eager, contiguous"])
        lines.append(f"| {row['case']} | {aim} | {shown(interval)} |")
    return lines


def table(rows):
    """A line for each row and layout."""
    lines = [
        "| case | layout | ours, ms | times torch eager's speed | times the fastest peer's | that peer | over the floor | an empty function's time over ours |",
        "| --- | --- | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    for row in rows:
        if "failed" in row:
            lines.append(f"| {row['case']} | | not timed: {row['failed']} | | | | | |")
            continue
        for mine in ("ours", "ours in place"):
            for layout in row["layouts"]:
                if f"{mine}, {layout}" not in row["seconds"]:
                    continue
                f = figures(row, layout, mine)
                note = ", in place" if mine != "ours" else ""
                lines.append(
                    f"| {row['case']}{note} | {layout} | {f['ms']:.3f} | {shown(f['eager'])} | "
                    f"{shown(f['fastest'])} | {f['peer']} | {f['floor'][0]:.2f} | {f['nothing']} |"
                )
    return lines


def steps(rows):
    """The whole training step."""
    lines = [
        "| ResNet-18, 32x32 images | with `BatchNormAct2d` (aimed at 1.12) | with torch's | torch's, adopted |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in rows:
        seconds = row["seconds"]
        names = "ours", "torch", "adopted"
        cells = [shown(ratio(seconds[n], seconds["without"])) for n in names if n in seconds]
        lines.append(f"| {row['step']} | {' | '.join(cells)} |")
    return lines


def memory(rows):
    """Peak memory of a step."""
    lines = [
        "| batch norm | added at the peak, MB | kept for the backward pass, MB |",
        "| --- | ---: | ---: |",
    ]
    for r in rows:
        lines.append(f"| {r['memory']} | {r['peak_megabytes']:.0f} | {r['kept_megabytes']:.0f} |")
    return lines


def faults(rows):
    """The price of fresh memory."""
    lines = ["| C library | ours, ms | torch eager, ms | one copy into warm memory, ms |",
             "| --- | ---: | ---: | ---: |"]  # fmt: skip
    for r in rows:
        cells = (f"{median_ms(r['seconds'][n]):.0f}" for n in ("ours", "torch", "copy"))
        lines.append(f"| {r['faults']} | {' | '.join(cells)} |")
    return lines


def chart(rows, path):
    """Speed against torch eager in the same layout, a dot with its interval for each case."""
    import altair as alt
    import vl_convert

    points = []
    for row in rows:
        for layout in row["layouts"]:
            value, low, high = figures(row, layout)["eager"]
            points.append(
                {"case": row["case"], "layout": layout, "times": value, "low": low, "high": high}
            )
    y = alt.Y("case:N", sort=None, title=None, axis=alt.Axis(labelLimit=400))
    color = alt.Color("layout:N", scale=alt.Scale(range=["#2a78b8", "#d0632b"]), title=None,
                      legend=alt.Legend(orient="top"))  # fmt: skip
    scale = alt.Scale(type="log", nice=False)
    base = alt.Chart(alt.Data(values=points))
    dots = base.mark_circle(size=60).encode(
        alt.X(
            "times:Q",
            scale=scale,
            title="times as fast as torch eager in the same layout (log scale)",
        ),
        y,
        color,
    )
    bars = base.mark_rule().encode(alt.X("low:Q", scale=scale), y, color, x2="high:Q")
    rule = (
        alt.Chart(alt.Data(values=[{"one": 1}]))
        .mark_rule(strokeDash=[4, 4], color="#666")
        .encode(alt.X("one:Q", scale=scale))
    )
    drawn = (rule + bars + dots).properties(width=520, background="white")
    path.write_text(vl_convert.vegalite_to_svg(drawn.to_dict()) + "\n")


def draw(path):
    """Write performance.md and its chart beside the rows."""
    path = Path(path)
    run = json.loads(path.read_text())
    kernels = [r for r in run["rows"] if "group" in r]
    timed = [r for r in kernels if "failed" not in r]
    chart(timed, path.with_suffix(".svg"))
    e = run["environment"]
    beside = "".join(f", {name} {e[name]}" for name in ("Numba", "TensorFlow", "JAX") if name in e)
    parts = {
        kind: [r for r in run["rows"] if kind in r] for kind in ("step", "memory", "faults", "kept")
    }
    text = [
        "# Performance",
        "",
        f"Measured on {e['date']} by `make bench`: {e['cpu']}, {e['threads']} threads, {e['system']}, "
        f"Python {e['python']}, torch {e['torch']}, batchnorm {e['batchnorm']}{beside}; the machine's load average "
        f"when it began was {e['load']:.1f}.",
        "",
        "Each case was checked against float64 before it was timed. Contenders ran in turn, in random order; "
        "ratios are medians over rounds with a bootstrap 95 % interval, and \"not resolved\" where the interval "
        "holds 1. The traffic floor is the reads and writes that no implementation can avoid, at the speed at "
        "which this machine copied a tensor of that size into warm memory in the same run; kernels that ask for "
        "memory ahead may be faster than that copy. Small layers are "
        "timed whole, module call and running statistics included.",
        "",
        "## At a glance",
        "",
        *summary(timed, parts["kept"]),
        "",
        "Time of a whole training step over that of the same network without any batch norm:",
        "",
        *steps(parts["step"]),
        "",
        f"![Speed of every case against torch eager]({path.with_suffix('.svg').name})",
        "",
        "## What bounds them",
        "",
        "- **Tensors that no cache holds** cost what their traffic costs. Contiguous, ours moves one five times (x, y; x, dy, "
        "dx: a channel stays in the cache between statistics and normalization) and torch 13 times (statistics; "
        "normalization; ReLU over it; back through ReLU; sums; dx), which alone makes 2.6. With channels last ours moves 8 "
        "(no channel is done before all rows were read), which alone makes 1.6, and is 1.6 times the floor. Beyond that the "
        "kernels prefetch what they will read or write, and write outputs of 8 MB and more with non-temporal stores where "
        "that memory is in use already. That is the state of most layers in a network, where other layers have had the "
        "caches in between.",
        "- **Tensors of a few MB** stay in the caches in a loop over one layer, as here. There arithmetic counts, which is in "
        "float64 for the sake of its digits.",
        "- **Up to half a million elements** what Python does around the kernels counts. An autograd function in Python that "
        "computes nothing, and only makes room for its outputs, takes the share of ours that the tables tell: no kernel "
        "behind such a function could take less.",
        "",
        "## Memory",
        "",
        "A training step of ResNet-18 on 32x32 images with leaky ReLU, which can be undone; each in a process of its own.",
        "",
        *memory(parts["memory"]),
        "",
        "## Large tensors: fresh memory",
        "",
        "Above some 32 MB the C library gets a tensor's memory fresh from the system each time, and the first touch "
        "of every page costs more than the arithmetic. Forward + backward with ReLU of (32, 64, 112, 112), 103 MB:",
        "",
        *faults(parts["faults"]),
        "",
        "Large outputs and gradients of ours lie in memory that earlier ones have left (from 4 MB on, on Linux, with "
        "Numba). What is free beyond 32 MB is offered to the system (`MADV_FREE`), which takes it when it needs "
        "memory: until then it counts as the process's own (`LazyFree` in `/proc/PID/smaps`). In all it is at most a quarter more than "
        "what was in use at one time. For all other tensors, torch's own layers among them, "
        "`batchnorm.keep_freed_memory()` tells glibc to keep what was freed; without a change of the program the "
        "thresholds are raised by `MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=17179869184` in the "
        "environment of the process. Transparent huge pages are asked for by `GLIBC_TUNABLES=glibc.malloc.hugetlb=1`. "
        "All three hold memory back from other processes. Outputs of ours are put into large pages where Linux gives "
        "them on request (`madvise`).",
        "",
        "## Every case",
        "",
        *table(kernels),
        "",
    ]  # fmt: skip
    path.with_suffix(".md").write_text("\n".join(text))
