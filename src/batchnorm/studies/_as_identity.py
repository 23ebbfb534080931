"""Batch norms set to be the identity on what they take in, and how far they are from it."""

import math
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from batchnorm.moments import Moments, per_channel
from batchnorm.studies._norms import norms_of, taken_in

Found = dict[str, Any]


def begin(model: nn.Module, x: Tensor) -> None:
    """Give every batch norm the statistics of what it takes in, and be the identity with them."""
    norms = norms_of(model)
    for norm in norms:  # what reaches the deeper ones is what it is without batch norm
        norm.reset_running_stats()
        norm.momentum = 0.0  # what is measured stays
        _become_identity(norm, norm.running_mean, norm.running_var)
    parts = [[Moments.of(z) for z in taken_in(model, part)] for part in x.split(500)]
    for norm, of in zip(
        norms, (reduce(Moments.merge, own) for own in zip(*parts, strict=True)), strict=True
    ):
        norm.running_mean.copy_(of.mean)
        norm.running_var.copy_(of.unbiased())
        _become_identity(norm, norm.running_mean, norm.running_var)


def _become_identity(norm: Any, mean: Tensor, var: Tensor) -> None:
    norm.weight.copy_((var + norm.eps).sqrt())
    norm.bias.copy_(mean)


def in_evaluation(model: nn.Module, plain: nn.Module, x: Tensor) -> Found:
    """How far each batch norm is from the identity in evaluation, and the model from `plain`."""
    errors = [
        _error(norm(z), z, norm)
        for norm, z in zip(norms_of(model), taken_in(model, x), strict=True)
    ]
    answers, before = model(x.clone()), plain(x.clone())
    moved = (answers - before).abs().max() / before.std()
    return {"error": _worst(errors), "answers": moved.item()}


def with_own(model: nn.Module, draws: list[Tensor]) -> float:
    """The largest error with gamma and beta of each mini-batch, for that mini-batch alone."""
    errors: list[Tensor] = []
    for x in draws:
        for norm, z in zip(norms_of(model), taken_in(model, x), strict=True):
            kept = norm.weight.clone(), norm.bias.clone()
            of = Moments.of(z)
            _become_identity(norm, of.mean, of.var)
            errors.append(_error(_trained(norm, z), z, norm))
            norm.weight.copy_(kept[0])
            norm.bias.copy_(kept[1])
    return _worst(errors)


def with_fixed(model: nn.Module, draws: list[Tensor], shape: Tensor | None) -> Found:
    """Root mean square of the error over examples and units, and what the law predicts for it."""
    total, count = 0.0, 0
    for x in draws:
        for norm, z in zip(norms_of(model), taken_in(model, x), strict=True):
            error = _error(_trained(norm, z), z, norm)
            total, count = total + error.square().sum().item(), count + error.numel()
    size = len(draws[0])
    law = None if shape is None else math.sqrt(shape.mean().item() / size)
    return {"error": math.sqrt(total / count) if count else math.nan, "law": law}


def _trained(norm: Any, z: Tensor) -> Tensor:
    """In training mode: normalized with the mini-batch's own statistics."""
    try:
        return norm.train()(z)
    finally:
        norm.eval()


def _worst(errors: list[Tensor]) -> float:
    """The largest of all: NaN where one is, or where no unit varies at all."""
    found = [error.abs().max() for error in errors if error.numel()]
    return torch.stack(found).max().item() if found else math.nan


def _error(out: Tensor, z: Tensor, norm: Any) -> Tensor:
    """In standard deviations of the unit over the training set; units that never vary left out."""
    spread = norm.running_var.sqrt()
    varies = spread > 0
    error = (out - z) / per_channel(torch.where(varies, spread, 1.0), z)
    return error[:, varies]


def shape_of(model: nn.Module, x: Tensor) -> Tensor | None:
    """``1 + (kurtosis - 1) / 4`` of every unit over the training set; None for feature maps.

    To first order a mini-batch's mean is off by 1 / sqrt(m) standard deviations, and its standard
    deviation by sqrt((kurtosis - 1) / (4 m)), which at x standard deviations from the mean weighs
    x times; the mean of x squared is 1. Neighbouring positions of a map are no new examples.
    """
    parts = zip(*(taken_in(model, part) for part in x.split(1000)), strict=True)
    found: list[Tensor] = []
    for norm, chunks in zip(norms_of(model), parts, strict=True):
        if chunks[0].dim() != 2:
            return None
        z = torch.cat(chunks).double()
        z = z[:, norm.running_var > 0]
        if z.numel() == 0:  # no unit varies
            continue
        z = (z - z.mean(0)) / z.std(0, correction=0)
        found.append(1 + (z.pow(4).mean(0) - 1) / 4)
    return torch.cat(found) if found else None
