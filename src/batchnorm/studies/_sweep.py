"""What studies share: networks swept over learning rates with paired seeds, and rows as runs."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from batchnorm.studies._network import why_not
from batchnorm.studies._trial import Setup, Trial

SEEDS = {"quick": 5, "full": 10}


def decades(low: float, high: float, step: float) -> list[float]:
    """Learning rates ``10^low`` to ``10^high``, ``step`` of a decade apart, three digits each.

    >>> decades(-1, 1, 0.5)
    [0.1, 0.316, 1.0, 3.16, 10.0]
    """
    count = round((high - low) / step)
    return [float(f"{10 ** (low + i * step):.3g}") for i in range(count + 1)]


# Quick: fine between 0.3 and 3, where plain networks stop working, and coarse elsewhere.
RATES = {
    ("quick", "sigmoid"): decades(-0.5, 0.5, 0.5),
    ("quick", "relu"): [*decades(-2, -1, 0.5), *decades(-0.5, 0.5, 0.25), *decades(1, 1.5, 0.5)],
    ("quick", "own"): decades(-3, 1, 0.5),
}
FULL_RATES = decades(-4, 1.5, 0.25)
BUDGET = {  # steps, and steps between rows
    ("quick", "sigmoid"): (600, 10),
    ("quick", "relu"): (250, 10),
    ("quick", "own"): (250, 10),
    ("full", "sigmoid"): (4000, 10),
    ("full", "relu"): (2000, 10),
    ("full", "own"): (2000, 10),
}


def networks(setup: Setup) -> list[Trial] | str:
    """The networks of a study, each a trial without batch norm and without a learning rate yet.

    Returns:
        The embedded network with sigmoid, then with ReLU; or the user's alone; or why batch norm
        cannot be put into the user's.

    Raises:
        ValueError: the user's function or data cannot be used at all.
    """
    if setup.model is None:
        kinds = [Trial(activation="sigmoid"), Trial(activation="relu")]
    elif reason := why_not(setup.model, setup.data):
        return reason
    else:
        kinds = [Trial(network=setup.model, activation="own")]
    out: list[Trial] = []
    for trial in kinds:
        steps, every = BUDGET[setup.scale, trial.activation]
        out.append(replace(trial, data=setup.data, steps=steps, every=every))
    return out


def rates(scale: str, network: Trial) -> list[float]:
    """The learning rates that every arm of a network is trained at."""
    return FULL_RATES if scale == "full" else RATES[scale, network.activation]


def sweep(base: Trial, scale: str, rates: Iterable[float], **arm: Any) -> list[Trial]:
    """``base`` at every learning rate and seed, with the fields of ``arm`` set."""
    return [
        replace(base, learning_rate=rate, seed=seed, **arm)
        for rate in rates
        for seed in range(SEEDS[scale])
    ]


@dataclass(frozen=True)
class Run:
    """One trial's rows, as a study reads them; an accuracy that is None counts as 0.

    Args:
        steps: of the rows with numbers.
        validation: accuracy at these steps.
        test: accuracy at these steps.
        budget: steps it was given.
        finished: it came to the end with finite numbers.
        diverged: it did not, or a mini-batch's loss came to 1000 times the loss at the start.
    """

    steps: tuple[int, ...]
    validation: tuple[float, ...]
    test: tuple[float, ...]
    budget: int
    finished: bool
    diverged: bool


DIVERGED = 1e3  # times the loss at the start: the criterion of Bjorck et al. 2018

Rows = Sequence[dict[str, Any]]
Sweep = dict[float, dict[int, Run]]


def runs(
    rows: Rows, by: Callable[[dict[str, Any]], str | None], x: str = "learning_rate"
) -> dict[str, Sweep]:
    """Flat rows gathered by arm (None leaves a row out), the setting ``x`` and the seed."""
    gathered: dict[tuple[str, float, int], list[dict[str, Any]]] = {}
    for row in rows:
        arm = by(row)
        if arm is not None:
            gathered.setdefault((arm, row[x], row["seed"]), []).append(row)
    out: dict[str, Sweep] = {}
    for (arm, setting, seed), mine in gathered.items():
        out.setdefault(arm, {}).setdefault(setting, {})[seed] = _run(mine)
    return {arm: dict(sorted(sweep.items())) for arm, sweep in out.items()}


def _run(rows: Rows) -> Run:
    rows = sorted(rows, key=lambda row: row["step"])
    limit = DIVERGED * (rows[0]["validation_loss"] or 0.0)
    judged = [row for row in rows if not row.get("diverged")]
    finished = len(judged) == len(rows) and judged[-1]["validation_loss"] is not None
    return Run(
        steps=tuple(row["step"] for row in judged),
        validation=tuple(row["validation_accuracy"] or 0.0 for row in judged),
        test=tuple(row["test_accuracy"] or 0.0 for row in judged),
        budget=rows[0]["steps"],
        finished=finished,
        diverged=not finished or any((row["peak_loss"] or 0.0) > limit for row in judged),
    )
