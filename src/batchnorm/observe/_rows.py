"""What was seen: rows of step, path, quantity and channel values, and tables of them."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from batchnorm.observe._measured import Array, Measured, measured
from batchnorm.observe._parts import Seen
from batchnorm.observe._states import States, told

COUNTS, ENDS = "histogram", "histogram_ends"
AT_ONCE = 2**20  # bytes of samples that wait to be measured together


class Record:
    """What :func:`record` saw.

    Attributes:
        forwards: how many training forwards of the model were counted.
        percentiles: which of them are taken.
        bins: of the histograms.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        percentiles: Sequence[float],
        bins: int,
        writer: Any = None,
    ) -> None:
        self.forwards = 0
        self.percentiles, self.bins = tuple(percentiles), bins
        self._paths, self._writer = list(layers), writer
        self._eps = {path: float(getattr(module, "eps", 0)) for path, module in layers.items()}
        self._waiting: list[tuple[int, Seen, States]] = []
        self._size = 0
        self._found: dict[tuple[int, str, str], Measured] = {}
        self._states: list[tuple[int, States]] = []
        self._rows: list[tuple[int, str, str, Array]] = []
        self._last: dict[str, tuple[Array, Array]] = {}

    def __repr__(self) -> str:
        steps = list(dict.fromkeys(step for step, *_ in self._kept()))
        when = f"steps {steps[0]} to {steps[-1]}" if steps else "nothing yet"
        layers = f"{len(self._paths)} layer{'s' if len(self._paths) != 1 else ''}"
        return (
            f"Record({layers}, {when}: series(quantity, path) and "
            f"table(quantity), of {', '.join(self.quantities) or 'none'})"
        )

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row for each step, path and quantity, with ``values``, one for each channel.

        The rows of a step are there when the next one begins, or the block ends.
        """
        return [
            {"step": step, "path": path, "quantity": quantity, "values": values.tolist()}
            for step, path, quantity, values in self._kept()
        ]

    @property
    def quantities(self) -> list[str]:
        """What there are rows of."""
        return list(dict.fromkeys(quantity for _, _, quantity, _ in self._kept()))

    def table(self, quantity: str) -> list[dict[str, Any]]:
        """A quantity in long form: step, path, channel, value; as pandas and Altair take it.

        Raises:
            ValueError: nothing of that name was recorded.

        Example:
            >>> import torch
            >>> from batchnorm.observe import record
            >>> layer = torch.nn.BatchNorm1d(2)
            >>> with record(layer) as seen:
            ...     _ = layer(torch.tensor([[1.0, 10.0], [3.0, 30.0]]))
            >>> seen.table("batch_mean")[1]
            {'step': 0, 'path': '', 'channel': 1, 'value': 20.0}
        """
        self._check(quantity)
        return [
            {"step": step, "path": path, "channel": channel, "value": value}
            for step, path, name, values in self._kept()
            if name == quantity
            for channel, value in enumerate(values.tolist())
        ]

    def series(self, quantity: str, path: str) -> tuple[list[int], Array]:
        """A layer's quantity over training: the steps, and an array ``(steps, channels)``.

        Raises:
            ValueError: nothing of that name was recorded, or not of that layer.
        """
        self._check(quantity)
        mine = [(step, v) for step, at, name, v in self._kept() if name == quantity and at == path]
        if not mine:
            paths = list(dict.fromkeys(at for _, at, name, _ in self._kept() if name == quantity))
            raise ValueError(f"no {quantity} was recorded of {path!r}; of {paths}")
        return [step for step, _ in mine], np.stack([values for _, values in mine])

    def _check(self, quantity: str) -> None:
        if quantity not in self.quantities:
            seen = f"recorded were {', '.join(self.quantities)}" if self._kept() else "nothing yet"
            raise ValueError(f"no quantity {quantity!r} was recorded: {seen}")

    def take(self, step: int, seen: Seen, states: States) -> None:
        """A step is over: it is measured now, or together with the next ones."""
        self._waiting.append((step, seen, states))
        self._size += sum(part.size for part in seen.values())
        if self._writer is not None:
            self._written(step, seen)
        elif self._size > AT_ONCE:
            self._measure()

    def _measure(self) -> None:
        waiting, self._waiting, self._size = self._waiting, [], 0
        found: dict[tuple[int, str, str], Measured] = {}
        for shape in (True, False):
            parts = {
                (step, *key): part
                for step, seen, _ in waiting
                for key, part in seen.items()
                if (key[1] == "output") == shape
            }
            every = measured(list(parts.values()), shape, self.percentiles, self.bins)
            found |= zip(parts, every, strict=True)
        self._found |= found
        self._states += [(step, states) for step, _, states in waiting]

    def _kept(self) -> list[tuple[int, str, str, Array]]:
        """All rows; what was measured since the last call is told in them now."""
        if self._waiting:
            self._measure()
        for step, states in self._states:
            named = told(states)
            for path in self._paths:
                mine = {name: values for (at, name), values in named.items() if at == path}
                if any((step, path, what) in self._found for what in ("input", "output")):
                    self._of_layer(step, path, mine)
        self._found, self._states = {}, []
        return self._rows

    def _of_layer(self, step: int, path: str, told: dict[str, Array]) -> None:
        add = partial(self._add, step, path)
        if output := self._found.get((step, path, "output")):
            self._of_output(path, output, add)
        if gradient := self._found.get((step, path, "gradient")):
            add("gradient", np.sqrt(gradient.var + gradient.mean**2))
        if given := self._found.get((step, path, "input")):
            add("batch_mean", given.mean)
            add("batch_var", given.var)
            if "running_mean" in told and "running_var" in told:
                eps = self._eps[path]
                root, ran = np.sqrt(given.var + eps), np.sqrt(told["running_var"] + eps)
                add("mean_gap", (told["running_mean"] - given.mean) / root)
                add("std_gap", np.log(ran / root))
        for name, values in sorted(told.items()):
            add(name, values)

    def _of_output(self, path: str, output: Measured, add: Callable[[str, Array], None]) -> None:
        mean, std = output.mean, np.sqrt(output.var)
        add("mean", mean)
        add("std", std)
        for percent, values in zip(self.percentiles, output.shape.percentiles, strict=True):
            add(f"p{percent:g}", values)
        add(COUNTS, output.shape.counts)
        add(ENDS, output.shape.ends)
        if path in self._last:
            before, spread = self._last[path]
            with np.errstate(divide="ignore", invalid="ignore"):
                add("drift_mean", np.abs(mean - before) / spread)
                add("drift_std", np.abs(np.log(std / spread)))
        self._last[path] = mean, std

    def _add(self, step: int, path: str, quantity: str, values: Array) -> None:
        self._rows.append((step, path, quantity, values))

    def _written(self, step: int, seen: Seen) -> None:
        before = len(self._rows)
        for _, path, quantity, values in self._kept()[before:]:
            if quantity not in (COUNTS, ENDS):
                self._writer.add_scalar(f"{path or 'model'}/{quantity}", float(values.mean()), step)
        for (path, what), part in seen.items():
            if what == "output":
                sample = part.sample.float().cpu().numpy()
                self._writer.add_histogram(f"{path or 'model'}/output", sample, step)
