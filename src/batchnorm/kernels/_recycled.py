"""Large outputs in memory that earlier ones have left, where there are no pages to be cleared."""

from __future__ import annotations

import ctypes
import os
import threading

import torch
from torch import Tensor

from batchnorm.kernels._block import holds
from batchnorm.kernels._pages import pages
from batchnorm.kernels._pool import Pool
from batchnorm.kernels._takes import missing

LEAST = 2**22  # bytes: two large pages

_TYPES = (Tensor, torch.nn.Parameter)
_modes = torch._C._len_torch_dispatch_stack
_functions = torch._C._len_torch_function_stack

_pool: Pool | None = None
_tried = False
_off = False
_trying = threading.Lock()


def large(x: Tensor) -> bool:
    """Whether `like` may do anything but ``torch.empty_like`` for such a tensor."""
    return x.numel() * x.itemsize >= LEAST


def like(x: Tensor) -> Tensor:
    """``torch.empty_like(x)``, in memory that an earlier tensor of ours has left.

    The C library gives large memory back to the system as soon as it is freed, and what comes next
    waits for every page to be cleared: of (32, 512, 28, 28) that was half the time of both
    directions. What differs from torch's: the storage cannot be resized, and torch's profiler does
    not see the memory.
    """
    size = x.numel() * x.itemsize
    if size < LEAST or type(x) not in _TYPES or not x.is_cpu or not holds(x):
        return torch.empty_like(x)
    if _modes() or _functions():
        return torch.empty_like(x)
    pool = None if _off else _pool or _made()
    lies = x if x.is_contiguous() else torch.empty_like(x, device="meta")
    block = None if pool is None else pool.take(size)
    if block is None:
        return torch.empty_like(x)
    return block.tensor(x.shape, lies.stride(), x.dtype)


def recycle(on: bool) -> None:
    """Whether large outputs are made so from now on; what is free is given back if not."""
    global _off
    _off = not on
    if _off:
        _leave(1.0)


def _made() -> Pool | None:
    """The pool, if there can be one; made when first needed."""
    global _pool, _tried
    if _tried or _off or not _trying.acquire(blocking=False):
        return None  # another thread is at it, or this one, in a finalizer
    try:
        calls = pages()
        if calls is not None and missing() is None:
            from batchnorm.kernels._numba_release import release

            _pool = Pool(calls, release().address)
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(_pool))  # tensors may outlive us
        _tried = True
        return _pool
    finally:
        _trying.release()


def _leave(patience: float = 0.0) -> None:
    """Begin anew with the next output; what is in use stays with those that use it."""
    global _pool, _tried
    left, _pool, _tried = _pool, None, False
    if left is not None:
        left.leave(patience)


def _forked() -> None:
    """A child has copies of all blocks, which are copied in earnest where either side writes."""
    global _trying
    _trying = threading.Lock()
    _leave()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
