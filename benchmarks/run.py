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
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

import page
from cases import cases
from contenders import contenders, versions, wrong
from measure import interleaved
from peers import other_frameworks
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
        "system": platform.system(),
        "python": platform.python_version(),
        "malloc": {k: v for k, v in os.environ.items() if k.startswith(("MALLOC_", "GLIBC_"))},
        **versions(),
    }


def run_case(case, rounds, seconds):
    """The row of one case."""
    error = wrong(case, case.layout)
    row = {"case": str(case), **vars(case), "megabytes": case.megabytes, "passes": case.passes}
    row["error_in_eps"] = error
    if not error <= LIMIT[case.dtype]:
        return row | {"failed": f"error of {error:.1f} eps, allowed {LIMIT[case.dtype]}"}
    with other_frameworks(case) as others:
        steps = contenders(case) | others
        row["seconds"] = interleaved(steps, rounds, seconds)
    return row


def run_resnet(rounds, batch):
    """Rows of the whole training step."""
    for layout in ("contiguous", "channels_last"):
        steps = {name: training_step(name, layout, batch) for name in NORMS}
        times = interleaved(steps, rounds, 0.5)
        yield {"case": f"ResNet-18 training step, batch {batch}, {layout}", "seconds": times}


def main():
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few cases, to see that it works")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.05, help="of each timing")
    parser.add_argument("--out", type=Path, default=DOCS / "performance.json")
    parser.add_argument("--draw", action="store_true", help="only draw the page from the rows")
    options = parser.parse_args()
    if not options.draw:
        rows = []
        for case in cases(options.quick):
            if options.only in str(case):
                rows.append(run_case(case, options.rounds, options.seconds))
                median = {k: statistics.median(v) for k, v in rows[-1].get("seconds", {}).items()}
                told = rows[-1].get("failed") or {k: f"{v * 1e3:.3f} ms" for k, v in median.items()}
                print(case, told, flush=True)
        if not options.only:
            rows += run_resnet(options.rounds, 4 if options.quick else 32)
        options.out.parent.mkdir(exist_ok=True)
        options.out.write_text(json.dumps({"environment": environment(), "rows": rows}) + "\n")
    page.draw(options.out)
    return any("failed" in row for row in json.loads(options.out.read_text())["rows"])


if __name__ == "__main__":
    sys.exit(main())
