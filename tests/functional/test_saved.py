"""What comes back from autograd's keeping: cast to what a kernel reads, or refused, never misread."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks

from batchnorm.functional import batch_norm

WAYS = ["direct", "in place", "dispatched"]


def leaves(shape=(64, 6)):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(shape, generator=generator)
    weight = torch.rand(shape[1], generator=generator) + 0.5
    bias = torch.randn(shape[1], generator=generator) / 4
    return [t.requires_grad_() for t in (x, weight, bias)]


def forward(way, x, weight, bias, **options):
    """The output, by one of the ways into torch."""
    if way == "in place":
        source = x * 1
        y = batch_norm(source, None, None, weight, bias, training=True, inplace=True, **options)
        assert y is source
        return y
    if way == "direct":
        return batch_norm(x, None, None, weight, bias, training=True, **options)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        return batch_norm(x, None, None, weight, bias, training=True, **options)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("back", [torch.Tensor.float, lambda t: t])
def test_hooks_that_change_the_dtype_give_gradients_of_that_precision(way, back):
    parts = leaves()
    dy = torch.randn(parts[0].shape)
    expected = torch.autograd.grad(forward(way, *parts), parts, dy)
    with saved_tensors_hooks(torch.Tensor.half, back):
        y = forward(way, *parts)
    for got, right in zip(torch.autograd.grad(y, parts, dy), expected, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, right, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("way", ["direct", "dispatched"])
def test_hooks_that_change_the_dtype_of_mask_and_residual(way):
    parts = leaves()
    options = {
        "mask": torch.rand(64) * (torch.arange(64) > 9),
        "residual": torch.randn(64, 6),
        "activation": "silu",
    }
    dy = torch.randn(parts[0].shape)
    expected = torch.autograd.grad(forward(way, *parts, **options), parts, dy)
    with saved_tensors_hooks(torch.Tensor.half, lambda t: t):
        y = forward(way, *parts, **options)
    for got, right in zip(torch.autograd.grad(y, parts, dy), expected, strict=True):
        torch.testing.assert_close(got, right, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t[..., :1], r"x of shape \(64, 1\).*expected shape \(64, 6\)"),
        (lambda t: t.to("meta"), "x of .* on meta.* expected .* on cpu"),
        (lambda t: t[:1] if t.dim() == 2 and len(t) == 3 else t, r"moments of shape \(1, 6\)"),
        (lambda t: t[None] if t.dim() == 1 else t, r"weight of shape \(1, 6\)"),
        (lambda t: t.int() if len(t) == 3 else t, r"moments of shape \(3, 6\), torch.int32"),
    ],
)
def test_hooks_that_return_something_else_are_refused(way, change, words):
    parts = leaves()
    with saved_tensors_hooks(lambda t: t, change):
        y = forward(way, *parts)
    with pytest.raises(RuntimeError, match=f"(?s)saved for its gradient came back as .*{words}"):
        y.sum().backward()


@pytest.mark.parametrize("way", WAYS)
def test_a_parameter_swapped_for_a_shorter_one_is_refused(way):
    parts = leaves()
    y = forward(way, *parts)
    parts[1].data = torch.ones(2)
    with pytest.raises(RuntimeError, match=r"weight of shape \(2,\).*expected shape \(6,\)"):
        y.sum().backward()


@pytest.mark.parametrize("way", WAYS)
def test_what_cannot_be_saved_moves_no_running_statistics(way):
    with torch.inference_mode():
        x = torch.randn(8, 3)
    weight, before = torch.ones(3, requires_grad=True), x.clone()
    running = torch.zeros(3), torch.ones(3)
    count = torch.tensor(0)
    options = {"training": True, "num_batches_tracked": count, "inplace": way == "in place"}
    if way == "dispatched":
        options["mask"] = torch._neg_view(-torch.ones(8))
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):
        batch_norm(x, *running, weight, **options)
    assert not running[0].any()
    assert not count
    assert torch.equal(x, before)


def test_a_parameter_that_cannot_be_saved_leaves_the_input_alone():
    with torch.inference_mode():
        weight = torch.ones(3)
    x, mean = torch.randn(8, 3, requires_grad=True) * 1, torch.zeros(3)
    before = x.detach().clone()
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):
        batch_norm(x, mean, torch.ones(3), weight, training=True, inplace=True)
    assert torch.equal(x.detach(), before)
    assert not mean.any()


def test_an_input_of_inference_mode_is_not_written_outside_it():
    with torch.inference_mode():
        x = torch.randn(8, 3)
    before = x.clone()
    with torch.no_grad():
        y = batch_norm(x, training=True, inplace=True)
    assert torch.equal(x, before)
    torch.testing.assert_close(y, batch_norm(x, training=True))


@pytest.mark.parametrize("kind", ["identity", "leaky_relu", "elu"])
@pytest.mark.parametrize("training", [True, False])
class TestInPlaceGradientsThatAreNoPlainTensors:
    def graph(self, kind, training):
        parts = leaves((16, 3, 2))
        y = batch_norm(
            parts[0] * 1, torch.zeros(3), torch.ones(3), *parts[1:], training=training,
            activation=kind, inplace=True,
        )  # fmt: skip
        return y, parts

    def test_a_sign_still_to_be_flipped(self, kind, training):
        y, parts = self.graph(kind, training)
        dy = torch.randn(y.shape)
        expected = torch.autograd.grad(y, parts, -dy, retain_graph=True)
        got = torch.autograd.grad(y, parts, torch._neg_view(dy))
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b)

    def test_several_at_once(self, kind, training):
        y, parts = self.graph(kind, training)
        rows = torch.randn(4, *y.shape)
        together = torch.autograd.grad(y, parts, rows, is_grads_batched=True, retain_graph=True)
        for i, row in enumerate(rows):
            alone = torch.autograd.grad(y, parts, row, retain_graph=True)
            for a, b in zip(together, alone, strict=True):
                torch.testing.assert_close(a[i], b)

    def test_a_tangent(self, kind, training):
        y, parts = self.graph(kind, training)
        dy, tangent = torch.randn(2, *y.shape)
        expected = torch.autograd.grad(y, parts, tangent, retain_graph=True)
        with forward_ad.dual_level():
            got = torch.autograd.grad(y, parts, forward_ad.make_dual(dy, tangent))
            for a, b in zip(got, expected, strict=True):
                moved = forward_ad.unpack_dual(a).tangent
                assert moved is not None
                torch.testing.assert_close(moved.to(b.dtype), b)  # torch keeps it wide
