"""The C library's allocator, which gives large memory back to the system as soon as it is freed."""

from __future__ import annotations

import ctypes
from typing import Any

from batchnorm.kernels import _recycled
from batchnorm.kernels._check import check_switch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_NEVER, _MOST = -1, 2**30
_USUAL_TRIM, _USUAL_MMAP = 2**26, 2**25  # to which glibc's own grow where large memory is freed


def keep_freed_memory(keep: bool = True) -> bool:
    """Let this process keep memory that was freed, so that the next large tensor finds it warm.

    Tensors above 32 MB get fresh memory from the system each time, and at the first touch of every
    page it is cleared, which costs more than the arithmetic of a batch norm, torch's own as well;
    docs/performance.md has what that makes. Large outputs and gradients of the layers here need no
    call: on Linux, with Numba, they lie in memory that earlier ones have left, of which the system
    takes what it needs. This is for all other tensors. Call it once, before the training begins.
    The price is memory: what was in use at the peak stays with the process, and the first steps
    take several times a tensor's size, until freed pieces fit those that follow.

    Args:
        keep: False gives back what is free now, and goes back to giving back what is freed later,
            except where it lies between pieces that are still in use. It ends what the layers do,
            too: their outputs have torch's own storages, which can be resized.

    Returns:
        Whether the C library does so: only glibc (Linux, other than Alpine) can be told.

    Raises:
        ValueError: `keep` is neither True nor False.

    Example:
        >>> keep_freed_memory() in (True, False)
        True
        >>> keep_freed_memory(False) in (True, False)
        True

    Source: mallopt(3), M_MMAP_THRESHOLD (tensors up to 1 GB) and M_TRIM_THRESHOLD.
    """
    check_switch("keep", keep)
    _recycled.recycle(keep)
    try:
        library: Any = ctypes.CDLL(None)
        tell, trim = library.mallopt, library.malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library; Windows has no CDLL(None)
        return False
    above = tell(_MMAP_THRESHOLD, _MOST if keep else _USUAL_MMAP)
    told = above and tell(_TRIM_THRESHOLD, _NEVER if keep else _USUAL_TRIM)
    if not keep:
        trim(0)
    return bool(told)
