"""In place: the same values and gradients in the input's memory, and fresh memory where needed."""

import copy
import logging

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from batchnorm import BatchNormAct1d, BatchNormAct2d
from batchnorm.functional import batch_norm

KINDS = ("identity", "leaky_relu", "elu")


def inputs(shape, axis=1, dtype=torch.float32, offset=0.0):
    generator = torch.Generator().manual_seed(3)
    channels = shape[axis]
    x = torch.randn(shape, generator=generator).to(dtype) + offset
    weight = torch.rand(channels, generator=generator) + 0.5
    bias = torch.randn(channels, generator=generator) / 2
    dy = torch.randn(shape, generator=generator).to(dtype)
    return [t.requires_grad_() for t in (x, weight, bias)], dy


def run(leaves, dy, training=True, **options):
    """The layer behind an operation, as in a network; what it gives and its gradients."""
    leaves = [t.detach().clone().requires_grad_() for t in leaves]
    channels = len(leaves[1])
    wide = torch.float64 if leaves[0].dtype == torch.float64 else torch.float32
    mean, var = torch.full((channels,), 0.25, dtype=wide), torch.full((channels,), 2.0, dtype=wide)
    x = leaves[0] * 1
    y = batch_norm(x, mean, var, *leaves[1:], training, **options)
    gradients = torch.autograd.grad(y, leaves, dy)
    return (y.detach(), *gradients, mean, var), y is x


@pytest.mark.parametrize("backend", ["numba", "plain"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("shape", "axis"), [((7, 3), 1), ((5, 3, 4), 1), ((5, 7, 3), -1), ((3, 4, 5, 7), 1)]
)
def test_values_gradients_and_running_statistics(shape, axis, kind, training, backend):
    leaves, dy = inputs(shape, axis)
    options = {"activation": kind, "axis": axis}
    got, overwritten = run(leaves, dy, training, inplace=True, backend=backend, **options)
    assert overwritten
    exact, _ = run([t.detach().double() for t in leaves], dy.double(), training, **options)
    for a, b in zip(got, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5 * b.abs().max().item())


@pytest.mark.parametrize("offset", [1e2, 1e4, 1e6])
def test_far_from_zero(offset):
    leaves, dy = inputs((64, 3), offset=offset)
    got, overwritten = run(leaves, dy, inplace=True)
    exact, _ = run([t.detach().double() for t in leaves], dy.double())
    assert overwritten
    for a, b in zip(got[:4], exact[:4], strict=True):
        assert (a.double() - b).abs().max() <= 1e-5 * b.abs().max()


def test_channels_last_memory_keeps_its_strides():
    leaves, dy = inputs((4, 3, 5, 6))
    leaves[0] = leaves[0].detach().to(memory_format=torch.channels_last)
    got, overwritten = run(leaves, dy.to(memory_format=torch.channels_last), inplace=True)
    assert overwritten
    assert got[0].is_contiguous(memory_format=torch.channels_last)


def reason(caplog, x, **options):
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="batchnorm"):
        y = batch_norm(x, training=True, inplace=True, **options)
    assert y is not x
    (record,) = caplog.records
    return record.getMessage()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weight": torch.tensor([1.0, 0.0]).requires_grad_()}, "a weight of 0 cannot be undone"),
        (
            {"weight": torch.tensor([1.0, 1e-3]).requires_grad_(), "bias": torch.ones(2)},
            "in channel 1 a bias of 1 is more than",
        ),
        ({"residual": torch.ones(6, 2)}, "with a residual the input cannot be had back"),
        ({"mask": torch.arange(6) > 2}, "with a mask"),
    ],
)
def test_where_digits_would_be_lost_fresh_memory_is_used(options, words, caplog):
    x = torch.randn(6, 2, requires_grad=True) * 1
    before = x.detach().clone()
    assert words in reason(caplog, x, **options)
    assert torch.equal(x.detach(), before), "half overwritten"


def test_what_autograd_saved_is_not_overwritten(caplog):
    leaf = torch.randn(6, 2, requires_grad=True)
    assert reason(caplog, leaf).endswith("the input is a leaf that requires a gradient")
    assert "is a view" in reason(caplog, (leaf * 1)[1:])
    saved = leaf.sigmoid()
    assert "SigmoidBackward0 saved its output" in reason(caplog, saved)
    batch_norm(saved, training=True, inplace=True).square().sum().backward()
    expected = torch.autograd.grad(batch_norm(leaf.sigmoid(), training=True).square().sum(), leaf)[
        0
    ]
    assert torch.equal(leaf.grad, expected)


