"""Recomputation under activation checkpointing: nothing counts twice, and gradients stay."""

import contextlib
import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from batchnorm.functional import _recomputed, batch_norm
from batchnorm.layers import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNormAct1d,
    DomainBatchNorm1d,
    in_domain,
    masked,
    switches,
)

MODES = [True, False]


def resnet(norm=BatchNorm2d):
    resnet18 = pytest.importorskip("torchvision.models").resnet18
    torch.manual_seed(0)
    return resnet18(norm_layer=norm, num_classes=10)


def stages(model):
    return nn.Sequential(
        nn.Sequential(model.conv1, model.bn1, nn.ReLU()), model.layer1, model.layer2,
        model.layer3, model.layer4, nn.Sequential(model.avgpool, nn.Flatten(1), model.fc),
    )  # fmt: skip


def state(model):
    """Gradients, and the running statistics with their counters."""
    gradients = [p.grad for p in model.parameters()]
    return [*gradients, *(b.clone() for b in model.buffers())]


def nested(stage, x, reentrant):
    """A checkpoint within a checkpoint."""
    inner = list(stage)

    def outer(x):
        for block in inner:
            x = checkpoint(block, x, use_reentrant=reentrant)
        return x

    return checkpoint(outer, x, use_reentrant=reentrant)


def runs(parts, x, how, reentrant):
    if how == "plain":
        return parts(x)
    if how == "whole":
        return checkpoint(parts, x, use_reentrant=reentrant)
    if how == "sequential":
        return checkpoint_sequential(parts, 3, x, use_reentrant=reentrant)
    for part in parts:
        x = nested(part, x, reentrant)
    return x


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of the inner one
@pytest.mark.parametrize("reentrant", MODES)
@pytest.mark.parametrize("how", ["whole", "sequential", "nested"])
def test_resnet_counts_once_and_has_the_gradients_of_a_plain_run(how, reentrant):
    results = []
    for way in ("plain", how):
        model = resnet()
        torch.manual_seed(1)
        for _ in range(2):
            x = torch.randn(4, 3, 32, 32, requires_grad=True)
            y = runs(stages(model), x, way, reentrant)
            F.cross_entropy(y, torch.arange(4)).backward()
        results.append([x.grad, *state(model)])
        assert model.bn1.num_batches_tracked == 2
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)


@pytest.mark.parametrize("reentrant", MODES)
def test_torchs_own_layer_counts_twice(reentrant):
    model = resnet(nn.BatchNorm2d)
    x = torch.randn(4, 3, 32, 32, requires_grad=True)
    runs(stages(model), x, "whole", reentrant).sum().backward()
    assert model.bn1.num_batches_tracked == 2, "torch's own is wrong: the test can fail"


def network(activation="silu"):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6), BatchNorm1d(6), nn.Dropout(0.3), nn.Sigmoid(),
        BatchNormAct1d(6, activation, inplace=activation == "leaky_relu"), nn.Linear(6, 1),
    )  # fmt: skip


def wrapped(module, reentrant):
    if reentrant is None:
        return module
    return lambda x: checkpoint(module, x, use_reentrant=reentrant)


@pytest.mark.parametrize("activation", ["silu", "leaky_relu"])
def test_steps_of_sam(activation):
    """Two forward passes a step: at the weights, and at the worst weights near them."""
    results = []
    for reentrant in (None, *MODES):
        model = network(activation)
        run = wrapped(model, reentrant)
        for _ in range(2):
            x = torch.randn(8, 4, requires_grad=True)
            run(x).square().sum().backward()
            moves = [0.05 * p.grad for p in model.parameters()]
            with torch.no_grad():
                for p, move in zip(model.parameters(), moves, strict=True):
                    p.add_(move)
            model.zero_grad()
            run(x).square().sum().backward()
            with torch.no_grad():
                for p, move in zip(model.parameters(), moves, strict=True):
                    p.sub_(move + 0.1 * p.grad)
        assert model[1].num_batches_tracked == model[4].num_batches_tracked == 4
        results.append(state(model))
    for other in results[1:]:
        for plain, recomputed in zip(results[0], other, strict=True):
            torch.testing.assert_close(plain, recomputed)


