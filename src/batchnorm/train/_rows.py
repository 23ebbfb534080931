"""What a training run says of itself, row by row."""

import math
from collections.abc import Callable

from torch import Tensor, nn

from batchnorm.data import Data
from batchnorm.train._evaluate import judge, moved

Row = dict[str, float | int | None]


class Rows:
    """The rows of one run; each is told to `on_row` as it is made.

    Attributes:
        made: those so far.
        overwrites: whether the model overwrites its input.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        like: Tensor,
        on_row: Callable[[Row], object] | None,
    ) -> None:
        parts = (("validation", data.validation), ("test", data.test))
        self._judged = [(name, *moved(part, like)) for name, part in parts]
        self._model, self._on_row = model, on_row
        self.made: list[Row] = []
        self.overwrites = False

    def judge(self, step: int, losses: list[float]) -> None:
        """Judge the model as it is after this step, and the mini-batches since the last row."""
        row: Row = {"step": step, "loss": None, "peak_loss": None}
        if losses:
            row |= {"loss": _finite(sum(losses) / len(losses)), "peak_loss": _finite(max(losses))}
        for name, inputs, labels in self._judged:
            loss, accuracy = judge(self._model, inputs, labels, overwrites=self.overwrites)
            row[f"{name}_loss"] = _finite(loss)
            row[f"{name}_accuracy"] = accuracy if math.isfinite(loss) else None
            if step == 0:
                row[f"{name}_examples"] = len(labels)
        self._tell(row)

    def diverged(self, step: int) -> None:
        """The last row: at this step the loss was not finite."""
        self._tell({**dict.fromkeys(self.made[0]), "step": step, "diverged": True})

    def _tell(self, row: Row) -> None:
        self.made.append(row)
        if self._on_row is not None:
            self._on_row(row)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
