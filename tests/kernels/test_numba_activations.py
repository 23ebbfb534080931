"""Compiled activations where they are flat, and far beyond: no cancellation, no overflow."""

import math

import pytest
import torch

from batchnorm.kernels import numba
from batchnorm.kernels._activation import Activation
from batchnorm.kernels._call import Call


def exact(kind, z):
    """The value and the slope of an activation in float64, without cancellation where it is flat."""
    if kind == "gelu":
        below = torch.special.erfc(-z / math.sqrt(2)) / 2
        return z * below, below + z * (-z * z / 2).exp() / math.sqrt(2 * math.pi)
    u, du = z, 1.0
    if kind == "tanh":
        return torch.tanh(z), 4 * torch.sigmoid(2 * z) * torch.sigmoid(-2 * z)
    if kind == "gelu_tanh":
        root, cubic = math.sqrt(8 / math.pi), 0.044715
        u, du = root * (z + cubic * z**3), root * (1 + 3 * cubic * z**2)
    s, slope = torch.sigmoid(u), torch.sigmoid(u) * torch.sigmoid(-u)
    if kind == "sigmoid":
        return s, slope
    return z * s, s + z * slope * du


@pytest.mark.parametrize("kind", ["sigmoid", "tanh", "silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_activations_keep_their_digits_where_they_are_flat_and_far_out(kind, dtype):
    near = torch.linspace(-7, 7, 57, dtype=torch.float64)
    far = torch.tensor([20.0, 90, 300, 1e4, 1e10, 1e20, 1e30, 3e38], dtype=torch.float64)
    z = torch.cat((near, far, -far)).to(dtype)
    eps = 2.0**-20
    moments = torch.tensor([[1.0], [0.0], [1 - eps]], dtype=torch.float64)
    call = Call(z[:, None], None, None, None, None, eps, Activation.parse(kind))
    y = numba.normalize(call, moments)[:, 0]
    slope = numba.backward(torch.ones_like(call.x), call, moments, True, (True, False)).x[:, 0]
    value, right = exact(kind, near)
    tolerance = 1e-5 if dtype is torch.float32 else 1e-12
    flat = 1e-37 if dtype is torch.float32 else 1e-100
    for ours, expected in ((y, value), (slope, right)):
        error = (ours[: len(near)].double() - expected).abs()
        size = torch.where(near.abs() < 2, 1.0, expected.abs())  # around where the slope is zero
        assert (error <= tolerance * size + flat).all(), (near, ours, expected)
    grows = kind not in ("sigmoid", "tanh")
    above, below = len(near), len(near) + len(far)
    low = -1.0 if kind == "tanh" else 0.0
    right = torch.cat((z[above:below] if grows else torch.ones(8), torch.full((8,), low)))
    torch.testing.assert_close(y[above:], right.to(dtype), rtol=1e-6, atol=1e-6)
    steep = torch.cat((torch.full((8,), float(grows)), torch.zeros(8))).to(dtype)
    torch.testing.assert_close(slope[above:], steep, rtol=1e-6, atol=1e-6)
    lost = torch.full_like(z[:, None], float("nan"))
    assert numba.normalize(call._replace(x=lost), moments).isnan().all()
    dy = torch.ones_like(lost)
    assert numba.backward(dy, call._replace(x=lost), moments, True, (True, False)).x.isnan().all()
