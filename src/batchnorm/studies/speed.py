"""L11: batch norm speeds up learning, as normalizing the inputs does."""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from batchnorm.studies._network import label, phrase
from batchnorm.studies._pace import cost
from batchnorm.studies._race import race, raced
from batchnorm.studies._sweep import Rows, decades, networks, rates, runs, sweep
from batchnorm.studies._trial import Setup, Trial
from batchnorm.studies._verdict import Verdict
from batchnorm.studies._wider import WITH, WITHOUT

if TYPE_CHECKING:
    import altair as alt

NAME = "speed"
LECTURE = "L11"
TITLE = "Batch norm speeds up learning"
CLAIM = (
    "Normalizing the inputs, such as features from 0 to 1 and from 1 to 1000, speeds up learning; "
    "batch norm does the same for the values deeper in the network."
)
METHOD = (
    "How many times fewer steps batch norm takes until the held-out accuracy reaches the best that "
    "the network without it ever reaches, over paired seeds: same initial weights, same "
    "mini-batches. Learning rates come from one grid and are chosen on the validation set; steps "
    "are counted on the test set, in evaluation mode, where running averages trail the weights by "
    "some tens of steps. Seconds are steps times the seconds of one step, timed with no other "
    "training run beside it; what else the machine does then widens their interval. On tabular "
    "data batch norm in the hidden layers is told apart from batch norm on the inputs too: only "
    "the latter stands in for normalized inputs."
)
PUBLISHED = (
    "Inception on ImageNet came to the accuracy of the original in 13.3 million steps instead of "
    "31.0 million with batch norm alone (2.3 times fewer), and in 2.1 million (14 times fewer) "
    "with a five times larger learning rate and six more changes: Ioffe & Szegedy 2015, Figure 3."
)
MEANING = (
    "Normalize the inputs first. Judge batch norm in the hidden layers at a learning rate of its "
    "own, searched anew, and in seconds as well as in steps: a step with batch norm costs more, so "
    "fewer steps need not mean less time."
)

TABULAR = "breast_cancer"
RAW = "raw inputs"
ARMS: dict[str, dict[str, Any]] = {
    RAW: {},
    "normalized inputs": {"normalize_inputs": True},
    "batch norm in hidden layers": {"batch_norm": True},
    "batch norm on inputs too": {"batch_norm": True, "batch_norm_inputs": True},
}
TABULAR_DEPTH = 2  # tells these trials from those of a user who asks for the same data
TABULAR_RATES = {"quick": decades(-4, 1, 1), "full": decades(-6, 1, 0.5)}
SHORT, LONG = 20, 170  # steps of the timed trials: their difference has no start-up in it


def trials(setup: Setup) -> list[Trial] | str:
    """Every network with and without batch norm on its grid; and the tabular arms on theirs."""
    bases = networks(setup)
    if isinstance(bases, str):
        return bases
    out: list[Trial] = []
    for base in bases:
        for batch_norm in (False, True):
            out += sweep(base, setup.scale, rates(setup.scale, base), batch_norm=batch_norm)
    if setup.model is None and setup.data == Setup.data:
        steps = 100 if setup.scale == "quick" else 500
        base = Trial(data=TABULAR, depth=TABULAR_DEPTH, width=50, steps=steps, every=5)
        for arm in ARMS.values():
            out += sweep(base, setup.scale, TABULAR_RATES[setup.scale], **arm)
    return out


def timings(setup: Setup) -> list[Trial]:
    """A short and a long trial an arm; their rows are the fields with "seconds"."""
    bases = networks(setup)
    return [
        replace(base, batch_norm=batch_norm, learning_rate=0.01, steps=steps, every=steps)
        for base in (bases if isinstance(bases, list) else [])
        for batch_norm in (False, True)
        for steps in (SHORT, LONG)
    ]


