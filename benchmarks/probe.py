"""What has to be measured in a process of its own: peak memory, and the price of fresh memory."""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

MEMORY = ("without", "torch", "ours", "ours in place")
LARGE = (32, 64, 112, 112)
# What the C library may keep of freed memory instead of giving it back to the system.
KEEP = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 34)}
HUGE = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
SETTINGS = {
    "default": ([], {}),
    "`keep_freed_memory()`": (["keep"], {}),
    "thresholds raised": ([], KEEP),
    "transparent huge pages": ([], HUGE),
}


def ask(*words, environment=None):
    """Run this file in a new process and read what it prints."""
    import os

    done = subprocess.run(
        [sys.executable, Path(__file__), *map(str, words)],
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def memory_rows(batch):
    """Peak memory of a training step of ResNet-18 with leaky ReLU, which can be undone."""
    for name in MEMORY:
        yield {"memory": name, "batch": batch, **ask("memory", name, batch)}


def fault_rows(rounds):
    """The same large call under different settings of the C library, in turn."""
    times = {setting: {"ours": [], "torch": [], "copy": []} for setting in SETTINGS}
    for _ in range(rounds):
        for setting, (words, environment) in SETTINGS.items():
            for name, seconds in ask("faults", *words, environment=environment).items():
                times[setting][name].append(seconds)
    for setting, seconds in times.items():
        yield {"faults": setting, "environment": SETTINGS[setting][1], "seconds": seconds}


def kept_rows(rounds):
    """The shapes of the ResNets where the C library keeps what was freed: the kernels alone."""
    for layout in ("contiguous", "channels_last"):
        yield {"kept": layout, "cases": ask("kept", layout, rounds, environment=KEEP)}


def kept(layout, rounds):
    """What was timed of each shape: ours, torch's, and a copy; `run.py` checks what they compute."""
    from cases import cases, has_target
    from contenders import copy_step, eager, ours, step
    from measure import interleaved

    rows = []
    for case in cases():
        if not has_target(**vars(case)):
            continue
        steps = {
            "ours": step(ours(case), case, layout),
            "torch": step(eager(case), case, layout),
            "copy": copy_step(case),
        }
        row = {"case": str(case), "megabytes": case.megabytes, "passes": case.passes}
        rows.append(row | {"seconds": interleaved(steps, rounds, 0.02)})
    return rows


def status(field):
    """Megabytes, from what the system (Linux) says of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return int(kilobytes) * 1024 / 1e6


def forget_peak():
    """Start the peak anew, and say what is in use now."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def memory(name, batch):
    """Megabytes that a step adds to the process at its peak, and that it keeps for backward."""
    import torch
    from resnet import training_step

    step = training_step(name, "contiguous", 1, "leaky_relu")
    step()  # compiles, and makes the optimizer's and the libraries' own memory
    step = training_step(name, "contiguous", batch, "leaky_relu")
    before = forget_peak()
    kept = {}

    def pack(t):
        if not isinstance(t, torch.nn.Parameter):
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    step()
    peak = status("VmHWM") - before
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        step()
    return {"peak_megabytes": peak, "kept_megabytes": sum(kept.values()) / 1e6}


def faults(keep=False):
    """Median seconds of one large forward and backward, and of a copy into warm memory."""
    from cases import Case
    from contenders import copy_step, eager, ours, step

    import batchnorm

    if keep and not batchnorm.keep_freed_memory():
        raise RuntimeError("this C library cannot be told to keep freed memory; expected glibc")
    case = Case("large", LARGE)
    steps = {
        "ours": step(ours(case), case, "contiguous"),
        "torch": step(eager(case), case, "contiguous"),
        "copy": copy_step(case),
    }
    seconds = {}
    for name, run in steps.items():
        run()
        times = []
        for _ in range(7):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        seconds[name] = statistics.median(times)
    return seconds


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    if what == "faults":
        print(json.dumps(faults(*words)))
    else:
        print(json.dumps({"memory": memory, "kept": kept}[what](words[0], int(words[1]))))
