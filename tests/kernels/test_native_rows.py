"""Many rows without Numba: sums in which torch's kernel loses digits."""

import pytest
import torch

import oracle
from batchnorm.functional import batch_norm
from batchnorm.kernels import _native_rows, native, numba, plain
from batchnorm.kernels._activation import Activation
from batchnorm.kernels._call import Call

TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 4e-2}
ROWS = {
    "a matrix": torch.empty(40_001, 3),
    "images of one pixel": torch.empty(33_000, 2, 1),
    "channels last": torch.empty(2, 3, 150, 151).to(memory_format=torch.channels_last),
    "channels last of volumes": torch.empty(2, 2, 33, 40, 15).to(
        memory_format=torch.channels_last_3d
    ),
    "whole parts": torch.empty(2**16, 1),
}


@pytest.fixture(autouse=True)
def _one_thread():
    """Each adds up a part of the rows: on one all come to one sum."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def small_tensors_too(monkeypatch):
    monkeypatch.setattr(_native_rows, "MOST", 2**15)


@pytest.fixture
def no_plain(monkeypatch):
    for name in ("forward", "normalize", "backward"):
        monkeypatch.setattr(plain, name, None)


@pytest.mark.parametrize("name", ROWS)
def test_where_torch_adds_up_rows(name):
    x = ROWS[name]
    assert _native_rows.many(x)
    assert _native_rows.many(x.bfloat16())
    assert not _native_rows.many(x.double())
    assert not _native_rows.many(x[:1])
    assert not _native_rows.many(x.to("meta"))


def test_where_it_does_not():
    assert not _native_rows.many(torch.empty(2, 3, 150, 151))
    assert not _native_rows.many(torch.empty(40_000, 4)[:, ::2])
    assert not _native_rows.many(torch.empty(2, 20_000, 3).transpose(1, 2))
    assert not _native_rows.many(torch.empty(2**15, 3))


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("activation", ["identity", "relu"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ROWS)
def test_as_the_definition(name, dtype, activation, fixed):
    like = ROWS[name]
    x, residual, dy = (torch.randn(like.shape).to(dtype) for _ in range(3))
    x = torch.empty_like(like, dtype=dtype).copy_(x + 2)
    dy += 1
    weight, bias = torch.randn(2, x.shape[1])
    call = Call(x, weight, bias, residual, None, 1e-5, Activation.parse(activation))
    wide = call._replace(x=x.double(), residual=residual.double())
    exact, right = plain.forward(wide)
    y, moments = native.forward(call)
    tolerance = TOLERANCE[dtype]
    assert oracle.relative_error(moments, right) <= 3e-6
    assert oracle.relative_error(y, exact) <= tolerance
    assert y.stride() == x.stride()
    if dtype is not torch.float32 and activation == "relu":
        return  # which side of the bend a value comes to lie is up to the rounding of z
    for other in (call, call._replace(weight=None, residual=None), call._replace(bias=None)):
        for wanted in ((True, True), (False, False)):
            got = native.backward(dy, other, right, fixed, wanted)
            theirs = other._replace(x=x.double())
            expected = plain.backward(dy.double(), theirs, right, fixed, wanted)
            for a, e, of in zip(got, expected, other, strict=False):
                assert (a is None) == (e is None)
                if a is not None:
                    size = e.abs().max() if a.dim() > 1 else dy.abs().sum()
                    assert (a.double() - e).abs().max() <= tolerance * size
                    assert (a.dtype, a.stride()) == (of.dtype, of.stride())


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("offset", [0.0, 7.0, 1e4])
def test_many_more_rows(offset, fixed, monkeypatch, no_plain):
    """Torch's own are wrong by 1e-3, and a gradient that is all ones by 3e-2."""
    monkeypatch.setattr(numba, "refuses", lambda call: "it is gone")
    x = (torch.randn(3_000_000, 2) + offset).requires_grad_()
    weight, bias = (torch.randn(2).requires_grad_() for _ in range(2))
    running = torch.full((2,), offset), torch.ones(2)
    given = tuple(t.double() for t in running)
    leaves = x, weight, bias
    y = batch_norm(x, *running, weight, bias, not fixed, 1.0)
    wide = tuple(t.detach().double().requires_grad_() for t in leaves)
    exact = torch.nn.functional.batch_norm(wide[0], *given, *wide[1:], not fixed, 1.0)
    assert oracle.relative_error(y.detach(), exact.detach()) <= 1e-5
    for ours, right in zip(running, given, strict=True):
        assert oracle.relative_error(ours, right) <= 1e-5
    for dy in (torch.full_like(y, 0.1), torch.randn_like(y) + 1):
        got = torch.autograd.grad(y, leaves, dy, retain_graph=True)
        expected = torch.autograd.grad(exact, wide, dy.double(), retain_graph=True)
        gamma = weight.abs().max() * (1 if fixed else 1 / exact.detach().std())
        assert (got[0] - expected[0]).abs().max() <= 1e-5 * dy.abs().max() * gamma
        size = dy.abs().sum() * 1e-5
        for ours, right in zip(got[1:], expected[1:], strict=True):
            assert (ours - right).abs().max() <= size


def test_what_cannot_be_held_is_left_to_the_definition():
    for value in (1e30, float("inf"), float("nan")):
        x = torch.randn(40_000, 2)
        x[:3, 1] = value
        call = Call(x, None, None, None, None, 1e-5, Activation())
        y, right = native.forward(call)[0], plain.forward(call)[0]
        torch.testing.assert_close(y, right, rtol=1e-5, atol=1e-5, equal_nan=True)
