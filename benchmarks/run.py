"""`make bench`: check each case, time it against its peers, write rows; the page is drawn from them.

A case that is not correct is not timed. Run it on a machine that does nothing else.
"""

import argparse
import json
import os
import platform
import statistics
import sys
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

import page
import peers
from cases import cases
from contenders import contenders, versions, ways, wrong
from measure import interleaved
from probe import fault_rows, kept_rows, memory_rows
from resnet import NORMS, training_step

DOCS = Path(__file__).parent.parent / "docs"
LIMIT = {"float32": 64, "bfloat16": 2}  # allowed error in units of the dtype's resolution


def cpu_name():
    """As the system knows it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def environment():
    """What the figures depend on."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[1],
        "system": platform.system(),
        "python": platform.python_version(),
        "malloc": {k: v for k, v in os.environ.items() if k.startswith(("MALLOC_", "GLIBC_"))},
        **versions(),
        **peers.versions(),
    }


def run_case(case, others, rounds, seconds):
    """The row of one case."""
    error = max(wrong(case, *way) for way in product(case.layouts, ways(case)))
    row = {"case": str(case), **vars(case), "megabytes": case.megabytes, "passes": case.passes}
    row |= {"layouts": case.layouts, "error_in_eps": error}
    if not error <= LIMIT[case.dtype]:
        return row | {"failed": f"error of {error:.1f} eps, allowed {LIMIT[case.dtype]}"}
    row["seconds"] = interleaved(contenders(case) | others(case), rounds, seconds)
    return row


def run_resnet(rounds, batch):
    """Rows of the whole training step."""
    for layout in ("contiguous", "channels_last"):
        names = [n for n in NORMS if n != "ours in place"] + ["adopted"]
        steps = {n: training_step(n, layout, batch) for n in names}
        times = interleaved(steps, rounds, 0.5)
        yield {"step": f"batch {batch}, {layout}", "seconds": times}


def told(row):
    """A line for whoever waits."""
    if "failed" in row:
        return f"{row['case']}: {row['failed']}"
    medians = {k: statistics.median(v) * 1e3 for k, v in row.get("seconds", {}).items()}
    rest = {k: v for k, v in row.items() if k.endswith("megabytes") and "case" not in row}
    name = next(str(row[k]) for k in ("case", "step", "memory", "faults", "kept") if k in row)
    return f"{name}: {', '.join(f'{k} {v:.3f}' for k, v in (medians | rest).items())}"


def measured(options):
    """All rows, one after another."""
    with peers.other_frameworks() as others:
        for case in cases(options.quick):
            if options.only in str(case):
                yield run_case(case, others, options.rounds, options.seconds)
    if not options.only:
        batch = 4 if options.quick else 32
        yield from run_resnet(options.rounds, batch)
        yield from memory_rows(batch)
        yield from fault_rows(1 if options.quick else 5)
        yield from kept_rows(1 if options.quick else 5)


def main():
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few cases, to see that it works")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.03, help="of each timing")
    parser.add_argument("--out", type=Path, default=DOCS / "performance.json")
    parser.add_argument("--draw", action="store_true", help="only draw the page from the rows")
    options = parser.parse_args()
    if not options.draw:
        rows, first = [], environment()
        for row in measured(options):
            rows.append(row)
            print(told(row), flush=True)
            options.out.parent.mkdir(exist_ok=True)
            options.out.write_text(json.dumps({"environment": first, "rows": rows}) + "\n")
    page.draw(options.out)
    return any("failed" in row for row in json.loads(options.out.read_text())["rows"])


if __name__ == "__main__":
    sys.exit(main())
