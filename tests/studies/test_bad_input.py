"""What bad input gets: one line that says what and where; the other studies go on."""

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # as worker processes find the fakes too
from fake_studies import SETUP, Tiny, fake_study, go

from batchnorm.cli import run
from batchnorm.report import render
from batchnorm.studies._context import Context
from batchnorm.studies._plan import planned

BAD = """
import torch
from torch import nn

X = torch.rand(90, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(90) % 3

def fine():
    return X, Y

def one_class():
    return X, torch.zeros(90, dtype=torch.long)

def nan():
    x = X.clone()
    x[41, 2] = torch.nan
    return x, Y

def net():
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))

def images():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))

class Looks(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        z = self.a(x)
        if isinstance(self.a, nn.Linear):
            z = z.relu()
        return self.b(z)

def looks():
    return Looks()
"""


@pytest.fixture
def bad(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bad_input.py").write_text(BAD)
    yield "bad_input:"
    sys.modules.pop("bad_input", None)


@pytest.mark.parametrize(
    ("model", "data", "said"),
    [
        (
            "net", "one_class",
            "data 'bad_input:one_class': every training label is 0; expected at least two classes",
        ),
        (
            "net", "nan",
            "data 'bad_input:nan': x holds NaN or infinity in 1 of 90 examples, first in example 41",
        ),
        (
            "images", "fine",
            "model 'bad_input:images' cannot be trained on data 'bad_input:fine': Sequential cannot "
            "take inputs of shape (54, 6), 54 examples",
        ),
        (
            "missing", "fine",
            "model 'bad_input:missing': 'bad_input' has no function 'missing'",
        ),
    ],
)  # fmt: skip
def test_what_no_study_can_use_is_one_line_and_nothing_is_written(bad, capsys, model, data, said):
    assert run(["study", "--model", bad + model, "--data", bad + data, "--out", "run"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert said in shown.err
    assert not Path("run").exists()


def test_images_that_the_small_cnn_refuses_are_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["study", "--model", "cnn", "--data", "breast_cancer"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "model 'cnn' takes images of shape (channels, height, width); an example of data" in err


def test_a_model_that_insertion_leaves_alone_has_a_page_that_says_why(bad, capsys):
    words = ["study", "speed", "learning_rate", "--model", bad + "looks", "--data", bad + "fine"]
    assert run([*words, "--out", "run"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "does not apply batch norm finds no place in bad_input:looks (b: no activation" in out
    assert "a: its forward looks at the module itself" in out
    assert "batch norm finds no place in bad_input:looks" in Path("run/report.html").read_text()


def unplannable(why):
    def trials(setup):
        raise why

    study = fake_study("bad", [])
    study.trials = trials
    return study


@pytest.mark.parametrize(
    ("why", "said"),
    [
        (ValueError("batch norm cannot be put into 'mine:net': no way"), "batch norm cannot be"),
        (KeyError("depth"), "KeyError: 'depth' (test_bad_input.py, line "),
    ],
)
def test_a_study_that_cannot_be_planned_fails_alone_and_the_page_shows_it(tmp_path, why, said):
    good = fake_study("good", [Tiny(seed=seed) for seed in range(3)])
    with ThreadPoolExecutor(1) as pool:
        found = go([unplannable(why), good], tmp_path, executor=pool, draw=render)
    assert found.failed["bad"].startswith(said)
    assert [verdict.study for verdict in found.verdicts] == ["good"]
    entries = json.loads((tmp_path / "manifest.json").read_text())["studies"]
    assert [entry["status"] for entry in entries] == ["failed", "done"]
    assert found.failed["bad"].replace("'", "&#39;") in (tmp_path / "report.html").read_text()


def test_a_run_of_which_nothing_can_be_planned_is_refused():
    with pytest.raises(ValueError, match="no way at all"):
        planned([unplannable(ValueError("no way at all"))], SETUP, Context())


FULL = """
import resource, sys
sys.path.insert(0, {here!r})
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
from batchnorm import cli
sys.exit(cli.run({words!r}))
"""


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(bad, tmp_path):
    """The kernel refuses to write beyond a size: into the trials; and, later, into the page."""
    words = ["study", "learning_rate", "--model", bad + "net", "--data", bad + "fine"]
    words += ["--out", "run", "--jobs", "1"]
    kept = 0
    for size, name in ((20_000, "trials.jsonl"), (900_000, "report.html")):
        code = FULL.format(here=str(Path(__file__).parent), size=size, words=words)
        full = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert full.returncode == 2, full.stderr
        last = full.stderr.splitlines()[-1]
        assert re.fullmatch(
            rf"batchnorm: run/{name}: File too large; finished trials are kept: make room, and the "
            "same command goes on",
            last,
        ), full.stderr
        assert "Traceback" not in full.stderr
        assert not kept or f"trials, {kept} finished earlier" in full.stderr
        before, kept = kept, Path("run/trials.jsonl").read_bytes().count(b"\n")
        assert kept > before
        assert not Path("run/report.html").exists()
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    again = subprocess.run(
        [sys.executable, "-m", "batchnorm", *words], capture_output=True, text=True, env=env
    )
    assert again.returncode == 0, again.stderr
    assert f"trials, {kept} finished earlier" in again.stderr
    assert Path("run/report.html").exists()
