"""Whether an output should be written past the caches."""

from __future__ import annotations

import ctypes
import mmap
from functools import cache
from typing import Any

from torch import Tensor

_LARGE = 2**25  # bytes: more than a core's share of the last cache


def streams(out: Tensor) -> bool:
    """Whether `out` is larger than the caches and its memory is in use already.

    An ordinary store reads the line that it overwrites. Past the caches this is saved: measured on
    103 MB, forward takes 1.4 instead of 1.8 copies. Fresh memory, though, is zeroed by the system
    page by page into the cache, where ordinary stores find it; there streaming cost 40 % more.
    """
    size = out.numel() * out.itemsize
    if size < _LARGE:
        return False
    ask = _mincore()
    if ask is None:
        return False
    page = (out.data_ptr() + size // 2) & ~(mmap.PAGESIZE - 1)
    resident = ctypes.create_string_buffer(1)
    return ask(page, 1, resident) == 0 and bool(resident.raw[0] & 1)


@cache
def _mincore() -> Any:
    """The system call that says which pages are in memory; None where there is no such."""
    try:
        ask = ctypes.CDLL(None).mincore
    except (AttributeError, OSError, TypeError):  # Windows has no CDLL(None)
        return None
    ask.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    return ask
