"""Several threads on one C function: torch's own OpenMP threads where they can be had.

A second pool beside torch's would compete with it: idle OpenMP threads spin for a while. Joining
torch's pool costs two microseconds, and there is nothing to configure.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path
from typing import Any

import torch

_PID = os.getpid()
_FORKED = 0x40  # Linux: forked, and no other program executed since


def threads(work: int, grain: int) -> int:
    """How many threads `work` elements deserve at `grain` or more for each, as torch is set.

    One in a forked child: the pool's threads stay behind in the parent, and waiting for them
    never ends.
    """
    if work < 2 * grain or os.getpid() != _PID:
        return 1
    return min(torch.get_num_threads(), work // grain)


def _forked() -> bool:
    """Whether this process was forked before our import; `threads` knows of later ones.

    OpenMP waits there for threads that its parent may have had.
    """
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return bool(int(fields[6]) & _FORKED)
    except (OSError, IndexError, ValueError):  # no Linux
        return False


@cache
def _openmp() -> tuple[Any, int] | None:
    """Torch's ``GOMP_parallel`` and the address of ``omp_get_thread_num``, if it uses OpenMP."""
    if _forked():
        return None
    for path in Path(torch.__file__).parent.glob("lib/libtorch_cpu.so"):
        library = ctypes.CDLL(str(path))  # a symbol is also looked for in what it links to
        try:
            parallel, number = library.GOMP_parallel, library.omp_get_thread_num
        except AttributeError:
            return None
        address = ctypes.c_void_p
        parallel.argtypes = [address, address, ctypes.c_uint, ctypes.c_uint]
        parallel.restype = None
        return parallel, ctypes.cast(number, address).value or 0
    return None


def thread_number() -> int:
    """The address of a C function that numbers the threads of `run`, or 0 if there is none."""
    openmp = _openmp()
    return openmp[1] if openmp else 0


@cache
def rest() -> int:
    """The address of a C function that lets other threads run for now, or 0 if there is none."""
    try:
        return ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value or 0
    except (AttributeError, OSError, TypeError):  # Windows has no CDLL(None)
        return 0


@cache
def _pool(size: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(size, thread_name_prefix="batchnorm")


def run(function: Callable[[Any], None], address: int, argument: Any, count: int) -> None:
    """Call the C function at `address`, which is also `function`, from `count` threads at once.

    It finds its share of the work itself: with Python's threads, fewer than `count` may come.
    """
    openmp = _openmp()
    if openmp:
        openmp[0](address, argument, count, 0)
        return
    others = [_pool(count - 1).submit(function, argument) for _ in range(count - 1)]
    function(argument)
    for other in others:
        other.cancel()
    wait(others)
