"""What trials of the embedded network take, told without trying any."""

import subprocess
import sys
import time

import pytest
from torch import nn

from batchnorm.studies import overview
from batchnorm.studies._asked import STUDIES
from batchnorm.studies._estimate import Estimate
from batchnorm.studies._plan import chosen
from batchnorm.studies._presumed import TIMES, Presumed, steps_of
from batchnorm.studies._trial import Setup, Trial


@pytest.mark.parametrize("scale", ["quick", "full"])
def test_the_list_builds_no_network(monkeypatch, scale):
    def built(*args, **kwargs):
        raise AssertionError("a network was built")

    monkeypatch.setattr(nn.Linear, "__init__", built)
    monkeypatch.setattr(Estimate, "prepare", built)
    plans, together = overview(scale=scale, jobs=2)
    assert [plan.name for plan in plans] == list(STUDIES)
    assert all(plan.trials and plan.seconds and not plan.reason for plan in plans)
    assert max(plan.seconds for plan in plans) < together < sum(plan.seconds for plan in plans)


def test_it_imports_no_compiler():
    code = "import sys; from batchnorm.studies import overview; overview(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch._dynamo", "numba", "altair"} & {*done.stdout.split()}


def test_another_network_is_tried(monkeypatch):
    tried = []
    monkeypatch.setattr(Estimate, "prepare", lambda self, trials: tried.extend(trials))
    plans, together = overview("bias", model="cnn")
    assert len(tried) == plans[0].trials
    assert (plans[0].seconds, together) == (None, None)


def test_what_costs_more_is_told_to_take_longer():
    cost = steps_of(Trial())
    assert cost < steps_of(Trial(batch_norm=True)) < steps_of(Trial(batch_norm=True, steps=800))
    assert cost < steps_of(Trial(every=1))
    assert cost < steps_of(Trial(batch_size=512))
    assert set(TIMES) < set(STUDIES)


@pytest.mark.alone
@pytest.mark.parametrize("name", ["initialization", "dropout", "test_time", "identity"])
def test_it_is_about_what_a_trial_takes(name):
    trials = [t for t in chosen(name)[0].trials(Setup()) if t.seed == 0]
    some = trials[:: max(1, len(trials) // 3)]
    took = 0.0
    for trial in some:
        trial.run()  # imports and compiles what such trials call: a run pays that once a process
        start = time.process_time()  # in which other processes' time is not
        trial.run()
        took += time.process_time() - start
    assert took / 3 < sum(Presumed().seconds(some)) < took * 3
