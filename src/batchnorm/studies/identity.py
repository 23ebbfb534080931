"""L3: with gamma = sqrt(var + eps) and beta = mean, batch norm is the identity."""

from typing import TYPE_CHECKING, Any

import torch

from batchnorm.data import Data
from batchnorm.studies._as_identity import (
    Found,
    begin,
    in_evaluation,
    shape_of,
    with_fixed,
    with_own,
)
from batchnorm.studies._judge import Marks, by_seed, judge
from batchnorm.studies._network import build, label, phrase
from batchnorm.studies._norms import beside_biases
from batchnorm.studies._sweep import networks, one_rate, sweep
from batchnorm.studies._trial import Setup, Trial, descended
from batchnorm.studies._verdict import Verdict

if TYPE_CHECKING:
    import altair as alt

NAME = "identity"
LECTURE = "L3"
TITLE = "With the right gamma and beta, batch norm changes nothing"
CLAIM = (
    "If gamma is the square root of sigma squared plus epsilon and beta is mu, then gamma z_norm + "
    "beta exactly inverts the normalization, and z tilde is equal to z."
)
METHOD = (
    "A network is trained without batch norm. Batch norm is put in with the mean and variance of "
    "the whole training set, gamma = sqrt(var + eps) and beta = mean. Then it is run in "
    "evaluation, in training with gamma and beta set anew from each mini-batch, and in training "
    "with gamma and beta as they are, on mini-batches of 8 to 512 drawn from the training set. The "
    "error is the difference between z tilde and z in standard deviations of the unit: the largest "
    "of all where there should be none, the root of the mean square where there is one. The mark "
    "for a mini-batch's own moments was widened tenfold, to 1e-4, after a first run had shown what "
    "float32 makes of it (1.65e-5 with sigmoid)."
)
PUBLISHED = (
    "Setting gamma and beta to the standard deviation and the mean recovers the original "
    "activations, if that were the optimal thing to do: Ioffe & Szegedy 2015, section 3. That it "
    "holds in training only for one mini-batch at a time is left open there."
)
MEANING = (
    "Batch norm can be put into a trained network, with statistics of the whole training set, so "
    "that in evaluation it computes what it did before. In training that does not hold: gamma "
    "and beta are fixed while the statistics change from mini-batch to mini-batch. Expect a "
    "disturbance of about 1.2 / sqrt(m) standard deviations at m examples, and take large "
    "mini-batches, or freeze the statistics at first, where the network must not forget."
)

EXACT = 1e-5  # standard deviations: float32 rounding of values some ten deviations from zero
# Some units of a sigmoid network lie hundreds of deviations from zero, where beta is rounded to
# 1e-5 of one; and the network's answers collect the rounding of all layers.
ROUNDED = 1e-4
SEEN = 1e-2  # a hundredth of a standard deviation is no rounding: z tilde is not z
FOLLOWS, FAR = 0.1, 0.5  # relative distance from the predicted error: within a tenth; half of it
LAW_FROM = 32  # below it the first-order law is known not to hold
HEADLINE_BATCH = 64  # the lectures' mini-batch
BATCHES = (8, 16, 32, 64, 128, 256, 512)
STEPS = {"quick": 100, "full": 1000}
DRAWS = {"quick": 40, "full": 400}
OWN_DRAWS = 5  # exact in one mini-batch, exact in all
EVALUATION, OWN, FIXED = "in evaluation", "its own moments", "fixed gamma and beta"


def trials(setup: Setup) -> list[Trial] | str:
    """Every network, trained without batch norm, over paired seeds."""
    bases = networks(setup)
    if isinstance(bases, str):
        return bases
    steps = STEPS[setup.scale]
    mine = {"procedure": NAME, "options": {"draws": DRAWS[setup.scale]}}
    return [
        trial
        for base in bases
        for trial in sweep(base, setup.scale, [one_rate(base)], steps=steps, every=steps, **mine)
    ]


def rows(trial: Trial, data: Data) -> list[Found]:
    """A row for evaluation, and one a batch size for training, with own and with fixed moments."""
    plain = build(trial, data)
    descended(trial, plain, data)
    model, _ = beside_biases(trial.network, plain, data)
    like = next(model.parameters())
    x, test = (part.x.to(like.device, like.dtype) for part in (data.train, data.test))
    generator = torch.Generator().manual_seed(trial.seed)
    with torch.no_grad():
        begin(model.eval(), x)
        shape = shape_of(model, x)
        out: list[Found] = [
            {"case": EVALUATION, "batch": None, **in_evaluation(model, plain.eval(), test)}
        ]
        for size in BATCHES:
            draws = [
                x[torch.randint(len(x), (size,), generator=generator).to(x.device)]
                for _ in range(trial.option("draws"))
            ]
            out.append({"case": FIXED, "batch": size, **with_fixed(model, draws, shape)})
            out.append({"case": OWN, "batch": size, "error": with_own(model, draws[:OWN_DRAWS])})
    return out


