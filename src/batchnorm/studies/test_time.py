"""L16: at test time, running averages of the mini-batches' means and variances."""

from typing import TYPE_CHECKING, Any

from batchnorm.data import Data
from batchnorm.studies._averages import (
    ALONE,
    AVERAGES,
    EXAMPLES,
    POPULATION,
    Averages,
    Found,
    alone,
    judged,
)
from batchnorm.studies._judge import Marks, by_seed, judge
from batchnorm.studies._network import build, label, phrase
from batchnorm.studies._sweep import networks, one_rate, sweep
from batchnorm.studies._taught import taught, tested_on, weakened
from batchnorm.studies._trial import Setup, Trial, descended
from batchnorm.studies._verdict import Verdict
from batchnorm.train import Row

if TYPE_CHECKING:
    import altair as alt

NAME = "test_time"
LECTURE = "L16"
TITLE = "Running averages from training are good enough at test time"
CLAIM = (
    "At test time there may be one example. Use exponentially weighted averages of mu and sigma "
    "squared across mini-batches, kept during training; in practice this is pretty robust to the "
    "exact way they are estimated, and any reasonable way should work fine."
)
METHOD = (
    "One training run keeps running averages of several momenta side by side (momentum is the "
    "share of the new mini-batch; one minus it is the lectures' beta). At several steps the "
    "network is evaluated with each, with population statistics measured anew over the training "
    "set, and with the statistics of mini-batches of test examples. The loss of accuracy is that "
    "against population statistics."
)
PUBLISHED = (
    "The paper prescribes population statistics over many mini-batches and uses moving averages "
    "to follow the accuracy during training: Ioffe & Szegedy 2015, Algorithm 2. Averages over few "
    "iterations gave unstable validation errors at large batches: Wu & Johnson 2021."
)
MEANING = (
    "Running averages are an estimate that trails the weights: with a small momentum they still "
    "hold where they began, with a large one they are those of the last mini-batch, and right "
    "after the weights moved fast they are those of other weights. If evaluation looks broken "
    "while training looks fine, call recalibrate before anything else. One example is answered "
    "like many then; normalized by statistics of the test examples themselves, each answer would "
    "hang on which others come with it."
)

# A torch momentum a averages (2 - a) / a mini-batches, and its start weighs (1 - a)^T after T.
MOMENTA = (0.99, 0.3, 0.1, 0.01, 0.001)
DEFAULT = 0.1
AS_GOOD, WORSE = 0.5, 2.0  # points: five examples of a thousand; what studies tell apart
ROUNDED, SEEN = 1e-5, 1e-2  # deviations of the logits: rounding of another order of sums; not that
SIZES = (2, 8, 32, 128, 512)  # test examples that are normalized by themselves
OF_TEST = 32
STEPS = {"quick": 200, "full": 2000}
LOOKS = {"quick": (20, 50, 100, 200), "full": (20, 50, 100, 200, 500, 1000, 2000)}


def trials(setup: Setup) -> list[Trial] | str:
    """Every network with batch norm, over paired seeds."""
    bases = networks(setup)
    if isinstance(bases, str):
        return bases
    arm = {"batch_norm": True, "steps": STEPS[setup.scale], "every": 10}
    mine = {"procedure": NAME, "options": {"looks": LOOKS[setup.scale]}}
    return [
        trial
        for base in bases
        for trial in sweep(base, setup.scale, [one_rate(base)], **arm, **mine)
    ]


def rows(trial: Trial, data: Data) -> list[Found]:
    """A row for each way to estimate, at each look; and what one example comes to at the end."""
    model = build(trial, data)
    averages, about = Averages(model, MOMENTA), tested_on(data)
    out: list[Found] = []

    def look(row: Row) -> None:
        if row["step"] in trial.option("looks") and not row.get("diverged"):
            with averages.paused():
                out.extend(
                    {"step": row["step"], **about, **one}
                    for one in judged(model, averages, data, SIZES)
                )

    descended(trial, model, data, look)
    return [*out, {"step": trial.steps, "way": ALONE, "moved": alone(model, data)}]


def measure(rows: list[dict[str, Any]]) -> list[Verdict]:
    """The default momentum (the headline), others, one example, and test examples' own."""
    out: list[Verdict] = []
    for network in dict.fromkeys(row["activation"] for row in rows):
        out += _network([row for row in rows if row["activation"] == network], label(network))
    return out


