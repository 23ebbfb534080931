"""A key stands for code, data and versions; rows of any other are refused where they are made."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # as worker processes find the fakes too
from fake_studies import fake_study, go

from batchnorm.named import sources
from batchnorm.studies import _context, study
from batchnorm.studies._context import Context, Stamp, Stamped
from batchnorm.studies._folder import opened
from batchnorm.studies._trial import Trial
from batchnorm.studies._workers import attempt

PARTS = "from torch import nn\nwidth = 3\n"
MINE = """
import math, parts
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, parts.width), nn.ReLU(), nn.Linear(parts.width, 10))

def data():
    x = torch.rand(60, 64, generator=torch.Generator().manual_seed(0))
    return x, torch.arange(60) % 10
"""
OWN = Trial(network="mine:net", activation="own", data="digits8x8", steps=2, every=2)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of the user's, and one that it imports, in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("parts.py").write_text(PARTS)
    Path("mine.py").write_text(MINE)
    yield tmp_path
    for name in ("mine", "parts"):
        sys.modules.pop(name, None)


def test_the_context_is_code_data_and_versions(mine, monkeypatch):
    Path("other.py").write_text("x = 1\n")
    before = Context().of(OWN)
    assert list(sources("mine:net")) == ["mine", "parts"]
    Path("other.py").write_text("x = 2\n")
    assert Context().of(OWN) == before
    assert Context().of(Trial(data="digits8x8")) != before
    Path("parts.py").write_text(PARTS + "# and more\n")
    assert str(Context().of(OWN)) != str(before)
    Path("parts.py").write_text(PARTS)
    assert Context().of(OWN) == before
    assert Context().of(replace(OWN, data="mine:data")) != before
    monkeypatch.setattr(_context, "_kernels", lambda: "0.0")
    assert Context().of(OWN) != before
    monkeypatch.undo()
    monkeypatch.chdir(mine)
    package = mine / "batchnorm"
    package.mkdir()
    (package / "a.py").write_text("1")
    monkeypatch.setattr(_context, "__file__", str(package / "studies" / "_context.py"))
    changed = Context().of(OWN)
    assert changed != before
    (package / "a.py").write_text("2")
    assert Context().of(OWN) == changed, "this process goes on with what it has imported"
    _context._package.cache_clear()
    assert Context().of(OWN) != changed


def test_weights_that_a_network_reads_from_a_file_are_in_the_key(mine):
    Path("width.txt").write_text("3")
    Path("mine.py").write_text(MINE.replace("parts.width", "int(Path('width.txt').read_text())"))
    Path("mine.py").write_text("from pathlib import Path\n" + Path("mine.py").read_text())
    before = Context().of(OWN)
    assert Context().of(OWN) == before
    Path("width.txt").write_text("4")
    assert OWN.key(str(Context().of(OWN))) != OWN.key(str(before))
    failure = attempt(Stamped(OWN, before)).failure
    assert "'mine:net' starts from other weights in the process that trains than in the" in failure


def test_a_module_beside_the_users_that_has_changed_is_imported_anew(mine):
    before = OWN.run()
    Path("parts.py").write_text("width = 30\n")
    after = OWN.run()
    assert after != before
    Path("parts.py").write_text(PARTS)
    assert OWN.run() == before


def test_what_a_half_written_file_raises_is_told_as_a_change(mine):
    class Meets:
        """A trial that imports ``parts`` while an editor writes it."""

        network = OWN.network

        def run(self, data):
            Path("parts.py").write_text("")
            return OWN.run(data)

    failure = attempt(Stamped(Meets(), Context().of(OWN))).failure
    assert failure.startswith("ValueError: model 'mine:net': parts changed while the run was going")


@pytest.mark.parametrize("file", ["mine.py", "parts.py"])
def test_a_file_edited_during_a_run_stops_its_study_and_leaves_no_rows_under_the_key(mine, file):
    trials = [replace(OWN, seed=seed) for seed in range(6)]
    before, out = {str(t): t.run() for t in trials}, mine / "run"

    def edit(progress):
        if progress.done == 2:
            Path("new").write_text(Path(file).read_text() + "# and more\n")
            os.replace("new", file)  # at once, as editors do: the worker may be reading

    with ThreadPoolExecutor(1) as pool:
        run = go([fake_study("own", trials)], out, executor=pool, on_progress=edit)
    assert run.failed["own"].startswith(
        f"ValueError: model 'mine:net': {file[:-3]} changed while the run was going on; when you "
        "have finished editing, give the same command again: trials that are finished stay"
    )
    with opened(out) as folder:
        assert 2 <= len(folder.finished) < 6
        kept = list(folder.finished.values())
    assert all(rows in before.values() for rows in kept)


def test_a_file_edited_while_its_trial_runs_makes_that_trial_fail(mine, monkeypatch):
    stamped = Stamped(OWN, Context().of(OWN))

    def edited(self, fingerprint):
        Path("mine.py").write_text(MINE + "# and more\n")
        return []

    monkeypatch.setattr(Trial, "run", edited)
    with pytest.raises(ValueError, match="mine changed while the run was going on"):
        stamped.run()


def test_data_that_differs_in_the_worker_is_refused(mine):
    trial = replace(OWN, data="mine:data")
    stamp = Context().of(trial)
    assert attempt(Stamped(trial, stamp)).failure is None
    failure = attempt(Stamped(trial, replace(stamp, data="0" * 16))).failure
    assert failure.startswith(
        f"ValueError: data 'mine:data' came out other (fingerprint {stamp.data}) in the process that"
        " trains than in the one that planned the run (0000000000000000): it has changed meanwhile"
    )
    assert "seed and sort that, and give the same command again" in failure


def test_data_that_has_changed_between_runs_is_read_anew_by_a_worker_that_lives_on(mine):
    Path("shift.txt").write_text("0")
    shifted = MINE.replace("return x,", "return x + int(Path('shift.txt').read_text()),")
    Path("mine.py").write_text("from pathlib import Path\n" + shifted)
    trial, rows = replace(OWN, data="mine:data"), []
    for shift in "010":
        Path("shift.txt").write_text(shift)
        rows.append(Stamped(trial, Context().of(trial)).run())
    assert rows[0] == rows[2] != rows[1]


def test_other_versions_where_trials_run_are_refused(mine):
    stamp = Context().of(OWN)
    other = stamp.base.replace("torch ", "torch 0.")
    failure = attempt(Stamped(OWN, replace(stamp, base=other))).failure
    assert failure.startswith("ValueError: batchnorm or what it stands on has changed since this")
    assert f"planned with {other}, here {stamp.base}; start Python anew and give" in failure


REFUSED = """
import torch
from torch import nn
from mine import net

