"""What of a trial's rows is kept: what measures and charts read, to the digits that count."""

from collections.abc import Sequence
from typing import Any, cast

from batchnorm.train import Row

DIGITS = 9  # significant: these tell any two numbers of float32 apart, in which networks compute
LOSSES = ("loss", "peak_loss", "validation_loss", "test_loss")
ENOUGH = 6  # significant, for what is read of training: the losses at its ends and accuracies


def thinned(rows: Sequence[Row]) -> list[Row]:
    """Rows of training, of which those between the first and the last keep no losses.

    Accuracies at every look say how soon a network gets anywhere; of the losses, the first and the
    last are read, and the largest of any mini-batch, which goes into the last row.

    >>> rows = [{"step": i, "loss": 3.0 - i, "peak_loss": 4.0 - i} for i in (1, 2, 3)]
    >>> thinned(rows)[1:]
    [{'step': 2}, {'step': 3, 'loss': 0.0, 'peak_loss': 3.0}]
    """
    kept = list(rows)
    if len(rows) > 2:
        between = [{k: v for k, v in row.items() if k not in LOSSES} for row in rows[1:-1]]
        peaks = [peak for row in rows if (peak := row.get("peak_loss")) is not None]
        kept = [rows[0], *between, {**rows[-1], "peak_loss": max(peaks, default=None)}]
    return rounded(kept, ENOUGH)


def rounded(value: Any, digits: int = DIGITS) -> Any:
    """The value with all fractions in it to so many digits.

    >>> rounded([{"loss": 0.1234567891, "ratios": (3.0000000001e-7, None), "step": 1234567890}])
    [{'loss': 0.123456789, 'ratios': [3e-07, None], 'step': 1234567890}]
    """
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        named = cast("dict[str, Any]", value)
        return {name: rounded(one, digits) for name, one in named.items()}
    if isinstance(value, list | tuple):
        return [rounded(one, digits) for one in cast("Sequence[Any]", value)]
    return value