def test_steps_of_a_gan():
    """The discriminator sees real and made-up examples before it is differentiated."""
    results = []
    for reentrant in (None, *MODES):
        critic = network()
        maker = nn.Sequential(nn.Linear(2, 5), BatchNormAct1d(5, "relu"), nn.Linear(5, 4))
        judge, make = wrapped(critic, reentrant), wrapped(maker, reentrant)
        for _ in range(2):
            made = make(torch.randn(8, 2, requires_grad=True))
            real = torch.randn(8, 4, requires_grad=True)
            (judge(made.detach().requires_grad_()).mean() - judge(real).mean()).backward()
            judge(made).mean().backward()
        assert critic[1].num_batches_tracked == 6
        assert maker[1].num_batches_tracked == 2
        results.append([*state(critic), *state(maker)])
    for other in results[1:]:
        for plain, recomputed in zip(results[0], other, strict=True):
            torch.testing.assert_close(plain, recomputed)


def by_running(x, mean, var):
    return batch_norm(x, mean, var, training=False, update=True, activation="silu")


def renormalized(x, mean, var):
    return batch_norm(x, mean, var, training=True, renorm=(3.0, 5.0), activation="silu")


def ghosts(x, mean, var):
    return batch_norm(x, mean, var, training=True, renorm=(3.0, 5.0), ghost_size=3)


def alone(x, mean, var):
    y = batch_norm(x[:1], mean, var, training=True, one_value="running", activation="silu")
    return torch.cat((y, batch_norm(x[1:], mean, var, training=True)))


@pytest.mark.parametrize("kind", [by_running, renormalized, ghosts, alone])
@pytest.mark.parametrize("reentrant", MODES)
@pytest.mark.parametrize("way", ["past the operators", "through them"])
def test_where_running_statistics_normalize_gradients_are_those_of_the_first_pass(
    kind, reentrant, way
):
    batches = torch.randn(2, 8, 3)
    around = torch.autograd.profiler.profile if way == "through them" else contextlib.nullcontext
    results = []
    for recomputed in (True, False):
        mean, var = torch.full((3,), 0.5), torch.full((3,), 2.0)
        leaves = [b.clone().requires_grad_() for b in batches]
        run = wrapped(
            functools.partial(kind, mean=mean, var=var), reentrant if recomputed else None
        )
        with around():
            a, b = run(leaves[0]), run(3 * leaves[1] + 1)
            (a * b).sum().backward()
        results.append([*(x.grad for x in leaves), mean, var])
    for ours, plain in zip(*results, strict=True):
        assert torch.equal(ours, plain)


def test_without_the_memory_the_gradients_would_differ(monkeypatch):
    monkeypatch.setattr(_recomputed, "KEPT", 0)
    case = test_where_running_statistics_normalize_gradients_are_those_of_the_first_pass
    for kind in (by_running, renormalized):
        with pytest.raises(AssertionError):
            case(kind, False, "past the operators")


def test_a_batch_of_nan_is_not_taken_for_another():
    x, results = torch.randn(8, 3), []
    for reentrant in (None, *MODES):
        mean, var = torch.full((3,), 0.5), torch.full((3,), 2.0)
        run = wrapped(functools.partial(by_running, mean=mean, var=var), reentrant)
        leaf = x.clone().requires_grad_()
        y = run(leaf)
        run(torch.full((8, 3), torch.nan, requires_grad=True))
        y.sum().backward()
        results.append(leaf.grad)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_no_more_passes_are_kept_than_it_says():
    mean, var = torch.zeros(3), torch.ones(3)
    for _ in range(_recomputed.KEPT + 5):
        by_running(torch.randn(4, 3), mean, var)
    assert len(_recomputed._passes[mean]) == _recomputed.KEPT
    assert copy.deepcopy(mean) not in _recomputed._passes
    before = len(_recomputed._passes)
    del mean
    assert len(_recomputed._passes) == before - 1


@pytest.mark.parametrize("reentrant", MODES)
def test_a_compiled_block_inside_a_checkpoint_counts_once(reentrant):
    model = network()
    model[2].p = 0.0
    twin = copy.deepcopy(model)
    x = torch.randn(8, 4, requires_grad=True)
    block = torch.compile(model, backend="aot_eager", fullgraph=True)
    checkpoint(block, x, use_reentrant=reentrant).square().sum().backward()
    twin(x).square().sum().backward()
    for ours, plain in zip(state(model), state(twin), strict=True):
        torch.testing.assert_close(ours, plain)


