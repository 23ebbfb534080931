"""What studies share: networks swept over learning rates with paired seeds, and rows as runs."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from batchnorm.data import load
from batchnorm.studies._arms import why_not
from batchnorm.studies._network import fresh
from batchnorm.studies._trial import Setup, Trial

SEEDS = {"quick": 5, "full": 8}


def decades(low: float, high: float, step: float) -> list[float]:
    """Learning rates ``10^low`` to ``10^high``, ``step`` of a decade apart, three digits each.

    >>> decades(-1, 1, 0.5)
    [0.1, 0.316, 1.0, 3.16, 10.0]
    """
    count = round((high - low) / step)
    return [float(f"{10 ** (low + i * step):.3g}") for i in range(count + 1)]


# Fine where ranges end: two ends, known to a step each, are told apart to two steps.
RATES = {
    ("quick", "sigmoid"): decades(-0.5, 1, 0.5),
    ("quick", "relu"): [0.01, *decades(-1.5, -1, 0.25), *decades(-0.5, 1, 0.25)],
    ("quick", "own"): decades(-3, 1, 0.5),
    ("quick", "cnn"): decades(-2, 1, 0.5),
}
FULL_RATES = [
    *decades(-4, -2.5, 0.5),
    *decades(-2.25, -0.5, 0.25),
    *decades(-0.375, 0.875, 0.125),
    *decades(1, 1.5, 0.25),
]
BUDGET = {  # steps, and steps between rows
    ("quick", "sigmoid"): (600, 10),
    ("quick", "relu"): (250, 10),
    ("quick", "own"): (250, 10),
    ("quick", "cnn"): (200, 20),
    ("full", "sigmoid"): (2000, 20),
    ("full", "relu"): (1000, 20),
    ("full", "own"): (1000, 20),
    ("full", "cnn"): (1000, 20),
}


def networks(setup: Setup) -> list[Trial] | str:
    """The networks of a study, each a trial without batch norm and without a learning rate yet.

    Returns:
        The embedded network with sigmoid, then with ReLU; or the small CNN; or the user's alone,
        or why the user's cannot be had with batch norm and without.

    Raises:
        ValueError: the user's function or data cannot be used at all.
    """
    if setup.model is None:
        kinds = [Trial(activation="sigmoid"), Trial(activation="relu")]
    else:
        data = load(setup.data)
        if reason := why_not(setup.model, fresh(setup.model, data), data):
            return reason
        kinds = [Trial(network=setup.model, activation="relu" if setup.model == "cnn" else "own")]
    out: list[Trial] = []
    for trial in kinds:
        steps, every = BUDGET[setup.scale, _kind(trial)]
        out.append(replace(trial, data=setup.data, steps=steps, every=every))
    return out


def rates(scale: str, network: Trial) -> list[float]:
    """The learning rates that every arm of a network is trained at."""
    return FULL_RATES if scale == "full" else RATES[scale, _kind(network)]


def one_rate(network: Trial) -> float:
    """The learning rate of a study that trains at one alone: given the steps, both arms learn."""
    return 1.0 if network.activation == "sigmoid" else 0.1


def _kind(network: Trial) -> str:
    return "cnn" if network.network == "cnn" else network.activation


def sweep(base: Trial, scale: str, rates: Iterable[float], **arm: Any) -> list[Trial]:
    """``base`` at every learning rate and seed, with the fields of ``arm`` set."""
    return [
        replace(base, learning_rate=rate, seed=seed, **arm)
        for rate in rates
        for seed in range(SEEDS[scale])
    ]


@dataclass(frozen=True)
class Run:
    """One trial's rows, as a study reads them; an accuracy that is None counts as untrained.

    Args:
        steps: of the rows with numbers.
        validation: accuracy at these steps.
        test: accuracy at these steps.
        budget: steps it was given.
        finished: it came to the end with finite numbers.
        diverged: it did not, or a mini-batch's loss came to 1000 times the loss at the start.
        examples: how many each accuracy is a share of, on validation and on test; 0 for unknown.
    """

    steps: tuple[int, ...]
    validation: tuple[float, ...]
    test: tuple[float, ...]
    budget: int
    finished: bool
    diverged: bool
    examples: tuple[int, int] = (0, 0)

    def end(self, part: str) -> float:
        """Accuracy at the end, on "validation" or "test"; see :data:`LOST`."""
        accuracies: tuple[float, ...] = getattr(self, part)
        return accuracies[-1] if self.finished else accuracies[0]


# What it had learned is lost, and guessing is left; to count it as 0 would be to punish it more.
LOST = "A run that diverged counts as untrained: it has the accuracy that it began with."
NEAR = 0.02  # accuracies so close are not told apart
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

    def accuracies(part: str) -> tuple[float, ...]:
        start = rows[0][part] or 0.0
        return tuple(start if row[part] is None else row[part] for row in judged)

    return Run(
        steps=tuple(row["step"] for row in judged),
        validation=accuracies("validation_accuracy"),
        test=accuracies("test_accuracy"),
        budget=rows[0]["steps"],
        finished=finished,
        diverged=not finished or any((row.get("peak_loss") or 0.0) > limit for row in judged),
        examples=(rows[0].get("validation_examples") or 0, rows[0].get("test_examples") or 0),
    )


def ends(rows: Rows) -> list[dict[str, Any]]:
    """The last row of every trial: of a run that was lost, the one without numbers."""
    return [row for row in rows if row.get("diverged") or row["step"] == row["steps"]]


def too_few(run: Run, accuracy: float) -> str:
    """A caution where single examples count for more than what is told apart here, or nothing.

    An accuracy ``p`` on ``n`` examples moves in steps of ``1 / n``, and other ``n`` examples would
    give another one, with a standard error of ``sqrt(p (1 - p) / n)``.
    """
    error = math.sqrt(accuracy * (1 - accuracy))
    small = {
        part: n
        for part, n in zip(("validation", "test"), run.examples, strict=True)
        if n and max(1 / n, error / math.sqrt(n)) > NEAR
    }
    if not small:
        return ""
    n = min(small.values())
    counts = " and ".join(f"{n} {part}" for part, n in small.items())
    size = f"one is {100 / n:.2g} points of accuracy"
    if error / math.sqrt(n) > 1 / n:
        size = (
            f"the standard error of an accuracy of {100 * accuracy:.0f} % is "
            f"{100 * error / math.sqrt(n):.2g} points"
        )
    few = f"Judged on only {counts} examples, where {size}"
    return f"{few}, more than the {100 * NEAR:g} that count as a difference."
