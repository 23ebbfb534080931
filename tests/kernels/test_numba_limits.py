"""Whether an input can be had back, told from a few of its values where those tell enough."""

import math

import pytest
import torch

import oracle
from batchnorm.kernels import _in_place, _numba_over, numba
from batchnorm.kernels._activation import Activation
from batchnorm.kernels._call import Call
from batchnorm.kernels._numba_over import Over
from compared import same

SHAPES = [(64, 5), (2, 3), (3, 1), (600, 2, 2), (2, 3, 17), (5, 7, 6, 7), (2, 9, 30, 31)]
NORMALIZED_AT_ONCE, MEASURED_FIRST = [_numba_over._WHOLE], [0, _numba_over._NORMALIZE]
pytestmark = pytest.mark.usefixtures("poisoned_memory")


def problem(shape, layout="contiguous", dtype=torch.float32, share=0.5):
    """A bias of that share of its limit where xhat spreads by nearly 1."""
    x = oracle.laid_out(torch.randn(shape).to(dtype), layout)
    weight = torch.rand(shape[1]) + 0.5
    bias = weight * share * _in_place._SHIFTED[dtype.itemsize]
    return Call(x, weight, bias, None, None, 1e-5, Activation("leaky_relu", 0.1))


def written(call, monkeypatch):
    """The launches of such a call, and what it gave."""
    over, launches = _in_place.again(numba, call, False), []
    send = Over._send

    def noting(self, which, *given):
        launches.append(which)
        send(self, which, *given)

    x = torch.empty_like(call.x).copy_(call.x)
    with monkeypatch.context() as patch:
        patch.setattr(Over, "_send", noting)
        moments, done = over.within_limits(x, over.places(x, call.weight, call.bias))
    return launches, done, x, moments


def surely(call):
    """Whether a few values tell that all is within the limits, and whether all values do."""
    limits = _in_place.again(numba, call, False)._limits
    at = call.x.data_ptr(), call.weight.data_ptr(), call.bias.data_ptr()
    moments = numba.statistics(call.x, None)
    few = limits.within(at[0], 0, *at[1:])
    return few, limits.within(at[0], moments.data_ptr(), *at[1:])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_inputs_are_not_read_once_more(dtype, layout, shape, monkeypatch):
    call = problem(shape, layout, dtype)
    launches, done, y, moments = written(call, monkeypatch)
    assert (launches, done) == (NORMALIZED_AT_ONCE, True)
    right_y, right = numba.forward(call)
    assert same([y, moments], [right_y, right])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_where_the_few_are_all_equal_all_are_looked_at(layout, monkeypatch):
    call = problem((300, 8, 5, 5), layout)
    call.x[:260] = 3.0
    launches, done, y, moments = written(call, monkeypatch)
    assert (launches, done) == (MEASURED_FIRST, True)
    assert same([y, moments], numba.forward(call))
    call.x[:] = 3.0
    launches, done, y, _ = written(call, monkeypatch)
    assert (launches, done) == ([0], False)
    assert torch.equal(y, call.x)


def test_one_channel_that_varies_is_enough(monkeypatch):
    call = problem((4, 64, 9, 9))
    call.x[:, torch.arange(64) != 32] = 1.0
    assert written(call, monkeypatch)[:2] == (NORMALIZED_AT_ONCE, True)
    call.x[:, 32] = 1.0
    call.x[:, 33] = torch.randn(4, 9, 9)  # it is not among those looked at
    assert written(call, monkeypatch)[:2] == (MEASURED_FIRST, True)


def test_parameters_beyond_their_limits_are_told_without_a_bias(monkeypatch):
    call = problem((40, 6))._replace(bias=None)
    assert written(call, monkeypatch)[:2] == (NORMALIZED_AT_ONCE, True)
    call.weight[3] = 0.0
    launches, done, x, moments = written(call, monkeypatch)
    assert (launches, done, moments) == ([], False, None)
    assert torch.equal(x, call.x)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_few_never_promise_what_all_would_not_keep(layout, dtype):
    """Biases about the limit, of inputs that spread little."""
    told = []
    for k in range(400):
        shape = [(2, 3), (7, 5), (300, 4), (3, 6, 5, 7), (2, 9, 20, 20)][k % 5]
        call = problem(shape, layout, dtype)
        x = call.x
        if k % 3 == 1:
            x.pow_(5)
        if k % 3 == 2:
            x[0] = 1e3
        x.mul_(10 ** (-4 * torch.rand(()))).add_([0.0, 100.0][k % 2])
        var = numba.statistics(x, None)[2].amax().item()
        spread = math.sqrt(var / (var + call.eps))
        call.bias.mul_(2 * spread * (1.02 - 0.5 * torch.rand(()) ** 3))
        few, all_ = surely(call)
        assert all_ or not few
        told.append((few, all_))
    assert sum(few for few, _ in told) > 40
    assert sum(not all_ for _, all_ in told) > 20


def gradients(call, dy, moments, y):
    return numba.backward_from_output(dy, call._replace(x=y), moments, False, (True, False))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("at", [(0, 0, 0, 0), (299, 5, 4, 4)])
def test_a_channel_that_is_not_finite_loses_nothing(at, bad, layout, monkeypatch):
    """Its outputs and gradients are as they would be in fresh memory, and the others' are right."""
    call, dy = problem((300, 8, 5, 5), layout), torch.randn(300, 8, 5, 5)
    call.x[at] = bad
    _, done, y, moments = written(call, monkeypatch)
    assert done
    long = torch.empty_like(call.x).copy_(call.x)
    assert isinstance(_in_place.forward(numba, call._replace(x=long)), torch.Tensor)
    fresh, right = numba.forward(call)
    for ours in (y, long):
        torch.testing.assert_close(ours, fresh, rtol=0, atol=0, equal_nan=True)
    got, wanted = gradients(call, dy, moments, y), numba.backward(dy, call, right, False, (1, 0))
    for ours, theirs in zip(got[:3], wanted[:3], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, equal_nan=True)
