"""What a loss of accuracy can show: whether there was any to lose, and in what steps it comes."""

from collections.abc import Sequence
from typing import Any

from batchnorm.data import Data

TAUGHT = 0.1  # above the accuracy of guessing: a network with less has nothing to lose
Row = dict[str, Any]


def tested_on(data: Data) -> Row:
    """Fields of a row: how many test examples, and the share of the most common of their labels."""
    most = data.test.y.bincount().max().item()
    return {"test_examples": len(data.test), "guessing": most / len(data.test)}


def taught(row: Row, accuracy: float | None) -> bool:
    """Whether a network with this accuracy has learned enough to lose some of it."""
    return accuracy is not None and accuracy - row["guessing"] >= TAUGHT


def weakened(rows: Sequence[Row], accuracies: Sequence[float | None], mark: float) -> str:
    """What weakens a verdict on lost points of accuracy, or nothing.

    Args:
        rows: of one network, one of them with the fields of :func:`tested_on` at least.
        accuracies: before the loss, one a seed.
        mark: the points that count.
    """
    about = next((row for row in rows if "guessing" in row), None)
    if about is None:
        raise KeyError("guessing")
    untaught = sum(not taught(about, one) for one in accuracies if one is not None)
    words: list[str] = []
    if untaught:
        words.append(
            f"In {untaught} of {len(accuracies)} seeds the network is right on less than "
            f"{100 * TAUGHT:.0f} points more than by guessing: it has nothing to lose."
        )
    if 100 / (count := about["test_examples"]) > mark:
        words.append(
            f"Judged on only {count} test examples, of which one is {100 / count:.2g} points, "
            f"more than the {mark:g} that count."
        )
    return " ".join(words)
