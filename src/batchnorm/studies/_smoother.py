"""Verdicts and pictures of gradients and loss in two arms, at the same training loss."""

from dataclasses import asdict
from statistics import median
from typing import TYPE_CHECKING, Any

from batchnorm.studies._judge import by_seed, judge
from batchnorm.studies._matched import shared, times
from batchnorm.studies._sweep import Rows
from batchnorm.studies._verdict import Verdict
from batchnorm.studies._wider import WITH, WITHOUT

if TYPE_CHECKING:
    import altair as alt

LESS = 1.1  # times: a tenth less is the least that is worth the name
FIELDS = {  # what is compared: metric and claim
    "change": (
        "change of gradients",
        "When the layers before it have taken their step, a layer's gradient has changed less, in "
        "relation to its length,",
    ),
    "norm": (
        "change of gradients, not in relation to their length",
        "The difference between a layer's gradients before and after that step is smaller",
    ),
    "angle": (
        "angle between gradients",
        "A layer's gradient turns by less when the layers before it have taken their step",
    ),
    "roughness": (
        "roughness of the loss",
        "Along the gradient, the gradient changes less for the way gone: the loss is smoother",
    ),
    "relative_roughness": (
        "roughness of the loss, free of scale",
        "Along the gradient, the gradient's relative change is smaller for the weights' relative "
        "change: the loss is smoother whatever the scale of the weights",
    ),
    "unpredicted": (
        "unpredicted change along the gradient",
        "The gradient at the start of a step predicts that at its end better",
    ),
    "range": ("range of the loss", "Along the gradient the loss varies less"),
}


def less(study: str, looks: Rows, field: str, name: str) -> Verdict:
    """How many times less there is of a field of the looks with batch norm; ``arm`` in each row."""
    metric, claim = FIELDS[field]
    pairs = [(_of(mine, WITHOUT), _of(mine, WITH)) for mine in by_seed(looks).values()]
    ranges = [ends for plain, normed in pairs if (ends := shared(plain, normed))]
    seen = [[row[field] for row in _of(looks, arm) if row.get(field)] for arm in (WITHOUT, WITH)]
    tried = sorted({row["learning_rate"] for row in looks})
    note = "How many times less, at the same training loss. Both arms at a learning rate of "
    note += f"{' or '.join(f'{rate:g}' for rate in tried)}, which decides how far a step goes."
    if ranges:
        low, high = (median(ends) for ends in zip(*ranges, strict=True))
        note += f" Losses from {high:.2g} to {low:.2g} (medians)."
    if all(seen):
        plain, normed = map(median, seen)
        note += f" Medians over all looks: {plain:.3g} without batch norm, {normed:.3g} with it."
    return judge(
        study,
        f"{metric}, {name}",
        f"{claim} with batch norm ({name}).",
        [times(plain, normed, field) for plain, normed in pairs],
        none=1.0,
        claimed=LESS,
        unit="×",
        note=note,
    )


def pictures(seen: list[dict[str, Any]], verdicts: list[Verdict], noun: str) -> "dict[str, Any]":
    """All ratios, the angles layer by layer, and the roughness over training."""
    from batchnorm.charts import curves, intervals, sweep

    metrics = [metric for metric, _ in FIELDS.values()]
    drawn = [v for v in verdicts if v.metric.rpartition(", ")[0] in metrics]
    charts: dict[str, alt.LayerChart] = {
        "ratios": intervals(
            [asdict(v) | {"label": v.metric} for v in drawn],
            x_title="times less with batch norm",
            title=f"Gradients and loss, {noun}, at the same training loss: median and interval",
            reference=1,
            log_x=True,
        ),
        "roughness": curves(
            seen,
            "step",
            "relative_roughness",
            log_y=True,
            y_title="relative change: gradient over weights",
            title=f"Roughness of the loss along the gradient, free of scale, {noun}",
        ),
    }
    if turned := _by_layer(seen):
        charts["angles"] = sweep(
            turned,
            "layer",
            "angle",
            log_x=False,
            y_title="angle, degrees",
            title=f"How far gradients turn when earlier layers step, {noun}",
        )
    return charts


def _by_layer(seen: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One angle a seed and layer: the median over looks."""
    angles: dict[tuple[str, int, int], list[float]] = {}
    for row in seen:
        for layer, angle in enumerate(row["angles"], start=2):
            if angle is not None:
                angles.setdefault((row["arm"], row["seed"], layer), []).append(angle)
    return [
        {"arm": arm, "layer": layer, "angle": median(many)}
        for (arm, _, layer), many in angles.items()
    ]


def _of(rows: Rows, arm: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["arm"] == arm]
