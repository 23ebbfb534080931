"""What torch has of each activation besides its value, and steps of torch's own that end in one."""

import math

import pytest
import torch
from torch import nn

import oracle
from batchnorm import BatchNormAct2d, switches
from batchnorm.functional import batch_norm
from batchnorm.kernels import numba
from batchnorm.kernels._activation import KINDS, Activation
from batchnorm.kernels._native_activation import apart, back, flat, over
from batchnorm.kernels._native_step import KEPT, FixedStep, TrainingStep

GIVEN = [*map(Activation.parse, KINDS), Activation("leaky_relu", 0.3), Activation("elu", 1.7)]
BENT = [f for f in GIVEN if f.kind != "identity"]
LEVEL = [Activation("leaky_relu", 0.0), Activation("elu", 0.0)]
TYPES = [torch.float32, torch.float64]


@pytest.fixture
def answers(monkeypatch):
    """Numba is gone; what steps gave: whether each was taken."""
    monkeypatch.setattr(numba, "refuses", lambda call: "it is gone")
    taken = []

    def watched(forward):
        def call(self, *args):
            y = forward(self, *args)
            taken.append(y is not None)
            return y

        return call

    for kind in (TrainingStep, FixedStep):
        monkeypatch.setattr(kind, "forward", watched(kind.forward))
    return taken


def values(dtype):
    """Kinks and their neighbours, ends of ranges, and what lies between; in and beyond vectors."""
    kinks = torch.tensor([0.0, -0.0, 3.0, -3.0, 6.0, 1e-40, -1e-40, 50.0, -50.0], dtype=dtype)
    near = [torch.nextafter(kinks, torch.full_like(kinks, s * math.inf)) for s in (1, -1)]
    return torch.cat((kinks, *near, torch.linspace(-9, 9, 57, dtype=dtype))).repeat(2)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("f", [*GIVEN, *LEVEL], ids=str)
def test_values_and_slopes_are_those_of_the_definition(f, dtype):
    z, odd = values(dtype), torch.tensor([math.inf, -math.inf, math.nan], dtype=dtype)
    for given in (z, odd):
        value = f.value(given)
        for way in (over(f), apart(f)):
            torch.testing.assert_close(way(given.clone()), value, rtol=0, atol=0, equal_nan=True)
    if f.kind == "identity":
        return
    dy = torch.linspace(0.5, 1.5, len(z), dtype=dtype)
    right, most = dy * f.slope(z.double()), 8 * torch.finfo(dtype).eps  # of slopes up to about 1
    leaf = z.clone().requires_grad_()
    (kept,) = torch.autograd.grad(apart(f)(leaf * 1), leaf, dy)
    for got in (back(f, dy, z.clone()), kept):
        torch.testing.assert_close(got.double(), right.double(), rtol=most, atol=most)


