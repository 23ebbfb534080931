"""The compiled kernels beside the definition in plain torch operations, and beside themselves."""

import torch

import oracle
from batchnorm.kernels import numba, plain
from batchnorm.kernels._activation import Activation
from batchnorm.kernels._call import Call

TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-7, torch.bfloat16: 4e-3, torch.float16: 1e-3}


def problem(shape, dtype=torch.float32, layout="contiguous", activation="relu", masked=None):
    """A call with everything, and the gradient of its result."""
    x = oracle.laid_out(torch.randn(shape, dtype=torch.float64).to(dtype), layout)
    residual, dy = (torch.randn(shape).to(dtype) for _ in range(2))
    mask = None
    if masked:
        mask = torch.rand(shape[0], 1, *shape[2:]) > 0.3
        mask.view(-1)[-1] = True
        x = x.masked_fill(~mask, float("nan"))
        mask = mask if masked == "bool" else mask * (0.5 + torch.rand(mask.shape))
    weight, bias = torch.randn(2, shape[1])
    return Call(x, weight, bias, residual, mask, 1e-5, Activation.parse(activation)), dy


def compare(call, dy, tolerance=None):
    """The whole operation and its halves, in training and with fixed statistics."""
    tolerance = TOLERANCE[call.x.dtype] if tolerance is None else tolerance
    single = call.mask is not None or call.activation.kind not in ("identity", "relu", "leaky_relu")
    single = single and call.x.dtype is torch.float32  # g passes through a buffer in float32
    tolerance *= 3 if single else 1
    assert numba.refuses(call) is None
    y, moments = numba.forward(call)
    right_y, right = plain.forward(call)
    half = call.x.dtype.itemsize == 2  # summed in float32
    close_moments(moments, right, 1e-6 if half else 1e-11)
    close(y, right_y, tolerance)
    assert y.stride() == torch.empty_like(call.x).stride()
    assert torch.equal(numba.statistics(call.x, call.mask), moments)
    assert torch.equal(numba.normalize(call, moments), y)
    for fixed in (False, True):
        got = numba.backward(dy, call, right, fixed, (True, True))
        for ours, theirs in zip(
            got, plain.backward(dy, call, right, fixed, (True, True)), strict=True
        ):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                close(ours, theirs, tolerance)
                assert ours.stride() == theirs.stride()
                assert ours.dtype == theirs.dtype
    sums = numba.backward_reduce(dy, call, right)
    close(sums, plain.backward_reduce(dy, call, right), 1e-6 if half or single else 1e-12)
    close(
        numba.backward_input(dy, call, right, sums),
        plain.backward_input(dy, call, right, sums),
        tolerance,
    )


def close_moments(ours, right, tolerance):
    close(ours[0], right[0], 1e-14)
    close(ours[2], right[2], tolerance)
    spread = right[1].abs() + right[2].sqrt()
    assert ((ours[1] - right[1]).abs() <= tolerance * spread).all()


def close(ours, right, tolerance):
    assert oracle.relative_error(ours, right.double()) <= tolerance


def everything(call, dy):
    y, moments = numba.forward(call)
    gradients = numba.backward(dy, call, moments, False, (True, call.residual is not None))
    sums = numba.backward_reduce(dy, call, moments)
    halves = numba.backward_input(dy, call, moments, sums)
    found = [y, moments, *gradients, sums, numba.statistics(call.x, call.mask), halves]
    return [t for t in found if t is not None]


def same(ours, others):
    return all(torch.equal(a, b) for a, b in zip(ours, others, strict=True))
