"""What a model is called with, out of a loader's batch; and how many examples that are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

Forward = Callable[[Any, Any], object]
Batches = Callable[[], Iterator[tuple[int, Any, Callable[[], object]]]]


def batches_of(
    model: nn.Module, batches: Iterable[Any], examples: int | None, forward: Forward | None
) -> Batches:
    """A function that goes through the batches: size, arguments of the model, and the call of it.

    Batches without examples are left out; no batch is fetched beyond the last one needed.
    """
    device = _device(model)

    def once() -> Iterator[tuple[int, Any, Callable[[], object]]]:
        left = float("inf") if examples is None else examples
        for number, batch in enumerate(batches):
            call = batch if forward is not None else _call(model, batch, number)
            size = _size(call, number)
            if size > left:
                call, size = _cut(call, size, int(left)), int(left)
            left -= size
            if size:
                yield size, call, _runs(model, _moved(call, device), forward)
            if left <= 0:
                return

    return once


def _runs(model: nn.Module, call: Any, forward: Forward | None) -> Callable[[], object]:
    if forward is not None:
        return lambda: forward(model, call)
    if isinstance(call, dict):
        return lambda: model(**cast("dict[str, Any]", call))
    return lambda: model(call)


def _call(model: nn.Module, batch: Any, number: int) -> Any:
    """The value that the model is called with, or a dict of them by name."""
    if isinstance(batch, dict):
        return _by_name(model, cast("dict[str, Any]", batch), number)
    if isinstance(batch, tuple | list) and not isinstance(batch, PackedSequence):
        parts = cast("list[Any]", list(batch))
        if not parts:
            raise ValueError(f"batch {number} is empty: expected (x, y), a tensor or a dict")
        return parts[0]
    return batch


def _by_name(model: nn.Module, batch: dict[str, Any], number: int) -> dict[str, Any]:
    parameters = inspect.signature(model.forward).parameters
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return batch
    taken = {name: value for name, value in batch.items() if name in parameters}
    if not taken:
        raise ValueError(
            f"batch {number} is a dict of {', '.join(map(str, batch)) or 'nothing'}, none of which "
            f"the forward of {type(model).__name__} takes ({', '.join(parameters)}): give "
            "forward=lambda model, batch: model(batch[...])"
        )
    return taken


def _size(call: Any, number: int) -> int:
    for value in pytree.tree_leaves(call):
        if isinstance(value, Tensor) and value.dim():
            return len(value)
    raise TypeError(
        f"batch {number} has no tensor for the model, but {type(call).__name__} "
        f"({str(call)[:60]}): expected a tensor, (x, y) or a dict of tensors, or give "
        "forward=lambda model, batch: ..."
    )


def _cut(call: Any, size: int, left: int) -> Any:
    def cut(value: Any) -> Any:
        whole = isinstance(value, Tensor) and value.dim() and len(value) == size
        return value[:left] if whole else value

    return pytree.tree_map(cut, call)


def _moved(call: Any, device: torch.device | None) -> Any:
    def moved(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    return call if device is None else pytree.tree_map(moved, call)


def _device(model: nn.Module) -> torch.device | None:
    """Where the model lives; None where it lives on several devices."""
    found = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    return found.pop() if len(found) == 1 else None
