"""The arms of the study of dropout: orders and rates, each at its best learning rate."""

from collections.abc import Callable
from statistics import median
from typing import Any

from batchnorm.studies._best import accuracies_at_best
from batchnorm.studies._dropped import AFTER, BEFORE, LAST
from batchnorm.studies._sweep import ends, runs

ALONE, PLAIN, BARE = "batch norm alone", "neither", "dropout without batch norm"
ORDERS = {  # the usual place of dropout first: it gives the headline
    AFTER: "dropout after each batch norm",
    LAST: "dropout only after the last batch norm",
    BEFORE: "dropout before each batch norm",
}

Rows = list[dict[str, Any]]
Name = tuple[str, float]  # order and rate


class Arm:
    """What one order and rate came to at its best learning rate, by seed."""

    def __init__(self, rows: Rows, arm: Name) -> None:
        sweep = runs(rows, lambda row: "" if name_of(row) == arm else None)[""]
        self.learning_rate, self.test = accuracies_at_best(sweep)
        self.untrained = {seed: run.test[0] for seed, run in sweep[self.learning_rate].items()}
        self.rates = tuple(sweep)
        self.last = {
            row["seed"]: row
            for row in ends(rows)
            if name_of(row) == arm and row["learning_rate"] == self.learning_rate
        }

    def each(self, value: Callable[[dict[str, Any]], float | None]) -> list[float | None]:
        return [value(row) for row in self.last.values()]

    def middle(self, field: str) -> str:
        """A field's median at the end."""
        found = [value for row in self.last.values() if (value := row[field]) is not None]
        return f"{median(found):.2g}" if found else "no number"

    def told(self) -> str:
        return f"{100 * median(self.test.values()):.1f} % at {self.learning_rate:g}"


Arms = dict[Name, Arm]


def arms_of(rows: Rows) -> Arms:
    """Every arm that there are rows of, in their order."""
    return {name: Arm(rows, name) for name in dict.fromkeys(map(name_of, rows))}


def name_of(row: dict[str, Any]) -> Name:
    """The arm of a row: where its dropout stands, and the rate."""
    if row["order"] is None:
        return (ALONE if row["batch_norm"] else PLAIN), 0.0
    return ORDERS.get(row["order"], BARE), row["rate"]


def both(arms: Arms) -> list[Name]:
    """The arms with batch norm and dropout: order by order, the highest rate first."""
    orders = list(ORDERS.values())
    known = [name for name in arms if name[0] in orders]
    return sorted(known, key=lambda name: (orders.index(name[0]), -name[1]))
