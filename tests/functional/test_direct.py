"""Eager calls skip torch's dispatcher: with the same bits, and only where nobody would see them."""

import contextlib

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from batchnorm.functional import _direct, batch_norm
from modes import Operators


def everything(x, training, options, mode):
    """Output, gradients and running statistics of one call, under a mode or without."""
    channels = x.shape[1]
    generator = torch.Generator().manual_seed(1)
    running = [torch.zeros(channels), torch.ones(channels), torch.tensor(0)]
    leaves = [x, torch.rand(channels, generator=generator), torch.rand(channels)]
    residual = options.get("residual")
    leaves = [t.detach().clone().requires_grad_() for t in leaves]
    leaves[2].data.fill_(0.25)
    if residual is not None:
        options = {**options, "residual": residual.detach().clone().requires_grad_()}
        leaves.append(options["residual"])
    with mode:
        y = batch_norm(
            leaves[0],
            *running[:2],
            *leaves[1:3],
            training,
            num_batches_tracked=running[2],
            **options,
        )
        dy = torch.randn(y.shape, generator=generator).to(y.dtype)
        gradients = torch.autograd.grad(y, leaves, dy)
    return [y.detach(), *gradients, *running]


OPTIONS = {
    "bare": {},
    "relu": {"activation": "relu"},
    "gelu and residual": {"activation": "gelu", "residual": torch.randn(5, 3, 4)},
    "residual": {"residual": torch.randn(5, 3, 4)},
    "mask": {"mask": torch.tensor([True, False, True, True, False])},
    "weights and residual": {"mask": torch.rand(5, 4), "residual": torch.randn(5, 3, 4)},
    "plain": {"backend": "plain"},
    "plain average": {"momentum": None},
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", OPTIONS)
def test_both_ways_give_the_same_bits(name, training):
    x = torch.randn(5, 3, 4)
    seen = Operators()
    through = everything(x, training, OPTIONS[name], seen)
    past = everything(x, training, OPTIONS[name], contextlib.nullcontext())
    for a, b in zip(through, past, strict=True):
        assert torch.equal(a, b)
    ours = {n for n in seen.names if n.startswith("batchnorm::")}
    wanted = {"train", "update_running_"} if training else {"normalize"}
    assert ours == {f"batchnorm::{n}" for n in (*wanted, "backward")}


def test_the_short_way_is_taken_by_plain_tensors(monkeypatch):
    taken = []
    real = _direct.batch_norm
    monkeypatch.setattr(_direct, "batch_norm", lambda *a: taken.append(1) or real(*a))
    weight = torch.nn.Parameter(torch.ones(3))
    batch_norm(torch.randn(5, 3), weight=weight, training=True)
    with torch.inference_mode():
        batch_norm(torch.randn(5, 3), torch.zeros(3), torch.ones(3))
    assert len(taken) == 2


watched = []


class Watched(torch.Tensor):
    """A subclass that is told of every function."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        watched.append(getattr(function, "__name__", str(function)))
        return super().__torch_function__(function, types, args, kwargs or {})


def test_a_subclass_sees_the_operator_and_stays_one():
    y = batch_norm(torch.randn(4, 2).as_subclass(Watched), training=True)
    assert type(y) is Watched
    assert any("train" in name for name in watched)


def test_a_profile_names_the_operators():
    x = torch.randn(4, 2, requires_grad=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        batch_norm(x, training=True).sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert {"batchnorm::train", "batchnorm::backward"} <= names


def test_a_tensor_whose_sign_is_still_to_be_flipped():
    x = torch.randn(6, 2)
    lazy = torch._neg_view(x)
    assert lazy.is_neg()
    assert torch.equal(batch_norm(lazy, training=True), batch_norm(-x, training=True))
    leaf = x.clone().requires_grad_()
    (dx,) = torch.autograd.grad(batch_norm(leaf, training=True), leaf, torch._neg_view(x**2))
    (expected,) = torch.autograd.grad(batch_norm(leaf, training=True), leaf, -(x**2))
    assert torch.equal(dx, expected)


@pytest.mark.parametrize("name", ["bare", "relu", "gelu and residual", "weights and residual"])
def test_second_derivatives_start_from_it(name):
    x = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True)
    options = {
        k: v.double() if isinstance(v, torch.Tensor) else v for k, v in OPTIONS[name].items()
    }

    def f(x):
        return batch_norm(x, training=True, **options).square()

    assert torch.autograd.gradgradcheck(f, x)


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_gives_the_same_gradients(reentrant):
    x = torch.randn(6, 3, requires_grad=True)

    def f(x):
        return batch_norm(x, training=True, activation="silu").sin()

    (expected,) = torch.autograd.grad(f(x).sum(), x)
    checkpoint(f, x, use_reentrant=reentrant).sum().backward()
    assert torch.equal(x.grad, expected)


def test_what_was_saved_may_be_kept_elsewhere():
    x = torch.randn(6, 3, requires_grad=True)
    kept = []

    def pack(t):
        kept.append(t.clone())
        return len(kept) - 1

    with torch.autograd.graph.saved_tensors_hooks(pack, kept.__getitem__):
        y = batch_norm(x, training=True)
    (dx,) = torch.autograd.grad(y, x, x.detach() ** 2)
    (expected,) = torch.autograd.grad(batch_norm(x, training=True), x, x.detach() ** 2)
    assert kept
    assert torch.equal(dx, expected)


def test_a_weight_changed_before_the_backward_pass_is_noticed():
    x, weight = torch.randn(6, 3), torch.ones(3, requires_grad=True)
    y = batch_norm(x.requires_grad_(), weight=weight, training=True)
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_running_statistics_show_that_they_moved():
    mean, var, batches = torch.zeros(3), torch.ones(3), torch.tensor(0)
    batch_norm(torch.randn(5, 3), mean, var, training=True, num_batches_tracked=batches)
    assert min(mean._version, var._version, batches._version) > 0


def test_gradients_of_several_rows_at_once():
    x = torch.randn(6, 3, requires_grad=True)
    y = batch_norm(x, training=True)
    rows = torch.randn(4, 6, 3)
    (together,) = torch.autograd.grad(y, x, rows, is_grads_batched=True, retain_graph=True)
    for row, dx in zip(rows, together, strict=True):
        torch.testing.assert_close(torch.autograd.grad(y, x, row, retain_graph=True)[0], dx)