def test_an_in_place_layer_does_not_run_its_checkpoint_again():
    calls = []

    def block(x):
        calls.append(1)
        y = F.batch_norm(x, None, None, training=True).sigmoid()
        return batch_norm(y, training=True, activation="leaky_relu", inplace=True).square()

    x = torch.randn(8, 3, requires_grad=True)
    y = checkpoint(block, x, use_reentrant=False)
    assert len(calls) == 1
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, torch.autograd.grad(block(x).sum(), x)[0])


FIRST = torch.tensor([1, 1, 1, 0, 1, 0, 1, 1], dtype=torch.bool)
BLOCKS = {
    "masks": [lambda m: masked(m, FIRST), lambda m: masked(m, FIRST.flip(0))],
    "a mask, and none": [lambda m: masked(m, FIRST), contextlib.nullcontext],
    "switches": [lambda m: switches(m, statistics="running"), contextlib.nullcontext],
    "frozen, then moved": [
        lambda m: switches(m, statistics="running", update=False),
        contextlib.nullcontext,
    ],
}


def two_passes(model, blocks, x, reentrant):
    """Each in its block, and the backward pass outside; gradients and statistics."""
    run, leaves = wrapped(model, reentrant), [t.clone().requires_grad_() for t in x]
    ys = []
    for block, leaf in zip(blocks, leaves, strict=True):
        with block(model):
            ys.append(run(leaf))
    (ys[0] * ys[1].square()).sum().backward()
    return [*(leaf.grad for leaf in leaves), *state(model)]


@pytest.mark.parametrize("reentrant", MODES)
@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("inputs", ["other", "same"])
def test_a_block_holds_for_a_recomputation_after_its_end(kind, inputs, reentrant):
    x = torch.randn(2, 8, 4)
    if inputs == "same":
        x[1] = x[0]
    results = []
    for mode in (None, reentrant):
        model = network()[:2]
        if kind.endswith(("masks", "none")):
            x[0, ~FIRST] = torch.nan
        results.append(two_passes(model, BLOCKS[kind], x, mode))
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=0, atol=0, equal_nan=True)


COMPILED = {
    "mask": (lambda: BatchNorm1d(4), lambda m: masked(m, FIRST)),
    "switches": (lambda: BatchNorm1d(4), lambda m: switches(m, statistics="running", update=False)),
    "domain": (lambda: DomainBatchNorm1d(4, 2), lambda m: in_domain(m, 1)),
}


@pytest.mark.parametrize("reentrant", MODES)
@pytest.mark.parametrize("kind", COMPILED)
def test_a_compiled_checkpoint_is_recomputed_in_a_block_that_lasts(kind, reentrant):
    make, block = COMPILED[kind]
    x, results = torch.randn(8, 4), []
    for compiled in (False, True):
        model, leaf = make(), x.clone().requires_grad_()
        run = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
        with block(model):
            y = checkpoint(run, leaf, use_reentrant=reentrant) if compiled else run(leaf)
            y.square().sum().backward()
        results.append([leaf.grad, *state(model)])
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize("reentrant", MODES)
def test_a_domain_holds_for_a_recomputation_after_its_block(reentrant):
    x = torch.randn(2, 8, 4)
    blocks = [lambda m: in_domain(m, 0), lambda m: in_domain(m, FIRST.long())]
    results = []
    for mode in (None, reentrant):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 3), DomainBatchNorm1d(3, 2))
        with switches(model, statistics="running"):
            results.append(two_passes(model, blocks, x, mode))
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)


def test_a_layer_keeps_no_more_passes_than_it_says_and_a_copy_none():
    layer = BatchNorm1d(4)
    with torch.no_grad(), masked(layer, FIRST):
        for _ in range(_recomputed.KEPT + 5):
            layer(torch.randn(8, 4))
        twin = copy.deepcopy(layer)
    assert layer.passes is not None
    assert len(layer.passes._kept) == _recomputed.KEPT
    assert twin.passes is twin.ambient is None, "a copy is in no block"
    assert twin(torch.randn(5, 4)).shape == (5, 4)
