"""A whole run: folders equal however it was cut to pieces, and failures kept to their study."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # as worker processes find the fakes too
from fake_studies import SETUP, Tiny, fake_study, gated, go

from batchnorm.report import render
from batchnorm.studies import _context, _folder, study
from batchnorm.studies._asked import STUDIES
from batchnorm.studies._folder import Folder

FAKES = str(Path(__file__).with_name("fake_studies.py"))


@pytest.fixture
def pool():
    with ThreadPoolExecutor(2) as executor:
        yield executor


def trials_in(folder):
    lines = (folder / "trials.jsonl").read_bytes().splitlines()
    return {json.loads(line)["key"]: json.loads(line) for line in lines}


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


def test_rows_do_not_depend_on_the_processes(tmp_path, pool):
    studies = [fake_study("tiny", [Tiny(seed=seed, pause=0.01 * (seed % 3)) for seed in range(9)])]
    runs = [
        go(studies, tmp_path / "one", jobs=1),
        go(studies, tmp_path / "two", jobs=2),
        go(studies, tmp_path / "threads", executor=pool),
    ]
    one, two, threads = (trials_in(run.folder) for run in runs)
    assert one == two == threads
    assert len(one) == 9
    verdicts = [(run.folder / "verdicts.json").read_bytes() for run in runs]
    assert verdicts[0] == verdicts[1] == verdicts[2]


def test_what_a_run_leaves(tmp_path, pool):
    seen = []
    run = go([fake_study("tiny", [Tiny(seed=3)])], tmp_path, executor=pool, on_progress=seen.append)
    names = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert names == [
        ".lock", "charts/tiny-losses.json", "charts/tiny-losses.png", "charts/tiny-losses.svg",
        "manifest.json", "tables/tiny-losses.csv", "tables/verdicts.csv", "timing.json",
        "trials.jsonl", "verdicts.json",
    ]  # fmt: skip
    manifest = manifest_of(tmp_path)
    assert manifest["format"] == 1
    assert manifest["started"] <= manifest["finished"]
    assert manifest["seeds"] == [3]
    entry = manifest["studies"][0]
    assert entry["status"] == "done"
    assert entry["charts"] == [{"name": "tiny-losses", "title": "Losses"}]
    assert entry["keys"] == list(trials_in(tmp_path))
    (verdict,) = json.loads((tmp_path / "verdicts.json").read_text())
    assert verdict["value"] == run.verdicts[0].value
    assert [(p.stage, p.done, p.total) for p in seen] == [
        ("trials", 0, 1), ("trials", 1, 1), ("page", 0, 1)
    ]  # fmt: skip
    assert seen[-1].best[1] == Tiny(seed=3)
    assert repr(run).splitlines()[1:] == ["  tiny: supported", f"  {tmp_path / 'report.html'}"]


def test_equal_trials_run_once_and_serve_both_studies(tmp_path, pool):
    shared = [Tiny(seed=seed) for seed in range(3)]
    studies = [fake_study("a", shared), fake_study("b", [*shared, Tiny(seed=9)])]
    run = go(studies, tmp_path, executor=pool)
    assert run.trials == 4
    assert len((tmp_path / "trials.jsonl").read_bytes().splitlines()) == 4
    assert [verdict.study for verdict in run.verdicts] == ["a", "b"]


def test_a_failing_trial_costs_its_study_only(tmp_path, pool):
    bad = [Tiny(do="raise", seed=5), *(Tiny(seed=seed, pause=0.2) for seed in range(50, 70))]
    good = [Tiny(seed=seed) for seed in range(4)]
    run = go([fake_study("bad", bad), fake_study("good", good)], tmp_path, jobs=2)
    assert [verdict.study for verdict in run.verdicts] == ["good"]
    assert run.failed["bad"].startswith("ValueError: this trial always raises (fake_studies.py")
    assert run.failed["bad"].endswith(
        "in the trial without batch norm, sgd, learning rate 0.1, seed 5"
    )
    assert "\n" not in run.failed["bad"]
    statuses = {e["name"]: e["status"] for e in manifest_of(tmp_path)["studies"]}
    assert statuses == {"bad": "failed", "good": "done"}
    assert len(trials_in(tmp_path)) < 20, "trials that could save nothing were run"
    assert "bad: failed, ValueError" in repr(run)


def test_a_study_that_does_not_apply_or_cannot_measure_says_so(tmp_path, pool):
    def broken(rows):
        return rows[0]["no such thing"]

    studies = [
        fake_study("idle", "there is nothing to normalize"),
        fake_study("broken", [Tiny()], measure=broken),
        fake_study("good", [Tiny()]),
    ]
    run = go(studies, tmp_path, executor=pool)
    assert run.not_applicable == {"idle": "there is nothing to normalize"}
    assert run.failed["broken"].startswith("KeyError: 'no such thing' (test_run.py, line")
    assert [verdict.study for verdict in run.verdicts] == ["good"]


def test_a_diverged_trial_is_a_row_like_others(tmp_path, pool):
    run = go([fake_study("tiny", [Tiny(do="nan"), Tiny(seed=1)])], tmp_path, executor=pool)
    assert run.failed == {}
    losses = [r["rows"][3]["loss"] for r in trials_in(tmp_path).values()]
    assert losses[0] is None
    assert losses[1] is not None


class NoExecutor:
    def submit(self, *args):
        raise AssertionError("a finished trial was run again")


def test_a_finished_run_is_not_run_again(tmp_path, pool):
    studies = [fake_study("tiny", [Tiny(seed=s) for s in range(5)], timings=[Tiny(seed=77)])]
    first = go(studies, tmp_path, executor=pool)
    timing = (tmp_path / "timing.json").read_bytes()
    again = go(studies, tmp_path, executor=NoExecutor())
    assert (again.trials, again.resumed) == (5, 5)
    assert again.verdicts == first.verdicts
    assert (tmp_path / "timing.json").read_bytes() == timing
    with pytest.raises(AssertionError, match="run again"):
        go(studies, tmp_path, executor=NoExecutor(), fresh=True)


def test_a_page_of_something_else_that_will_be_replaced_is_told_beforehand(tmp_path, pool):
    def told(name, out=tmp_path, **options):
        seen = []
        study = fake_study(name, [Tiny(seed=seed) for seed in range(2)])
        go([study], out, executor=pool, on_progress=seen.append, draw=render, **options)
        assert len({progress.replaces for progress in seen}) == 1
        return seen[0].replaces

    assert told("one") == "", "an empty folder"
    assert told("one") == told("one", fresh=True) == "", "the same run again"
    shutil.copytree(tmp_path, tmp_path / "moved" / "here")
    assert told("one", tmp_path / "moved" / "here") == "", "its folder may have moved"
    whose = f"batchnorm study one --data digits8x8 --out {tmp_path}"
    assert told("other") == whose
    assert told("other", setup=replace(SETUP, seed=5)) == whose.replace("one", "other")
    (tmp_path / "report.html").unlink()
    assert told("one") == "", "there is no page to lose"


def test_seconds_are_measured_apart_and_reach_the_measures_only(tmp_path, pool):
    seen = []

    def measure(rows):
        seen.extend(rows)
        return []

    slow, quick = Tiny(seed=1, pause=0.05), Tiny(seed=2)
    studies = [fake_study("tiny", [Tiny()], measure=measure, timings=[slow, quick])]
    go(studies, tmp_path, executor=pool)
    timing = json.loads((tmp_path / "timing.json").read_text())
    seconds = {entry["trial"]["seed"]: entry["seconds"] for entry in timing["trials"]}
    assert 0.05 < seconds[1] < 0.15
    assert seconds[2] < 0.04
    assert [row["seconds"] for row in seen if "seconds" in row] == [seconds[1], seconds[2]]
    assert len(trials_in(tmp_path)) == 1
    assert timing["total_seconds"] > 4 * 0.05


def test_rows_of_other_code_are_not_taken_over(tmp_path, pool, monkeypatch):
    studies = [fake_study("tiny", [Tiny(seed=seed) for seed in range(3)])]
    go(studies, tmp_path, executor=pool)
    monkeypatch.setattr(_context, "version", lambda name: "99.0")
    changed = go(studies, tmp_path, executor=pool)
    assert (changed.trials, changed.resumed) == (3, 0)
    assert len(trials_in(tmp_path)) == 6, "the rows of the old code stay, under their own keys"
    assert set(manifest_of(tmp_path)["studies"][0]["keys"]) == set(list(trials_in(tmp_path))[3:])
    monkeypatch.undo()
    assert go(studies, tmp_path, executor=NoExecutor()).resumed == 3


@pytest.fixture
def gate(tmp_path):
    """How many trials of a run that is :func:`started` may run: on a busy machine too it is not over
    before a test has done with it what it means to."""
    path = tmp_path / "gate"
    path.write_text("40")
    return path


def started(folder, gate):
    # Into a file: workers share a pipe, and its end is not seen before they have ended too.
    with open(folder.with_suffix(".err"), "w") as errors:
        return subprocess.Popen(
            [sys.executable, FAKES, str(folder), str(gate)],
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )


def lines_in(folder):
    path = folder / "trials.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def children_of(pid):
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def test_killed_over_and_over_it_ends_as_if_undisturbed(tmp_path, pool, gate):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    go([fake_study("tiny", gated(gate))], whole, executor=pool)
    delays = random.Random(2015)
    for more in (1, 9, 14):
        before = lines_in(cut)
        gate.write_text(str(min(before + more + 4, 38)))
        process = started(cut, gate)
        wait_until(lambda before=before, more=more: lines_in(cut) >= before + more)
        workers = children_of(process.pid)
        time.sleep(delays.uniform(0, 0.05))
        process.kill()
        process.wait()
        assert before + more <= lines_in(cut) < 40
        assert workers
        wait_until(lambda workers=workers: not any(map(alive, workers)), 10)
    gate.write_text("40")
    last = started(cut, gate)
    assert last.wait() == 0, cut.with_suffix(".err").read_text()
    assert trials_in(cut) == trials_in(whole)
    assert len((cut / "trials.jsonl").read_bytes().splitlines()) == 40, "some trial was run twice"
    assert (cut / "verdicts.json").read_bytes() == (whole / "verdicts.json").read_bytes()


def test_a_second_run_in_the_folder_is_turned_away_while_the_first_lives(tmp_path, pool, gate):
    folder = tmp_path / "run"
    gate.write_text("2")
    first = started(folder, gate)
    wait_until(lambda: lines_in(folder) >= 1)
    studies = [fake_study("tiny", [Tiny(seed=1)])]
    with pytest.raises(BlockingIOError, match="is in use by another run"):
        go(studies, folder, executor=pool)
    first.kill()
    first.wait()
    assert go(studies, folder, executor=pool).failed == {}


def test_interrupted_it_keeps_what_is_finished_and_takes_its_workers_along(tmp_path, gate):
    folder = tmp_path / "run"
    gate.write_text("4")
    process = started(folder, gate)
    wait_until(lambda: lines_in(folder) == 4)
    workers = children_of(process.pid)
    for pid in workers:  # a terminal interrupts the whole group; here its members one by one
        os.kill(pid, signal.SIGINT)
    gate.write_text("10")
    wait_until(lambda: lines_in(folder) == 10)
    assert children_of(process.pid) == workers, "a worker did not outlive its parent's Ctrl-C"
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=30) != 0
    errors = folder.with_suffix(".err").read_text()
    assert errors.count("Traceback") == 1, errors  # the parent's own: this is not the command line
    assert "KeyboardInterrupt" in errors
    wait_until(lambda: not any(map(alive, workers)), 10)
    assert lines_in(folder) == 10
    assert manifest_of(folder)["finished"] is None
    assert json.loads((folder / "unfinished.json").read_text())["total_seconds"] > 0


MINE = """
from torch import nn

