"""What draws and tells may change under a run's rows: no trial goes through it."""

import subprocess
import sys
from pathlib import Path

import batchnorm
from batchnorm.studies import _context
from batchnorm.studies._asked import STUDIES
from batchnorm.studies._plan import chosen

WORKER = """
import sys
from dataclasses import replace
from importlib import import_module

from batchnorm.studies._context import Context, Stamped
from batchnorm.studies._trial import Setup
from batchnorm.studies._workers import attempt

ran = set()
for name in sys.argv[1:]:
    # Every procedure in both arms and with all its kinds of options, on its smallest network.
    trials = import_module(f"batchnorm.studies.{name}").trials(Setup())
    for trial in sorted(trials, key=lambda trial: trial.depth):
        kind = trial.procedure, trial.batch_norm, tuple(name for name, _ in trial.options)
        if kind not in ran:
            ran.add(kind)
            small = replace(trial, data="digits8x8", steps=2, every=2)
            outcome = attempt(Stamped(small, Context().of(small)))
            assert outcome.failure is None, outcome.failure
print(*sorted({procedure for procedure, *_ in ran}))
print(*(name for name in sys.modules if name.startswith("batchnorm.")))
"""


def test_a_process_that_makes_rows_loads_none_of_what_its_keys_leave_out():
    out = subprocess.run(
        [sys.executable, "-c", WORKER, *STUDIES], capture_output=True, text=True, check=True
    ).stdout
    ran, loaded = (set(line.split()) for line in out.splitlines())
    own = {study.NAME for study in chosen(None) if hasattr(study, "rows")}
    assert ran == {"train", *own}
    loaded = {name.split(".")[1] for name in loaded}
    assert {"train", "data", "studies", "surgery"} <= loaded
    assert not loaded & {part.removesuffix(".py") for part in _context.NO_ROWS}


def test_what_is_left_out_is_there_and_all_else_counts(tmp_path, monkeypatch):
    source = Path(batchnorm.__file__).parent
    assert all((source / part).exists() for part in _context.NO_ROWS)
    hashed = _context._package.__wrapped__
    for file, counts in {
        "charts/lines.py": 0,
        "cli.py": 0,
        "train/a.py": 1,
        "charts.py": 1,
    }.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        before = hashed(tmp_path)
        (tmp_path / file).write_text("1")
        assert (hashed(tmp_path) != before) == counts, file