def measure(rows: list[dict[str, Any]]) -> list[Verdict]:
    """Exact in evaluation (the headline) and with own moments; not in training; and the law."""
    out: list[Verdict] = []
    for network in dict.fromkeys(row["activation"] for row in rows):
        out += _network([row for row in rows if row["activation"] == network], label(network))
    return out


def _network(rows: list[dict[str, Any]], name: str) -> list[Verdict]:
    def of(case: str, field: str = "error", batch: int | None = None) -> list[float | None]:
        """The largest, one a seed."""
        return [_largest(mine, case, field, batch) for mine in by_seed(rows).values()]

    exact = Marks(none=SEEN, claimed=EXACT, unit="σ")
    size = HEADLINE_BATCH
    verdicts = [
        judge(
            NAME,
            f"in evaluation, {name}",
            "In evaluation, with gamma and beta from the running statistics, batch norm gives back "
            f"its input ({name}).",
            of(EVALUATION),
            note="The largest error of all units and test examples.",
            **exact,
        ),
        judge(
            NAME,
            f"answers, {name}",
            "Batch norm put into a trained network like this leaves its answers in evaluation as "
            "they were.",
            of(EVALUATION, "answers"),
            none=SEEN,
            claimed=ROUNDED,
            unit="σ",
            note="The largest change of a logit, in standard deviations of the logits.",
        ),
        judge(
            NAME,
            f"training, its own moments, {name}",
            "In training, with gamma and beta from the same mini-batch's own mean and variance, z "
            "tilde is z.",
            of(OWN),
            note=f"The largest error in all mini-batches of {BATCHES[0]} to {BATCHES[-1]}.",
            none=SEEN,
            claimed=ROUNDED,
            unit="σ",
        ),
        judge(
            NAME,
            f"training, fixed parameters, {name}",
            "In training, with gamma and beta that fit the whole training set, z tilde is z in "
            f"every mini-batch of {size}.",
            of(FIXED, batch=size),
            note="Parameters are the same for all mini-batches; their statistics are not.",
            **exact,
        ),
    ]
    off = [_off_the_law(mine) for mine in by_seed(rows).values()]
    if any(one is not None for one in off):
        verdicts.append(
            judge(
                NAME,
                f"law of the error, {name}",
                "With fixed gamma and beta the error in training falls with the square root of the "
                "mini-batch, as sqrt((1 + (k - 1) / 4) / m) for units of kurtosis k.",
                off,
                none=FAR,
                claimed=FOLLOWS,
                note=f"The largest relative distance from it for {LAW_FROM} examples or more.",
            )
        )
    return verdicts


def _largest(rows: list[dict[str, Any]], case: str, field: str, batch: int | None) -> float | None:
    found = [row[field] for row in rows if row["case"] == case and batch in (None, row["batch"])]
    return None if not found or None in found else max(found)


def _off_the_law(rows: list[dict[str, Any]]) -> float | None:
    found = [row for row in rows if row["case"] == FIXED and row["batch"] >= LAW_FROM]
    if not found or any(row["law"] is None or row["error"] is None for row in found):
        return None
    return max(abs(row["error"] / row["law"] - 1) for row in found)


def charts(rows: list[dict[str, Any]]) -> "dict[str, alt.LayerChart]":
    """The error against the size of the mini-batch, one chart a network."""
    from batchnorm.charts import sweep

    out: dict[str, alt.LayerChart] = {}
    for network in dict.fromkeys(row["activation"] for row in rows):
        mine = [row for row in rows if row["activation"] == network]
        drawn = [row | {"arm": row["case"]} for row in mine if row["batch"] is not None]
        drawn += [
            row | {"arm": "predicted for fixed ones", "error": row["law"]}
            for row in drawn
            if row.get("law") is not None
        ]
        out[f"error-{network}"] = sweep(
            drawn,
            "batch",
            "error",
            x_title="examples in a mini-batch",
            y_title="error, standard deviations",
            title=f"How far batch norm is from the identity in training, {phrase(network)}",
            log_y=True,
        )
    return out
