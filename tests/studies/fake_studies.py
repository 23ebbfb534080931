"""Trials of a few milliseconds and studies of them, importable by worker processes too."""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch

from batchnorm.studies._carry_out import carry_out
from batchnorm.studies._context import Context
from batchnorm.studies._manifest import about
from batchnorm.studies._plan import planned
from batchnorm.studies._trial import Setup, Trial
from batchnorm.studies._verdict import Verdict

SETUP = Setup(data="digits8x8")


@dataclass(frozen=True)
class Tiny(Trial):
    """Learns nothing, but its rows come from the seed through torch's own generator."""

    data: str = "digits8x8"
    do: str = "learn"
    pause: float = 0.0
    flag: str = ""

    def run(self, fingerprint=None):
        torch.manual_seed(self.seed)
        time.sleep(self.pause)  # here, where another thread's seed would show
        if self.do == "wait":  # until so many may run as the file says
            while int(Path(self.flag).read_text() or 0) <= self.seed:
                time.sleep(0.01)
        if self.do == "raise":
            raise ValueError("this trial\nalways raises")
        if self.do == "exit":
            sys.exit("leaving")
        if self.do == "die" or (self.do == "die once" and not Path(self.flag).exists()):
            if self.flag:
                Path(self.flag).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        x, rows = torch.randn(50, 50), []
        for step in range(4):
            x = torch.tanh(x @ x)
            loss = float("nan") if self.do == "nan" and step == 3 else x.mean().item()
            accuracy = x.std().item()
            rows.append({"step": step, "loss": loss, "validation_accuracy": accuracy})
        return rows


def fake_study(name, trials, *, measure=None, timings=()):
    """A study of these trials whose one verdict is the mean of their losses."""

    def mean(rows):
        losses = [row["loss"] for row in rows if row.get("loss") is not None]
        value = sum(losses) / len(losses)
        return [Verdict(name, "a claim", "mean loss", value, None, 1.0, "supported", "", "none")]

    chart = SimpleNamespace(to_dict=lambda: {"title": "Losses", "mark": "point", "data": {}})
    return SimpleNamespace(
        NAME=name,
        LECTURE="L0",
        TITLE=f"The title of {name}",
        CLAIM="a claim",
        METHOD="a method",
        PUBLISHED="nowhere",
        trials=lambda setup: trials,
        timings=lambda setup: list(timings),
        measure=measure or mean,
        charts=lambda rows: {"losses": chart},
    )


def go(
    studies,
    out,
    *,
    setup=SETUP,
    jobs=2,
    executor=None,
    fresh=False,
    on_progress=None,
    draw=lambda folder: folder,
):
    """As :func:`batchnorm.study`, for studies that are no modules and with a page only from ``draw``."""
    import batchnorm.report

    context = Context()
    parts = planned(studies, setup, context)
    head = about(parts, setup, context, out, jobs)
    real, batchnorm.report.render = batchnorm.report.render, draw
    try:
        return carry_out(parts, head, out, context, jobs, executor, fresh, on_progress)
    finally:
        batchnorm.report.render = real


def gated(gate, count=40, pause=0.03):
    """Trials of which as many run as the file ``gate`` says."""
    return [Tiny(seed=s, pause=pause, do="wait", flag=str(gate)) for s in range(count)]


if __name__ == "__main__":
    # A run of its own, for tests that kill it: folder, and the gate of its trials.
    folder, gate = map(Path, sys.argv[1:])
    print(go([fake_study("tiny", gated(gate))], folder, on_progress=print))
