"""Compile the CPU's kernels into Numba's cache, each once, for tests in several processes.

Left to the tests, those that run at the same time compile the same kernels beside each other.
"""

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from batchnorm.kernels import numba
from batchnorm.kernels._takes import DTYPES

PROCESSES = 2


def compiled(variants):
    """How many kernels this compiled, for all dtypes: these variants share a file of the cache."""
    from batchnorm.kernels import _numba_limits
    from batchnorm.kernels._numba_kernels import kernel

    made = [kernel(each, dtype) for each in variants for dtype in DTYPES]
    if not variants:
        made = [_numba_limits.kernel(dtype) for dtype in DTYPES]
    return sum(each.owner.cache_hits == 0 for each in made)


def longest_first():
    """Variants by the function that makes their kernels."""
    from batchnorm.kernels._numba_kernels import builder
    from batchnorm.kernels._numba_variant import VARIANTS

    shared = {}
    for variant in VARIANTS:
        shared.setdefault(builder(variant), []).append(variant)
    return [*sorted(shared.values(), key=lambda each: (-len(each), each[0].planar)), []]


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