def test_what_a_branch_saved_is_told_by_autograd():
    leaf = torch.randn(6, 2, requires_grad=True)
    x = leaf * 1
    branch = x.square()
    y = batch_norm(x, training=True, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (y + branch).sum().backward()


def test_an_output_that_is_overwritten_again_is_told_by_autograd():
    x = torch.randn(6, 2, requires_grad=True) * 1
    y = batch_norm(x, training=True, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.relu_(y).sum().backward()


def test_without_a_graph_nothing_needs_to_be_had_back():
    weight = torch.tensor([0.0, 1.0])
    for grad_mode in (torch.no_grad, torch.inference_mode):
        with grad_mode():
            x = torch.randn(5, 2)
            expected = batch_norm(x, training=True, weight=weight, activation="elu")
            y = batch_norm(x, training=True, weight=weight, activation="elu", inplace=True)
            assert y is x
            assert torch.equal(y, expected)


def test_transforms_and_compilation_use_fresh_memory():
    x = torch.randn(4, 6, 2)
    whole = torch.vmap(lambda t: batch_norm(t, training=True, inplace=True))(x)
    torch.testing.assert_close(
        whole.flatten(0, 1), batch_norm(x.flatten(0, 1).clone(), training=True)
    )
    compiled = torch.compile(
        lambda t: batch_norm(t * 1, training=True, inplace=True),
        backend="aot_eager",
        fullgraph=True,
    )
    torch.testing.assert_close(compiled(x[0]), batch_norm(x[0], training=True))


def test_second_derivatives_are_refused():
    leaf = torch.randn(6, 2, requires_grad=True)
    y = batch_norm(leaf * 1, training=True, inplace=True)
    (dx,) = torch.autograd.grad(y.square().sum(), leaf, create_graph=True)
    with pytest.raises(
        RuntimeError, match=r"inplace=True has no second derivatives.*inplace=False"
    ):
        dx.sum().backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_under_checkpointing(reentrant):
    leaf = torch.randn(6, 3, requires_grad=True)

    def block(t):
        return batch_norm(t * 2, training=True, activation="elu", inplace=True).square()

    checkpoint(block, leaf, use_reentrant=reentrant).sum().backward()
    (expected,) = torch.autograd.grad(block(leaf).sum(), leaf)
    assert torch.equal(leaf.grad, expected)


class Network(nn.Module):
    def __init__(self, inplace):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3), BatchNormAct2d(8, "leaky_relu", inplace=inplace),
            nn.Conv2d(8, 8, 3), BatchNormAct2d(8, "elu", inplace=inplace), nn.Flatten(),
            nn.Linear(8 * 16, 6), BatchNormAct1d(6, "identity", inplace=inplace),
        )  # fmt: skip

    def forward(self, x):
        return self.layers(x)


def test_a_network_trains_as_out_of_place_and_keeps_fewer_tensors():
    torch.manual_seed(0)
    ours = Network(inplace=True)
    theirs = copy.deepcopy(ours)
    for layer in theirs.layers:
        layer.inplace = False
    x = torch.randn(5, 3, 8, 8)

    def kept(network):
        memory = {}

        def pack(t):
            memory[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            network(x).square().sum().backward()
        return sum(memory.values())

    assert kept(ours) < 0.8 * kept(theirs)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
    assert "activation=elu(1), inplace=True" in repr(ours)


def test_an_activation_that_cannot_be_undone_is_refused():
    message = (
        r"inplace=True with activation relu, .* one of identity, leaky_relu, elu, or inplace=F"
    )
    with pytest.raises(ValueError, match=message):
        BatchNormAct1d(3, "relu", inplace=True)
    with pytest.raises(ValueError, match=message):
        batch_norm(torch.randn(4, 3), training=True, activation="relu", inplace=True)
    for activation in (nn.LeakyReLU(0.0), nn.LeakyReLU(-0.5), nn.ELU(0.0)):
        message = (
            r"inplace=True with activation .*\(-?0.*, which cannot be undone; .* above zero, or"
        )
        with pytest.raises(ValueError, match=message):
            BatchNormAct1d(3, activation, inplace=True)
