"""In place: who else needs the memory, seen without asking hooks for what they keep."""

import logging

import pytest
import torch
from torch import nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from batchnorm import BatchNorm2d, BatchNormAct2d
from batchnorm.functional import batch_norm


def test_nothing_is_recomputed_to_see_whether_a_checkpoint_kept_the_input():
    runs = []

    class Convolution(nn.Conv2d):
        def forward(self, input):
            runs.append(1)
            return super().forward(input)

    first, convolution = BatchNorm2d(4), Convolution(4, 4, 3)
    after = BatchNormAct2d(4, None, inplace=True)
    u = torch.randn(2, 4, 8, 8, requires_grad=True)
    h = checkpoint(lambda u: convolution(first(u)), u, use_reentrant=False)
    y = after(h)
    assert y is h
    assert len(runs) == 1
    assert first.num_batches_tracked == 1
    y.square().sum().backward()
    assert len(runs) == 2
    assert first.num_batches_tracked == 1


def test_hooks_are_not_asked_for_what_they_keep():
    asked = []
    leaf = torch.randn(6, 2, requires_grad=True)
    with saved_tensors_hooks(lambda t: (t.clone(),), lambda kept: asked.append(1) or kept[0]):
        x = leaf @ torch.eye(2, requires_grad=True)
    assert batch_norm(x, training=True, inplace=True) is x
    assert not asked


@pytest.mark.parametrize(
    ("pack", "unpack"),
    [
        (lambda t: t, lambda t: t),
        (torch.Tensor.detach, lambda t: t),
        (lambda t: (t,), lambda kept: kept[0]),
        (lambda t: t.detach().numpy(), torch.from_numpy),
    ],
)
@pytest.mark.parametrize("function", [torch.sigmoid, torch.exp, torch.linalg.inv])
@pytest.mark.parametrize("during", [True, False])
def test_what_hooks_keep_in_the_same_memory_is_not_overwritten(function, pack, unpack, during):
    leaf = (torch.eye(6) + torch.rand(6, 6) / 9).requires_grad_()
    with saved_tensors_hooks(pack, unpack):
        x = function(leaf)
        y = batch_norm(x, training=True, inplace=True) if during else None
    y = y if during else batch_norm(x, training=True, inplace=True)
    (got,) = torch.autograd.grad(y.square()[:, :2].sum(), leaf)
    exact = batch_norm(function(leaf), training=True)
    (expected,) = torch.autograd.grad(exact.square()[:, :2].sum(), leaf)
    assert torch.equal(got, expected)


def test_what_is_kept_on_the_cpu_by_copy():
    leaf = torch.randn(6, 2, requires_grad=True)
    with save_on_cpu():
        x = leaf.sigmoid()
    y = batch_norm(x, training=True, inplace=True)
    (got,) = torch.autograd.grad(y.square()[:3].sum(), leaf)
    exact = batch_norm(leaf.sigmoid(), training=True)
    torch.testing.assert_close(got, torch.autograd.grad(exact.square()[:3].sum(), leaf)[0])


def test_a_graph_that_is_freed_keeps_nothing():
    leaf = torch.randn(6, 2, requires_grad=True)
    x = leaf.sigmoid()
    x.sum().backward()
    assert batch_norm(x, training=True, inplace=True) is x


SHARED = {
    "residual": lambda x: x[:1].expand_as(x),
    "residual transposed": lambda x: x.transpose(0, 1),
    "residual shifted": lambda x: torch.as_strided(x, x.shape, x.stride(), 0),
    "weight": lambda x: x.view(-1)[:6],
    "bias": lambda x: x[:, 0],
    "running_mean": lambda x: x.view(-1)[:6],
}


@pytest.mark.parametrize("case", SHARED)
@pytest.mark.parametrize("training", [True, False])
def test_what_shares_memory_otherwise_is_not_overwritten(case, training, caplog):
    name = case.split()[0]

    def inputs():
        generator = torch.Generator().manual_seed(1)
        x = torch.rand(42, generator=generator)[6:].view(6, 6)
        running = {"running_mean": torch.zeros(6), "running_var": torch.ones(6)}
        return x, {**running, name: SHARED[case](x)}

    x, options = inputs()
    alone = {k: v.clone() for k, v in options.items()}
    expected = batch_norm(x.clone(), training=training, **alone)
    with caplog.at_level(logging.INFO, logger="batchnorm"):
        y = batch_norm(x, training=training, inplace=True, **options)
    assert y is not x
    assert f"{name} shares memory with the input" in caplog.text
    torch.testing.assert_close(y, expected)


def test_a_residual_that_is_the_input_itself_is_added_in_place():
    x = torch.randn(6, 3)
    expected = batch_norm(x.clone(), training=True, residual=x.clone())
    y = batch_norm(x, training=True, residual=x, inplace=True)
    assert y is x
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("spread", [1.0, 1e-1, 1e-2, 1e-3, 1e-5])
@pytest.mark.parametrize(("bias", "mean"), [(10.0, 0.0), (0.5, 3.0), (-10.0, 10.0), (None, 2.0)])
def test_in_evaluation_the_weights_gradient_keeps_its_digits(spread, bias, mean):
    generator = torch.Generator().manual_seed(0)
    x = (spread * torch.randn(256, 8, generator=generator) + mean).requires_grad_()
    dy = torch.randn(256, 8, generator=generator)
    dy -= dy.mean(0)  # otherwise the mean of x-hat hides what its rounding costs
    parts = [x, torch.ones(8, requires_grad=True)]
    parts += [] if bias is None else [torch.full((8,), bias, requires_grad=True)]
    wide = [t.detach().double().requires_grad_() for t in parts]

    def gradients(parts, dtype, **options):
        running = torch.zeros(8, dtype=dtype), torch.ones(8, dtype=dtype)
        y = batch_norm(parts[0] * 1, *running, *parts[1:], **options)
        return torch.autograd.grad(y, parts, dy.to(dtype))

    got = gradients(parts, torch.float32, inplace=True)
    for a, b in zip(got[:2], gradients(wide, torch.float64)[:2], strict=True):
        assert (a.double() - b).abs().max() <= 1e-5 * b.abs().max()


def test_in_evaluation_a_weight_that_needs_no_gradient_needs_no_digits():
    x = 1e-3 * torch.randn(256, 8, requires_grad=True)
    y = batch_norm(x, torch.zeros(8), torch.ones(8), torch.ones(8), torch.ones(8), inplace=True)
    assert y is x
