"""Trials on a Dask cluster: a real scheduler and real workers, one of which is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # as worker processes find the fakes too
from fake_studies import Tiny, fake_study, go

from batchnorm.cli import run
from batchnorm.studies._cluster import cluster

SOURCE = Path(__file__).parents[2] / "src"


def dask(*words, log, folder, **environment):
    paths = os.pathsep.join(map(str, (SOURCE, Path(__file__).parent)))
    with log.open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "dask", *words],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": paths, **environment},
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def wait_for(condition, what, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.05)


class Cluster:
    """A scheduler and workers in processes of their own, ended with the context."""

    def __init__(self, folder):
        self.folder, self.started = folder, []
        file = folder / "scheduler.json"
        self.start("scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", file.name)
        wait_for(lambda: file.exists() and "address" in file.read_text(), "the scheduler")
        self.address = json.loads(file.read_text())["address"]

    def start(self, *words, **environment):
        log = self.folder / f"{len(self.started)}.log"
        self.started.append(dask(*words, log=log, folder=self.folder, **environment))
        return self.started[-1]

    def worker(self, **environment):
        words = ("--nthreads", "1", "--no-nanny", "--no-dashboard")
        before = self.workers()
        process = self.start("worker", self.address, *words, **environment)
        wait_for(lambda: self.workers() == before + 1, "a worker")
        return process

    def workers(self):
        logs = (path.read_text() for path in self.folder.glob("*.log"))
        return sum("Register worker" in line for log in logs for line in log.splitlines())

    def end(self):
        for process in self.started:
            process.kill()
        for process in self.started:
            process.wait()


@pytest.fixture
def started(tmp_path):
    folder = tmp_path / "cluster"
    folder.mkdir()
    cluster = Cluster(folder)
    yield cluster
    cluster.end()


def rows_in(folder):
    lines = (folder / "trials.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert len({record["key"] for record in records}) == len(records), "some trial was run twice"
    return {record["key"]: record["rows"] for record in records}


def test_a_killed_worker_costs_no_row_and_doubles_none(tmp_path, started):
    doomed, _ = started.worker(), started.worker()
    study = fake_study("tiny", [Tiny(seed=seed, pause=0.1) for seed in range(24)])
    go([study], tmp_path / "here", jobs=1)
    seen, killed = [], []

    def kill_in_the_middle(progress):
        seen.append(progress.done)
        if progress.done == 8 and not killed:
            killed.append(doomed.pid)
            os.kill(doomed.pid, signal.SIGKILL)

    with cluster(started.address) as executor:
        found = go([study], tmp_path / "there", executor=executor, on_progress=kill_in_the_middle)
    assert killed
    assert found.failed == {}
    assert rows_in(tmp_path / "there") == rows_in(tmp_path / "here")
    assert len(rows_in(tmp_path / "there")) == 24
    assert seen[:25] == list(range(25))


def test_a_trial_that_always_kills_its_worker_costs_its_study_alone(tmp_path, started):
    for _ in range(5):
        started.worker()
    studies = [
        fake_study("bad", [Tiny(do="die")]),
        fake_study("good", [Tiny(seed=seed) for seed in range(3)]),
    ]
    with cluster(started.address) as executor:
        found = go(studies, tmp_path / "run", executor=executor)
    assert found.failed["bad"].startswith("KilledWorker: ")
    assert "\n" not in found.failed["bad"]
    assert [verdict.study for verdict in found.verdicts] == ["good"]


def test_a_cluster_that_goes_away_ends_the_run_and_it_goes_on_here(tmp_path, started):
    started.worker()
    study = fake_study("tiny", [Tiny(seed=seed, pause=0.1) for seed in range(12)])

    def end(progress):
        if progress.done == 3:
            started.end()

    with cluster(started.address) as executor:
        found = go([study], tmp_path / "run", executor=executor, on_progress=end)
    assert found.failed["tiny"].startswith("the given executor broke down and cannot be replaced")
    assert 3 <= len(rows_in(tmp_path / "run")) < 12
    again = go([study], tmp_path / "run", jobs=1)
    assert again.failed == {}
    assert len(rows_in(tmp_path / "run")) == 12


MINE = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))

def data():
    x = torch.rand(60, 4, generator=torch.Generator().manual_seed(0))
    return x, (x.sum(1) > 2).long()
"""


def test_the_command_line_sends_trials_to_the_cluster(tmp_path, monkeypatch, capsys, started):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    (started.folder / "mine.py").write_text(MINE)
    started.worker(), started.worker()
    words = ["study", "learning_rate", "--model", "mine:net", "--data", "mine:data", "--out", "run"]
    assert run([*words, "--dask", started.address]) == 0, capsys.readouterr().err
    manifest = json.loads(Path("run/manifest.json").read_text())
    assert manifest["studies"][0]["status"] == "done"
    assert manifest["jobs"] is None
    assert set(rows_in(tmp_path / "run")) == set(manifest["studies"][0]["keys"])
    capsys.readouterr()


def test_what_is_wrong_with_a_cluster_is_one_line(tmp_path, monkeypatch, capsys, started):
    monkeypatch.chdir(tmp_path)

    def refused(address):
        assert run(["study", "--dask", address, "--out", "run"]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1, err
        assert not Path("run").exists()
        return err

    with monkeypatch.context() as hurry:  # a scheduler that is there may need longer on a busy core
        hurry.setattr("batchnorm.studies._cluster.PATIENCE", 1)
        for address in ("tcp://127.0.0.1:9", "nowhere.invalid:8786", "quite wrong", ""):
            assert f"no Dask scheduler answers at {address!r} (" in refused(address)
    assert f"cluster at {started.address!r} has no workers: start some, `dask worker" in refused(
        started.address
    )
    # A worker whose batchnorm is another: one file of its source is longer by a line.
    other = tmp_path / "other"
    other.mkdir()
    subprocess.run(["cp", "-r", SOURCE / "batchnorm", other], check=True)
    with (other / "batchnorm" / "moments.py").open("a") as file:
        file.write("# changed\n")
    process = started.worker(PYTHONPATH=str(other))
    assert "has other code, so its rows would be others: there batchnorm " in refused(
        started.address
    )
    process.kill()
    process.wait()
    # One that has stopped.
    process = started.worker()
    process.send_signal(signal.SIGSTOP)
    with monkeypatch.context() as hurry:
        hurry.setattr("batchnorm.studies._cluster.HELD_UP", 1)
        assert "gives no answer, not in 1 seconds: end it, or start it anew" in refused(
            started.address
        )
    process.kill()
    process.wait()
    # And one without it: a broken package of that name stands before the installed one.
    (tmp_path / "none" / "batchnorm").mkdir(parents=True)
    (tmp_path / "none" / "batchnorm" / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'batchnorm'\")\n"
    )
    started.worker(PYTHONPATH=str(tmp_path / "none"))
    assert "cannot run trials (ModuleNotFoundError: No module named 'batchnorm')" in refused(
        started.address
    )


def test_without_dask_the_way_to_get_it_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert run(["study", "--dask", "tcp://127.0.0.1:8786"]) == 2
    assert "pip install '.[dask]' in the folder of batchnorm's source" in capsys.readouterr().err
