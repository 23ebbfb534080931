"""The command line killed at random moments, again and again, on studies that train for real."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

MINE = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 2))

def data():
    x = torch.rand(600, 4, generator=torch.Generator().manual_seed(0))
    return x, (x.sum(1) > 2).long()
"""
# Rows of training and of procedures; no seconds, which no two runs share.
WORDS = [
    "study",
    "learning_rate",
    "identity",
    "shift",
    "--model",
    "mine:net",
    "--data",
    "mine:data",
]
KILLS = 20


def started(folder, out):
    # Into a file: workers share a pipe, and its end is not seen before they have ended too.
    with open(folder / f"{out}.err", "w") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "batchnorm", *WORDS, "--jobs", "2", "--out", out],
            cwd=folder,
            stdout=errors,
            stderr=errors,
            start_new_session=True,
        )


def records_in(folder):
    path = folder / "trials.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def lines_in(folder):
    path = folder / "trials.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_no_row(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert started(tmp_path, "whole").wait(timeout=600) == 0, (tmp_path / "whole.err").read_text()
    undisturbed = records_in(whole)
    chance, at = random.Random(2015), []
    for kill in range(KILLS):
        process, before = started(tmp_path, "cut"), lines_in(cut)
        if kill % 2:  # while it trains: some trials later
            more = chance.randint(1, len(undisturbed) // KILLS)
            while process.poll() is None and lines_in(cut) < before + more:
                time.sleep(0.002)
        # Or whenever: while it starts, plans, trains or draws.
        time.sleep(chance.uniform(0, 0.3 if kill % 2 else 8))
        if kill % 4 < 2:
            process.kill()  # alone: its workers find out
        elif process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with its workers
        process.wait()
        at.append(lines_in(cut))
    print(f"{len(undisturbed)} trials; finished at each kill: {at}")
    assert sum(0 < lines < len(undisturbed) for lines in at) >= KILLS // 2, at
    last = started(tmp_path, "cut")
    assert last.wait(timeout=600) == 0, (tmp_path / "cut.err").read_text()
    resumed = records_in(cut)
    assert len(resumed) == len(undisturbed), "some trial was run twice"
    assert {r["key"]: r for r in resumed} == {r["key"]: r for r in undisturbed}
    made = sorted(p.relative_to(whole) for p in whole.rglob("*") if p.suffix in (".json", ".csv"))
    assert len(made) > 5
    for name in made:
        if name.name not in ("manifest.json", "timing.json"):  # dates, folder and seconds
            assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    assert not list(cut.glob("*.part")), "half a file stayed behind"
