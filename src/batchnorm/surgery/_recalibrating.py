"""Batch norms watched while batches go through a model, and given back on every way out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from batchnorm.copies import undisturbed
from batchnorm.functional._check_kinds import check_switch, whole
from batchnorm.surgery._batches import Forward, batches_of
from batchnorm.surgery._changes import Changes
from batchnorm.surgery._measured import Measured, calibrate


def recalibrated(
    model: nn.Module,
    batches: Iterable[Any],
    examples: int | None,
    prior: float,
    layer_by_layer: bool,
    forward: Forward | None,
) -> Changes:
    """As :func:`batchnorm.surgery.recalibrate` says."""
    _check(model, batches, layer_by_layer)
    _check_numbers(examples, prior)
    if forward is not None and not callable(forward):
        raise TypeError(
            f"forward is {forward!r}; expected a function that calls the model on a batch, "
            "lambda model, batch: model(batch[0]), or None"
        )
    norms, skipped = _norms(model)
    if not norms:
        return Changes(model, [], skipped)
    modes = [(module, module.training) for module in model.modules()]
    hooks = [m.norm.register_forward_pre_hook(m.see, with_kwargs=True) for m in norms.values()]
    try:
        for module, _ in modes:
            module.training = False
        with undisturbed(model):
            seen = batches_of(model, batches, examples, forward)
            calibrate(list(norms.values()), seen, prior, layer_by_layer)
    except BaseException:
        for measured in norms.values():
            measured.give_back()
        raise
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    changed = [(path, m.told()) for path, m in norms.items() if m.calls]
    skipped += [
        (path, "saw nothing of these batches: it was not called")
        for path, m in norms.items()
        if not m.calls
    ]
    return Changes(model, changed, skipped)


def _check(model: nn.Module, batches: Iterable[Any], layer_by_layer: bool) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"recalibrate takes a model, a torch.nn.Module; got {type(model).__name__} "
            f"({str(model)[:60]})"
        )
    wrapped = isinstance(model, DataParallel | DistributedDataParallel)
    if wrapped or hasattr(model, "_orig_mod") or isinstance(model, torch.jit.ScriptModule):
        inner = "model.module" if wrapped else "model._orig_mod"
        way_out = "its eager original" if isinstance(model, torch.jit.ScriptModule) else inner
        raise TypeError(
            f"recalibrate takes the model itself; got it as {type(model).__name__}, which may run "
            f"copies or code that hooks do not see: give {way_out}, whose buffers it shares"
        )
    if isinstance(batches, torch.Tensor | dict | str) or not isinstance(batches, Iterable):
        got = f"{type(batches).__name__}"
        got += f" of shape {tuple(batches.shape)}" if isinstance(batches, torch.Tensor) else ""
        raise TypeError(
            f"batches is a {got}; expected several batches, such as a DataLoader, a list of "
            "tensors, or x.split(100)"
        )
    check_switch("layer_by_layer", layer_by_layer)
    if layer_by_layer and iter(batches) is batches:
        raise TypeError(
            f"batches is a {type(batches).__name__}, which can be gone through once; "
            "layer_by_layer takes one pass a batch norm: give a list or a DataLoader, or leave it "
            "out"
        )


def _check_numbers(examples: Any, prior: Any) -> None:
    if examples is not None and not (whole(examples) and examples >= 1):
        raise ValueError(
            f"examples is {examples!r}; expected at least 1, or None for all there are, a whole "
            "number"
        )
    try:
        good = not isinstance(prior, bool) and 0 <= prior < float("inf")
    except TypeError:
        good = False
    if not good:
        raise ValueError(f"prior is {prior!r}; expected a number of examples, 0 or more")


def _norms(model: nn.Module) -> tuple[dict[str, Measured], list[tuple[str, str]]]:
    """The batch norms to measure, by path; and why others are left alone."""
    norms: dict[str, Measured] = {}
    skipped: list[tuple[str, str]] = []
    for path, module in model.named_modules():
        if not (isinstance(module, Measured.KINDS) or hasattr(module, "running_mean")):
            continue
        if reason := _left_alone(module, model):
            skipped.append((path, reason))
        else:
            norms[path] = Measured(path, module)
    return norms, skipped


def _left_alone(module: nn.Module, model: nn.Module) -> str:
    name = type(module).__name__
    if not isinstance(module, Measured.KINDS):
        return f"{name} is no batch norm of torch's or ours"
    if any(map(is_lazy, [*module.parameters(False), *module.buffers(False)])):
        raise ValueError(f"{name} has no size yet: run the model once, then recalibrate it")
    if module.running_mean is None or module.running_var is None:
        return "it keeps no running statistics"
    if getattr(module, "statistics", "auto") == "running":
        return 'frozen: its statistics are set to "running"'
    if not getattr(module, "update", True):
        return "frozen: its update is switched off"
    if model.training and not module.training:
        return "frozen: in evaluation mode within a model in training mode"
    return ""
