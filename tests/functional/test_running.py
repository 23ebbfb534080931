import contextlib
import math

import pytest
import torch

from batchnorm.functional import _running, batch_norm
from batchnorm.kernels import _numpy_running, numba
from batchnorm.moments import Moments
from modes import Operators


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


BATCHES = {
    "plain": lambda: Moments.of(torch.randn(3, 2)),
    "infinite": lambda: Moments.of(torch.full((3, 2), float("inf"))),
    "NaN in one channel": lambda: Moments.of(torch.tensor([[1.0, torch.nan], [2.0, 3.0]])),
    "empty": lambda: Moments.of(torch.empty(0, 2)),
    "one value": lambda: Moments.of(torch.randn(1, 2)),
    "one value in one channel": lambda: Moments(
        torch.tensor([1.0, 3.0]).double(), torch.randn(2).double(), torch.rand(2).double()
    ),
    "nothing in one channel": lambda: Moments(
        torch.tensor([0.0, 3.0]).double(), torch.randn(2).double(), torch.rand(2).double()
    ),
    "too large": lambda: Moments.of(torch.tensor([[1e30, 0.0], [-1e30, 1.0]])),
    "overflowing": lambda: Moments.of(torch.tensor([[1e154, 0.0], [-1e154, 1.0]]).double()),
}


