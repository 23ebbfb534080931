"""k micro-batches as one mini-batch, for the running statistics."""

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from batchnorm import pooled, switches
from batchnorm.functional import batch_norm
from batchnorm.layers import BatchNorm1d, BatchNormAct1d, LazyBatchNorm1d

SIZES = [(4, 4, 4), (1, 9, 2), (5, 0, 7)]


def buffers(layer):
    return [b.clone() for b in layer.buffers()]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"bias_correction": True}])
@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("one_value", ["beta", "running"])
def test_micro_batches_give_the_statistics_of_the_whole(sizes, options, offset, one_value):
    pooling, whole = (BatchNorm1d(3, one_value=one_value, dtype=torch.double, **options)
                      for _ in range(2))  # fmt: skip
    for _ in range(3):
        x = torch.randn(sum(sizes), 3, dtype=torch.double) + offset
        before = buffers(pooling)
        with pooled(pooling):
            for part in x.split(sizes):
                pooling(part)
                assert all(map(torch.equal, buffers(pooling), before)), "moves at the end"
        whole(x)
        for ours, right in zip(buffers(pooling), buffers(whole), strict=True):
            torch.testing.assert_close(ours, right, rtol=1e-9, atol=1e-9)
    assert pooling.num_batches_tracked == 3


@pytest.mark.parametrize("traced", [False, True])
def test_masks_weights_and_ghosts_enter_by_their_counts(traced):
    x = torch.randn(12, 3, dtype=torch.double)
    weights = torch.tensor([1, 0, 2.5, 1, 1, 0, 0, 1, 1, 3, 1, 0], dtype=torch.double)
    around = torch.autograd.forward_ad.dual_level if traced else contextlib.nullcontext
    for ghost_size in (None, 2):
        pooling = BatchNorm1d(3, dtype=torch.double, ghost_size=ghost_size, one_value="beta")
        whole = BatchNorm1d(3, dtype=torch.double)
        with pooled(pooling), around():
            for some in (slice(0, 5), slice(5, 12)):
                pooling(x[some], mask=None if ghost_size else weights[some])
        whole(x, mask=None if ghost_size else weights)
        if not ghost_size:
            torch.testing.assert_close(pooling.running_var, whole.running_var)
            torch.testing.assert_close(pooling.running_mean, whole.running_mean)
        assert pooling.num_batches_tracked == 1


def test_ghost_groups_pool_to_the_whole():
    x = torch.randn(12, 3, dtype=torch.double)
    pooling, whole = (BatchNorm1d(3, dtype=torch.double) for _ in range(2))
    pooling.ghost_size = 4
    with pooled(pooling):
        pooling(x)
    whole(x)
    for ours, right in zip(buffers(pooling), buffers(whole), strict=True):
        torch.testing.assert_close(ours, right)


def test_on_an_exception_nothing_moves():
    layer = BatchNorm1d(3)
    before = buffers(layer)
    model = nn.Sequential(layer, nn.Linear(4, 1))  # which does not fit
    with pytest.raises(RuntimeError, match="cannot be multiplied"), pooled(model):
        model(torch.randn(4, 3))
    assert all(map(torch.equal, buffers(layer), before))
    assert layer.pool is None
    layer(torch.randn(4, 3))
    assert layer.num_batches_tracked == 1, "and afterwards it counts as ever"


def test_one_that_is_not_finite_keeps_the_mini_batch_out():
    layer = BatchNorm1d(3)
    with pooled(layer):
        layer(torch.randn(4, 3))
        layer(torch.full((4, 3), float("nan")))
    assert layer.num_batches_tracked == 0
    assert layer.skipped == 1
    assert layer.running_mean.count_nonzero() == 0


def test_one_value_in_all_is_no_mini_batch():
    layer = BatchNorm1d(3, one_value="beta")
    before = buffers(layer)
    with pooled(layer):
        layer(torch.randn(1, 3))
    assert all(map(torch.equal, buffers(layer), before))


def test_frozen_and_evaluating_layers_stay_as_they_are():
    model = nn.Sequential(BatchNorm1d(3), BatchNorm1d(3), BatchNormAct1d(3))
    model.append(BatchNorm1d(3, track_running_stats=False))
    model[0].eval()
    before = buffers(model[0]), buffers(model[1])
    with pooled(model), switches(model[1], update=False):
        model(torch.randn(4, 3))
    assert all(map(torch.equal, before[0] + before[1], buffers(model[0]) + buffers(model[1])))
    assert model[2].num_batches_tracked == 1


@pytest.mark.parametrize("reentrant", [True, False])
def test_accumulation_under_checkpointing(reentrant):
    torch.manual_seed(0)
    x = torch.randn(9, 3, requires_grad=True)
    counted = []
    for recompute in (False, True):
        model = nn.Sequential(nn.Linear(3, 3), BatchNorm1d(3), BatchNormAct1d(3, "silu"))
        model[0].weight.data.copy_(torch.eye(3) + 0.1)
        model[0].bias.data.zero_()
        with pooled(model):
            for part in x.split((4, 5)):
                y = checkpoint(model, part, use_reentrant=reentrant) if recompute else model(part)
                y.square().sum().backward()
        counted.append([*(p.grad for p in model.parameters()), *buffers(model)])
    for ours, plain in zip(*counted, strict=True):
        torch.testing.assert_close(ours, plain)


def test_compiled_layers_pool():
    results = []
    for compiled in (False, True):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = nn.Sequential(BatchNorm1d(3), BatchNormAct1d(3, "relu"))
        run = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
        with pooled(model):
            run(torch.randn(4, 3))
            run(torch.randn(6, 3))
        run(torch.randn(5, 3))
        results.append(buffers(model))
        assert model[0].num_batches_tracked == 2
    for ours, right in zip(*results, strict=True):
        torch.testing.assert_close(ours, right)


@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"one_value": "beta"}])
def test_a_block_inside_a_compiled_step(options):
    layer = BatchNorm1d(3, **options)
    twin = copy.deepcopy(layer)

    def step(layer, x):
        with pooled(layer):
            return layer(x[:2]) + layer(x[2:])

    x = torch.randn(4, 3)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(layer, x), step(twin, x))
    torch.testing.assert_close(dict(layer.named_buffers()), dict(twin.named_buffers()))
    assert layer.num_batches_tracked == 1


def test_as_a_function():
    pool, x = torch.zeros(3, 2, dtype=torch.double), torch.randn(7, 2)
    mean, var = torch.zeros(2), torch.ones(2)
    for part in x.split(3 + 1):
        batch_norm(part, mean, var, training=True, pool=pool)
    torch.testing.assert_close(pool[0], torch.full((2,), 7.0).double())
    torch.testing.assert_close(pool[1].float(), x.mean(0))
    torch.testing.assert_close(pool[2].float(), x.var(0, correction=0))
    assert mean.count_nonzero() == 0


def test_what_cannot_pool_is_named():
    with pytest.raises(ValueError, match=r"0 \(BatchNorm1d\) cannot pool their statistics; exp"):
        pooled(nn.Sequential(nn.BatchNorm1d(3))).__enter__()
    with pytest.raises(ValueError, match=r"Linear has no batch norm to pool their statistics"):
        pooled(nn.Linear(3, 3)).__enter__()
    with pytest.raises(ValueError, match=r"is lazy and has not seen its channels; expected a mod"):
        pooled(LazyBatchNorm1d()).__enter__()
    layer = BatchNorm1d(3)
    with pooled(layer):
        with pytest.raises(ValueError, match=r"pools its statistics already; expected no pooled"):
            pooled(layer).__enter__()
        assert layer.pool is not None
