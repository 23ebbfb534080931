"""The update of running statistics on their own memory, by NumPy: for a CPU without Numba.

On so few numbers each of torch's calls costs more.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchnorm.kernels._address import values

Values = NDArray[np.float64]

_MOST = {dtype: torch.finfo(dtype).max for dtype in (torch.float32, torch.float64)}
_PLAIN = (Tensor, torch.nn.Parameter)


def update_running(
    buffers: tuple[Tensor | None, ...], moments: Tensor, momentum: float | None, decay: float = 0.0
) -> bool:
    """As `batchnorm.kernels.numba.update_running`; not for several groups' moments.

    Returns:
        Whether it takes these buffers; if not, nothing was done.
    """
    mean, var, batches, skipped = buffers
    if not (_plain(moments) and moments.dtype is torch.float64):
        return False
    if not (_taken(mean, moments) and _taken(var, moments)):
        return False
    counts, new_mean, new_var = moments.numpy()
    least = np.minimum.reduce(counts, initial=np.inf)
    if not least > 0:
        return True
    with np.errstate(all="ignore"):  # as torch: what overflows is judged, and does not fit
        unbiased = new_var * (counts / (counts - 1))
        if least <= 1:
            unbiased = np.where(counts > 1, unbiased, new_var)
        if not (_fits(mean, new_mean) and _fits(var, unbiased)):
            if skipped is not None:
                count("skipped", skipped)
            return True
        if batches is not None:
            count("num_batches_tracked", batches)
        share = _share(momentum, decay, batches)
        if mean is not None:
            _move_mean(mean, new_mean, share, nudges=bool(momentum))
        if var is not None:
            share = share if least > 1 else np.where(counts > 1, share, 0.0)
            _move("running_var", var, unbiased, share)
    return True


def count(name: str, counter: Tensor) -> None:
    """Add one, also to what was made in inference mode, which torch refuses outside of it."""
    if _plain(counter):
        values(name, counter)[:] += 1
        torch.autograd.graph.increment_version(counter)
    else:
        counter.add_(1)


def _plain(t: Tensor) -> bool:
    return type(t) in _PLAIN and t.is_cpu and not t.requires_grad and not t.is_neg()


def _taken(buffer: Tensor | None, moments: Tensor) -> bool:
    """Whether NumPy can write to it."""
    if buffer is None:
        return True
    alike = buffer.dtype in _MOST and buffer.shape == moments.shape[1:]
    return alike and _plain(buffer) and buffer.is_contiguous()


def _fits(buffer: Tensor | None, new: Values) -> bool:
    """Whether a buffer can hold what it is moved towards; NaN fits none."""
    if buffer is None:
        return True
    return bool(np.maximum.reduce(np.abs(new), initial=0.0) <= _MOST[buffer.dtype])


def _move(name: str, buffer: Tensor, new: Values, share: float | Values) -> None:
    """In float64, rounded once; autograd must learn of what was written behind its back."""
    now = values(name, buffer)
    now += (new - now) * share
    torch.autograd.graph.increment_version(buffer)


def _move_mean(buffer: Tensor, new: Values, share: float, nudges: bool) -> None:
    """As `_move`; a float32 that this does not move goes to its neighbour, as `Running` tells."""
    now = values("running_mean", buffer)
    before = now.copy()
    _move("running_mean", buffer, new, share)
    if nudges and buffer.dtype is torch.float32:
        near = new.astype(np.float32)
        stuck = (now == before) & (near != before)
        if stuck.any():
            now[stuck] = np.nextafter(before, near)[stuck]


def _share(momentum: float | None, decay: float, batches: Tensor | None) -> float:
    """The share of this batch, which is counted already."""
    if momentum is not None and not decay:
        return momentum
    assert batches is not None, "checked by batch_norm"
    count = batches.item()
    return 1 / count if momentum is None else momentum / -math.expm1(decay * count)
