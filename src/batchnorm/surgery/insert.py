"""Put batch norm into a network: before each activation, on z, or after it, on a."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from batchnorm.graph import Reading, read, replace
from batchnorm.layers import BatchNorm1d, BatchNorm2d, BatchNorm3d
from batchnorm.surgery._changes import Changes
from batchnorm.surgery._course import LOOKS, disturbing
from batchnorm.surgery._flow import Refusal
from batchnorm.surgery._places import Place, layers, place
from batchnorm.surgery._recording import Call, call_of, given, record, verify

Placement = Literal["before", "after"]
_NORMS = (BatchNorm1d, BatchNorm2d, BatchNorm3d)


def insert(model: nn.Module, placement: Placement = "before", example: Any = None) -> Changes:
    r"""Put a batch norm at each Linear or convolution that an activation follows.

    ``before``: :math:`a = g(\mathrm{BN}(W a_{prev}))`. The layer becomes
    ``nn.Sequential(layer, norm)`` at its path, without its bias, which the mean that batch norm
    subtracts would cancel; the bias stays where something else sees it too. ``after``:
    :math:`a = \mathrm{BN}(g(W a_{prev} + b))`. The activation becomes
    ``nn.Sequential(activation, norm)`` where it is a module used once; otherwise the one module
    that takes its value becomes ``nn.Sequential(norm, module)``.

    The result is of the model's own class. Its modules are new; its parameters and buffers are the
    model's, so that an optimizer keeps working for them (give it the new ones). The model itself
    stays as it is, and shares its other batch norms' running statistics with the result.

    Args:
        model: any model; whatever of its ``forward`` torch.fx cannot follow is left alone.
        placement: on z, before the activation, or on a, after it.
        example: what the model is called with: a value, a tuple of them, or a dict by name. With
            it the path that the call takes is followed through any ``forward``, the number of axes
            is known (without it a Linear whose input cannot be told is taken to see ``(N, C)`` or
            ``(N, L, C)``), and the new model is tried. A copy of the model is run, in evaluation
            mode (in training mode too where the code cannot be followed).

    Raises:
        TypeError: ``model`` is no module, or wrapped or compiled.
        ValueError: ``placement`` is neither; the model cannot run the example.
        RuntimeError: the new model cannot run the example; the message names the place.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.Sigmoid(), nn.Linear(100, 10))
        >>> print(insert(net))
        Sequential: 1 changed, 1 left alone
        changed:
          1  BatchNorm1d(100) before sigmoid; bias dropped
        left alone:
          3  no activation follows: its output is the model's output
    """
    _check(model, placement)
    call = None if example is None else call_of(example)
    readings = _readings(model, call)
    modules = dict(model.named_modules())
    new: dict[str, nn.Module] = {}
    changed: list[tuple[str, str]] = []
    skipped: list[tuple[str, str]] = []
    unbiased: list[str] = []
    for path, layer in layers(model):
        found = place(path, layer, readings, modules, placement)
        norm = found if isinstance(found, Refusal) else _norm(layer, found)
        if isinstance(norm, Refusal) or isinstance(found, Refusal):
            skipped.append((path, cast(Refusal, norm).reason))
            continue
        new[found.path] = _pair(norm, modules[found.path], found, layer)
        what = _what(norm, path, found)
        if placement == "before":
            kept = _bias_kept(layer, modules)
            unbiased += [] if kept else [path]
            what += kept or "; bias dropped"
        changed.append((found.path, what + _assumed(layer, found)))
    for path in disturbing(model, new, lambda model: _traces(model, call)):
        del new[path]
        changed = [entry for entry in changed if entry[0] != path]
        unbiased = [one for one in unbiased if one != path]
        skipped.append((path, LOOKS))
    result = replace(model, new)
    for path in unbiased:
        result.get_submodule(f"{path}.0").register_parameter("bias", None)
    if call and new:
        verify(result, call, list(new))
    return Changes(result, changed, skipped + _unread(readings, call))


def _check(model: nn.Module, placement: str) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"insert takes a model, a torch.nn.Module; got {type(model).__name__} "
            f"({str(model)[:60]}). Make one: nn.Sequential(*layers)"
        )
    wrapped = isinstance(model, DataParallel | DistributedDataParallel | torch.jit.ScriptModule)
    if wrapped or hasattr(model, "_orig_mod"):
        raise TypeError(
            f"insert takes the model itself; got it as {type(model).__name__}, which could not be "
            "edited. Insert first, then wrap or compile the new model"
        )
    if placement not in get_args(Placement):
        raise ValueError(
            f"placement is {placement!r}; expected 'before' (batch norm on z, before the "
            "activation) or 'after' (on a, after it)"
        )


def _traces(model: nn.Module, call: Call | None) -> list[Reading]:
    return read(model, given=given(model, call) if call else ())


def _readings(model: nn.Module, call: Call | None) -> list[Reading]:
    """Traces in training and in evaluation mode, then runs on the example."""
    readings = _traces(model, call)
    if call is None:
        return readings
    try:
        readings.append(record(model, call, training=False))
    except Exception as error:
        raise ValueError(
            f"example (={_describe(call)}) does not run through {type(model).__name__} as it is, "
            f"before anything is inserted ({type(error).__name__}: {error}); give what the model "
            "is called with: a value, a tuple of them, or a dict by name"
        ) from error
    if readings[0].unseen:
        with suppress(Exception):  # some want targets in training, or more than one example
            readings.append(record(model, call, training=True))
    return readings


def _describe(call: Call) -> str:
    named = [*((None, value) for value in call[0]), *call[1].items()]
    shown = [
        f"a tensor of shape {tuple(value.shape)}"
        if isinstance(value, Tensor)
        else f"{type(value).__name__} {str(value)[:40]}"
        for _, value in named
    ]
    names = [f"{name}: " if name else "" for name, _ in named]
    return ", ".join(name + text for name, text in zip(names, shown, strict=True)) or "no argument"


def _norm(layer: nn.Module, found: Place) -> nn.Module | Refusal:
    """The batch norm for the layer's channels, on the layer's device and of its dtype."""
    if isinstance(layer, nn.Linear):
        dims = max(1, (found.rank or 3) - 2)
        axis, channels = (1 if found.rank == 2 else -1), layer.out_features
        if found.rank is not None and not 2 <= found.rank <= 5:
            return Refusal(f"its output has {found.rank} axes; batch norm takes 2 to 5")
    else:
        conv = cast(nn.Conv2d, layer)
        dims, axis, channels = len(conv.kernel_size), 1, conv.out_channels
        if found.rank is not None and found.rank != dims + 2:
            return Refusal(f"its output has {found.rank} axes: there is no axis of examples")
    weight = cast(Tensor, layer.weight)
    return _NORMS[dims - 1](channels, device=weight.device, dtype=weight.dtype, axis=axis)


def _pair(norm: nn.Module, module: nn.Module, found: Place, layer: nn.Module) -> nn.Sequential:
    pair = nn.Sequential(norm, module) if found.first else nn.Sequential(module, norm)
    norm.train((layer if found.first else module).training)
    pair.training = module.training
    return pair


def _what(norm: nn.Module, path: str, found: Place) -> str:
    axis = "" if norm.axis == 1 else f", axis={norm.axis}"
    text = f"{type(norm).__name__}({norm.num_features}{axis}) "
    if found.first:
        return f"{text}in front of it, after {found.activation} of {path}"
    return text + (f"before {found.activation}" if found.path == path else f"after it, on {path}")


def _bias_kept(layer: nn.Module, modules: dict[str, nn.Module]) -> str:
    """Why the bias stays; empty where batch norm is the only one to see it."""
    bias = cast(Tensor | None, layer.bias)
    if bias is None:
        return "; there was no bias"
    if layer._forward_hooks or layer._backward_hooks:
        return "; bias kept, since a hook sees z"
    if layer._parameters.get("bias") is None:
        return "; bias kept, since it is parametrized"
    for path, module in modules.items():
        if module is not layer and any(value is bias for value in module._parameters.values()):
            return f"; bias kept, since {path or 'the model'} shares it"
    return ""


def _assumed(layer: nn.Module, found: Place) -> str:
    text = ""
    if isinstance(layer, nn.Linear) and found.rank is None:
        text += "; its output assumed (N, C) or (N, L, C)"
    if found.root:
        text += f"; {found.root} assumed to be called once"
    return text


def _unread(readings: list[Reading], call: Call | None) -> list[tuple[str, str]]:
    """What torch.fx could not follow, where no run has shown it."""
    if call is not None:
        return []
    return list(
        {path: (path, why) for one in readings for path, why in one.unseen.items()}.values()
    )