def measure(rows: list[dict[str, Any]]) -> list[Verdict]:
    """Steps at each arm's best learning rate (the headline), at the same one, and seconds."""
    verdicts: list[Verdict] = []
    for network in _networks(rows):
        verdicts += _compared(rows, network)
    arms = runs(rows, _tabular_arm)
    return verdicts + [
        raced(
            NAME,
            race(arms, (RAW, arm)),
            f"steps, tabular, {arm}",
            f"On 30 raw features of very different scale, {arm}: the best accuracy of raw inputs "
            "is reached in fewer steps.",
        )
        for arm in list(ARMS)[1:]
        if arms
    ]


def _compared(rows: Rows, network: str) -> list[Verdict]:
    arms = runs(rows, lambda row: _arm(row, network))
    best, same = (race(arms, (WITHOUT, WITH), same=same) for same in (False, True))
    name, noun = label(network), phrase(network)
    timed = [row for row in rows if "seconds" in row and row["activation"] == network]
    return [
        raced(
            NAME,
            best,
            f"steps, {name}, best rates",
            f"With each arm at its best learning rate, batch norm reaches the best accuracy of "
            f"{noun} without it in fewer steps.",
        ),
        raced(
            NAME,
            same,
            f"steps, {name}, same rate",
            f"At the learning rate that suits {noun} without batch norm, the one with it needs "
            "fewer steps.",
        ),
        raced(
            NAME,
            best,
            f"seconds, {name}, best rates",
            f"Counted in seconds too, with what a step of batch norm costs, it reaches that "
            f"accuracy sooner, each arm at its best learning rate ({name}).",
            cost(timed),
        ),
    ]


def charts(rows: list[dict[str, Any]]) -> "dict[str, alt.LayerChart]":
    """Learning curves at each arm's best rate, steps over rates, and all ratios."""
    from batchnorm.charts import intervals

    out = {
        "ratios": intervals(
            [asdict(v) | {"label": v.metric} for v in measure(rows)],
            x_title="times faster",
            title="How many times faster: median and interval",
            reference=1,
            log_x=True,
        )
    }
    for network in _networks(rows):
        noun = phrase(network).removeprefix("the ")
        title = f"Test accuracy, {noun}, each arm at its best learning rate"
        out[f"curves-{network}"] = _curves(
            rows, lambda row, network=network: _arm(row, network), WITHOUT, title
        )
    if any(map(_tabular_arm, rows)):
        title = "Test accuracy, tabular data, each arm at its best learning rate"
        out["curves-tabular"] = _curves(rows, _tabular_arm, RAW, title)
    return out


def _curves(
    rows: Rows, by: Callable[[dict[str, Any]], str | None], base: str, title: str
) -> "alt.LayerChart":
    from batchnorm.charts import curves

    arms = runs(rows, by)
    best = {arm: race(arms, (base, arm)).rate for arm in arms}
    drawn = [
        row | {"arm": arm}
        for row in rows
        if (arm := by(row)) is not None and row["learning_rate"] == best[arm]
    ]
    return curves(drawn, "step", "test_accuracy", title=title)


def _networks(rows: Rows) -> list[str]:
    """Sigmoid first, the paper's network and so the headline; or the user's alone."""
    mine = (row for row in rows if "seconds" not in row and not _premise(row))
    return list(dict.fromkeys(row["activation"] for row in mine))


def _premise(row: dict[str, Any]) -> bool:
    return row["network"] == "mlp" and row["data"] == TABULAR and row["depth"] == TABULAR_DEPTH


def _arm(row: dict[str, Any], network: str) -> str | None:
    if "seconds" in row or _premise(row) or row["activation"] != network:
        return None
    return WITH if row["batch_norm"] else WITHOUT


def _tabular_arm(row: dict[str, Any]) -> str | None:
    if "seconds" in row or not _premise(row):
        return None
    fields = ("normalize_inputs", "batch_norm", "batch_norm_inputs")
    mine = {field: True for field in fields if row[field]}
    return next(name for name, arm in ARMS.items() if arm == mine)
