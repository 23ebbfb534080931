"""Batch norm written a second time, in float64, for autograd to differentiate."""

import torch
from torch.nn import functional as F

ACTIVATIONS = {
    "identity": lambda z, a: z,
    "relu": lambda z, a: F.relu(z),
    "relu6": lambda z, a: F.relu6(z),
    "leaky_relu": lambda z, a: F.leaky_relu(z, a),
    "elu": lambda z, a: F.elu(z, a),
    "silu": lambda z, a: F.silu(z),
    "hardswish": lambda z, a: F.hardswish(z),
    "gelu": lambda z, a: F.gelu(z),
    "gelu_tanh": lambda z, a: F.gelu(z, approximate="tanh"),
    "sigmoid": lambda z, a: torch.sigmoid(z),
    "tanh": lambda z, a: torch.tanh(z),
}


def double(t):
    """A float64 leaf with t's values."""
    return None if t is None else t.detach().double().requires_grad_(t.is_floating_point())


def batch_norm(x, weight, bias, residual, mask, eps, kind, parameter=0.0, fixed=None):
    """`x` of shape (N, C, ...), `mask` broadcastable to it; `fixed` is a pair (mean, var)."""
    dims = [d for d in range(x.dim()) if d != 1]
    weights = torch.ones_like(x) if mask is None else mask.double().clamp(min=0).expand(x.shape)
    x = torch.where(weights > 0, x, 0.0)
    if fixed is None:
        count = weights.sum(dims, keepdim=True)
        mean = (x * weights).sum(dims, keepdim=True) / count
        var = ((x - mean) ** 2 * weights).sum(dims, keepdim=True) / count
    else:
        mean, var = (v.double().view(1, -1, *[1] * (x.dim() - 2)) for v in fixed)
    z = (x - mean) / (var + eps).sqrt()
    shape = (1, -1, *[1] * (x.dim() - 2))
    if weight is not None:
        z = z * weight.view(shape)
    if bias is not None:
        z = z + bias.view(shape)
    if residual is not None:
        z = z + residual
    return (
        torch.where(weights > 0, ACTIVATIONS[kind](z, parameter), 0.0),
        mean.flatten(),
        var.flatten(),
    )


def relative_error(ours, right):
    """The largest error over the largest value: what a user means by digits lost."""
    assert torch.isfinite(ours).all(), "not finite"
    if right.numel() == 0:
        return 0.0
    return ((ours.double() - right).abs().max() / right.abs().max().clamp(min=1e-300)).item()


LAYOUTS = ("contiguous", "channels_last", "transposed", "sliced", "expanded")


def laid_out(x, layout):
    """The values of `x` in another memory layout."""
    if layout == "contiguous":
        return x.contiguous()
    if layout == "channels_last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "sliced":
        wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1] + 1), float("nan"))
        wide[..., 1::2] = x
        return wide[..., 1::2]
    return x[:1].expand_as(x)
