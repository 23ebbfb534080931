"""Tensors that no second cache holds: fetched ahead, summed in rows of four, written past caches."""

import itertools
import math

import pytest
import torch

from batchnorm.kernels import _memory, _recycled, numba
from batchnorm.kernels._numba_ahead import FAR, FAR_ROWS
from compared import compare, everything, problem, same

PLANAR = [
    *((9, 5, 117, 113), (7, 3, 160, 161)),  # long segments; a channel in parts
    *((2, 2, 400, 401), (1, 1, 800, 801)),  # parts of one segment
    *((70, 151, 7, 8), (401, 27, 49), (3, 700, 16, 16), (1, 3000, 15, 13)),  # short ones
    (2, 5, 17, 50, 71),
]
ROWS = [
    *((1100, 1001), (1050001, 1), (33001, 33), (517, 2050)),
    *((6, 40, 67, 67), (3, 70, 71, 71), (30, 64, 24, 23), (2, 3, 7, 160, 161)),
    *((163, 513), (67, 1040), (129, 527), (40, 1700)),  # a last tile of few columns
]
pytestmark = pytest.mark.usefixtures("poisoned_memory")


def elements(shape, dtype):
    return torch.Size(shape).numel() * dtype.itemsize


def twice(shape):
    """Halves take twice the elements to as many bytes."""
    return (2 * shape[0], *shape[1:])


@pytest.mark.parametrize("shape", PLANAR)
def test_long_and_short_segments(shape):
    assert elements(shape, torch.float32) >= FAR
    call, dy = problem(shape)
    compare(call._replace(residual=None), dy)
    compare(call, dy)


@pytest.mark.parametrize("shape", ROWS)
def test_rows(shape):
    assert elements(shape, torch.float32) >= FAR_ROWS
    call, dy = problem(shape, layout="channels_last")
    compare(call._replace(residual=None), dy)
    compare(call, dy)


@pytest.mark.parametrize("activation", ["identity", "leaky_relu"])
@pytest.mark.parametrize("shape", [PLANAR[0], PLANAR[5], ROWS[6], (67, 1040)])
def test_every_bend(shape, activation):
    layout = "contiguous" if shape in PLANAR else "channels_last"
    call, dy = problem(shape, layout=layout, activation=activation)
    compare(call._replace(residual=None), dy)
    compare(call, dy)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("shape", "activation"),
    [
        *((PLANAR[0], "identity"), (ROWS[6], "leaky_relu")),
        pytest.param(PLANAR[4], "leaky_relu", marks=pytest.mark.slow),
        pytest.param(ROWS[0], "identity", marks=pytest.mark.slow),
    ],
)
def test_every_dtype(dtype, shape, activation):
    layout = "contiguous" if shape in PLANAR else "channels_last"
    shape = twice(shape) if dtype.itemsize == 2 else shape
    call, dy = problem(shape, dtype, layout, activation)
    compare(call._replace(residual=None), dy)
    compare(call, dy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [PLANAR[0], ROWS[1], ROWS[6], ROWS[7], (1030, 1024)])
def test_outputs_past_the_caches(dtype, shape, monkeypatch):
    """In whole lines where rows lie so, and left alone where they do not."""
    monkeypatch.setattr(_memory, "_LARGE", 0)
    layout = "contiguous" if shape in PLANAR else "channels_last"
    call, dy = problem(twice(shape) if dtype.itemsize == 2 else shape, dtype, layout)
    compare(call._replace(residual=None), dy)
    compare(call, dy)


@pytest.mark.parametrize("shape", [(9, 64, 20, 61), (1030, 1024), (18, 40, 39, 40)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("margins", [(61,), (64,), (64, 61, 33)])
def test_nothing_is_written_beside_them(shape, layout, margins, monkeypatch):
    """Outputs that begin on a cache line, that do not, and each elsewhere in a line.

    The bits are those of ordinary stores.
    """
    call, dy = problem(shape, layout=layout)
    right = outputs(call, dy)
    around, turns = [], itertools.cycle(margins)

    def between(x, **options):
        if options:
            return empty_like(x, **options)
        margin = next(turns)
        wide = torch.full((x.numel() + 2 * margin,), 77.0, dtype=x.dtype)
        around.extend((wide[:margin], wide[x.numel() + margin :]))
        return wide.as_strided(x.shape, empty_like(x).stride(), margin)

    empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", between)
    monkeypatch.setattr(_recycled, "LEAST", math.inf)
    monkeypatch.setattr(_memory, "_LARGE", 0)
    assert all(map(torch.equal, outputs(call, dy), right))
    assert len(around) >= 10
    assert all((edge == 77).all() for edge in around)


def outputs(call, dy):
    y, moments = numba.forward(call)
    gradients = numba.backward(dy, call, moments, False, (True, True))
    bare = call._replace(residual=None)
    dx = numba.backward(dy, bare, moments, False, (True, False)).x
    return [y, numba.forward(bare)[0], gradients.x, gradients.residual, dx]


@pytest.mark.parametrize("offset", [1e2, 1e6])
@pytest.mark.parametrize("shape", [PLANAR[0], PLANAR[4], ROWS[0], ROWS[6]])
def test_exact_however_far_the_mean_is_from_zero(offset, shape):
    layout = "contiguous" if shape in PLANAR else "channels_last"
    call, dy = problem(shape, layout=layout)
    compare(call._replace(x=call.x + offset, residual=None), dy, 2e-7)


@pytest.mark.parametrize(
    "shape",
    [
        *(PLANAR[0], PLANAR[2], PLANAR[4], ROWS[0], ROWS[6]),
        *(
            pytest.param(shape, marks=pytest.mark.slow)
            for shape in (PLANAR[1], PLANAR[5], PLANAR[8], ROWS[2], ROWS[5], ROWS[7])
        ),
    ],
)
def test_bits_do_not_depend_on_the_number_of_threads(shape):
    call, dy = problem(shape, layout="contiguous" if shape in PLANAR else "channels_last")
    before = torch.get_num_threads()
    try:
        for each in (call, call._replace(residual=None)):
            torch.set_num_threads(1)
            alone = everything(each, dy)
            for count in (2, 3, 7):
                torch.set_num_threads(count)
                assert same(everything(each, dy), alone), f"{count} threads"
    finally:
        torch.set_num_threads(before)
