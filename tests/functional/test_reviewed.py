"""Faults that a review found, each shown before it was mended."""

import copy

import pytest
import torch
from torch import nn

from batchnorm.functional import batch_norm
from batchnorm.kernels import plain
from batchnorm.layers import BatchNorm1d, BatchNormAct1d


def test_vmap_around_forward_mode_is_refused_and_not_silently_wrong():
    x = torch.randn(2, 3, 1)

    def tangent(x):
        return torch.func.jvp(lambda x: batch_norm(x, training=True), (x,), (torch.ones_like(x),))[
            1
        ]

    with pytest.raises(NotImplementedError, match=r"vmap\(jvp\).*jvp\(vmap\(f\)\)"):
        torch.vmap(tangent)(x)
    with pytest.raises(NotImplementedError, match="hessian"):
        torch.vmap(torch.func.hessian(lambda x: batch_norm(x, training=True).pow(3).sum()))(x)
    whole = torch.vmap(lambda x: batch_norm(x, training=True))
    shifted = torch.func.jvp(whole, (x,), (torch.ones_like(x),))[1]
    torch.testing.assert_close(shifted, torch.zeros_like(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize("cast", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_mix_of_dtypes_compiles_and_exports_in_evaluation(cast, x_dtype):
    torch._dynamo.reset()
    model = nn.Sequential(BatchNorm1d(3), BatchNormAct1d(3, "relu")).to(cast).eval()
    x = torch.randn(5, 3).to(x_dtype)
    expected = model(x)
    for run in (
        torch.compile(model, fullgraph=True, backend="aot_eager"),
        torch.export.export(model, (x,)).module(),
    ):
        got = run(x)
        assert got.dtype == x_dtype
        torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)


def test_members_without_parameters_keep_their_own_statistics():
    members = [nn.Sequential(BatchNorm1d(3, affine=False)) for _ in range(2)]
    parameters, buffers = torch.func.stack_module_state(members)
    x = torch.stack((torch.randn(8, 3), torch.randn(8, 3) + 10))

    def run(parameters, buffers, x):
        return torch.func.functional_call(members[0], (parameters, buffers), (x,))

    y = torch.vmap(run)(parameters, buffers, x)
    for i, member in enumerate(members):
        torch.testing.assert_close(y[i], member(x[i]))
        torch.testing.assert_close(buffers["0.running_mean"][i], member[0].running_mean)


def test_bias_and_residual_may_change_before_the_backward_pass_where_it_needs_neither():
    layer = BatchNormAct1d(3, None)
    x, residual = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    y = layer(x, residual * 1)
    twin = nn.BatchNorm1d(3)(x) + residual
    with torch.no_grad():
        layer.bias.add_(1)
        residual.relu_()
    dy = torch.randn(5, 3)
    torch.testing.assert_close(
        torch.autograd.grad(y, (x, residual), dy), torch.autograd.grad(twin, (x, residual), dy)
    )


def test_a_mask_that_leaves_one_value_does_not_move_the_variance():
    mean, var = torch.zeros(2), torch.ones(2)
    x = torch.randn(4, 2)
    batch_norm(x, mean, var, training=True, mask=torch.tensor([True, False, False, False]))
    torch.testing.assert_close(mean, 0.1 * x[0])
    assert var.tolist() == [1, 1]


def test_running_statistics_in_half_precision_move_whatever_the_count():
    mean, var = torch.zeros(1, dtype=torch.float16), torch.ones(1, dtype=torch.float16)
    batch_norm(torch.randn(16, 1, 64, 64) + 3, mean, var, training=True)
    assert mean.item() == pytest.approx(0.3, abs=0.01)


def test_an_infinite_gradient_stops_where_relu_does():
    x = torch.tensor([[-1.0], [1.0], [3.0]], requires_grad=True)
    y = batch_norm(x, training=True, activation="relu", backend="plain")
    (dx,) = torch.autograd.grad(y, x, torch.tensor([[float("inf")], [1.0], [1.0]]))
    assert torch.isfinite(dx).all()


def test_only_the_gradients_that_are_needed_are_asked_of_the_kernel(monkeypatch):
    asked = []
    real = plain.backward
    monkeypatch.setattr(plain, "backward", lambda *a: asked.append(a[4]) or real(*a))
    weight, residual = torch.ones(3, requires_grad=True), torch.randn(5, 3)
    options = {"activation": "relu", "residual": residual, "backend": "plain"}
    batch_norm(torch.randn(5, 3), None, None, weight, training=True, **options).sum().backward()
    assert asked == [(False, False)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": torch.ones(2, device="meta")}, r"weight is torch.float32 on meta; expected .* on cpu"),
        ({"residual": torch.ones(3, 2, device="meta")}, r"residual is torch.float32 on meta"),
        ({"mask": torch.ones(3, device="meta")}, r"mask is torch.float32 on meta; .*mask.to\(x.device\)"),
        ({"mask": torch.tensor([3, 2, 1])}, r"mask is torch.int64 of shape .3,.; .* mask.bool.. .* of lengths, torch.arange"),
        ({"bias": torch.ones(2, dtype=torch.int32)}, r"bias is torch.int32 on cpu; expected float64"),
        ({"running_mean": torch.zeros(2, requires_grad=True)}, r"running_mean requires a gradient"),
    ],
)  # fmt: skip
def test_tensors_of_another_device_or_kind_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        batch_norm(torch.randn(3, 2), training=True, **options)


def test_layouts_that_are_not_strided_are_named():
    with pytest.raises(TypeError, match=r"layout torch.sparse_coo; .*x.to_dense\(\)"):
        batch_norm(torch.randn(3, 2).to_sparse(), training=True)


def test_a_named_backend_is_not_ignored_under_compile():
    torch._dynamo.reset()
    layer_free = torch.compile(
        lambda x, m, v: batch_norm(x, m, v, backend="nonsense"), backend="aot_eager"
    )
    with pytest.raises(Exception, match="backend='nonsense' is not known"):
        layer_free(torch.randn(3, 2), torch.zeros(2), torch.ones(2))


def test_old_checkpoints_without_a_counter_load():
    layer = BatchNorm1d(2)
    old = {k: v for k, v in copy.deepcopy(layer.state_dict()).items() if k != "num_batches_tracked"}
    layer.load_state_dict(old)
    assert layer.num_batches_tracked == 0
