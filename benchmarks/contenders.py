"""Ours and the peers that live in torch, as steps to be timed."""

import contextlib
import importlib.metadata
import types
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

import batchnorm

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
RANKS = {2: "1d", 3: "1d", 4: "2d", 5: "3d"}


def laid_out(x, layout):
    """`x` with its channels last in memory, or first."""
    if layout == "contiguous":
        return x.contiguous()
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def handed_over(x):
    """`x` as another layer would hand it over: no leaf, no view, and free to be overwritten.

    An operator of torch's: a function in Python would add its ten microseconds to what is timed.
    """
    return torch.ops.aten._unsafe_view.default(x, x.shape)


class Inputs:
    """The tensors of one case in one layout; the same values in every layout."""

    def __init__(self, case, layout):
        generator = torch.Generator().manual_seed(0)
        trains = case.work == "training"

        def tensor():
            values = torch.randn(case.shape, generator=generator).to(DTYPES[case.dtype])
            return laid_out(values, layout)

        self.x = tensor().requires_grad_(trains)
        self.dy = tensor()
        self.residual = tensor().requires_grad_(trains) if case.residual else None
        self.weight = torch.rand(case.shape[1], generator=generator) + 0.5
        self.bias = torch.randn(case.shape[1], generator=generator)

    def give(self, layer, case):
        """Set the layer's parameters and mode."""
        layer.weight.data.copy_(self.weight)
        layer.bias.data.copy_(self.bias)
        return layer.train(case.work != "evaluation")


def ours(case, inplace=False):
    """The package's layer, with everything fused that it fuses."""
    make = getattr(batchnorm, f"BatchNormAct{RANKS[len(case.shape)]}")
    layer = make(case.shape[1], "relu" if case.relu else None, inplace=inplace)
    if not inplace:
        return layer, layer
    return layer, lambda x, residual: layer(handed_over(x))


def eager(case, dtype=None):
    """What a torch user writes, as torchvision does: add and ReLU in place."""
    norm = getattr(nn, f"BatchNorm{RANKS[len(case.shape)]}")(case.shape[1], dtype=dtype)

    def forward(x, residual):
        y = norm(x)
        if residual is not None:
            y += residual
        return F.relu(y, inplace=True) if case.relu else y

    return norm, forward


def compiled(case, layout):
    """The same under torch.compile, compiled for one case in one layout.

    A code object of its own each: Dynamo keeps what it compiled, and its limit, by code object.
    """
    norm, forward = eager(case)
    apart = types.FunctionType(
        forward.__code__.replace(co_name=f"forward_{layout}"),
        forward.__globals__,
        closure=forward.__closure__,
    )
    return norm, torch.compile(apart, dynamic=False)


def step(contender, case, layout):
    """One call to time: forward, and backward where the case trains."""
    layer, function = contender
    i = Inputs(case, layout)
    i.give(layer, case)
    if case.work != "training":

        def forward():
            with torch.no_grad():
                return function(i.x, i.residual)

        return forward
    leaves = [i.x, layer.weight, layer.bias] + ([i.residual] if case.residual else [])

    def training():
        y = function(i.x, i.residual)
        return y, torch.autograd.grad(y, leaves, i.dy)

    return training


class Nothing(torch.autograd.Function):
    """What any autograd function in Python costs: it saves, makes room, and computes nothing."""

    @staticmethod
    def forward(ctx, x, weight, bias, residual):
        ctx.save_for_backward(x, weight, bias, residual)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx, dy):
        return tuple(t if t is None else torch.empty_like(t) for t in ctx.saved_tensors)


def nothing(case):
    """A module with one, in the place of a layer."""
    layer = ours(case)[0]

    class Layer(nn.Module):
        def forward(self, x, residual):
            return Nothing.apply(x, layer.weight, layer.bias, residual)

    return layer, Layer()


def copy_step(case):
    """One read and one write of a tensor as large as the input: the unit of traffic."""
    source = torch.randn(case.shape).to(DTYPES[case.dtype])
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def ways(case):
    """How ours is made for a case: out of place, and in place where the input can be had back."""
    alone = case.work == "training" and not case.relu and not case.residual
    return (False, True) if alone else (False,)


def wrong(case, layout, inplace=False):
    """How far ours is from float64 on the same input, in units of what the dtype resolves."""
    got = step(ours(case, inplace), case, layout)()
    i = Inputs(case, layout)
    norm, exact = eager(case, torch.float64)
    i.give(norm, case)
    leaves = [i.x] + ([i.residual] if case.residual else [])
    x, *residual = (t.detach().double().requires_grad_() for t in leaves)
    y = exact(x, *residual or (None,))
    if case.work != "training":
        got, right = (got,), (y,)
    else:
        wanted = [x, norm.weight, norm.bias, *residual]
        got, right = (got[0], *got[1]), (y, *torch.autograd.grad(y, wanted, i.dy.double()))
    # Where a value lies within rounding of ReLU's kink the gradient may fall on either side.
    near = (y.abs() < 1e-4).expand_as(y) if case.relu else torch.zeros_like(y, dtype=torch.bool)
    worst = 0.0
    for mine, other in zip(got, right, strict=True):
        error = (mine.double() - other).abs()
        if mine.shape == y.shape:
            error = error.masked_fill(near, 0)
        worst = max(worst, (error.max() / other.abs().max()).item())
    return worst / torch.finfo(DTYPES[case.dtype]).eps


def contenders(case):
    """Name -> step, each in every layout."""
    torch._dynamo.reset()  # what it compiled for the cases before
    steps = {"copy": copy_step(case)}
    for layout in case.layouts:
        steps[f"ours, {layout}"] = step(ours(case), case, layout)
        steps[f"nothing, {layout}"] = step(nothing(case), case, layout)
        steps[f"torch eager, {layout}"] = step(eager(case), case, layout)
        steps[f"torch.compile, {layout}"] = step(compiled(case, layout), case, layout)
        if case.dtype != "float32":
            full = replace(case, dtype="float32")
            steps[f"ours in float32, {layout}"] = step(ours(full), full, layout)
        if True in ways(case):
            steps[f"ours in place, {layout}"] = step(ours(case, inplace=True), case, layout)
    return steps


def versions():
    """Of what was timed here."""
    found = {"batchnorm": batchnorm.__version__, "torch": torch.__version__}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found["Numba"] = importlib.metadata.version("numba")
    return found
