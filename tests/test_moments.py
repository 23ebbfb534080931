import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from batchnorm.moments import Moments


def exact(values):
    """Mean and biased variance of a list of numbers, summed without rounding."""
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((v - mean) ** 2 for v in values) / len(values)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (5, 3, 7), (3, 2, 1, 5), (2, 3, 2, 3, 2)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_mean_and_variance_equal_those_summed_without_rounding(shape, dtype, offset):
    x = (torch.randn(shape, dtype=torch.float64) + offset).to(dtype)
    moments = Moments.of(x)
    for c in range(shape[1]):
        mean, var = exact(x[:, c].double().flatten().tolist())
        assert moments.mean[c].item() == pytest.approx(mean, rel=1e-14, abs=1e-14)
        assert moments.var[c].item() == pytest.approx(var, rel=1e-12, abs=1e-15)
        assert moments.count[c].item() == x[:, c].numel()
    assert moments.mean.dtype == moments.var.dtype == moments.count.dtype == torch.float64


def test_constant_channels_have_no_variance_at_all():
    x = torch.rand(1, 5000, dtype=torch.float64).expand(7, -1)
    assert not Moments.of(x).var.any()


def test_rounding_makes_no_variance_negative():
    for n in range(10, 20):
        weights = torch.rand(n, 1, dtype=torch.float64)
        x = torch.rand(1, 3000, dtype=torch.float64).expand(n, -1)
        assert (Moments.of(x, weights).var >= 0).all()


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_scales_whose_squares_leave_float32(scale):
    x = torch.randn(50, 2) * scale
    assert torch.allclose(Moments.of(x).var, x.double().var(0, correction=0), rtol=1e-12, atol=0)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 6), min_size=1, max_size=6).filter(lambda s: sum(s) > 0),
    offset=st.sampled_from([0.0, 1.0, 1e3, 1e6]),
    seed=st.integers(0, 2**16),
)
def test_merging_any_split_gives_the_moments_of_the_whole(sizes, offset, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(sizes), 3, dtype=torch.float64, generator=generator) + offset
    parts = [Moments.of(part) for part in x.split(sizes)]
    merged, whole = parts[0], Moments.of(x)
    for part in parts[1:]:
        merged = merged.merge(part)
    assert torch.equal(merged.count, whole.count)
    assert torch.allclose(merged.mean, whole.mean, rtol=1e-14, atol=1e-14)
    assert torch.allclose(merged.var, whole.var, rtol=1e-9, atol=1e-12 * max(1.0, offset))


def test_merge_is_the_same_from_either_side():
    a, b = Moments.of(torch.randn(3, 4)), Moments.of(torch.randn(8, 4) + 5)
    assert torch.allclose(a.merge(b).var, b.merge(a).var, rtol=1e-14)
    assert torch.allclose(a.merge(b).mean, b.merge(a).mean, rtol=1e-14)


def test_an_empty_batch_is_zero_and_changes_nothing():
    empty, full = Moments.of(torch.empty(0, 3)), Moments.of(torch.randn(5, 3))
    assert empty.count.tolist() == empty.mean.tolist() == empty.var.tolist() == [0, 0, 0]
    for merged in (empty.merge(full), full.merge(empty)):
        assert torch.equal(merged.pack(), full.pack())
    assert torch.equal(empty.merge(empty).pack(), empty.pack())


def test_a_bool_mask_selects_and_what_it_leaves_out_may_be_nan():
    x = torch.randn(6, 3, 4)
    mask = torch.rand(6, 1, 4) > 0.5
    spoiled = torch.where(mask, x, float("nan"))
    kept = x.movedim(1, 2)[mask[:, 0]]
    moments = Moments.of(spoiled, mask)
    assert torch.allclose(moments.mean, kept.double().mean(0))
    assert torch.allclose(moments.var, kept.double().var(0, correction=0))
    assert moments.count.tolist() == [mask.sum().item()] * 3


def test_whole_weights_count_as_repetitions():
    x, times = torch.randn(4, 2, dtype=torch.float64), torch.tensor([1, 0, 3, 2])
    weighted = Moments.of(x, times.double().view(4, 1))
    repeated = Moments.of(x.repeat_interleave(times, 0))
    assert torch.allclose(weighted.pack(), repeated.pack())
    assert torch.allclose(weighted.unbiased(), x.repeat_interleave(times, 0).var(0))


def test_weights_that_are_not_above_zero_do_not_count():
    x = torch.randn(4, 2)
    weights = torch.tensor([1.0, -3.0, float("nan"), 2.0]).view(4, 1)
    assert torch.equal(
        Moments.of(x, weights).pack(), Moments.of(x, weights.nan_to_num(0).clamp(min=0)).pack()
    )


def test_unbiased_variance_and_that_of_one_value():
    x = torch.randn(5, 2, dtype=torch.float64)
    assert torch.allclose(Moments.of(x).unbiased(), x.var(0))
    assert Moments.of(x[:1]).unbiased().tolist() == [0.0, 0.0]


def test_packed_moments_come_back():
    moments = Moments.of(torch.randn(5, 2))
    assert torch.equal(Moments.unpack(moments.pack()).var, moments.var)
