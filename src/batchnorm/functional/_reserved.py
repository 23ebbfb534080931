"""Whether the memory of an input is free to be overwritten, and if not, who needs it.

What a node saved is looked at as it was packed: to unpack it would call hooks, which run a
checkpoint again or read a disk. Hooks are outside torch's own check of versions: where one may keep
the very memory, it is left alone. A second reader of the input that saved it through such hooks is
seen by nobody, as with torch's own in-place operations.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from batchnorm.functional._running import Running
from batchnorm.kernels._address import address
from batchnorm.kernels._call import Call

_READ = ("weight", "bias", "residual", "mask", "running_mean", "running_var")
# What nodes call the inputs they saved; under any other name may be an output.
_INPUTS = {"self", "input", "weight", "bias", "other", "mat1", "mat2", "batch1", "batch2", "mask"}


def reserved(
    x: Tensor, call: Call, running: Running, graph: bool, apart: bool = False
) -> str | None:
    """Why `x` must not be overwritten, as far as can be seen before the backward pass.

    Args:
        x: the tensor to overwrite.
        call: what to compute.
        running: running statistics.
        graph: whether autograd records the call.
        apart: whether it is known to share no memory with what the call reads besides.
    """
    if not torch.is_inference_mode_enabled():
        for t in call[:3]:
            if t is not None and t.is_inference():
                return "the call is outside inference mode, and has a tensor that was made in it"
    shared = None if apart else _shared(call, running)
    if shared is not None:
        return f"{shared} shares memory with the input, and lies otherwise"
    return _needed(x) if graph else None


def _shared(call: Call, running: Running) -> str | None:
    """What is read while x is written, unless element for element."""
    start = address("x", call.x)
    stop = start + _length(call.x)
    for name, t in zip(_READ, call[1:5] + running[:2], strict=True):
        if t is None:
            continue
        first = address(name, t)
        if first < stop and start < first + _length(t) and t.numel():
            alike = t.stride() == call.x.stride() and t.shape == call.x.shape
            if not (name == "residual" and alike and first == start and t.dtype is call.x.dtype):
                return name
    return None


def _length(t: Tensor) -> int:
    """How many bytes there are from the first to the last."""
    if t.is_contiguous():
        return t.nbytes
    steps = sum((n - 1) * step for n, step in zip(t.shape, t.stride(), strict=True))
    return (steps + 1) * t.itemsize


def _needed(x: Tensor) -> str | None:
    """What autograd needs `x` for, as far as the node shows that made it."""
    if x._is_view():
        return "the input is a view of another tensor"
    if x.is_leaf and x.requires_grad:
        return "the input is a leaf that requires a gradient"
    node = x.grad_fn
    if node is None:
        return None
    for name in _saved_names(type(node)):
        held = _holds(node, name, x)
        if held is None:
            return f"{node.name()} may have saved its output through hooks, as checkpointing does"
        if held:
            return f"{node.name()} saved its output, which is the input here, for its gradient"
    return None


def _holds(node: Any, name: str, x: Tensor) -> bool | None:
    """Whether a node saved x under this name; None if hooks know."""
    try:
        raw = getattr(node, name)
    except RuntimeError:  # freed by a backward pass
        return False
    for saved in raw if isinstance(raw, tuple | list) else (raw,):
        if saved.unpack_hook is not None:
            if name.removeprefix("_raw_saved_") not in _INPUTS:
                return None
        elif isinstance(saved.data, Tensor) and saved.data.data_ptr() == x.data_ptr():
            return True
    return False


@cache
def _saved_names(node: type) -> tuple[str, ...]:
    """The attributes of a node of the graph that hold what it saved."""
    return tuple(n for n in dir(node) if n.startswith("_raw_saved_"))
