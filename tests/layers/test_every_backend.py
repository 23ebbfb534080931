"""What layers add to the function: on every backend the same, and twice differentiable."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.rnn import pack_sequence

import batchnorm
from batchnorm.kernels import _pick
from batchnorm.layers import (
    BatchNorm1d,
    BatchNormAct1d,
    BatchRenorm1d,
    DomainBatchNorm1d,
    in_domain,
    masked,
    pooled,
    switches,
)

BACKENDS = {backend.name: backend for backend in _pick.ORDER}
MASK = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]]).bool()
WHICH = torch.tensor([0, 2, 0, 2, 2, 0])


def within(block, layer, x, *arguments):
    with block:
        return layer(x, *arguments)


WAYS = {
    "running ones that move": (
        BatchNorm1d,
        lambda layer, x: within(switches(layer, statistics="running"), layer, x),
    ),
    "no update": (BatchNorm1d, lambda layer, x: within(switches(layer, update=False), layer, x)),
    "the batch's in evaluation": (
        lambda *a, **k: BatchNorm1d(*a, **k).eval(),
        lambda layer, x: within(switches(layer, statistics="batch"), layer, x),
    ),
    "masked": (BatchNorm1d, lambda layer, x: within(masked(layer, MASK), layer, x)),
    "pooled": (BatchNorm1d, lambda layer, x: within(pooled(layer), layer, x)),
    "packed": (BatchNorm1d, lambda layer, x: layer(pack_sequence([*x.movedim(1, 2)])).data),
    "activation and residual": (BatchNormAct1d, lambda layer, x: layer(x, x.sin())),
    "renormalized": (BatchRenorm1d, lambda layer, x: layer(x)),
    "one domain": (DomainBatchNorm1d, lambda layer, x: within(in_domain(layer, 1), layer, x)),
    "a domain each": (DomainBatchNorm1d, lambda layer, x: layer(x, WHICH)),
    "a domain each, masked": (
        DomainBatchNorm1d,
        lambda layer, x: within(masked(layer, MASK), layer, x, WHICH),
    ),
}
OPTIONS = {
    BatchNormAct1d: {"activation": "silu"},
    # Limits that every channel is at: between them r and d move, and no gradient follows them.
    BatchRenorm1d: {"r_max": 1.001, "d_max": 0.001},
    DomainBatchNorm1d: {"domains": 3},
}


def given(way):
    """A layer and input for it."""
    torch.manual_seed(0)
    make, _ = WAYS[way]
    layer = make(2, dtype=torch.float64, **OPTIONS.get(make, {}))
    with torch.no_grad():
        for p in layer.parameters():
            p.uniform_(0.5, 1.5)
    x = torch.randn(6, 2, 3, dtype=torch.float64, requires_grad=True)
    return layer, x


def results(way):
    layer, x = given(way)
    y = WAYS[way][1](layer, x)
    gradients = torch.autograd.grad(y.sin().sum(), (x, *layer.parameters()))
    return [y.detach(), *gradients, *layer.buffers()]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("way", WAYS)
def test_every_backend_gives_what_the_plain_one_gives(way, backend, monkeypatch):
    """What it refuses the plain one takes."""
    monkeypatch.setattr(_pick, "ORDER", (BACKENDS["plain"],))
    right = results(way)
    monkeypatch.setattr(_pick, "ORDER", (BACKENDS[backend], BACKENDS["plain"]))
    for a, b in zip(results(way), right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("way", WAYS)
def test_first_and_second_derivatives(way):
    layer, x = given(way)
    before = batchnorm.snapshot(layer)

    def function(x, *_):
        before.restore()
        return WAYS[way][1](layer, x)

    leaves = (x, *layer.parameters())
    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves)
