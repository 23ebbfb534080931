"""Which batch norms come out of a network, and the network without them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from batchnorm.copies import replace
from batchnorm.graph import Reading, is_norm
from batchnorm.surgery._changes import Changes
from batchnorm.surgery._course import disturbing
from batchnorm.surgery._flow import Modules, Refusal
from batchnorm.surgery._insertion import inserted_in
from batchnorm.surgery._kinds import is_batch_norm
from batchnorm.surgery._recording import call_of, deviation
from batchnorm.surgery._removal import Removal, folded, others, removal
from batchnorm.surgery._seen import check_model, see, seen

LOOKS = (
    "the forward looks at it (isinstance, an attribute such as num_features) and would go another "
    "way without it"
)


def removed(model: nn.Module, example: Any) -> Changes:
    """As :func:`batchnorm.surgery.remove` says."""
    check_model("remove", model)
    call = None if example is None else call_of(example)
    readings = seen(model, call)
    modules = dict(model.named_modules())
    planned, left = _planned(readings, modules)
    for path in disturbing(model, planned, readings, lambda model: see(model, call)):
        left[path] = LOOKS
        del planned[path]
    other = (path for path, one in modules.items() if is_norm(one) and not is_batch_norm(one))
    left |= dict(others(readings, modules, other))
    result = replace(model, {path: one.left() for path, one in planned.items()})
    told = {path: f"{_named(one.norm)} out" for path, one in planned.items()}
    for path, one in planned.items():
        for layer in one.layers:
            told[path] += _take_over(result, layer, one, model)
        told[path] += one.assumed
        told[path] += f"; no bias put back, since {one.fed}" if one.fed else ""
    result = _unpaired(result, planned)
    error = None if call is None else deviation(model, result, call)
    return Changes(result, list(told.items()), list(left.items()), error)


def _planned(
    readings: list[Reading], modules: Modules
) -> tuple[dict[str, Removal], dict[str, str]]:
    """What to take out, and why the rest is left."""
    planned: dict[str, Removal] = {}
    left: dict[str, str] = {}
    for path, module in modules.items():
        if is_batch_norm(module):
            one = removal(path, cast(Any, module), readings, modules)
            if isinstance(one, Refusal):
                left[path] = one.reason
            else:
                planned[path] = one
    return planned, left


def _take_over(result: nn.Module, path: str, one: Removal, model: nn.Module) -> str:
    """Give a layer of the result what its batch norm did; tell of it."""
    layer = cast("nn.Linear | _ConvNd", result.get_submodule(path))
    if not one.fresh:
        weight, bias = folded(layer, one.norm)
        trains = layer.weight.requires_grad
        layer.weight = nn.Parameter(weight, requires_grad=trains)
        layer.bias = nn.Parameter(bias, requires_grad=trains)
        return f", folded into the weight and bias of {path}"
    if layer.bias is not None:
        return f"; {path} keeps its bias"
    inserted = _pair_of(model, path)
    if inserted and inserted["bias"] is None:
        return f"; {path} had no bias"
    kept = inserted["bias"] if inserted else torch.zeros(one.norm.num_features)
    alike = (kept.dtype, kept.device) == (layer.weight.dtype, layer.weight.device)
    if not (inserted and alike):
        kept = nn.Parameter(kept.detach().to(layer.weight.device, layer.weight.dtype))
    layer.register_parameter("bias", cast(nn.Parameter, kept))
    return f"; {path} has a bias again" + (", the one it had" if inserted else "")


def _pair_of(model: nn.Module, path: str) -> dict[str, Any] | None:
    """What :func:`insert` noted of the layer at this path, if it put a batch norm there."""
    parent, _, name = path.rpartition(".")
    inserted = inserted_in(model.get_submodule(parent)) if name else None
    return inserted if inserted and inserted["kept"] == name else None


def _unpaired(model: nn.Module, out: Mapping[str, Removal]) -> nn.Module:
    """The model with one module again for each pair whose batch norm is out."""
    while True:
        pairs = {
            path: inserted["kept"]
            for path, module in model.named_modules()
            if (inserted := inserted_in(module)) and len(cast(nn.Sequential, module)) == 2
            if f"{path}.{1 - int(inserted['kept'])}".lstrip(".") in out
        }
        # Of pairs in pairs the inner ones first.
        inner = {
            path: model.get_submodule(f"{path}.{kept}".lstrip("."))
            for path, kept in pairs.items()
            if not any(other != path and other.startswith(f"{path}.") for other in pairs)
        }
        if not inner:
            return model
        if "" in inner:
            return inner[""]
        model = replace(model, inner)


def _named(norm: nn.Module) -> str:
    return f"{type(norm).__name__}({cast(Tensor, norm.num_features)})"
