"""Which batch norms become ours, and what of theirs they keep."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from batchnorm.copies import replace
from batchnorm.layers import BatchNorm1d, BatchNorm2d, BatchNorm3d
from batchnorm.layers._buffers import widen
from batchnorm.layers._state import Layer
from batchnorm.surgery._changes import Changes
from batchnorm.surgery._kinds import called_as_functions
from batchnorm.surgery._recording import call_of, deviation, outputs
from batchnorm.surgery._seen import check_model, explaining

OURS: dict[type[nn.Module], type[Layer]] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
}
SCRIPTED = {kind.__name__ for kind in OURS}
# What a layer is when it is made; all else that ours has and torch's has not is an option.
GIVEN = (
    "num_features", "eps", "momentum", "affine", "track_running_stats", "device", "dtype",
    "weight", "bias", "axis",
)  # fmt: skip


def adopted(model: nn.Module, example: Any, options: dict[str, Any]) -> Changes:
    """As :func:`batchnorm.surgery.adopt` says."""
    check_model("adopt", model)
    _check(options)
    call = None if example is None else call_of(example)
    if call is not None:
        with explaining(model, call):
            outputs(model, call)
    ours: dict[str, Layer] = {}
    left: dict[str, str] = {}
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and module.original_name in SCRIPTED:
            left[path] = "runs as TorchScript, outside of Python: adopt the model, then script it"
        elif isinstance(module, fx.GraphModule):
            if count := len(called_as_functions(module.graph)):
                times = "once" if count == 1 else f"{count} times"
                left[path] = (
                    f"its graph calls batch_norm as a function, {times}: there is no module to "
                    "make ours; adopt the model that it was exported or traced from"
                )
        elif isinstance(module, _BatchNorm):
            made = _ours(module, options)
            if isinstance(made, str):
                left[path] = made
            else:
                ours[path] = made
    result = replace(model, {})
    told: list[tuple[str, str]] = []
    wide: dict[Tensor, Tensor] = {}
    for path, one in ours.items():
        told.append((path, _become(result.get_submodule(path), one, options, wide)))
    error = None if call is None else deviation(model, result, call)
    return Changes(result, told, list(left.items()), error)


def _check(options: dict[str, Any]) -> None:
    """Raise what a layer would, whatever the model holds."""
    if fixed := [name for name in options if name in GIVEN]:
        raise TypeError(
            f"{fixed[0]}={options[fixed[0]]!r} is no option of adopt: layers keep the {fixed[0]} "
            "that they have; expected what torch's have not: make a layer that has another"
        )
    BatchNorm1d(1, device="meta", **options)


def _ours(norm: _BatchNorm, options: dict[str, Any]) -> Layer | str:
    """A layer of ours with the arguments of torch's, without memory; or why there is none."""
    kind = type(norm)
    if isinstance(norm, Layer):
        return "ours already: set on it what it should do"
    if isinstance(norm, nn.SyncBatchNorm):
        return (
            "SyncBatchNorm takes input of any rank: adopt the model before it is converted, with "
            'process_group="world"'
        )
    if isinstance(norm, LazyModuleMixin):
        return "has not seen yet how many channels there are: run the model first"
    if kind not in OURS:
        return f"{kind.__module__}.{kind.__qualname__} is a class of its own: it may do otherwise"
    if "forward" in vars(norm):
        return "a forward was put on it, which may do otherwise"
    if vars(norm).get("qconfig") is not None:
        return "is to be quantized, by what knows torch's classes alone: it has a qconfig"
    own = (norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    try:
        made = OURS[kind](*own, device="meta", **options)
    except ValueError as error:
        return f"has what ours refuses: {error}"
    kept = {*vars(norm), *norm._buffers, *norm._parameters, *norm._modules}
    for name in sorted(kept & {*dir(made)} - {*dir(kind(1, device="meta")), "qconfig"}):
        return f"has an attribute {name!r} of its own, which means something else in ours"
    return made


def _become(
    norm: nn.Module, made: Layer, options: dict[str, Any], wide: dict[Tensor, Tensor]
) -> str:
    """Make this torch layer ours, in place, so that hooks and what points to it stay true."""
    told = f"torch's {type(norm).__name__}({made.num_features}) is ours"
    norm.__class__ = type(made)
    layer = cast(Layer, norm)
    vars(layer).update({k: v for k, v in vars(made).items() if k not in vars(layer)})
    mean = layer.running_mean
    where = None if mean is None else mean.device
    skipped = None if mean is None else torch.zeros((), dtype=torch.int64, device=where)
    layer.register_buffer("skipped", skipped, persistent=False)
    _widen(layer, wide)
    told += "".join(f", {name}={value!r}" for name, value in options.items())
    if mean is not None and layer.running_mean is not mean:
        told += f"; running statistics in float32 instead of {str(mean.dtype).split('.')[-1]}"
    return told


def _widen(layer: Layer, wide: dict[Tensor, Tensor]) -> None:
    """Widen running statistics; those that layers share they share still, found in `wide`."""
    before = {name: t for name, t in layer._buffers.items() if t is not None}
    layer._buffers.update({name: wide[t] for name, t in before.items() if t in wide})
    widen(layer)
    wide.update((t, layer.get_buffer(name)) for name, t in before.items())
