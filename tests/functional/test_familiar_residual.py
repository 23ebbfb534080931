"""Calls with a residual that were made before: the same bits, unless an answer changed."""

import pytest
import torch

from batchnorm import BatchNormAct2d
from batchnorm.functional import _familiar, batch_norm
from batchnorm.kernels import numba
from long_way import long as long
from long_way import same
from oracle import laid_out


def tensors(dtype=torch.float32, shape=(5, 6, 3, 7), layout="contiguous", added=None):
    g = torch.Generator().manual_seed(0)
    x, r = (torch.randn(shape, generator=g).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(shape[1], generator=g).requires_grad_() for _ in range(2))
    return laid_out(x, layout), laid_out(r, added or layout), weight, bias


def step(x, r, weight, bias, training=True, mode=torch.enable_grad, needs=True, **options):
    """Everything that a call gives."""
    channels = x.shape[1]
    running = [torch.full((channels,), 0.25), torch.full((channels,), 2.0)]
    x, r = x.detach().requires_grad_(), r.detach().requires_grad_(needs)
    with mode():
        y = batch_norm(x, *running, weight, bias, training, residual=r, **options)
    if not y.requires_grad:
        return [y, *running]
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(5)).to(y.dtype)
    dy = torch.empty_like(y).copy_(dy)
    leaves = [t for t in (x, r, weight, bias) if t is not None and t.requires_grad]
    return [y.detach(), *torch.autograd.grad(y, leaves, dy), *running]


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("parts", [2, 1, 0])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gone", [False, True])
def test_the_same_bits_as_the_long_way(
    activation, layout, parts, training, gone, long, monkeypatch
):
    if gone:
        monkeypatch.setattr(numba, "refuses", lambda call: "it is gone")
    x, r, weight, bias = tensors(layout=layout)
    given = x, r, weight if parts else None, bias if parts == 2 else None
    options = {"training": training, "activation": activation}
    expected = step(*given, **options)
    assert long == {"forward": int(not gone), "backward": 0}
    for _ in range(2):
        assert same(step(*given, **options), expected)
    for mode in (torch.no_grad, torch.inference_mode):
        got = step(*given, **options, mode=mode)
        assert same(got, [expected[0], *expected[-2:]])
    assert long == {"forward": int(not gone), "backward": 0}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_other_dtypes(dtype, activation, long):
    given = tensors(dtype)
    expected = step(*given, activation=activation)
    assert same(step(*given, activation=activation), expected)
    assert long == {"forward": 1, "backward": 0}


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("added", ["channels_last", "transposed", "sliced", "expanded"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_residual_that_lies_otherwise(added, layout, activation):
    given = tensors(layout=layout, added=added)
    alike = tensors(layout=layout)
    expected = step(*given, activation=activation)
    _familiar.forget()
    step(*alike, activation=activation)
    for _ in range(2):
        assert same(step(*given, activation=activation), expected)
    assert same(step(*alike, activation=activation), step(*alike, activation=activation))


BAD = {
    "shape": lambda r: r[:, :1],
    "residual": lambda r: r.double().int(),
    "x of": lambda r: r.to("meta"),
}


@pytest.mark.parametrize("words", BAD)
def test_bad_residuals_are_refused_as_ever(words):
    x, r, weight, bias = tensors()
    for _ in range(2):
        step(x, r, weight, bias)
    with pytest.raises((ValueError, TypeError, RuntimeError), match="residual"):
        batch_norm(x, None, None, weight, bias, True, residual=BAD[words](r))
    with pytest.raises((ValueError, TypeError), match="residual"):
        batch_norm(x, None, None, weight, bias, True, residual=[1.0])


def test_a_residual_of_another_dtype_and_none_after_some():
    x, r, weight, bias = tensors()
    expected = step(x, r.double(), weight, bias, activation="relu")
    alone = batch_norm(x, None, None, weight, bias, True, activation="relu")
    for _ in range(2):
        step(x, r, weight, bias, activation="relu")
    assert same(step(x, r.double(), weight, bias, activation="relu"), expected)
    assert torch.equal(batch_norm(x, None, None, weight, bias, True, activation="relu"), alone)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_a_residual_that_needs_no_gradient_or_is_the_input(activation, long):
    given = tensors()
    expected = step(*given, activation=activation)
    fixed = step(*given, activation=activation, needs=False)
    assert same(fixed, [*expected[:2], *expected[3:]])
    x, _, weight, bias = given
    x = x.requires_grad_()
    sums = []
    for _ in range(2):
        y = batch_norm(x, None, None, weight, bias, True, residual=x, activation=activation)
        sums.append(torch.autograd.grad(y.sin().sum(), x)[0])
    twin = x.detach().clone().requires_grad_()
    y = batch_norm(x, None, None, weight, bias, True, residual=twin, activation=activation)
    parts = torch.autograd.grad(y.sin().sum(), (x, twin))
    assert torch.equal(sums[0], sums[1])
    torch.testing.assert_close(sums[0], parts[0] + parts[1])


def test_a_residual_that_changed_before_the_backward_pass():
    x, r, weight, bias = tensors()
    x, r = x.requires_grad_(), r.requires_grad_()

    def call(activation, added):
        return batch_norm(x, None, None, weight, bias, True, activation=activation, residual=added)

    for activation in (None, "relu"):
        for _ in range(2):
            expected = torch.autograd.grad(call(activation, r * 1), (x, r), torch.ones_like(x))
    added = r * 1
    y = call("relu", added)
    added.detach().mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    added = r * 1
    y = call(None, added)
    added.detach().mul_(2)  # without an activation it is not needed
    assert torch.autograd.grad(y.sum(), r)[0].equal(torch.ones_like(r))
    added = r * 1
    y = call("relu", added)
    added.data = added.detach().contiguous(memory_format=torch.channels_last)
    assert same(torch.autograd.grad(y, (x, r), torch.ones_like(x)), expected)
    added = r * 1
    y = call("relu", added)
    added.data = torch.ones(2)
    with pytest.raises(RuntimeError, match=r"came back as residual of shape \(2,\)"):
        y.sum().backward()


@pytest.mark.parametrize("which", [0, 1, 2, 3, 4])
def test_hooks_put_on_what_was_saved(which):
    x, r, weight, bias = tensors()
    x, r = x.requires_grad_(), r.requires_grad_()
    leaves, dy = (x, r, weight, bias), torch.randn(x.shape)
    for _ in range(2):
        y = batch_norm(x, None, None, weight, bias, True, activation="relu", residual=r)
        expected = torch.autograd.grad(y, leaves, dy)
    y = batch_norm(x, None, None, weight, bias, True, activation="relu", residual=r)
    y.grad_fn._raw_saved_tensors[which].register_hooks(lambda t: -t, torch._neg_view)
    for a, b in zip(torch.autograd.grad(y, leaves, dy), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_second_derivatives(long):
    x, r, weight, _ = tensors(torch.float64, (3, 2, 4))
    given = x.requires_grad_(), weight.detach().double().requires_grad_(), r.requires_grad_()

    def f(x, weight, r):
        return batch_norm(x, None, None, weight, None, True, activation="silu", residual=r)

    f(*given)
    assert torch.autograd.gradcheck(f, given)
    assert torch.autograd.gradgradcheck(f, given)
    assert long["forward"] == 1


def test_a_layer_of_a_residual_block(long):
    layer, (x, r, *_) = BatchNormAct2d(6, "relu"), tensors()
    for _ in range(2):
        y = layer(x, r)
    assert long["forward"] == 1
    assert y.grad_fn.moments.shape == (3, 6)
    layer.eval()
    for _ in range(2):
        y = layer(x, r)
    assert long["forward"] == 2
    assert y.grad_fn.fixed