def _network(rows: list[dict[str, Any]], name: str) -> list[Verdict]:
    steps = max(row["step"] for row in rows)
    seeds = list(by_seed(rows).values())
    caution = weakened(rows, [_population(mine, steps) for mine in seeds], AS_GOOD)

    def lost(metric: str, claim: str, note: str = "", **way: Any) -> Verdict:
        values = [_lost(mine, steps, **way) for mine in seeds]
        marks = Marks(none=WORSE, claimed=AS_GOOD, unit="points")
        return judge(NAME, f"{metric}, {name}", claim, values, note=note, caution=caution, **marks)

    def kept(momentum: float) -> str:
        begun, batches = 100 * (1 - momentum) ** steps, (2 - momentum) / momentum
        return (
            f"After {steps} steps it averages about {batches:.3g} mini-batches, and where it began "
            f"weighs {begun:.2g} %."
        )

    return [
        lost(
            f"momentum {DEFAULT:g}",
            f"Running averages of momentum {DEFAULT:g} lose no accuracy at test time against "
            f"statistics of the whole training set ({name}).",
            kept(DEFAULT),
            momentum=DEFAULT,
        ),
        judge(
            NAME,
            f"one example, {name}",
            "One example alone is answered as it is among others.",
            [_moved(mine) for mine in seeds],
            none=SEEN,
            claimed=ROUNDED,
            unit="σ",
            note="The largest change of a logit, in standard deviations of the logits.",
        ),
        *(
            lost(
                f"momentum {momentum:g}",
                f"Running averages of momentum {momentum:g} are as good as population statistics.",
                kept(momentum),
                momentum=momentum,
            )
            for momentum in MOMENTA
            if momentum != DEFAULT
        ),
        lost(
            f"{OF_TEST} test examples",
            f"The statistics of each {OF_TEST} test examples themselves are as good as those of "
            "the population.",
            "Answers depend on which examples come together then.",
            size=OF_TEST,
        ),
    ]


def _population(rows: list[dict[str, Any]], step: int) -> float | None:
    """The accuracy with population statistics."""
    return next((r["accuracy"] for r in rows if (r["step"], r["way"]) == (step, POPULATION)), None)


def _lost(rows: list[dict[str, Any]], step: int, **way: Any) -> float | None:
    """Points of accuracy less than with population statistics; None where none are to be lost."""
    mine = [row for row in rows if row["step"] == step]
    right = _population(rows, step)
    ours = next((r for r in mine if all(r.get(name) == value for name, value in way.items())), None)
    if right is None or ours is None or ours["accuracy"] is None or not taught(ours, right):
        return None
    return 100 * (right - ours["accuracy"])


def _moved(rows: list[dict[str, Any]]) -> float | None:
    return next((row.get("moved") for row in rows if row["way"] == ALONE), None)


def charts(rows: list[dict[str, Any]]) -> "dict[str, alt.LayerChart]":
    """Accuracy over training by momentum, and over the size of test mini-batches."""
    from batchnorm.charts import curves, sweep

    out: dict[str, alt.LayerChart] = {}
    for network in dict.fromkeys(row["activation"] for row in rows):
        mine = [row for row in rows if row["activation"] == network and row["way"] != ALONE]
        noun = phrase(network).removeprefix("the ")
        out[f"momenta-{network}"] = curves(
            [row | {"arm": _arm(row)} for row in mine if row["way"] != EXAMPLES],
            "step",
            "accuracy",
            y_title="test accuracy",
            title=f"With running averages of several momenta, {noun}",
        )
        last = max(row["step"] for row in mine)
        sizes = [row for row in mine if row["step"] == last and row["way"] == EXAMPLES]
        right = [row for row in mine if row["step"] == last and row["way"] == POPULATION]
        out[f"sizes-{network}"] = sweep(
            [row | {"arm": EXAMPLES} for row in sizes]
            + [row | {"arm": POPULATION, "size": size} for row in right for size in SIZES],
            "size",
            "accuracy",
            x_title="test examples normalized together",
            y_title="test accuracy",
            title=f"With statistics of the test examples themselves, {noun}",
        )
    return out


def _arm(row: dict[str, Any]) -> str:
    return f"momentum {row['momentum']:g}" if row["way"] == AVERAGES else row["way"]