kept = net()

def same():
    return kept

def shared_average():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))
    model[2].running_mean = average
    return model

average = torch.zeros(10)
generator = torch.Generator()

def drawn():
    model = net()
    with torch.no_grad():
        model[1].weight.normal_(generator=generator)
    return model

def meta():
    with torch.device("meta"):
        return net()

def data():
    return torch.rand(50, 64), torch.arange(50) % 10

def frozen():
    frozen_first.requires_grad_(False)
    return nn.Sequential(nn.Flatten(), frozen_first, nn.ReLU(), nn.LazyLinear(10))

frozen_first = nn.Linear(64, 64)
"""


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            {"model": "refused:same"},
            r"same tensors at every call \(1.bias, 1.weight, 3.bias, \.\.\.\)",
        ),
        ({"model": "refused:shared_average"}, r"same tensors at every call \(2.running_mean\)"),
        (
            {"model": "refused:drawn"},
            "starts from other weights when it is made again with the same",
        ),
        ({"model": "refused:meta"}, "model 'refused:meta': 1.weight has a shape but no values"),
        (
            {"data": "refused:data"},
            "data 'refused:data' is other data at each call, so that no run",
        ),
    ],
)
def test_what_would_not_repeat_is_refused_before_anything_is_written(mine, asked, said):
    Path("refused.py").write_text(REFUSED)
    with pytest.raises(ValueError, match=said):
        study(**{"data": "digits8x8", "out": "run", **asked})
    assert not Path("run").exists()
    sys.modules.pop("refused", None)


def test_a_frozen_part_may_be_shared_and_sizes_may_be_open(mine):
    Path("refused.py").write_text(REFUSED)
    trial = replace(OWN, network="refused:frozen")
    assert len(Stamped(trial, Context().of(trial)).run()) == 2
    sys.modules.pop("refused", None)


def test_a_stamp_says_all_it_holds():
    stamp = Stamp("base", "data", {"a": "1"}, "initial")
    others = [
        replace(stamp, base="x"), replace(stamp, data="x"), replace(stamp, initial="x"),
        replace(stamp, model={"a": "2"}), replace(stamp, model={"b": "1"}),
    ]  # fmt: skip
    assert len({str(one) for one in [stamp, *others]}) == 6
