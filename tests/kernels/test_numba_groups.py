"""Groups of short channels in segments: constants in vectors, and outputs across the channels."""

import pytest
import torch

from batchnorm.kernels import numba
from batchnorm.kernels._layout import GROUP, plan
from compared import compare, everything, problem, same

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def grouped(shape):
    strides = torch.empty(shape, device="meta").stride()
    return plan(shape, strides, strides, None, None).group


@pytest.mark.parametrize("outer", [1, 3, 8])
@pytest.mark.parametrize("inner", [16, 17, 49])
@pytest.mark.parametrize("channels", [1, 7, 8, 9, 63, 65, 130])
def test_any_number_of_channels(channels, inner, outer):
    shape = (outer, channels, inner)
    assert grouped(shape) > 8
    compare(*problem(shape))


@pytest.mark.parametrize("masked", ["bool", "float"])
@pytest.mark.parametrize("kind", ["leaky_relu", "silu"])
def test_under_a_mask(kind, masked):
    compare(*problem((5, 37, 6, 7), activation=kind, masked=masked))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_types_of_elements(dtype):
    compare(*problem((4, 75, 5, 5), dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_parameters_of_other_types(dtype):
    call, dy = problem((4, 75, 5, 5))
    tolerance = None if dtype is torch.float64 else 1e-2  # their gradients are rounded to them
    compare(call._replace(weight=call.weight.to(dtype)), dy, tolerance)
    compare(call._replace(bias=call.bias.to(dtype)), dy, tolerance)


def test_parameters_with_gaps_and_none():
    call, dy = problem((4, 75, 5, 5))
    compare(call._replace(weight=torch.randn(150)[::2], bias=torch.randn(1).expand(75)), dy)
    compare(call._replace(weight=None), dy)
    compare(call._replace(bias=None), dy)


@pytest.mark.parametrize("channels", [GROUP, 150])
def test_channels_do_not_depend_on_their_neighbours(channels):
    call, dy = problem((6, channels, 4, 5))
    whole = everything(call, dy)
    c = channels // 2 + 1
    part = call._replace(
        x=call.x[:, c:], residual=call.residual[:, c:], weight=call.weight[c:], bias=call.bias[c:]
    )
    for ours, others in zip(everything(part, dy[:, c:]), whole, strict=True):
        channel = 0 if ours.dim() == 1 else 1
        assert same([ours], [others.narrow(channel, c, channels - c)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3), (6, 5, 17)])
def test_one_example_repeated(shape, dtype):
    call = problem(shape, dtype)[0]
    one = call.x[:1].expand(shape)
    y, moments = numba.forward(call._replace(x=one))
    right, _ = numba.forward(call._replace(x=one.contiguous()))
    assert torch.equal(y, right)
    assert torch.isfinite(moments).all()
