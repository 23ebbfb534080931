"""A block of memory of our own, and tensors in it: DLPack tells when the last of them is gone."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from batchnorm.kernels._layout import Ints
from batchnorm.kernels._numba_block import (
    DATA,
    DELETER,
    DEVICE,
    DIMENSIONS,
    FREED,
    HELD,
    KIND,
    POOL,
    SELF,
    SHAPE,
    SIZE,
    SIZES,
    START,
    STEPS,
    STRIDES,
    WORDS,
    words,
)

_CPU, _ONE_LANE = 1, 1 << 16
_FLOAT, _BFLOAT = 2, 4
_KINDS = {
    torch.float32: _ONE_LANE | 32 << 8 | _FLOAT,
    torch.float64: _ONE_LANE | 64 << 8 | _FLOAT,
    torch.float16: _ONE_LANE | 16 << 8 | _FLOAT,
    torch.bfloat16: _ONE_LANE | 16 << 8 | _BFLOAT,
}
_capsule: Any = ctypes.PYFUNCTYPE(
    ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p
)(("PyCapsule_New", ctypes.pythonapi))
_unused: Any = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_NAME = b"dltensor"  # of a capsule that no tensor was made of
_tensor = torch._C._from_dlpack  # torch.from_dlpack of a capsule, without the question


def holds(x: Tensor) -> bool:
    """Whether a block could hold a tensor like this one."""
    return x.dtype in _KINDS and x.dim() <= DIMENSIONS


class Block:
    """Memory that holds one tensor at a time, with its views.

    Args:
        start: where it begins.
        shift: how far into it tensors begin.
        size: how many bytes it has.
        pool: the address of the pool's record.
        deleter: of `_numba_release`.
    """

    __slots__ = ("_like", "_record", "size", "start", "words")

    def __init__(self, start: int, shift: int, size: int, pool: int, deleter: int) -> None:
        self._record = record = words(WORDS)
        self._like: tuple[Ints, Ints, torch.dtype] | None = None
        self.start, self.size, self.words = start, size, record.words
        known = {DATA: start + shift, DEVICE: _CPU, POOL: pool, DELETER: deleter}
        known |= {SHAPE: record.at + 8 * SIZES, STRIDES: record.at + 8 * STEPS}
        known |= {START: start, SIZE: size, SELF: record.at}
        for word, value in known.items():
            record.words[word] = value

    @property
    def freed(self) -> int:
        """At which count of the pool's it was freed; 0 while a tensor is in it."""
        return self.words[FREED]

    def take(self) -> None:
        """Let nobody else have it; `tensor` is to follow."""
        self.words[FREED] = 0

    @property
    def held(self) -> bool:
        """Whether it was freed without being offered to the system."""
        return self.words[HELD] != 0

    def tensor(self, shape: Ints, strides: Ints, dtype: torch.dtype) -> Tensor:
        """A tensor without gaps in the block's memory, which was taken for it."""
        capsule = None
        try:
            self._describe(shape, strides, dtype)
            capsule = _capsule(self._record.at, _NAME, None)
            return _tensor(capsule)
        except BaseException:  # an interrupt, of which no tensor came that would free it
            if capsule is None or _unused(capsule, _NAME):
                _deleter(self.words[DELETER])(self._record.at)
            raise

    def _describe(self, shape: Ints, strides: Ints, dtype: torch.dtype) -> None:
        record, like = self.words, (shape, strides, dtype)
        if self._like != like:
            self._like = None
            record[KIND] = len(shape) | _KINDS[dtype] << 32
            for d, (length, step) in enumerate(zip(shape, strides, strict=True)):
                record[SIZES + d], record[STEPS + d] = length, step
            self._like = like
