"""What a recomputation under activation checkpointing must find as its first pass found it.

Checkpointing calls a layer again in the backward pass. A batch's own statistics come out the same;
running ones have moved since, so those that normalized lately are kept, and found again by the
batch's own moments, which the recomputation repeats to the last bit.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

KEPT = 16  # passes of a layer between its forward and its backward pass

_PLAIN = (Tensor, torch.nn.Parameter)
_passes: Any = WeakIdKeyDictionary()  # running means -> the last passes: moments, mean, var


def recomputing() -> bool:
    """Whether this call runs inside a backward pass."""
    return torch._C._current_graph_task_id() != -1


def as_before(key: Tensor, mean: Tensor, var: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """`mean` and `var` when the batch with the moments `seen` was first normalized.

    Args:
        key: the running mean, by which the layer is known.
        mean: the running mean as it is now, or a copy.
        var: the running variance.
        seen: the batch's moments.
    """
    if torch.compiler.is_compiling() or type(key) not in _PLAIN or type(seen) is not Tensor:
        return mean, var
    passes = _passes.get(key)
    if recomputing():
        for moments, *then in passes or ():
            if moments.shape == seen.shape:
                same = ((moments == seen) | (moments.isnan() & seen.isnan())).all()
                mean, var = torch.where(same, then[0], mean), torch.where(same, then[1], var)
        return mean, var
    if passes is None:
        passes = _passes[key] = deque(maxlen=KEPT)
    passes.append((seen, mean.detach().clone(), var.detach().clone()))
    return mean, var
