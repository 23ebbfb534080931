"""Records of a block of memory and of its pool, in words that compiled code reads, too."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

# Of a block: a DLManagedTensor of DLPack, whose words are these,
DATA, DEVICE, KIND, SHAPE, STRIDES, _OFFSET, POOL, DELETER = range(8)
# when it was freed (0 while it is in use), its memory, whether that is held without being offered,
# and where this record is; then room for sizes and strides.
FREED, START, SIZE, HELD, SELF = range(8, 13)
SIZES, STEPS, WORDS = 16, 24, 32
DIMENSIONS = STEPS - SIZES

# Of a pool, a cache line to each: madvise(2), how many free bytes may be held, how often a block
# was freed, how many bytes were freed in all, and of those held how many were freed and taken.
ADVISE, MOST, CLOCK, RETURNED, PUT, TAKEN = range(0, 48, 8)
POOL_WORDS = 48


class Words(NamedTuple):
    """Integers of 64 bits at a place that stays.

    Attributes:
        words: the integers.
        at: their address, the beginning of a cache line.
        owner: keeps them in memory.
    """

    words: memoryview
    at: int
    owner: Any


def words(count: int) -> Words:
    """`count` zeros."""
    owner = (ctypes.c_char * (8 * count + 64))()
    shift = -ctypes.addressof(owner) % 64
    view = memoryview(owner).cast("B")[shift : shift + 8 * count].cast("q")
    return Words(view, ctypes.addressof(owner) + shift, owner)
