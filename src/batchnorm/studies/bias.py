"""L7: the bias before batch norm is cancelled by the mean that it subtracts."""

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from batchnorm.data import Data, load
from batchnorm.studies._arms import normed
from batchnorm.studies._biases import Found, gradient, shifted, wandered
from batchnorm.studies._judge import Marks, by_seed, judge
from batchnorm.studies._network import build, label, phrase
from batchnorm.studies._norms import beside_biases
from batchnorm.studies._sweep import SEEDS, networks
from batchnorm.studies._taught import taught, tested_on, weakened
from batchnorm.studies._trial import Setup, Trial, descended
from batchnorm.studies._verdict import Verdict

if TYPE_CHECKING:
    import altair as alt

NAME = "bias"
LECTURE = "L7"
TITLE = "A bias just before batch norm has no effect"
CLAIM = (
    "Whatever is the value of b, it is just going to get subtracted out: in the mini-batch any "
    "constant that is added gets cancelled by the mean subtraction step. So that parameter can be "
    "eliminated, and beta takes its place."
)
METHOD = (
    "The network is trained twice with batch norm from the same weights on the same mini-batches: "
    "once with the biases in front of batch norm and once without them, under plain gradient "
    "descent and under Adam. A bias's gradient is compared with the one that it would have if "
    "nothing were cancelled, the sum of the absolute values that it is a sum of. Then every bias "
    "is moved by one standard deviation of its unit, in training mode and in evaluation."
)
PUBLISHED = (
    "The bias can be ignored, since its effect will be cancelled by the subsequent mean "
    "subtraction: Ioffe & Szegedy 2015, section 3.2."
)
MEANING = (
    "Leave the bias out (bias=False) of every layer that goes straight into batch norm: training "
    "is the same without it. A bias that is there is not harmless: under Adam it wanders, since "
    "rounding is scaled up to whole steps, and in evaluation it counts. Whoever drops, ports or "
    "loads it alone changes the network's answers, unless the running mean moves by as much."
)

CANCELLED, THERE = 1e-6, 1e-2  # of the gradient without cancellation: rounding; a hundredth
SAME, OTHER = 1.0, 10.0  # per cent of the loss: less than another seed changes it; more
STILL, WANDERS = 1e-3, 1e-2  # standard deviations of the unit
UNHARMED, HARMED = 0.1, 1.0  # points of accuracy: an example of a thousand; ten of them
SEEN, UNMOVED = (
    1e-2,
    1e-4,
)  # standard deviations of the logits, which collect the rounding of all layers
STEPS = {"quick": 120, "full": 2000}
RATES = {("sigmoid", "sgd"): 1.0, ("relu", "sgd"): 0.1}
ADAM_RATE, OTHER_RATE = 0.003, 0.03
SGD, ADAM = "sgd", "adam"
OPTIMIZERS = (SGD, ADAM)
WORDS = {SGD: "gradient descent", ADAM: "Adam"}
ARMS = {"with b": "with", "without b": "without"}


def trials(setup: Setup) -> list[Trial] | str:
    """Every network under both optimizers over paired seeds; each trial trains both arms."""
    bases = networks(setup)
    if isinstance(bases, str):
        return bases
    if setup.model is not None and not _has_biases(bases[0]):
        return f"no layer of {setup.model} has a bias that batch norm would cancel"
    steps = STEPS[setup.scale]
    return [
        replace(
            base,
            batch_norm=True,
            optimizer=optimizer,
            learning_rate=ADAM_RATE
            if optimizer == ADAM
            else RATES.get((base.activation, optimizer), OTHER_RATE),
            steps=steps,
            every=steps // 6,
            seed=seed,
            procedure=NAME,
        )
        for base in bases
        for optimizer in OPTIMIZERS
        for seed in range(SEEDS[setup.scale])
    ]


def _has_biases(base: Trial) -> bool:
    data = load(base.data)
    return bool(beside_biases(base.network, build(base, data), data)[1])


def rows(trial: Trial, data: Data) -> list[Found]:
    """Both arms' losses, a row each time they are looked at; the last has what became of b."""
    plain = build(replace(trial, batch_norm=False), data)
    model, biases = beside_biases(trial.network, plain, data)
    before = [bias.detach().clone() for bias in biases]
    like = biases[0]
    batch = data.train.x[: trial.batch_size].to(like.device, like.dtype)
    labels = data.train.y[: trial.batch_size].to(like.device)
    first = gradient(model, biases, batch, labels)
    # Insertion shares the weights with what it is given: the other arm needs its own.
    other = build(replace(trial, batch_norm=False), data)
    without = normed(trial.network, other, data)
    runs = (descended(trial, one, data) for one in (model, without))
    out: list[Found] = [
        {"step": a["step"], "with": a["validation_loss"], "without": b["validation_loss"]}
        | {"accuracy_with": a["test_accuracy"], "accuracy_without": b["test_accuracy"]}
        for a, b in zip(*runs, strict=False)
    ]
    out[-1] |= {
        # In this order: of a network that was lost it is NaN, which max keeps where it comes first.
        "gradient": max(gradient(model, biases, batch, labels), first),
        "wandered": wandered(model, biases, before),
        **shifted(model, biases, data, batch),
        **tested_on(data),
    }
    return out


