import pytest
import torch

from batchnorm.functional import _running, batch_norm
from batchnorm.moments import Moments


def fresh(channels=2):
    return torch.zeros(channels), torch.ones(channels), torch.tensor(0)


def step(x, mean, var, batches, momentum=0.1):
    return batch_norm(x, mean, var, training=True, momentum=momentum, num_batches_tracked=batches)


def test_a_step_moves_by_the_momentum_towards_the_unbiased_variance():
    mean, var, batches = fresh()
    x = torch.randn(3, 2)
    step(x, mean, var, batches, 0.3)
    torch.testing.assert_close(mean, 0.3 * x.mean(0))
    torch.testing.assert_close(var, 0.7 + 0.3 * x.var(0))
    assert batches == 1


def test_without_a_momentum_all_batches_weigh_the_same():
    mean, var, batches = fresh()
    steps = [torch.randn(4, 2) for _ in range(3)]
    for x in steps:
        step(x, mean, var, batches, None)
    torch.testing.assert_close(mean, torch.stack([x.mean(0) for x in steps]).mean(0))
    torch.testing.assert_close(var, torch.stack([x.var(0) for x in steps]).mean(0))


@pytest.mark.parametrize("spoiled", [float("nan"), float("inf"), -float("inf")])
def test_a_batch_that_is_not_finite_changes_nothing(spoiled):
    mean, var, batches = fresh()
    x = torch.randn(4, 2)
    x[2, 1] = spoiled
    step(x, mean, var, batches)
    assert (mean.tolist(), var.tolist(), batches.item()) == ([0, 0], [1, 1], 0)
    theirs = torch.zeros(2), torch.ones(2)
    torch.nn.functional.batch_norm(x, *theirs, training=True)
    assert not torch.isfinite(theirs[0]).all(), "torch's own is spoiled: the test can fail"


def test_an_empty_batch_changes_nothing():
    mean, var, batches = fresh()
    y = step(torch.empty(0, 2, 3), mean, var, batches)
    assert y.shape == (0, 2, 3)
    assert (mean.tolist(), var.tolist(), batches.item()) == ([0, 0], [1, 1], 0)


def test_evaluation_changes_nothing():
    mean, var, batches = fresh()
    batch_norm(torch.randn(4, 2), mean, var, num_batches_tracked=batches)
    assert (mean.tolist(), var.tolist(), batches.item()) == ([0, 0], [1, 1], 0)


def test_a_small_momentum_does_not_stall_in_float32():
    mean, var, batches = fresh(1)
    for _ in range(2000):
        step(
            torch.full((4, 1), 3.0) + torch.tensor([[-1.0], [1.0], [-1.0], [1.0]]),
            mean,
            var,
            batches,
            1e-3,
        )
    assert mean.item() == pytest.approx(3 * (1 - 0.999**2000), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_variance_that_the_buffers_cannot_hold_does_not_enter(dtype):
    mean, var = torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype)
    y = batch_norm(torch.tensor([[-1e30], [1e30]]), mean, var, training=True)
    assert y.tolist() == [[-1.0], [1.0]]
    assert (mean.item(), var.item()) == (0, 1)


def test_where_branching_would_stall_a_device_the_outcome_is_the_same():
    for x in (torch.randn(3, 2), torch.full((3, 2), float("inf")), torch.empty(0, 2)):
        ours, theirs = fresh(), fresh()
        moments = Moments.of(x).pack()
        _running.update(*ours, moments, 0.1)
        _running._update_without_branching(*theirs, moments, 0.1)
        torch.testing.assert_close(ours, theirs)