@pytest.mark.parametrize("spoiled", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("kind", ["relu", "relu6", "hardswish", *LEVEL], ids=str)
def test_where_it_is_flat_no_gradient_passes(kind, spoiled):
    f = kind if isinstance(kind, Activation) else Activation.parse(kind)
    z = values(torch.float32)
    z = z[f.slope(z) == 0]
    dy = torch.full_like(z, spoiled)
    assert not back(f, dy, z.clone()).any()
    if not flat(f):
        leaf = z.clone().requires_grad_()
        assert not torch.autograd.grad(apart(f)(leaf * 1), leaf, dy)[0].any()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("f", BENT, ids=str)
def test_half_precision_is_rounded_where_torch_rounds_it(f, dtype, training, answers):
    """After batch norm, the residual and the activation: a kink may lie between."""
    x, r, weight, bias, mean, var = problem(dtype)
    got = run((x, r, weight, bias, mean, var), f, training)
    x, r = x.requires_grad_(), r.requires_grad_()
    y = f.value(nn.functional.batch_norm(x, mean, var, weight, bias, training) + r)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = y, *torch.autograd.grad(y, (x, r, weight, bias), dy.to(dtype)), mean, var
    assert all(map(torch.equal, got, expected))
    assert answers == [True]


def leaf(*shape, dtype=torch.float32):
    return torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_()


def problem(dtype=torch.float32, shape=(6, 3, 4, 5), layout="contiguous", added=True):
    """x, residual, weight, bias, running mean and variance."""
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    x, r = (oracle.laid_out(leaf(*shape, dtype=dtype).detach(), layout) for _ in range(2))
    weight, bias = (leaf(shape[1], dtype=wide) for _ in range(2))
    mean, var = torch.randn(shape[1], dtype=wide), torch.rand(shape[1], dtype=wide) + 0.5
    return x, r if added else None, weight, bias, mean, var


def run(given, f, training, **options):
    """Output, gradients of what has one, and running statistics."""
    x, r, weight, bias, mean, var = given
    mean, var = mean.clone(), var.clone()
    x = x.detach().requires_grad_()
    r = None if r is None else r.detach().requires_grad_()
    y = batch_norm(x, mean, var, weight, bias, training, activation=f, residual=r, **options)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    leaves = [t for t in (x, r, weight, bias) if t is not None]
    return y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype)), mean, var


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("f", BENT, ids=str)
def test_a_step_as_the_definition(f, dtype, layout, added, training, answers):
    given = problem(dtype, layout=layout, added=added)
    got = run(given, f, training)
    expected = run(given, f, training, backend="plain")
    assert answers == [True]
    tolerance = {torch.float64: 1e-12, torch.float32: 3e-6}[dtype]
    for i, (a, e) in enumerate(zip(got, expected, strict=True)):
        assert oracle.relative_error(a, e.double()) <= tolerance
        assert a.dtype == e.dtype
        assert (added and i == 2) or a.stride() == e.stride()  # the residual's may lie as dy does
    for mode in (torch.no_grad, torch.inference_mode):
        mean, var = given[4].clone(), given[5].clone()
        with mode():
            y = batch_norm(
                given[0], mean, var, *given[2:4], training, activation=f, residual=given[1]
            )
        assert torch.equal(y, got[0])
        assert torch.equal(mean, got[-2])
        assert torch.equal(var, got[-1])
    assert answers == [True] * 3


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("f", GIVEN, ids=str)
def test_an_output_may_be_overwritten_before_the_backward_pass(f, added, training, answers):
    x, r, *rest = problem(added=added)
    x, shortcut = x.requires_grad_(), leaf(*x.shape)
    leaves, gradients = (x, shortcut, *rest[:2]), []
    for own in (False, True):
        y = batch_norm(x, *rest[2:], *rest[:2], training, activation=f, residual=r)
        y = y.clone() if own else y
        y += shortcut
        y.mul_(-3).add_(x.sin())
        gradients.append(torch.autograd.grad(y.square().sum(), leaves))
    assert all(map(torch.equal, *gradients))
    assert all(answers)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("f", BENT, ids=str)
def test_gradients_of_gradients(f, training, answers):
    x, r, weight, bias, mean, var = problem(torch.float64, (4, 2, 3))
    given = x.requires_grad_(), weight, bias, r.requires_grad_()

    def call(x, weight, bias, r):
        running = (None, None) if training else (mean, var)
        return batch_norm(x, *running, weight, bias, training, activation=f, residual=r)

    assert torch.autograd.gradcheck(call, given)
    assert torch.autograd.gradgradcheck(call, given)
    assert all(answers)