def measure(rows: list[dict[str, Any]]) -> list[Verdict]:
    """Gradient (the headline), the run without b, what Adam does to it, and evaluation."""
    out: list[Verdict] = []
    for network in dict.fromkeys(row["activation"] for row in rows):
        mine = [row for row in rows if row["activation"] == network]
        sgd, adam = ([row for row in mine if row["optimizer"] == one] for one in OPTIMIZERS)
        out += _under(sgd, SGD, label(network)) + _still(adam, ADAM, label(network))
    return out


def _under(rows: list[dict[str, Any]], optimizer: str, name: str) -> list[Verdict]:
    ends = [mine[-1] for mine in by_seed(rows).values()]
    return [
        judge(
            NAME,
            f"gradient of b, {name}",
            f"The gradient of a bias b just before batch norm is zero, up to rounding ({name}).",
            [row.get("gradient") for row in ends],
            none=THERE,
            claimed=CANCELLED,
            note="Norm of the gradient in the worst layer, relative to what it would be if nothing "
            "were cancelled; at the start and at the end of training.",
        ),
        judge(
            NAME,
            f"same run without b, {name}",
            f"Under {WORDS[optimizer]} training without b is the same run as with it.",
            [_apart(mine) for mine in by_seed(rows).values()],
            none=OTHER,
            claimed=SAME,
            unit="%",
            note="The largest relative difference of the validation loss during training; rounding "
            "grows from step to step as any small change does.",
        ),
        *_still(rows, optimizer, name),
        judge(
            NAME,
            f"training with b shifted, {name}",
            "In training mode a shift of every b by one standard deviation of its unit leaves the "
            "network's answers as they are.",
            [row.get("moved_training") for row in ends],
            none=SEEN,
            claimed=UNMOVED,
            unit="σ",
            note="The largest change of a logit, in standard deviations of the logits.",
        ),
        *_in_evaluation(ends, name),
    ]


def _still(rows: list[dict[str, Any]], optimizer: str, name: str) -> list[Verdict]:
    ends = [mine[-1] for mine in by_seed(rows).values()]
    return [
        judge(
            NAME,
            f"b stays, {WORDS[optimizer]}, {name}",
            f"Under {WORDS[optimizer]} b stays where it began.",
            [row.get("wandered") for row in ends],
            none=WANDERS,
            claimed=STILL,
            unit="σ",
            note="How far it moved, root mean square, in standard deviations of the unit.",
        )
    ]


def _in_evaluation(ends: list[dict[str, Any]], name: str) -> list[Verdict]:
    marks = Marks(none=HARMED, claimed=UNHARMED, unit="points")
    before = [row.get("accuracy_with") for row in ends]
    caution = weakened(ends, before, UNHARMED)

    def lost(what: str) -> list[float | None]:
        pairs = zip(ends, before, strict=True)
        return [row.get(what) if taught(row, accuracy) else None for row, accuracy in pairs]

    return [
        judge(
            NAME,
            f"evaluation with b shifted, {name}",
            "In evaluation a shift of every b by one standard deviation of its unit does no harm.",
            lost("lost_evaluation"),
            note="Test accuracy lost: the running mean is that of the b it was measured with.",
            caution=caution,
            **marks,
        ),
        judge(
            NAME,
            f"evaluation, running mean shifted too, {name}",
            "In evaluation a shift of every b does no harm if the running mean moves by as much.",
            lost("lost_folded"),
            caution=caution,
            **marks,
        ),
    ]


def _apart(rows: list[dict[str, Any]]) -> float | None:
    if any(row.get(arm) is None for row in rows for arm in ("with", "without")):
        return None
    return max(100 * abs(row["with"] - row["without"]) / row["without"] for row in rows)


def charts(rows: list[dict[str, Any]]) -> "dict[str, alt.LayerChart]":
    """Both arms' learning curves under gradient descent; how far b moves."""
    from batchnorm.charts import curves, intervals

    out: dict[str, alt.LayerChart] = {}
    for network in dict.fromkeys(row["activation"] for row in rows):
        mine = [r for r in rows if r["activation"] == network and r["optimizer"] == SGD]
        out[f"curves-{network}"] = curves(
            [row | {"arm": arm, "loss": row[key]} for row in mine for arm, key in ARMS.items()],
            "step",
            "loss",
            y_title="validation loss",
            title=f"With b and without it, {phrase(network)}, gradient descent",
        )
    stays = [asdict(v) | {"label": v.metric} for v in measure(rows) if v.metric[:7] == "b stays"]
    if stays:
        out["moved"] = intervals(
            stays,
            x_title="standard deviations of the unit",
            title="How far b moves in training: median and interval",
        )
    return out
