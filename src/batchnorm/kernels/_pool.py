"""Blocks of memory that go from one output to the next.

What is free is offered to the system, which takes it when it needs memory; until then the next
output of about that size finds it, without a page having to be cleared. What is little is held
without being offered, as the C library does: small pages cost almost as much to offer and write
again as to clear.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

from batchnorm.kernels._block import Block
from batchnorm.kernels._numba_block import ADVISE, CLOCK, MOST, POOL_WORDS, RETURNED, TAKEN, words
from batchnorm.kernels._pages import PAGE, Pages

_HELD = 2**25  # bytes: half of what glibc holds at the end of its heap
_LOOSE = 2  # a block may have as many times the size that is needed, if none fits better
# Where tensors begin in three blocks after another, in bytes. Began they all with a page, each
# would drive the others from the same sets of the first cache: (32, 2048, 7, 7) took 4 % longer.
_SHIFTS = (1088, 2176, 3264)


class Pool:
    """Blocks in use and free ones.

    In all they are at most a quarter more than what was in use at one time, lately. Lately: in
    this and the last span, of some eight tensors for each block. What was free all that time is
    given back.

    Args:
        pages: gives memory.
        deleter: of `_numba_release`.
    """

    def __init__(self, pages: Pages, deleter: int) -> None:
        self._pages, self._deleter = pages, deleter
        self._record = words(POOL_WORDS)
        self._words = self._record.words
        self._words[ADVISE], self._words[MOST] = pages.advise_address, _HELD
        self._blocks: dict[int, list[Block]] = {}
        self._lock = threading.Lock()
        self._given = self._mapped = self._count = 0  # bytes; bytes; blocks ever made
        self._peak = self._peak_before = 0
        self._left = self._span_began = 0

    def take(self, size: int) -> Block | None:
        """A free block for `size` bytes, to be filled at once; None where there is none just now.

        Never waits: another thread may have been forked or interrupted in here, and this one may be
        here already, in a finalizer that the interpreter ran between two of its instructions.
        """
        if not self._lock.acquire(blocking=False):
            return None
        try:
            size += _SHIFTS[-1]
            step = max(1 << size.bit_length() >> 4, PAGE)  # within an eighth
            return self._take(-(-size // step) * step)
        finally:
            self._lock.release()

    def leave(self, patience: float = 0.0) -> None:
        """Give back what is free now, and each other block as soon as it is; none is taken again.

        Args:
            patience: how many seconds to wait for another thread that takes a block. After that
                all stays as it is, offered when it is free.
        """
        if not self._lock.acquire(timeout=patience):
            return
        for block in self._free():
            self._drop(block)
        self._words[ADVISE], self._words[MOST] = self._pages.unmap_address, -1
        # The lock is kept: who comes now must not find blocks that have gone.

    def sizes(self) -> tuple[int, int]:
        """Bytes in use, and bytes in all."""
        return self._given - self._words[RETURNED], self._mapped

    def _take(self, size: int) -> Block | None:
        block = self._latest(size) or self._made(size)
        if block is None:
            return None
        block.take()
        if block.held:
            self._words[TAKEN] += block.size
        self._given += block.size
        self._peak = max(self._peak, self.sizes()[0])
        self._left -= 1
        if self._left < 0:
            self._begin_span()
        return block

    def _latest(self, size: int) -> Block | None:
        """Of the free blocks of this size the one that was freed last, as it may be cached."""
        found, latest = None, 0
        for block in self._blocks.get(size, ()):
            freed = block.freed
            if freed > latest:
                found, latest = block, freed
        return found

    def _made(self, size: int) -> Block | None:
        """A block that is a little too large, or a new one, for which others may have to go."""
        free = list(self._free())
        loose = [block for block in free if size < block.size <= _LOOSE * size]
        if loose:
            return min(loose, key=lambda block: block.size)
        most = max(self._peak, self._peak_before, self.sizes()[0] + size)
        most += most // 4
        free.sort(key=lambda block: block.freed)
        for block in free:
            if self._mapped + size <= most:
                break
            self._drop(block)
        start = self._pages.get(size)
        if not start:  # what is free counts against a limit, too; the C library may need it
            for block in list(self._free()):
                self._drop(block)
            start = self._pages.get(size)
        if not start:
            return None
        shift = _SHIFTS[self._count % len(_SHIFTS)]
        block = Block(start, shift, size, self._record.at, self._deleter)
        self._blocks.setdefault(size, []).append(block)
        self._mapped += size
        self._count += 1
        return block

    def _free(self) -> Iterator[Block]:
        every = [block for blocks in self._blocks.values() for block in blocks]
        return (block for block in every if block.freed)

    def _begin_span(self) -> None:
        """Give back what was free all through the last span."""
        for block in self._free():
            if block.freed <= self._span_began:
                self._drop(block)
        self._span_began = self._words[CLOCK]
        self._peak_before, self._peak = self._peak, self.sizes()[0]
        self._left = 64 + 8 * sum(map(len, self._blocks.values()))

    def _drop(self, block: Block) -> None:
        if block.held:
            self._words[TAKEN] += block.size
        self._blocks[block.size].remove(block)
        self._pages.give_back(block.start, block.size)
        self._mapped -= block.size
