"""Ours and the peers that live in torch, as steps to be timed."""

import torch
from torch.nn import functional as F

import batchnorm
from batchnorm.functional import batch_norm

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def laid_out(x, layout):
    """`x` with its channels last in memory, or first."""
    if layout == "contiguous" or x.dim() < 3:
        return x.contiguous()
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


class Inputs:
    """The tensors of one case in one layout; the same values in every layout."""

    def __init__(self, case, layout):
        generator = torch.Generator().manual_seed(0)
        dtype, channels = DTYPES[case.dtype], case.shape[1]

        def tensor():
            return laid_out(torch.randn(case.shape, generator=generator).to(dtype), layout)

        self.x = tensor().requires_grad_(case.work == "training")
        self.dy = tensor()
        self.residual = tensor().requires_grad_(case.work == "training") if case.residual else None
        self.weight = torch.randn(channels, generator=generator).requires_grad_(
            case.work == "training"
        )
        self.bias = torch.randn(channels, generator=generator).requires_grad_(
            case.work == "training"
        )
        self.mean, self.var = torch.zeros(channels), torch.ones(channels)
        self.leaves = [t for t in (self.x, self.weight, self.bias, self.residual) if t is not None]


def ours(case, i):
    """The package, with everything fused that it fuses."""
    return batch_norm(
        i.x, i.mean, i.var, i.weight, i.bias, case.work != "evaluation",
        activation="relu" if case.relu else None, residual=i.residual,
    )  # fmt: skip


def eager(case, i):
    """What a torch user writes."""
    y = F.batch_norm(i.x, i.mean, i.var, i.weight, i.bias, case.work != "evaluation")
    if i.residual is not None:
        y = y + i.residual
    return F.relu(y) if case.relu else y


compiled = torch.compile(eager)


def step(function, case, layout):
    """One call to time: forward, and backward where the case trains."""
    i = Inputs(case, layout)
    if case.work != "training":

        def forward():
            with torch.no_grad():
                return function(case, i)

        return forward

    def training():
        y = function(case, i)
        return y, torch.autograd.grad(y, i.leaves, i.dy)

    return training


def copy_step(case):
    """One read and one write of a tensor as large as the input: the unit of traffic."""
    source = torch.randn(case.shape).to(DTYPES[case.dtype])
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def wrong(case, layout):
    """How far ours is from float64 on the same input, in units of what the dtype resolves."""
    i = Inputs(case, layout)
    got = step(ours, case, layout)()
    got = (got[0], *got[1]) if case.work == "training" else (got,)
    leaves = [t.detach().double().requires_grad_() for t in i.leaves]
    exact = Inputs(case, layout)
    exact.x, exact.weight, exact.bias = leaves[:3]
    exact.residual = leaves[3] if i.residual is not None else None
    exact.mean, exact.var = exact.mean.double(), exact.var.double()
    y = eager(case, exact)
    right = (y, *torch.autograd.grad(y, leaves, i.dy.double())) if case.work == "training" else (y,)
    # Where a value lies within rounding of ReLU's kink the gradient may fall on either side.
    near = (y.abs() < 1e-4).expand_as(y) if case.relu else torch.zeros_like(y, dtype=torch.bool)
    worst = 0.0
    for ours_, right_ in zip(got, right, strict=True):
        error = (ours_.double() - right_).abs()
        if ours_.shape == y.shape:
            error = error.masked_fill(near, 0)
        worst = max(worst, (error.max() / right_.abs().max()).item())
    return worst / torch.finfo(DTYPES[case.dtype]).eps


def contenders(case):
    """Name -> step. Every torch contender runs in both layouts, so that each has its best."""
    layouts = ["contiguous", "channels_last"] if len(case.shape) > 2 else ["contiguous"]
    steps = {"copy": copy_step(case), "ours": step(ours, case, case.layout)}
    for layout in layouts:
        steps[f"torch eager, {layout}"] = step(eager, case, layout)
        steps[f"torch.compile, {layout}"] = step(compiled, case, layout)
    return steps


def versions():
    """Of what was timed."""
    return {"batchnorm": batchnorm.__version__, "torch": torch.__version__}
