"""Under autocast the layers take and give what torch's do, with statistics in float32."""

import pytest
import torch
from torch import nn

from batchnorm import BatchNorm1d, BatchNorm2d, BatchNormAct2d


def network(norm1, norm2):
    return nn.Sequential(
        norm2(3), nn.Conv2d(3, 6, 3), norm2(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 9, 5), norm1(5)
    )  # fmt: skip


def run(model, x):
    seen = []
    for layer in model:
        layer.register_forward_hook(lambda _, args, y: seen.append((args[0].dtype, y.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    y.float().square().sum().backward()
    return y, seen


@pytest.mark.parametrize("compiled", [False, True])
def test_dtypes_values_and_gradients_are_those_of_torch(compiled):
    torch.manual_seed(0)
    theirs = network(nn.BatchNorm1d, nn.BatchNorm2d)
    ours = network(BatchNorm1d, BatchNorm2d)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(7, 3, 5, 5)
    y_theirs, dtypes_theirs = run(theirs, x)
    if compiled:
        with torch.autocast("cpu", torch.bfloat16):
            y = torch.compile(ours, backend="aot_eager", fullgraph=True)(x)
        y.float().square().sum().backward()
        assert y.dtype == y_theirs.dtype
    else:
        y, dtypes = run(ours, x)
        assert dtypes == dtypes_theirs
        assert (torch.bfloat16, torch.bfloat16) in dtypes
    torch.testing.assert_close(y, y_theirs, rtol=0.05, atol=0.1)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert a.grad.dtype == torch.float32
        torch.testing.assert_close(a.grad, b.grad, rtol=0.1, atol=0.3, msg=name)
    for name in ("0.running_mean", "2.running_var", "6.running_mean"):
        mine, right = ours.state_dict()[name], theirs.state_dict()[name]
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, right, rtol=0.02, atol=0.02)


def test_a_residual_of_another_type_than_the_input():
    layer = BatchNormAct2d(6, "relu")
    x = torch.randn(7, 6, 3, 3, requires_grad=True)
    residual = torch.randn(7, 6, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x.bfloat16(), residual)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad.dtype == residual.grad.dtype == torch.float32
    assert torch.isfinite(residual.grad).all()
