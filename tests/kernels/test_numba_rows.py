"""Rows of channels: constants laid out some channels at a time, and no digits lost in float32."""

import pytest
import torch

import oracle
from batchnorm.kernels import (
    _layout,
    _numba_constants,
    _numba_memory,
    _numba_row_blocks,
    _numba_row_columns,
    _numba_vector,
    numba,
    plain,
)
from batchnorm.kernels._activation import Activation
from batchnorm.kernels._call import Call

SHAPES = [(9, 63), (37, 65), (5, 130), (4, 700), (6, 70, 3), (3, 30, 2, 4), (2, 66, 5, 5)]


def error_of_channels(ours, right, terms=None):
    """The largest over channels of the largest error over the largest value, or of `terms`."""
    assert torch.isfinite(ours).all()
    error = (ours.double() - right).abs().transpose(0, 1).flatten(1).amax(1)
    largest = (right if terms is None else terms).abs().transpose(0, 1).flatten(1).amax(1)
    return (error / largest.clamp(min=1e-300)).max().item()


def errors(call, dy, fixed=False):
    """Of y, moments and gradients, channel by channel, against the formula in float64.

    A gradient that passed through a buffer in float32 is as exact as what it is a difference of:
    of three values with their mean and slope taken out, a thousandth may be left.
    """
    mask = call.mask
    wide = call._replace(x=call.x.double())
    right = plain.statistics(wide.x, mask)
    y, moments = numba.forward(call)
    torch.testing.assert_close(moments, right, rtol=1e-9, atol=1e-300)
    got = numba.backward(dy, call, right, fixed, (True, False))
    wanted = plain.backward(dy.double(), wide, right, fixed, (True, False))
    for ours, theirs in zip(got[1:3], wanted[1:3], strict=True):
        if ours is not None:
            assert oracle.relative_error(ours, theirs.double()) < 1e-6
    terms = None
    if call.activation.kind == "silu":
        terms = plain.backward(dy.double(), wide, right, True, (True, False)).x
    return max(
        error_of_channels(y, plain.normalize(wide, right)),
        error_of_channels(got.x, wanted.x, terms),
    )


def problem(shape, kind, x=None):
    x = oracle.laid_out(torch.randn(shape) if x is None else x, "channels_last")
    weight, bias = torch.randn(2, shape[1])
    return Call(x, weight, bias, None, None, 1e-5, Activation.parse(kind))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("parameters", [torch.float32, torch.float64, torch.float16])
def test_channels_in_several_tasks_and_parameters_of_every_type(shape, parameters):
    call, dy = problem(shape, "leaky_relu"), torch.randn(shape)
    weight, bias = torch.randn(2, shape[1], 2).to(parameters)
    for each in (
        call._replace(weight=weight[:, 0], bias=bias[:, 1]),
        call._replace(weight=weight[:, 0].contiguous(), bias=None),
        call._replace(weight=None, bias=bias[:, 0].contiguous()),
        call._replace(x=call.x.contiguous()),
    ):
        assert errors(each, dy) < 1e-6
        assert errors(each, dy, fixed=True) < 1e-6


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["identity", "relu", "silu"])
def test_masks_over_several_tasks(shape, kind):
    call = problem(shape, kind)
    mask = 0.2 + torch.rand(shape[0], 1, *shape[2:])
    mask.view(-1)[1] = 0
    assert errors(call._replace(mask=mask), torch.randn(shape)) < 1e-6


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["identity", "leaky_relu"])
@pytest.mark.parametrize("offset", [1e2, 1e4, 1e6])
def test_a_common_offset_of_the_gradient_costs_no_digits(shape, kind, offset):
    call = problem(shape, kind, torch.randn(shape) + 1e4)
    call = call._replace(bias=call.weight.abs() * 100)  # no kink in between
    dy = torch.randn(shape) + offset
    assert errors(call, dy) < 1e-5


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["identity", "relu", "leaky_relu"])
def test_weights_and_inputs_of_every_scale(shape, kind):
    scale = 10.0 ** torch.linspace(-12, 12, shape[1])
    call = problem(shape, kind)
    call = call._replace(weight=call.weight * scale, bias=call.bias * scale)
    assert errors(call, torch.randn(shape)) < 1e-6
    x = torch.randn(shape) * scale.view(-1, *[1] * (len(shape) - 2))
    assert errors(problem(shape, kind, x)._replace(eps=1e-30), torch.randn(shape)) < 1e-6


def test_buffers_hold_what_is_put_into_them():
    assert _numba_row_columns.VECTORS <= _numba_memory.TILES
    room = _numba_memory.TILES * _numba_memory.TILE
    assert _layout.GROUP <= _numba_constants.STEP
    assert room >= _numba_row_columns.VECTORS * _numba_constants.STEP
    assert _layout._ROW <= _numba_memory.TILE
    assert _numba_memory.TILE % (2 * _numba_vector.BITS // 32) == 0  # sums go in whole vectors
    assert (
        _numba_row_blocks.FEW % len(_numba_row_columns.FOUR) == 0
    )  # and are settled after so many
    assert _numba_row_columns.STRIDE >= _numba_memory.TILE
    assert _numba_row_columns.STRIDE % (64 // 4) == 0  # vectors of constants begin with a line
    assert _numba_memory.TILE % _layout.GROUP == 0  # a group's constants lie in one tile


def test_constants_of_all_columns_lie_apart():
    columns = 3 * _numba_memory.TILE + 5
    first = [_numba_row_columns.place.py_func(column) for column in range(columns)]
    vectors = range(_numba_row_columns.VECTORS)
    places = [start + k * _numba_row_columns.STRIDE for start in first for k in vectors]
    assert len(set(places)) == len(places)
    tiles = -(-columns // _numba_memory.TILE)
    assert max(places) < tiles * _numba_row_columns.VECTORS * _numba_row_columns.STRIDE
