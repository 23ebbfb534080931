import pytest
import torch
from torch import nn
from torch.nn import functional as F

import oracle
from batchnorm.functional import batch_norm

SHAPES = [(3, 1), (7, 3), (60, 100), (3, 2, 5), (2, 3, 3, 5), (1, 3, 5, 2), (2, 3, 2, 1, 3)]


def state(channels, dtype=torch.float64):
    return torch.randn(channels).to(dtype), torch.rand(channels).to(dtype) + 0.5


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_equals_torch_in_float64(shape, layout, training, affine):
    x = oracle.laid_out(torch.randn(shape, dtype=torch.float64), layout)
    parameters = state(shape[1]) if affine else (None, None)
    running = state(shape[1])
    outcomes = []
    for function in (batch_norm, F.batch_norm):
        leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        leaves = [None if p is None else p.clone().requires_grad_() for p in parameters]
        buffers = [b.clone() for b in running]
        y = function(leaf, *buffers, *leaves, training, 0.3, 1e-3)
        wanted = [t for t in (leaf, *leaves) if t is not None]
        gradients = torch.autograd.grad(
            y, wanted, torch.cos(torch.arange(y.numel()).double()).view(shape)
        )
        outcomes.append((y, *gradients, *buffers))
    for ours, torchs in zip(*outcomes, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("parameter_dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes_of_input_and_parameters_are_independent(dtype, parameter_dtype):
    x = torch.randn(9, 3, 4).to(dtype).requires_grad_()
    weight, bias = (p.requires_grad_() for p in state(3, parameter_dtype))
    y = batch_norm(x, None, None, weight, bias, training=True)
    dy = torch.randn(9, 3, 4).to(dtype)
    gradients = torch.autograd.grad(y, (x, weight, bias), dy)
    leaves = [oracle.double(t) for t in (x, weight, bias)]
    right, _, _ = oracle.batch_norm(*leaves, None, None, 1e-5, "identity")
    step = 2 * torch.finfo(dtype).eps
    assert y.dtype == dtype
    assert oracle.relative_error(y, right) < step
    for ours, theirs, leaf in zip(
        gradients, torch.autograd.grad(right, leaves, dy.double()), (x, weight, bias), strict=True
    ):
        assert ours.dtype == leaf.dtype
        assert oracle.relative_error(ours, theirs) < 2 * max(step, torch.finfo(leaf.dtype).eps)


@pytest.mark.parametrize("axis", [1, 2, -1, -2])
def test_channels_on_any_axis(axis):
    x = torch.randn(4, 5, 6)
    channels = x.shape[axis]
    weight, bias = state(channels, torch.float32)
    y = batch_norm(x, None, None, weight, bias, training=True, axis=axis, activation="tanh")
    moved = batch_norm(
        x.movedim(axis, 1), None, None, weight, bias, training=True, activation="tanh"
    )
    assert torch.equal(y, moved.movedim(1, axis))
    assert y.is_contiguous()


def test_residual_and_activation_come_after_the_normalization_in_that_order():
    x, r = torch.randn(2, 6, 3, dtype=torch.float64)
    y = batch_norm(x, training=True, residual=r, activation=nn.LeakyReLU(0.2))
    expected = F.leaky_relu(F.batch_norm(x, None, None, training=True) + r, 0.2)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


def test_a_mask_for_each_example_equals_leaving_the_others_out():
    x = torch.randn(6, 3, 4)
    mask = torch.tensor([True, False, True, True, False, True])
    running = torch.zeros(3), torch.ones(3)
    y = batch_norm(
        x.masked_fill(~mask.view(-1, 1, 1), float("nan")), *running, training=True, mask=mask
    )
    alone = torch.zeros(3), torch.ones(3)
    torch.testing.assert_close(y[mask], batch_norm(x[mask], *alone, training=True))
    assert (y[~mask] == 0).all()
    torch.testing.assert_close(running, alone)


def test_a_mask_for_each_position_with_channels_last():
    x = torch.randn(3, 5, 4)
    mask = torch.rand(3, 5) > 0.4
    y = batch_norm(x, training=True, mask=mask, axis=-1)
    torch.testing.assert_close(y[mask], batch_norm(x[mask], training=True))


def test_a_weight_of_zero_leaves_out():
    x, mask = torch.randn(6, 3), torch.rand(6) + 0.5
    mask[2] = 0
    y = batch_norm(x, training=True, mask=mask)
    rest = torch.arange(6) != 2
    torch.testing.assert_close(y[rest], batch_norm(x[rest], training=True, mask=mask[rest]))
    assert not y[2].any()


def test_a_naive_formula_loses_what_ours_keeps_far_from_zero():
    x = torch.randn(64, 8) + 1e6
    right = (x.double() - x.double().mean(0)) / (x.double().var(0, correction=0) + 1e-5).sqrt()
    naive = (x - x.mean(0)) / ((x * x).mean(0) - x.mean(0) ** 2 + 1e-5).clamp(min=1e-5).sqrt()
    assert oracle.relative_error(batch_norm(x, training=True), right) < 1e-6
    assert oracle.relative_error(naive, right) > 1e-2


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((torch.ones(3, 2, dtype=torch.int64),), {}, TypeError, r"x has dtype torch.int64 and layout torch.strided; expected .*float64.*x.float\(\)"),
        ((torch.ones(3),), {}, ValueError, r"x has shape \(3,\); expected at least a batch and a channel axis"),
        ((torch.ones(3, 2), torch.ones(3), torch.ones(2)), {}, ValueError, r"running_mean has shape \(3,\); expected \(2,\)"),
        ((torch.ones(3, 2), torch.ones(2), torch.ones(1, 2)), {}, ValueError, r"running_var has shape \(1, 2\); expected \(2,\)"),
        ((torch.ones(3, 2, 5), None, None, torch.ones(5)), {}, ValueError, r"weight has shape \(5,\); expected \(2,\), .* x with shape \(3, 2, 5\); a layer for them has num_features=2; .*axis="),
        ((torch.ones(3, 2), None, None, None, torch.ones(3)), {}, ValueError, r"bias has shape \(3,\)"),
        ((torch.ones(3, 2),), {"eps": 0.0}, ValueError, r"eps=0.0; batch_norm eps must be positive, a number such as 1e-5"),
        ((torch.ones(3, 2),), {"eps": float("inf")}, ValueError, r"eps=inf; batch_norm eps"),
        ((torch.ones(3, 2),), {"eps": float("nan")}, ValueError, r"eps=nan"),
        ((torch.ones(3, 2), torch.ones(2), torch.ones(2)), {"momentum": 99.0}, ValueError, r"momentum=99.0; expected None or the share of the new batch"),
        ((torch.ones(3, 2), torch.ones(2), torch.ones(2)), {"momentum": None}, ValueError, r"momentum=None .* num_batches_tracked counts; .*torch.tensor\(0\)"),
        ((torch.ones(3, 2),), {"residual": torch.ones(3, 1)}, ValueError, r"residual has shape \(3, 1\); expected that of x, \(3, 2\)"),
        ((torch.ones(1, 2),), {}, ValueError, r"Expected more than 1 value per channel when training, got input size \(1, 2\).*drop_last"),
        ((torch.ones(3, 2),), {"training": False}, ValueError, r"running_mean=None with training=False; .*give both, or training=True"),
        ((torch.ones(3, 2), torch.ones(2)), {"training": False}, ValueError, r"running_var=None with training=False"),
        ((torch.ones(3, 2),), {"mask": torch.ones(2)}, ValueError, r"mask has shape \(2,\); expected \(3,\), one value for each example, where x has shape \(3, 2\)$"),
        ((torch.ones(3, 2, 5),), {"mask": torch.ones(3, 2, 5)}, ValueError, r"mask has shape \(3, 2, 5\); expected \(3, 5\), one value for each position, or \(3,\), one value for each example, .*; .*: mask.select\(1, 0\)"),
        ((torch.ones(3, 5, 2),), {"mask": torch.ones(3, 5, 1), "axis": -1}, ValueError, r"expected \(3, 5\).*; all channels have the same mask: mask.select\(-1, 0\)"),
        ((torch.ones(3, 2, 5),), {"mask": torch.ones(5)}, ValueError, r"mask has shape \(5,\); expected \(3, 5\).*; the same for several: mask.expand\(3, 5\)"),
        ((torch.ones(3, 2, 5),), {"mask": torch.ones(4)}, ValueError, r"mask has shape \(4,\); expected \(3, 5\).* for each example, where x has shape \(3, 2, 5\)$"),
        ((torch.ones(3, 2),), {"residual": torch.ones(3, 2, dtype=torch.int64)}, ValueError, r"residual is torch.int64 on cpu; .*: residual.float\(\)"),
        ((torch.ones(3, 2), torch.ones(2, device="meta"), torch.ones(2, device="meta")), {}, ValueError, r"running_mean is torch.float32 on meta; .* layer.to_empty\(device='cpu'\)"),
        ((torch.ones(3, 2, device="meta"), torch.ones(2), torch.ones(2)), {}, ValueError, r"running_mean is torch.float32 on cpu; .* on meta, where x is: running_mean.to\(x.device\), or layer.to\(x.device\)"),
        ((torch.ones(3, 2),), {"axis": 2}, ValueError, r"axis=2 is no channel axis of x with shape \(3, 2\); expected one of 1 to 1"),
        ((torch.ones(3, 2),), {"axis": 0}, ValueError, r"axis=0 is no channel axis"),
        ((torch.ones(3, 2),), {"axis": "2"}, ValueError, r"axis='2' is no channel axis of x"),
        (([[1.0, 2.0]],), {}, TypeError, r"x is of type list, \[\[1.0, 2.0\]\]; expected a tensor, such as torch.as_tensor"),
        ((torch.ones(3, 2), [0.0] * 2, [1.0] * 2), {}, TypeError, r"running_mean is of type list, .*; expected a tensor of shape \(2,\), or None"),
        ((torch.ones(3, 2), None, None, 1.0), {}, TypeError, r"weight is of type float, 1.0; expected a tensor of shape \(2,\)"),
        ((torch.ones(3, 2),), {"residual": 1.0}, TypeError, r"residual is of type float, 1.0; expected a tensor of x's shape \(3, 2\)"),
        ((torch.ones(3, 2),), {"residual": torch.ones(3), "axis": -1}, ValueError, r"residual has shape \(3,\); expected that of x, \(3, 2\)"),
        ((torch.ones(3, 2),), {"mask": [True] * 3}, TypeError, r"mask is of type list, \[True, True, True\]; expected a tensor, bool or of real weights: torch.as_tensor\(mask\)"),
        ((torch.ones(3, 2),), {"eps": "1e-5"}, ValueError, r"eps='1e-5'; batch_norm eps must be positive"),
        ((torch.ones(3, 2), torch.ones(2), torch.ones(2)), {"momentum": "x"}, ValueError, r"momentum='x'; expected None or the share"),
        ((torch.ones(3, 2),), {"num_batches_tracked": 3}, TypeError, r"num_batches_tracked is of type int, 3; expected an integer tensor, such as torch.tensor\(3\)"),
        ((torch.ones(3, 2),), {"skipped": torch.zeros(2)}, ValueError, r"skipped is torch.float32 of shape \(2,\); expected one integer, such as torch.tensor\(0\)"),
        ((torch.ones(3, 2),), {"backend": "fast"}, ValueError, r"backend='fast' is not known"),
        ((torch.ones(3, 2),), {"activation": "mish"}, ValueError, r"activation='mish' is not known"),
        ((torch.ones(3, 2),), {"activation": nn.ReLU}, ValueError, r"activation=<class .*ReLU'> is not known; .* such as torch.nn.ReLU\(\), or None"),
    ],
)  # fmt: skip
def test_bad_input_is_told_what_where_and_the_way_out(arguments, options, error, message):
    with pytest.raises(error, match=message):
        batch_norm(*arguments, **{"training": True, **options})
