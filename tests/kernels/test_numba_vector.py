import ctypes
import math
import mmap
import sys

import pytest
import torch

numba = pytest.importorskip("numba")

from batchnorm.kernels import _numba_vector as vectors  # noqa: E402
from batchnorm.kernels import _numba_vector_memory as memory  # noqa: E402
from batchnorm.kernels._numba_memory import TAGS  # noqa: E402

mapping = numba.njit(fastmath={"contract"}, error_model="numpy")  # as ours, but called from Python
DTYPES = tuple(TAGS)
SPECIAL = (0.0, -0.0, 1.0, -1.5, math.inf, -math.inf, math.nan, 1e-40, 65504.0, 3.0e38, 1.00390625)


@mapping
def _copy(x, y, n, tag):
    whole, mask, rest, both = vectors.pairs(n, tag)
    width = vectors.lanes(tag)
    for j in range(0, whole, width):
        memory.write(y, j, memory.read(x, j, None, tag), None, tag)
    if whole < n:
        memory.write(y, whole, memory.read(x, whole, mask, tag), mask, tag)
    if both:
        memory.write(y, whole + width, memory.read(x, whole + width, rest, tag), rest, tag)


@mapping
def _half(x, y, n, tag):
    mask = vectors.first(n, tag)
    memory.write(y, 0, memory.read(x, 0, mask, tag) * vectors.filled(0.5, tag), mask, tag)


@mapping
def _sum(x, n, tag):
    mask = vectors.first(n, tag)
    d = memory.read(x, 0, mask, tag) - vectors.filled(1.0, tag)
    return vectors.total(d), vectors.total(vectors.within(mask, d))


@mapping
def _above(x, y, tag):
    v, zero = memory.read(x, 0, None, tag), vectors.filled(0.0, tag)
    memory.write(y, 0, vectors.choose(v > zero, v, zero), None, tag)
    memory.write(y, vectors.lanes(tag), vectors.choose(v < zero, zero, v), None, tag)


@mapping
def _past(x, y, tag):
    memory.put(y, 0, memory.read(x, 0, None, tag), None, True, tag)


@mapping
def _accumulate(s, q, x, tag):
    v = memory.read(x, 0, None, tag)
    memory.add_to(s, q, 0, v, v * v)


def _lanes(dtype):
    return 8 if dtype in (torch.float32, torch.float64) else 16


def _same_bits(a, b):
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 49])
def test_what_is_left_of_a_segment_is_copied_and_nothing_beyond(dtype, n):
    x = torch.randn(64, dtype=torch.float64).to(dtype)
    y = torch.full((64,), 77.0, dtype=dtype)
    _copy(x.data_ptr() + x.itemsize, y.data_ptr() + 3 * y.itemsize, n, TAGS[dtype])
    assert _same_bits(y[3 : 3 + n], x[1 : 1 + n])
    assert bool((y[:3] == 77).all())
    assert bool((y[3 + n :] == 77).all())


@pytest.mark.skipif(sys.platform == "win32", reason="has no mprotect")
@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_that_is_not_ours_is_not_touched_by_a_masked_vector(dtype):
    """The elements lie at the end of a page after which there is none."""
    library = ctypes.CDLL(None)
    pages = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    library.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    assert library.mprotect(start + mmap.PAGESIZE, mmap.PAGESIZE, 0) == 0
    x = torch.randn(5, dtype=torch.float64).to(dtype)
    end = start + mmap.PAGESIZE - 5 * x.itemsize
    ctypes.memmove(end, x.data_ptr(), 5 * x.itemsize)
    _half(end, end, 5, TAGS[dtype])
    y = torch.empty_like(x)
    ctypes.memmove(y.data_ptr(), end, 5 * x.itemsize)
    assert torch.equal(y, x / 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_elements_are_rounded_as_torch_rounds_them(dtype):
    lanes = _lanes(dtype)
    wide = torch.tensor(SPECIAL + tuple(1 + k / 4096 for k in range(3 * lanes - len(SPECIAL))))
    x = wide.to(dtype)
    y = torch.empty_like(x)
    for start in range(0, len(x), lanes):
        offset = start * x.itemsize
        _half(x.data_ptr() + offset, y.data_ptr() + offset, lanes, TAGS[dtype])
    expected = (x.float() * 0.5).to(dtype) if lanes == 16 else x * 0.5
    nan = x.isnan()
    assert _same_bits(y[~nan], expected[~nan])
    assert bool(y[nan].isnan().all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [-3, 0, 1, 5, 8, 16, 40])
def test_masks_and_totals(dtype, n):
    lanes = _lanes(dtype)
    x = torch.arange(2, 2 + lanes).to(dtype)
    count = min(max(n, 0), lanes)
    inside = float((x[:count].double() - 1).sum())
    assert _sum(x.data_ptr(), n, TAGS[dtype]) == (inside - (lanes - count), inside)


@pytest.mark.parametrize("dtype", DTYPES)
def test_comparisons_treat_nan_and_zeros_as_c_does(dtype):
    lanes = _lanes(dtype)
    x = torch.tensor((SPECIAL[:8] * 2)[:lanes]).to(dtype)
    y = torch.empty(2 * lanes, dtype=dtype)
    _above(x.data_ptr(), y.data_ptr(), TAGS[dtype])
    zero = torch.zeros((), dtype=dtype)
    assert _same_bits(y[:lanes], torch.where(x > 0, x, zero))
    below = torch.where(x < 0, zero, x)
    assert torch.equal(y[lanes:].isnan(), below.isnan())
    assert _same_bits(y[lanes:][~below.isnan()], below[~below.isnan()])


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_goes_past_the_caches_arrives(dtype):
    lanes = _lanes(dtype)
    x, y = torch.randn(64).to(dtype), torch.full((256,), 77.0, dtype=dtype)
    first = -y.data_ptr() % 64 // y.itemsize
    _past(x.data_ptr(), y.data_ptr() + first * y.itemsize, TAGS[dtype])
    assert _same_bits(y[first : first + lanes], x[:lanes])
    assert bool((y[:first] == 77).all())
    assert bool((y[first + lanes :] == 77).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_are_added_to(dtype):
    lanes = _lanes(dtype)
    wide = torch.float32 if lanes == 16 else torch.float64
    x, s, q = (
        torch.randn(lanes).to(dtype),
        torch.ones(lanes, dtype=wide),
        torch.ones(lanes, dtype=wide),
    )
    _accumulate(s.data_ptr(), q.data_ptr(), x.data_ptr(), TAGS[dtype])
    assert torch.equal(s, 1 + x.to(wide))
    torch.testing.assert_close(q, 1 + x.to(wide) ** 2)  # the product may be contracted
