"""The defects of torch's layers (reproduced on torch 2.13), one test each: ours has none of them.

Each test also shows that it fails with torch's own layer, so that it is known to see the defect.
"""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from batchnorm import BatchNorm1d, BatchNorm2d

OURS, TORCHS = BatchNorm1d, nn.BatchNorm1d


def fails_for_torch(check, *arguments):
    """`check` holds for our layer, and not for torch's."""
    check(OURS, *arguments)
    with pytest.raises((AssertionError, RuntimeError, torch._dynamo.exc.TorchDynamoException)):
        check(TORCHS, *arguments)


def counted_once(kind, reentrant):
    layer = kind(3)
    x = torch.randn(5, 3, requires_grad=True)
    checkpoint(layer, x, use_reentrant=reentrant).sum().backward()
    assert layer.num_batches_tracked == 1


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_counts_twice(reentrant):
    fails_for_torch(counted_once, reentrant)


def unspoiled(kind, value):
    layer = kind(2)
    x = torch.randn(4, 2)
    x[1, 0] = value
    layer(x)
    assert (layer.running_mean.tolist(), layer.running_var.tolist()) == ([0, 0], [1, 1])


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
def test_one_inf_or_nan_poisons_the_running_statistics(value):
    fails_for_torch(unspoiled, value)
    layer = OURS(2)
    layer(torch.full((4, 2), value))
    layer(torch.randn(4, 2))
    assert (layer.skipped.item(), layer.num_batches_tracked.item()) == (1, 1)


def reaches_its_mean(kind):
    layer = kind(1, momentum=1e-3).bfloat16()
    x = torch.tensor([[2.0], [4.0]], dtype=torch.bfloat16)
    for _ in range(2000):
        layer(x)
    assert layer.running_mean.item() == pytest.approx(3 * (1 - 0.999**2000), rel=1e-3)


def test_the_mean_of_a_bfloat16_module_stalls():
    fails_for_torch(reaches_its_mean)


def holds_the_variance(kind):
    layer = kind(1).half()
    x = torch.tensor([[900.0], [-900.0]] * 2)
    layer(x.half())
    assert layer.running_var.item() == pytest.approx(0.9 + 0.1 * x.var().item(), rel=1e-5)


def test_the_variance_of_a_half_module_overflows():
    fails_for_torch(holds_the_variance)


def takes_both(kind, of_input, of_layer):
    layer = kind(3).to(of_layer)
    x = torch.randn(5, 3, dtype=of_input, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert (y.dtype, x.grad.dtype, layer.weight.grad.dtype) == (of_input, of_input, of_layer)
    right = (x - x.mean(0)) / (x.var(0, correction=0) + layer.eps).sqrt()
    torch.testing.assert_close(y, right)


@pytest.mark.parametrize(
    ("of_input", "of_layer"),
    [
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.float64, torch.float32),
    ],
)
def test_mixed_dtypes_are_refused(of_input, of_layer):
    fails_for_torch(takes_both, of_input, of_layer)


def keeps_its_digits(kind, last):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 4, 16, 16, generator=generator) + 1e4
    x = x.to(memory_format=torch.channels_last) if last else x
    layer = {OURS: BatchNorm2d, TORCHS: nn.BatchNorm2d}[kind](4)
    wide = x.double()
    mean, var = wide.mean((0, 2, 3), keepdim=True), wide.var((0, 2, 3), keepdim=True, correction=0)
    error = (layer(x) - (wide - mean) / (var + layer.eps).sqrt()).abs().max().item()
    assert error < 1e-6


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
def test_a_distant_mean_costs_digits(last):
    fails_for_torch(keeps_its_digits, last)


def of_unit_variance(kind):
    x = 1e30 * torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    y = kind(3)(x)
    torch.testing.assert_close(y.std(0, correction=0), torch.ones(3))


def test_values_near_1e30_come_out_as_zero():
    fails_for_torch(of_unit_variance)


def maps(kind):
    layer, x = kind(3), torch.randn(4, 5, 3)
    y = torch.vmap(layer)(x)
    torch.testing.assert_close(y.flatten(0, 1), OURS(3)(x.flatten(0, 1)))
    torch.testing.assert_close(layer.running_mean, 0.1 * x.mean((0, 1)))


def test_vmap_in_training_raises():
    fails_for_torch(maps)


def differentiates(kind, of):
    layer, x = kind(2), torch.randn(3, 2)
    found = of(layer)(x)
    right = torch.autograd.functional.jacobian(OURS(2), x)
    torch.testing.assert_close(found, right)
    assert layer.num_batches_tracked == 1


@pytest.mark.parametrize("of", [torch.func.jacrev, torch.func.jacfwd])
def test_jacobians_of_a_layer_in_training_raise(of):
    fails_for_torch(differentiates, of)


def compiles_whole(kind):
    torch._dynamo.reset()
    layer = kind(3, momentum=None)
    run = torch.compile(layer, fullgraph=True, backend="aot_eager")
    steps = torch.randn(2, 5, 3)
    for x in steps:
        run(x)
    torch.testing.assert_close(layer.running_mean, steps.mean((0, 1)))


def test_no_momentum_does_not_compile_as_one_graph():
    fails_for_torch(compiles_whole)


def frozen_after_train(kind):
    layer = kind(2)
    layer(torch.randn(4, 2))
    if kind is OURS:
        layer.statistics, layer.update = "running", False
    else:
        layer.eval()
    before = layer.running_mean.clone()
    model = nn.Sequential(layer).train()
    x = torch.randn(4, 2)
    torch.testing.assert_close(
        model(x), (x - before) / (layer.running_var + layer.eps).sqrt() * layer.weight + layer.bias
    )
    assert torch.equal(layer.running_mean, before)


def test_train_unfreezes_a_frozen_layer():
    fails_for_torch(frozen_after_train)


def half_checkpoint_stays_wide(kind):
    layer = kind(3)
    layer.load_state_dict(nn.BatchNorm1d(3).bfloat16().state_dict(), assign=True)
    assert layer.running_mean.dtype == torch.float32


def test_a_half_checkpoint_makes_half_statistics():
    fails_for_torch(half_checkpoint_stays_wide)


def empty_counts_nowhere(kind):
    layer = kind(3)
    layer(torch.empty(0, 3, 4))
    assert layer.num_batches_tracked == 0


def test_an_empty_batch_is_counted():
    fails_for_torch(empty_counts_nowhere)
