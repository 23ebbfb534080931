"""Compiled code as C functions, kept on disk for later processes."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import pickle
import re
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numba
from numba.core.caching import FunctionCache

_log = logging.getLogger("batchnorm")
_COMPILED_IN = "_activation.py", "_layout.py", "_processor.py"  # numbers of theirs, or answers
_DAMAGED = pickle.UnpicklingError, EOFError, ValueError, IndexError, AttributeError, ImportError


class Kernel(NamedTuple):
    """A compiled kernel.

    Attributes:
        function: calls it from Python, without the interpreter's lock.
        address: where it is, for other threads to call.
        owner: keeps the code in memory.
    """

    function: Callable[[Any], None]
    address: int
    owner: Any


@cache
def stamp() -> str:
    """A hash of what is compiled. Numba looks but at the file of the function that is asked for."""
    folder = Path(__file__).parent
    sources = [*sorted(folder.glob("_numba_*.py")), *(folder / name for name in _COMPILED_IN)]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


@cache
def cache_folder() -> str | None:
    """Where compiled code is kept for later processes, if Numba found a place."""
    try:
        return str(FunctionCache(stamp.__wrapped__).cache_path)
    except (RuntimeError, OSError):
        return None


def c_function(body: Callable[[Any], None], name: str) -> Kernel:
    """Compile a function of one pointer, or load it from Numba's cache; the log tells `name`.

    Its files are its own. Of functions that share an index two processes, compiling at the same
    time, may save each under the other's key, and whoever loads it later computes something else.
    """
    start = time.perf_counter()
    body.__qualname__ = f"{re.sub(r'[^a-z0-9]+', '_', name.lower())}_{stamp()[:8]}"
    options: Any = {"nopython": True, "error_model": "numpy"}
    try:
        compiled = numba.cfunc("void(voidptr)", cache=True, **options)(body)
    except (RuntimeError, OSError, *_DAMAGED):  # nowhere to write the cache, or not to be read
        compiled = numba.cfunc("void(voidptr)", **options)(body)
    if compiled.cache_hits == 0:
        _log.info("compiled a kernel in %.1f s (%s)", time.perf_counter() - start, name)
    address: Any = compiled.address
    return Kernel(ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address), address, compiled)
