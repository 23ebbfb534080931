"""Gradients from the output, through the loops that read the input: their edges."""

import pytest
import torch

import oracle
from batchnorm.kernels import _in_place, _memory, numba
from batchnorm.kernels._activation import Activation
from batchnorm.kernels._layout import GROUP
from compared import same
from undone import ACTIVATIONS, check, problem

BENDS = ACTIVATIONS[:3]
pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.mark.parametrize("outer", [2, 8])
@pytest.mark.parametrize("inner", [16, 17, 49])
@pytest.mark.parametrize("channels", [1, 9, 65, 130])
def test_any_number_of_channels_in_a_group(channels, inner, outer):
    check(numba, *problem((outer, channels, inner)))


@pytest.mark.parametrize("channels", [1, 7, 31, 33, 257, 511, 513, 1025])
@pytest.mark.parametrize("rows", [3, 4, 37])
def test_any_number_of_columns(channels, rows):
    check(numba, *problem((rows, channels)))
    check(numba, *problem((rows, channels, 3), layout="channels_last"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", BENDS, ids=str)
@pytest.mark.parametrize("shape", [(4, 75, 5, 5), (3, 70, 3, 2), (2, 2, 190, 190), (130, 515)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_every_type_of_elements(layout, shape, activation, dtype):
    check(numba, *problem(shape, dtype, layout, activation))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_parameters_of_other_types(dtype):
    call, dy = problem((4, 75, 5, 5))
    tolerance = None if dtype is torch.float64 else 1e-2  # their gradients are rounded to them
    check(numba, call._replace(weight=call.weight.to(dtype)), dy, tolerance)
    check(numba, call._replace(bias=call.bias.to(dtype)), dy, tolerance)


def undone(call):
    """The call with its output, and the moments."""
    call = call._replace(x=torch.empty_like(call.x).copy_(call.x))
    moments = _in_place.forward(numba, call)
    assert isinstance(moments, torch.Tensor), moments
    return call, moments


def gradients(call, dy, moments, fixed=False):
    got = numba.backward_from_output(dy, call, moments, fixed, (True, False))
    return [t for t in got if t is not None]


SHAPES = [(3000, 70), (9, 12, 90, 91), (2, 1, 400, 401), (6, 70, 33, 2)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", BENDS[1:2] + ACTIVATIONS[4:], ids=str)
def test_bits_do_not_depend_on_the_number_of_threads(shape, layout, activation):
    before = torch.get_num_threads()
    call, dy = problem(shape, layout=layout, activation=activation)
    call = call._replace(bias=None, x=call.x.clamp(-3, 3))
    results = []
    try:
        for count in (1, 2, 3, 5, 7):
            torch.set_num_threads(count)
            over, moments = undone(call)
            results.append([over.x, moments, *gradients(over, dy, moments)])
    finally:
        torch.set_num_threads(before)
    assert all(same(one, results[0]) for one in results)


@pytest.mark.parametrize("shape", [(5, 33), (4, 75, 5, 5), (2, 6, 3, 40, 9)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradients_that_lie_otherwise(shape, layout):
    call, moments = undone(problem(shape, layout=layout)[0])
    wide = torch.randn(2 * shape[0], shape[1] + 3, *shape[2:])
    if layout == "channels_last":
        wide = oracle.laid_out(wide, layout)
    for dy in (
        wide[::2, 2:-1],
        wide[: shape[0], : shape[1]],
        torch.randn(1, *shape[1:]).expand(shape),
        torch.ones(()).expand(shape),
        torch.randn(shape[0], 1, *shape[2:]).expand(shape),
    ):
        right = gradients(call, torch.empty_like(call.x).copy_(dy), moments)
        assert same(gradients(call, dy, moments), right)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_past_the_caches_the_bits_are_the_same(layout, dtype, monkeypatch):
    for shape in [(5, 64, 17, 19), (4, 32, 32, 32), (3, 7, 70, 71)]:
        given, dy = problem(shape, dtype, layout)
        call, moments = undone(given)
        dy = torch.empty_like(call.x).copy_(dy)
        right = gradients(call, dy, moments)
        with monkeypatch.context() as patch:
            patch.setattr(_memory, "_LARGE", 0)
            assert same(gradients(call, dy, moments), right)


def test_channels_do_not_depend_on_their_neighbours():
    call, moments = undone(problem((6, 150, 4, 5))[0])
    dy, c = torch.randn(6, 150, 4, 5), GROUP + 3
    whole = gradients(call, dy, moments)
    part = call._replace(x=call.x[:, c:], weight=call.weight[c:], bias=call.bias[c:])
    for ours, others in zip(gradients(part, dy[:, c:], moments[:, c:]), whole, strict=True):
        channel = 0 if ours.dim() == 1 else 1
        assert same([ours], [others.narrow(channel, c, 150 - c)])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(33, 65), (4, 75, 5, 5), (2, 3, 90, 91)])
def test_the_input_gives_nearly_the_same(shape, layout):
    """By the same loops, so that little more than the rounding of y stands between them."""
    call, dy = problem(shape, layout=layout, activation=Activation("leaky_relu", 0.1), reach=1.0)
    over, moments = undone(call)
    right = numba.backward(dy, call, moments, False, (True, False))
    for ours, theirs in zip(gradients(over, dy, moments), right, strict=False):
        assert oracle.relative_error(ours, theirs.double()) < 1e-6
