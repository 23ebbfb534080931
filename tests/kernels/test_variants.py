"""Kernels of one activation each: the right one for every slope, and each its own on disk."""

import math

import pytest
import torch

from batchnorm.kernels import numba, plain
from batchnorm.kernels._activation import Activation
from batchnorm.kernels._numba_kernels import kernel
from batchnorm.kernels._numba_variant import FLAT, PLAIN, SLOPED, VARIANTS, Kind, Variant, bend_of
from compared import problem
from processes import python

SLOPES = [
    (0.0, FLAT), (-0.0, FLAT), (1.0, PLAIN), (-0.3, SLOPED), (3.0, SLOPED), (math.nan, SLOPED)
]  # fmt: skip


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("order", [1, -1])
def test_every_slope_has_its_kernel(layout, order):
    """In one process, in either order: no kernel stands in for another."""
    for slope, _ in SLOPES[::order]:
        activation = Activation("leaky_relu", slope)
        call, dy = problem((3, 5, 16, 16), layout=layout, activation=activation)
        for each in (call, call._replace(residual=None)):
            y, moments = numba.forward(each)
            torch.testing.assert_close(y, plain.forward(each)[0], equal_nan=True)
            wanted = (True, each.residual is not None)
            got = numba.backward(dy, each, moments, False, wanted)
            right = plain.backward(dy, each, moments, False, wanted)
            for ours, theirs in zip(got, right, strict=True):
                assert (ours is None) == (theirs is None)
                if ours is not None:
                    torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize(("slope", "bend"), SLOPES)
def test_a_slope_is_one_bend(slope, bend):
    assert bend_of(slope) == bend


def test_types_are_as_alike_as_variants():
    kinds = {Kind(variant) for variant in VARIANTS}
    assert len(kinds) == len(VARIANTS)
    assert all(Kind(Variant(**vars(kind.variant))) is kind for kind in kinds)


KEYS = """
from batchnorm.kernels import _numba_compile, _numba_limits, _numba_running
from batchnorm.kernels._numba_kernels import kernel
from batchnorm.kernels._numba_variant import VARIANTS
from batchnorm.kernels._takes import DTYPES
from numba import types
from numba.core.caching import FunctionCache
from numba.core.registry import cpu_target

signature, target = types.void(types.voidptr), cpu_target.target_context.codegen()


class Made:
    cache_hits, address = 1, 0


def cfunc(*_, **options):
    def tell(body):
        cache = FunctionCache(body)
        print(cache._impl.filename_base, *cache._index_key(signature, target)[2])
        return Made

    return tell


_numba_compile.numba.cfunc = cfunc
for dtype in DTYPES:
    _numba_limits.kernel(dtype)
    for variant in VARIANTS:
        kernel(variant, dtype)
_numba_running.kernel()
"""


def test_each_kernel_has_a_file_on_disk_that_every_process_finds():
    """Of kernels that share one, two processes may save each under the other's key."""
    keys = [python(KEYS, PYTHONHASHSEED=seed).splitlines() for seed in ("1", "2")]
    assert keys[0] == keys[1]
    files = {key.split()[0] for key in keys[0]}
    assert len(files) == len(keys[0]) == 4 * (len(VARIANTS) + 1) + 1


LOAD = """
import torch
from batchnorm.kernels._numba_kernels import kernel
from batchnorm.kernels._numba_variant import Variant

print(kernel(Variant("forward", True, "flat"), torch.float32).owner.cache_hits)
"""


def test_another_process_loads_what_was_compiled_for_an_activation():
    kernel(Variant("forward", True, FLAT), torch.float32)
    assert python(LOAD) == "1\n"
