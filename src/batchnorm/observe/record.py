"""Record what the hidden units' distributions do while a model trains."""

import operator
import warnings
from collections.abc import Iterable, Sequence
from numbers import Real
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, cast

import torch
from torch import nn

if TYPE_CHECKING:
    from batchnorm.observe._hooks import Watch
    from batchnorm.observe._layers import Layers
    from batchnorm.observe._rows import Record


class Writer(Protocol):
    """What is used of a ``torch.utils.tensorboard.SummaryWriter``."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """Write a number."""
        ...

    def add_histogram(self, tag: str, values: Any, global_step: int) -> Any:
        """Write the histogram of these values."""
        ...


class Recording:
    """A block to train in, which :func:`record` gives; ``as`` names its :class:`Record`."""

    def __init__(self, seen: "Record", watch: "Watch") -> None:
        self._seen, self._watch, self._begun = seen, watch, False

    def __enter__(self) -> "Record":
        if self._begun:
            raise RuntimeError("this record has had its block: call record again for another one")
        self._begun = True
        self._watch.start()
        return self._seen

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._watch.stop()
        finally:
            self._seen.forwards = self._watch.forwards
        if error is None and not self._seen.forwards:
            warnings.warn(
                f"nothing was recorded: {type(self._watch.root).__name__} was not called in "
                "training mode with gradients inside the block; record what the loop calls (the "
                "compiled model, the DataParallel or DDP wrapper)",
                RuntimeWarning,
                stacklevel=2,
            )

    if not TYPE_CHECKING:  # a type checker knows that there is no such attribute

        def __getattr__(self, name: str) -> NoReturn:
            raise AttributeError(
                f"no {name!r} before the block: with batchnorm.record(model) as seen: "
                f"train(model); then seen.{name}"
            )


def record(
    model: nn.Module,
    every: int = 20,
    layers: "Layers | None" = None,
    *,
    percentiles: Sequence[float] = (15, 50, 85),
    bins: int = 64,
    optimizer: torch.optim.Optimizer | None = None,
    writer: Writer | None = None,
) -> Recording:
    """Watch layers of a model while it trains, at every so many steps; it trains as it would alone.

    A step is a forward of the model in training mode, with gradients enabled; the first one, on the
    initial weights, is step 0. Forwards in evaluation mode, under ``no_grad``, inside of
    ``torch.func`` transforms, and those that raise, are not counted. With an ``optimizer`` a step
    is one of its own, and all forwards between two of them are seen together. Calls of a layer in
    one step are seen together as well; what activation checkpointing runs again is not.

    A row holds the step, the path, the quantity and its values, one a channel:

    - of the layer's output: ``mean``, ``std``; ``p15``, ``p50``, ``p85``; ``histogram`` (counts
      over all channels together) and ``histogram_ends``; ``gradient``, the root mean square of the
      loss's gradient; and since the last recorded step ``drift_mean``, ``|mean - mean'| / std'``,
      and ``drift_std``, ``|log(std / std')|``;
    - of a batch norm besides: ``batch_mean``, ``batch_var`` (biased) of its input; the running
      statistics as this batch found them, ``running_mean``, ``running_var``, and their distance
      from the batch's, ``mean_gap``, ``(running_mean - batch_mean) / sqrt(batch_var + eps)``, and
      ``std_gap``, ``log sqrt((running_var + eps) / (batch_var + eps))``; ``gamma``, ``beta``,
      ``gamma_gradient``, ``beta_gradient``, as the backward pass left them in ``.grad``.

    Moments are of all values. Percentiles and histograms are of 1024 positions a call,
    evenly spread, where a channel has more. What a mask leaves out, given to a layer or put around
    the model by :func:`batchnorm.masked`, does not enter; every position of a nested tensor does.

    Args:
        model: what is called in the training loop: for a model in DataParallel,
            DistributedDataParallel (each process records its own share) or torch.compile, the
            wrapper. Paths are those of the model inside. A compiled model runs its recorded steps
            uncompiled, and so draws other random numbers for its dropout in these.
        every: steps from one that is recorded to the next.
        layers: paths (``"layer1.*.bn1"``), types, or several of them; every batch norm when left
            out. Channels are on the last axis of linear, recurrent, embedding, attention and
            LayerNorm layers' values, and on axis 1 of all others'.
        percentiles: between 0 and 100.
        bins: of the histograms.
        optimizer: whose steps are the steps.
        writer: a ``SummaryWriter``, or whatever has its ``add_scalar``, given each quantity's
            average over the channels, and ``add_histogram``.

    Returns:
        What ``with`` takes; ``as`` gives a :class:`Record`, whose rows can be read inside the block
        and after it.

    Raises:
        ValueError: there is no such layer, or no batch norm; a number out of range.
        TypeError: not a model; a writer that cannot write.

    Warns:
        RuntimeWarning: the block ended without a step; a layer that is called several times in one
            had different channels, of which those of the first call are recorded.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))
        >>> descent = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with record(model, every=10) as seen:
        ...     for _ in range(21):
        ...         loss = model(torch.randn(8, 4)).square().mean()
        ...         descent.zero_grad()
        ...         loss.backward()
        ...         descent.step()
        >>> steps, gamma = seen.series("gamma", "1")
        >>> steps, gamma.shape
        ([0, 10, 20], (3, 3))
    """
    # Only here: few who import the package record.
    from batchnorm.observe._hooks import Watch
    from batchnorm.observe._layers import watched
    from batchnorm.observe._rows import Record

    every, bins = _whole("every", every), _whole("bins", bins)
    _check(model, writer)
    percentiles = _percentiles(percentiles)
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer is {optimizer!r}: expected the torch.optim.Optimizer whose steps are the "
            "steps, or None to count the model's"
        )
    found = watched(model, layers)
    seen = Record(found, percentiles, bins, writer)
    return Recording(seen, Watch(model, found, every, optimizer, seen.take))


def _whole(name: str, value: Any) -> int:
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(f"{name} is {value!r}: expected a whole number of at least 1")
    return number


def _percentiles(given: Any) -> list[float]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise TypeError(f"percentiles is {given!r}: expected several numbers from 0 to 100")
    percentiles = list(cast("Iterable[Any]", given))
    for percent in percentiles:
        number = -1.0 if isinstance(percent, bool) or not isinstance(percent, Real) else percent
        if not 0 <= float(number) <= 100:
            raise ValueError(f"percentiles holds {percent!r}: expected numbers from 0 to 100")
    return percentiles


def _check(model: Any, writer: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}: expected a torch.nn.Module to watch")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            f"{type(model).__name__} runs outside of Python, where nothing can be watched: record "
            "the model that it was made from"
        )
    for name in ("add_scalar", "add_histogram") if writer is not None else ():
        if not callable(getattr(writer, name, None)):
            raise TypeError(
                f"writer is {type(writer).__name__}, without {name}: expected a "
                "torch.utils.tensorboard.SummaryWriter or something with its methods"
            )