def net(outputs=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, outputs))

def number():
    return 3

def narrow():
    return net(3)

def deep():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
"""


def test_an_interrupted_run_says_exactly_how_much_is_kept(tmp_path, pool, monkeypatch):
    seen, add = [], Folder.add

    def add_and_stop(self, *args):
        add(self, *args)
        if len(self.finished) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Folder, "add", add_and_stop)
    studies = [fake_study("tiny", [Tiny(seed=seed) for seed in range(9)])]
    with pytest.raises(KeyboardInterrupt):
        go(studies, tmp_path, executor=pool, on_progress=seen.append)
    assert (seen[-1].done, seen[-1].total) == (3, 9)
    assert lines_in(tmp_path) == 3


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            {"names": "sped"},
            f"no study 'sped': did you mean 'speed'? possible: {', '.join(STUDIES)}",
        ),
        ({"names": ["speed", "x"]}, f"no study 'x'; possible: {', '.join(STUDIES)}"),
        ({"scale": "ful"}, "no scale 'ful': did you mean 'full'? possible: quick, full"),
        ({"jobs": 0}, "jobs is 0: expected a whole number of processes, 1 or more; leave it out"),
        ({"jobs": -3}, "jobs is -3: expected"),
        ({"jobs": 1.5}, "jobs is 1.5: expected"),
        ({"jobs": True}, "jobs is True: expected"),
        ({"jobs": "2"}, "jobs is '2': expected"),
        ({"jobs": 10**9}, "jobs is 1000000000: more than"),
        (
            {"seed": -1},
            "seed is -1: expected a whole number from 0 to 1000000000, the first of the seeds; leave it out for 0",
        ),
        ({"seed": 1.5}, "seed is 1.5: expected"),
        ({"seed": True}, "seed is True: expected"),
        ({"seed": None}, "seed is None: expected"),
        ({"seed": 10**9 + 1}, "seed is 1000000001: expected"),
        ({"names": [1]}, f"no study 1; possible: {', '.join(STUDIES)}"),
        ({"scale": None}, "no scale None; possible: quick, full"),
        ({"scale": ["full"]}, "no scale ['full']: did you mean 'full'? possible"),
        ({"out": ""}, "the output folder has no name: give one, such as runs/study"),
        ({"data": "didgits"}, "no data set 'didgits'"),
        ({"model": "nowhere:net"}, "model 'nowhere:net': importing 'nowhere' from"),
        ({"model": "mine:nett"}, "model 'mine:nett': 'mine' has no function 'nett'; it has net"),
        ({"model": "mine"}, "model 'mine' is not of the form module:function"),
        ({"model": "mine:number"}, "returned int; expected a torch.nn.Module"),
        (
            {"model": "mine:narrow"},
            "model 'mine:narrow' cannot be trained on data 'digits8x8': Sequential gives (60, 3) for inputs of shape (60, 1, 8, 8) in evaluation mode; expected logits of shape (60, 10): one for each of the 10 classes",
        ),
        (
            {"model": "mine:deep"},
            "model 'mine:deep' cannot be trained on data 'digits8x8': Sequential cannot take inputs of shape (60, 1, 8, 8), 60 examples of data 'digits8x8', in evaluation mode: RuntimeError: ",
        ),
        ({"out": "mine.py"}, "the output folder 'mine.py' is a file"),
        ({"out": "."}, "the output folder '.' is not empty and is not the folder of a run"),
    ],
)
def test_wrong_requests_are_refused_before_anything_is_written(tmp_path, monkeypatch, asked, said):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.py")}
    with pytest.raises(ValueError, match=re.escape(said)):
        study(**{"data": "digits8x8", **asked})
    after = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".pyc"}
    assert after == before
    sys.modules.pop("mine", None)


def test_an_interruption_between_the_disk_and_the_memory_is_counted_from_the_disk(
    tmp_path, pool, monkeypatch
):
    seen, write = [], _folder._write

    def write_and_stop(file, content):
        write(file, content)
        if file.name.endswith("trials.jsonl") and lines_in(tmp_path) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(_folder, "_write", write_and_stop)
    studies = [fake_study("tiny", [Tiny(seed=seed) for seed in range(9)])]
    with pytest.raises(KeyboardInterrupt):
        go(studies, tmp_path, executor=pool, on_progress=seen.append)
    assert lines_in(tmp_path) == 3
    assert (seen[-1].done, seen[-1].total) == (3, 9)


def local_network():
    return None


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"names": 3}, f"names is 3: expected one or several of {', '.join(STUDIES)}"),
        (
            {"model": local_network},
            f"model is local_network itself: give its name, model='{__name__}:local_network', since "
            "trials run in other processes, which find it by that name",
        ),
        (
            {"model": lambda: None},
            "model is a function; expected a name, module:function, or cnn: put it at the top of a file, "
            "such as mine.py, and give its name, model='mine:function', since trials run in other",
        ),
        (
            {"model": torch.nn.Linear(1, 1)},
            "model is of type Linear; expected a name, module:function, or cnn: put a function that makes "
            "it into a file, such as mine.py",
        ),
        (
            {"data": (torch.rand(3, 3), torch.arange(3))},
            "data is of type tuple; expected a name, one of digits, digits8x8, breast_cancer, MNIST",
        ),
        ({"out": 5}, "out is 5: expected the path of a folder, such as 'runs/study'"),
        ({"out": None}, "out is None: expected the path"),
        ({"executor": 2}, "executor is 2: expected a concurrent.futures executor"),
        ({"on_progress": "bar"}, "on_progress is 'bar': expected a function that takes Progress"),
    ],
)
def test_objects_where_names_are_expected_are_told_the_name(tmp_path, monkeypatch, asked, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError, match=re.escape(said)):
        study(**asked)
    assert not any(tmp_path.iterdir())


def test_a_missing_library_is_named_with_the_way_to_get_it(monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "loky" else real(name)
    )
    with pytest.raises(
        ImportError, match=r"need loky, not installed here: pip install '\.\[study\]' in the folder"
    ):
        study("speed")
