"""Population statistics for the batch norms of a trained model, measured anew on any batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from batchnorm.copies import undisturbed
from batchnorm.surgery._batches import Forward, batches_of
from batchnorm.surgery._changes import Changes
from batchnorm.surgery._measured import Measured, calibrate


def recalibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    examples: int | None = None,
    prior: float = 0,
    layer_by_layer: bool = False,
    forward: Forward | None = None,
) -> Changes:
    r"""Measure the running statistics of a model's batch norms anew, in place.

    Each becomes the mean and the unbiased variance of all that its batch norm takes in,

    .. math:: \mu = \frac1n \sum_i x_i \qquad \sigma^2 = \frac1{n-1} \sum_i (x_i - \mu)^2

    merged exactly over batches of any sizes, whatever momentum is set. For a model whose weights
    have just been changed (averaged, pruned, loaded in part), whose running averages trail behind
    the weights, or which is to see data from elsewhere.

    The model is run in evaluation mode, since that is what the statistics are for: nothing is
    dropped out, and a batch norm's output is made from running statistics, never from those of one
    batch, whose noise deeper layers would measure as if it belonged to the data. In the one
    pass, each batch norm meanwhile normalizes with what has been merged so far, this batch
    included. The first batch norm comes out exact; deeper ones have seen the first batches through
    statistics of few examples, which matters where batches are tiny or sorted by class.
    ``layer_by_layer`` takes a pass for each batch norm in the order of their calls, all earlier
    ones final by then: exact for all, whatever the batches' sizes and order.

    Left as they are: weights, gradients, every module's mode, ``num_batches_tracked`` (no training
    step was taken), random states, and the statistics of batch norms that are frozen: in evaluation
    mode within a model in training mode, with ``statistics="running"`` or with ``update=False``.
    The process group of a synchronized batch norm is asked for its moments once, after the pass.

    Args:
        model: changed in place; ours and torch's batch norms, `SyncBatchNorm` too.
        batches: a DataLoader or any iterable. The model is called with a tensor, with the first of
            a tuple or list ``(x, y)``, or by name with those of a dict that its ``forward`` takes;
            tensors are moved to the model's device.
        examples: at most so many, the last batch cut to fit; all for None.
        prior: the statistics as they are count as those of so many examples beside the new ones.
        layer_by_layer: one pass a batch norm; ``batches`` must give the same at each pass.
        forward: called with model and batch where that is not how the model is to be called.

    Returns:
        The same model; how far each batch norm's statistics have moved, and which were left alone.

    Raises:
        TypeError: no module, one that is wrapped or compiled, or ``batches`` that cannot be used.
        ValueError: no examples, values that are not finite, one value a channel in all, a number
            out of range. On any error the model is as it was.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(1), nn.ReLU())
        >>> x = torch.tensor([[1.0], [2.0], [6.0]])
        >>> print(recalibrate(net, [x[:1], x[1:]]))
        Sequential: 1 changed, 0 left alone
        changed:
          0  3 values a channel: mean moved by 3 standard deviations, variance times 7
        >>> net[0].running_mean, net[0].running_var
        (tensor([3.]), tensor([7.]))
    """
    _check(model, batches, examples, prior, layer_by_layer)
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


def _check(
    model: nn.Module,
    batches: Iterable[Any],
    examples: int | None,
    prior: float,
    layer_by_layer: bool,
) -> None:
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
    if layer_by_layer and iter(batches) is batches:
        raise TypeError(
            f"batches is a {type(batches).__name__}, which can be gone through once; "
            "layer_by_layer takes one pass a batch norm: give a list or a DataLoader, or leave it "
            "out"
        )
    if examples is not None and (isinstance(examples, bool) or examples < 1):
        raise ValueError(f"examples is {examples}; expected at least 1, or None for all there are")
    if not 0 <= prior < float("inf"):
        raise ValueError(f"prior is {prior}; expected a number of examples, 0 or more")


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
