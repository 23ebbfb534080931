"""Where tensors lie that are read by address: none of those whose memory was freed.

Some programs free the memory of a tensor that they will fill again, FSDP and offloading among them:
``x.untyped_storage().resize_(0)``. Its address is 0 then, by which kernels know what there is not,
and that of a view its distance from there.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Hardly any memory lies below: there it is looked at more closely. Familiar calls ask
# `at if (at := t.data_ptr()) > LOW else held(name, t)` themselves: a call more would cost too much.
LOW = 2**32

_NUMPYS: dict[torch.dtype, type[np.generic]] = {
    **{torch.float32: np.float32, torch.float64: np.float64, torch.uint8: np.uint8},
    **{torch.int64: np.int64, torch.int32: np.int32, torch.int16: np.int16, torch.int8: np.int8},
}


def address(name: str, t: Tensor | None) -> int:
    """The address of `t`, 0 for none; raises as `held` does."""
    if t is None:
        return 0
    at = t.data_ptr()
    return at if at > LOW else held(name, t)


def check_held(name: str, t: Tensor | None) -> None:
    """Raise as `held` does; for torch's own operators, of which some do not ask.

    It takes a fifth of a microsecond.
    """
    if t is not None and t.data_ptr() <= LOW:
        held(name, t)


def held(name: str, t: Tensor) -> int:
    """The address of a tensor that may have lost its memory, 0 if it has no elements.

    Short ways ask it where an address is at most `LOW`.

    Raises:
        RuntimeError: its memory was freed.
    """
    if t.numel() and not t.untyped_storage().nbytes():
        raise RuntimeError(
            f"{name} of shape {tuple(t.shape)} has no memory: its storage was freed, as by "
            f"untyped_storage().resize_(0); expected its values to be there when batch norm reads "
            f"them, in a forward and in a backward pass: free it later, or fill it again before"
        )
    return t.data_ptr()


def values(name: str, t: Tensor) -> NDArray[Any]:
    """What a tensor on a CPU holds, flat: its memory if contiguous, else a copy.

    Integers, float32 or float64.

    After ``t.numpy()`` torch would never let that memory be freed or grow.
    """
    at, dtype = _view(t.dtype, t.numel())
    place = address(name, t)
    if t.is_contiguous():
        return np.frombuffer(at(place), dtype)
    near = t.contiguous()  # which goes with this call
    return np.frombuffer(at(near.data_ptr()), dtype).copy()


@lru_cache(256)
def _view(dtype: torch.dtype, count: int) -> tuple[Callable[[int], Any], np.dtype[Any]]:
    """What makes a buffer at an address, and what NumPy reads there."""
    return (ctypes.c_char * (count * dtype.itemsize)).from_address, np.dtype(_NUMPYS[dtype])