@pytest.mark.parametrize("options", [(0.1, False), (0.1, True), (None, False), (1.0, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.filterwarnings("error")
def test_on_devices_and_without_numba_the_outcome_is_the_same(kind, dtype, options, monkeypatch):
    moments, (momentum, correction) = BATCHES[kind]().pack(), options
    decay = (math.log1p(-momentum) if momentum < 1 else -math.inf) if correction else 0.0

    def moved(way):
        mean, var, batches = fresh()
        buffers = mean.to(dtype), var.to(dtype), batches, torch.tensor(0)
        way(*buffers)
        return buffers

    by_numba = moved(lambda *b: _running.update(*b, moments, momentum, correction))
    on_devices = moved(lambda *b: _running._update_without_branching(b, moments, momentum, decay))
    torch.testing.assert_close(on_devices, by_numba)
    monkeypatch.setattr(_running.numba, "update_running", lambda *_: False)
    by_numpy = moved(lambda *b: _running.update(*b, moments, momentum, correction))
    torch.testing.assert_close(by_numpy, by_numba)
    assert (
        moved(lambda *b: _numpy_running.update_running(b, moments, momentum, decay))[2:]
        == (by_numba[2:])
    )
    monkeypatch.setattr(_numpy_running, "update_running", lambda *_: False)
    torch.testing.assert_close(
        moved(lambda *b: _running.update(*b, moments, momentum, correction)), by_numba
    )


WAYS = {
    "numba": lambda b, m, momentum: numba.update_running(b, m, momentum),
    "numpy": lambda b, m, momentum: _numpy_running.update_running(b, m, momentum),
    "devices": lambda b, m, momentum: _running._update_without_branching(b, m, momentum, 0.0),
    "groups": lambda b, m, momentum: _running._move_by_groups(b, m, momentum, 0.0),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("momentum", [0.1, 0.01, None])
@pytest.mark.parametrize("value", [1.7e9, -2024.0, 1e6])
def test_a_running_mean_arrives_where_rounding_would_stop_it(value, momentum, way):
    mean, var, batches = torch.zeros(3), torch.ones(3), torch.tensor(0)
    buffers = mean, var, batches, torch.tensor(0)
    moments = Moments.of(torch.full((8, 3), value)).pack()
    for _ in range(300 if momentum != 0.01 else 3000):
        WAYS[way](buffers, moments, momentum)
    assert (mean == value).all()


@pytest.mark.parametrize("way", WAYS)
def test_what_rounding_would_stop_moves_to_its_neighbour_and_no_further(way):
    starts = torch.tensor([1.0, -1.0, 2.0, 1.5, -2024.0, 3e38, -3e38])
    for side in (torch.inf, -torch.inf):
        near = torch.nextafter(starts, torch.full_like(starts, side))
        mean, var, batches = starts.clone(), torch.ones(7), torch.tensor(0)
        moments = Moments(torch.full((7,), 8.0), near, torch.ones(7)).pack().double()
        WAYS[way]((mean, var, batches, torch.tensor(0)), moments, 0.1)
        assert torch.equal(mean, near)


@pytest.mark.parametrize("way", WAYS)
def test_without_a_momentum_a_mean_is_no_median(way):
    mean, var, batches = torch.full((1,), 1e6), torch.ones(1), torch.tensor(10**6)
    buffers = mean, var, batches, torch.tensor(0)
    for _ in range(100):
        WAYS[way](buffers, Moments.of(torch.full((8, 1), 1e6 - 100)).pack(), None)
    assert mean == 1e6


@pytest.mark.parametrize("way", WAYS)
def test_a_momentum_of_zero_moves_nothing(way):
    mean, var, batches = torch.zeros(3), torch.ones(3), torch.tensor(0)
    WAYS[way]((mean, var, batches, torch.tensor(0)), Moments.of(torch.randn(8, 3)).pack(), 0.0)
    assert (mean == 0).all()
    assert (var == 1).all()


@pytest.mark.parametrize("way", WAYS)
def test_a_running_mean_far_from_zero_stays_near_the_mean(way):
    mean, var, batches = torch.zeros(1), torch.ones(1), torch.tensor(0)
    buffers = mean, var, batches, torch.tensor(0)
    for _ in range(1000):
        x = 1e6 + 0.1 * torch.randn(64, 1, dtype=torch.float64)
        WAYS[way](buffers, Moments.of(x).pack(), 0.1)
    assert abs(mean.double() - 1e6) <= 0.0625  # the distance of float32 numbers there


def test_numpy_leaves_what_it_cannot_write_to():
    moments = Moments.of(torch.randn(3, 2)).pack()
    rows = {
        "half": torch.zeros(2, dtype=torch.bfloat16),
        "apart": torch.zeros(4)[::2],
        "spread": torch.zeros(1).expand(2),
        "of groups": torch.zeros(1),
        "trained": torch.zeros(2, requires_grad=True),
        "negated": torch._neg_view(torch.zeros(2)),
    }
    for name, mean in rows.items():
        batches = torch.tensor(0)
        buffers = mean, None, batches, None
        assert not _numpy_running.update_running(buffers, moments, 0.1), name
        assert (mean.abs().max(), batches) == (0, 0)


def test_autograd_learns_that_numpy_wrote(monkeypatch):
    monkeypatch.setattr(_running.numba, "update_running", lambda *_: False)
    mean, var, batches = fresh()
    weight = torch.ones(2, requires_grad=True)
    losses = (weight * mean).sum(), (weight * var).sum()
    step(torch.randn(4, 2), mean, var, batches)
    for loss in losses:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize("mode", [contextlib.nullcontext, Operators])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("update", [None, True, False])
def test_what_normalizes_and_what_moves_are_two_questions(training, update, inplace, mode):
    mean, var, batches = torch.tensor([1.0, 2.0]), torch.tensor([4.0, 9.0]), torch.tensor(0)
    held = mean.clone(), var.clone()
    x = torch.randn(6, 2)
    given = x.clone()
    with mode():
        y = batch_norm(
            given, mean, var, training=training, update=update,
            num_batches_tracked=batches, inplace=inplace,
        )  # fmt: skip
    used = (x.mean(0), x.var(0, correction=0)) if training else held
    torch.testing.assert_close(y, (x - used[0]) / (used[1] + 1e-5).sqrt())
    if training if update is None else update:
        torch.testing.assert_close(mean, 0.9 * held[0] + 0.1 * x.mean(0))
        torch.testing.assert_close(var, 0.9 * held[1] + 0.1 * x.var(0))
        assert batches == 1
    else:
        assert torch.equal(mean, held[0])
        assert torch.equal(var, held[1])
        assert batches == 0


def test_running_statistics_that_normalize_and_move_take_no_part_in_the_gradient():
    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)

    def f(x):
        mean, var = torch.zeros(2, dtype=torch.float64), torch.full((2,), 4.0, dtype=torch.float64)
        return batch_norm(x, mean, var, update=True, activation="silu")

    (dx,) = torch.autograd.grad(f(x).sum(), x)
    (right,) = torch.autograd.grad(torch.nn.functional.silu(x / (4 + 1e-5) ** 0.5).sum(), x)
    torch.testing.assert_close(dx, right)
    assert torch.autograd.gradcheck(f, x)
    assert torch.autograd.gradgradcheck(f, x)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_mapped_calls_normalize_with_running_statistics_and_move_them(apart, masked):
    x = torch.randn(3, 5, 2)
    mask = torch.rand(3, 5) > 0.3 if masked else torch.ones(3, 5, dtype=torch.bool)
    shape = (3, 2) if apart else (2,)
    mean, var = torch.zeros(shape), torch.ones(shape)
    axis = 0 if apart else None

    def f(x, mask, mean, var):
        return batch_norm(x, mean, var, update=True, mask=mask)

    torch.vmap(f, in_dims=(0, 0, axis, axis))(x, mask, mean, var)
    parts = [(x[i], mask[i]) for i in range(3)] if apart else [(x.flatten(0, 1), mask.flatten())]
    for i, (values, kept) in enumerate(parts):
        right = values[kept]
        torch.testing.assert_close(mean[i] if apart else mean, 0.1 * right.mean(0))
        torch.testing.assert_close(var[i] if apart else var, 0.9 + 0.1 * right.var(0))


@pytest.mark.parametrize("momentum", [0.1, 1e-3, 1.0, None])
def test_with_bias_correction_they_are_right_from_the_first_step(momentum):
    mean, var, batches = torch.full((2,), 7.0), torch.full((2,), 5.0), torch.tensor(0)
    steps = [torch.randn(4, 2, dtype=torch.float64) for _ in range(5)]
    share = 0.0 if momentum is None else momentum
    for t in range(1, 6):
        batch_norm(
            steps[t - 1], mean, var, training=True, momentum=momentum,
            num_batches_tracked=batches, bias_correction=True,
        )  # fmt: skip
        weights = torch.tensor([(1 - share) ** (t - i) for i in range(1, t + 1)]).double()
        weights /= weights.sum()
        means = torch.stack([x.mean(0) for x in steps[:t]])
        variances = torch.stack([x.var(0) for x in steps[:t]])
        torch.testing.assert_close(mean, (weights @ means).float())
        torch.testing.assert_close(var, (weights @ variances).float())


def test_a_momentum_of_zero_moves_nothing_corrected_or_not():
    mean, var, batches = fresh()
    batch_norm(
        torch.randn(4, 2), mean, var, training=True, momentum=0.0,
        num_batches_tracked=batches, bias_correction=True,
    )  # fmt: skip
    assert (mean.tolist(), var.tolist()) == ([0, 0], [1, 1])


def test_bias_correction_says_what_it_needs():
    with pytest.raises(ValueError, match=r"num_batches_tracked counts; expected it as a tensor"):
        batch_norm(torch.randn(4, 2), *fresh()[:2], training=True, bias_correction=True)


@pytest.mark.parametrize("mode", [contextlib.nullcontext, Operators])
def test_batches_that_are_not_finite_are_counted_and_empty_ones_are_not(mode):
    mean, var, batches = fresh()
    skipped = torch.tensor(0)
    poisoned = torch.tensor([[1.0, float("inf")], [2.0, 3.0]])
    with mode():
        for x in (torch.randn(4, 2), poisoned, torch.empty(0, 2), poisoned):
            batch_norm(x, mean, var, training=True, num_batches_tracked=batches, skipped=skipped)
    assert (batches.item(), skipped.item()) == (1, 2)
