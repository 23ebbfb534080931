"""Memory straight from the system, for which it need not ask back: it takes what is offered."""

from __future__ import annotations

import ctypes
import mmap
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

PAGE = mmap.PAGESIZE
LARGE_PAGE = 2**21  # bytes, on the processors that torch has wheels for
# Of madvise(2), which Python names only where it was built with them.
OFFER = getattr(mmap, "MADV_FREE", 8)
_LARGE_PAGES = getattr(mmap, "MADV_HUGEPAGE", 14)
_READ, _WRITE, _PRIVATE, _ANONYMOUS = 1, 2, 2, 0x20  # of mmap(2) on Linux
_FAILED = ctypes.c_void_p(-1).value


class Pages(NamedTuple):
    """Linux's calls.

    Attributes:
        map: ``mmap(2)``.
        unmap: ``munmap(2)``.
        advise: ``madvise(2)``.
        advise_address: where that is, for compiled code.
        unmap_address: likewise.
    """

    map: Any
    unmap: Any
    advise: Any
    advise_address: int
    unmap_address: int

    def get(self, size: int) -> int:
        """The address of `size` fresh bytes, a multiple of `LARGE_PAGE`; 0 if there are none.

        They are asked for in large pages as far as those are filled: clearing one costs a fifth of
        what as many small ones do, offering it and writing it again next to nothing.

        Args:
            size: a multiple of `PAGE`.
        """
        around = size + LARGE_PAGE
        got = self.map(None, around, _READ | _WRITE, _PRIVATE | _ANONYMOUS, -1, 0)
        if got in (None, _FAILED):
            return 0
        start = -(-got // LARGE_PAGE) * LARGE_PAGE
        if start > got:
            self.unmap(got, start - got)
        self.unmap(start + size, got + LARGE_PAGE - start)
        large = size // LARGE_PAGE * LARGE_PAGE
        if large:
            self.advise(start, large, _LARGE_PAGES)
        return start

    def give_back(self, start: int, size: int) -> None:
        """Undo `get`."""
        self.unmap(start, size)


def _limited() -> bool:
    """Whether memory counts against a limit until it is unmapped, offered or not."""
    import resource

    kinds = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    if any(resource.getrlimit(kind)[0] != resource.RLIM_INFINITY for kind in kinds):
        return True
    try:
        return Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2"
    except OSError:
        return False


@cache
def pages() -> Pages | None:
    """The calls of a Linux that takes offered memory when it needs it; None for another system."""
    if not sys.platform.startswith("linux") or sys.maxsize < 2**32:
        return None
    try:
        library: Any = ctypes.CDLL(None)
        get, give, advise = library.mmap, library.munmap, library.madvise
    except (AttributeError, OSError, TypeError):  # another C library
        return None
    address, size = ctypes.c_void_p, ctypes.c_size_t
    get.argtypes = [address, size, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    get.restype = address
    give.argtypes = [address, size]
    advise.argtypes = [address, size, ctypes.c_int]
    addresses = (ctypes.cast(call, address).value or 0 for call in (advise, give))
    found = Pages(get, give, advise, *addresses)
    if _limited():
        return None
    tried = found.get(PAGE)
    if not tried:
        return None
    offers = advise(tried, PAGE, OFFER) == 0
    found.give_back(tried, PAGE)
    return found if offers else None
