"""Calls whose output is written over their input, beside autograd in float64."""

import torch

import oracle
from batchnorm.kernels import _in_place
from batchnorm.kernels._activation import Activation
from batchnorm.kernels._call import Call

ACTIVATIONS = [
    Activation(),
    Activation("leaky_relu", 0.01),
    Activation("leaky_relu", 3.0),
    Activation("elu", 1.0),
    Activation("elu", 0.3),
]
# against gradients of the input as it was; the halves' y is rounded once more
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def problem(shape, dtype=torch.float32, layout="contiguous", activation=ACTIVATIONS[1], reach=16.0):
    """A call that can be undone, `reach` times as far as the limit on the bias."""
    x = oracle.laid_out(torch.randn(shape, dtype=torch.float64).to(dtype), layout)
    weight = torch.randn(shape[1], dtype=torch.float64 if dtype is torch.float64 else torch.float32)
    weight = torch.where(weight < 0, weight - 0.3, weight + 0.3)
    if activation.kind == "elu":
        reach = 0.3
        weight = weight.clamp(-1, 1)
    reach = min(reach, 1.0) if dtype.itemsize == 2 else reach
    bias = weight * (2 * torch.rand_like(weight) - 1) * 0.99 * reach
    return Call(x, weight, bias, None, None, 1e-5, activation), torch.randn(shape).to(dtype)


def truth(call, dy):
    """y and the gradients, by autograd in float64."""
    x, weight, bias = (oracle.double(t) for t in call[:3])
    f = call.activation
    y, _, _ = oracle.batch_norm(x, weight, bias, None, None, call.eps, f.kind, f.parameter)
    inputs = [t for t in (x, weight, bias) if t is not None]
    gradients = iter(torch.autograd.grad(y, inputs, dy.double()))
    return y, [None if t is None else next(gradients) for t in (x, weight, bias)]


def check(backend, call, dy, tolerance=None):
    tolerance = TOLERANCE[call.x.dtype] if tolerance is None else tolerance
    right_y, right = truth(call, dy)
    right_moments = backend.statistics(call.x, None)
    fresh = backend.normalize(call, right_moments)
    buffer = call.x.clone()
    moments = _in_place.forward(backend, call._replace(x=buffer))
    assert isinstance(moments, torch.Tensor), moments
    assert torch.equal(moments, right_moments)
    assert torch.equal(buffer, fresh)
    assert oracle.relative_error(buffer, right_y.detach()) <= min(tolerance, 4e-3)
    got = backend.backward_from_output(dy, call._replace(x=buffer), moments, False, (True, False))
    for ours, theirs in zip(got, [*right, None], strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert oracle.relative_error(ours, theirs) <= tolerance
    assert got.x.stride() == torch.empty_like(call.x).stride()
    over = torch.empty_like(buffer).copy_(dy)
    into = backend.backward_from_output(
        over, call._replace(x=buffer), moments, False, (True, False), out=over
    )
    assert into.x is over
    assert torch.equal(over, got.x)
    assert torch.equal(buffer, fresh)
