"""Compile the CPU's kernels into Numba's cache, each once, for tests in several processes.

Left to the tests, those that run at the same time compile the same kernels beside each other.
"""

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from batchnorm.kernels import numba
from batchnorm.kernels._takes import DTYPES

PROCESSES = 2


def compiled(kernels):
    """How many of these this compiled: of one layout and dtype, which have functions in common."""
    from batchnorm.kernels import _numba_limits
    from batchnorm.kernels._numba_kernels import kernel

    made = [kernel(*each) for each in kernels] or [_numba_limits.kernel(each) for each in DTYPES]
    return sum(each.owner.cache_hits == 0 for each in made)


def longest_first():
    from batchnorm.kernels._numba_variant import VARIANTS

    every = [
        [(variant, dtype) for variant in VARIANTS if variant.planar is planar]
        for planar in (False, True)
        for dtype in DTYPES
    ]
    return [*every, []]


def main():
    runs, reason = numba.here()
    if not runs:
        print(f"No kernels to compile: {reason}.")
        return
    start = time.perf_counter()
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        made = sum(pool.map(compiled, longest_first()))
    print(f"{made} kernels compiled in {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