def kept(y):
    """The memory, of a channel's values each or more, that the graph of y keeps, by its address."""
    found, nodes, seen = {}, [y.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [before for before, _ in node.next_functions]
        given = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
        given += getattr(node, "saved_tensors", ())
        for t in given:
            if isinstance(t, torch.Tensor) and t.shape == y.shape:
                found[t.untyped_storage().data_ptr()] = t
    return found


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("f", BENT, ids=str)
def test_what_is_kept_for_the_backward_pass(f, added, training, answers):
    """Of a small input x and z, as torch keeps x and z or y; of a large one x and the residual."""
    for shape, most in (((6, 3, 4, 5), 2), ((5, 3, 600, 600), 1 + added)):
        x, r, weight, bias, mean, var = problem(shape=shape, added=added)
        x = x.requires_grad_()
        y = batch_norm(x, mean, var, weight, bias, training, activation=f, residual=r)
        assert y.data_ptr() not in kept(y)
        assert x.data_ptr() in kept(y)
        assert len(kept(y)) == most
        small = x.nbytes <= KEPT
        assert (y.grad_fn.name() == "BatchNormBackward") is not small
    assert answers == ([True] if training else [True, False])


@pytest.mark.parametrize("training", [True, False])
def test_what_is_large_is_as_the_definition(training, answers):
    given = problem(shape=(5, 300, 60, 60))
    expected = run(given, "gelu", training, backend="plain")
    for a, e in zip(run(given, "gelu", training), expected, strict=True):
        assert oracle.relative_error(a, e.double()) <= 3e-6
    assert not any(answers)


@pytest.mark.parametrize("kind", ["relu", "relu6", "silu", "tanh"])
@pytest.mark.parametrize("training", [True, False])
def test_a_residual_that_is_not_finite(training, kind, answers):
    """It reaches what lies where it does, and no statistics; ReLU stops what is below zero."""
    x, r, weight, bias, mean, var = problem()
    r[0, 0, 0, :2] = torch.tensor([math.inf, -math.inf])
    given = x, r, weight, bias, mean, var
    expected = run(given, kind, training, backend="plain")
    for a, e in zip(run(given, kind, training), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5, equal_nan=True)
    r[0, 0, 1, 0] = math.nan
    got, right = (run(given, kind, training, backend=one) for one in (None, "plain"))
    torch.testing.assert_close(got[0], right[0], equal_nan=True)
    torch.testing.assert_close(got[-2:], right[-2:])
    assert answers == [True] * 2


def test_a_residual_may_change_after_the_call_and_be_the_input_or_expanded(answers):
    x, r, weight, bias, mean, var = problem(torch.float64)
    for added in (x, r[:1].expand(x.shape), r.requires_grad_()):
        given = x, added, weight, bias, mean, var
        expected = run(given, "silu", True, backend="plain")
        for a, e in zip(run(given, "silu", True), expected, strict=True):
            torch.testing.assert_close(a, e)
    own = r.detach().clone()
    y = batch_norm(x, weight=weight, bias=bias, training=True, activation="silu", residual=own)
    before = y.detach().clone()
    own.zero_()
    y.sum().backward()
    assert torch.equal(y.detach(), before)
    assert all(answers)


DISTANT = {
    "a distant mean": lambda mean, var: mean[1].fill_(1e3),
    "a mean whose square overflows": lambda mean, var: mean[1].fill_(1e30),
    "a small variance": lambda mean, var: var[2].fill_(0),
    "a variance below zero": lambda mean, var: var[2].fill_(-1),
    "NaN": lambda mean, var: mean[0].fill_(math.nan),
    "a variance of NaN": lambda mean, var: var[0].fill_(math.nan),
}


@pytest.mark.parametrize("name", DISTANT)
def test_running_statistics_of_which_torch_loses_digits(name, answers):
    given = problem()
    given[4][2] = 5.0
    DISTANT[name](*given[4:])
    expected = run(given, "relu", False, backend="plain")
    for a, e in zip(run(given, "relu", False), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=2e-5, atol=2e-5, equal_nan=True)
    assert answers == [False]


@pytest.mark.parametrize("variance", [1e30, 3e38, math.inf])
def test_running_variances_however_large(variance, answers):
    given = problem()
    given[0].mul_(variance**0.5 if variance < math.inf else 1.0)
    given[5][1] = variance
    expected = run(given, "silu", False, backend="plain")
    for a, e in zip(run(given, "silu", False), expected, strict=True):
        assert oracle.relative_error(a.clamp(-1e38, 1e38), e.double().clamp(-1e38, 1e38)) <= 3e-6
    assert answers == [True]


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_running_statistics_may_move_between_forward_and_backward(activation, answers):
    layer = BatchNormAct2d(3, activation).eval()
    x = leaf(5, 3, 4, 4)
    (expected,) = torch.autograd.grad(layer(x).square().sum(), x)
    loss = layer(x).square().sum()
    layer.train()(torch.randn(5, 3, 4, 4))
    layer.running_var.fill_(7)
    assert torch.equal(torch.autograd.grad(loss, x)[0], expected)
    assert answers == [True] * 3


def test_statistics_made_in_inference_mode_normalize(answers):
    layer, x = BatchNormAct2d(3, "relu"), leaf(5, 3, 4, 4)
    twin = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()).eval()
    with torch.inference_mode():
        for name, buffer in layer.named_buffers():
            setattr(layer, name, buffer.clone())
    (dx,) = torch.autograd.grad(layer.eval()(x).square().sum(), x)
    torch.testing.assert_close(dx, torch.autograd.grad(twin(x).square().sum(), x)[0])
    assert answers == [True]


def test_a_layer_whose_statistics_normalize_and_move(answers):
    """What normalizes by running statistics and moves them has no step."""
    layer, x = BatchNormAct2d(3, "relu"), torch.randn(5, 3, 4, 4)
    with switches(layer, statistics="running"):
        layer(x)
    assert layer.running_mean.abs().max() > 0
    assert answers == []


@pytest.mark.parametrize("training", [True, False])
def test_frozen_parameters_and_inputs_without_gradients(training, answers):
    x, r, weight, bias, mean, var = problem()
    y = batch_norm(
        x, mean.clone(), var.clone(), weight.detach(), bias.detach(), training,
        activation="relu", residual=r,
    )  # fmt: skip
    assert not y.requires_grad
    dy = torch.randn(x.shape)
    for leaves in ((bias,), (weight,), (r.requires_grad_(),)):
        given = [t if any(t is one for one in leaves) else t.detach() for t in (weight, bias, r)]
        got, expected = (
            torch.autograd.grad(
                batch_norm(
                    x, mean.clone(), var.clone(), *given[:2], training,
                    activation="relu", residual=given[2], backend=backend,
                ), leaves, dy,
            )
            for backend in (None, "plain")
        )  # fmt: skip
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert answers == [True] * 4
