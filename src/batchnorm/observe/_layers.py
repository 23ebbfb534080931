"""Which layers are watched, under which path, and where their channels are."""

from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

Layers = str | type[nn.Module] | Iterable[str | type[nn.Module]]

# Their last axis holds the channels, whatever stands before it.
LAST = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.RNNBase, nn.MultiheadAttention)


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's own module inside torch.compile's, DataParallel's and DDP's wrappers."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(model, wrappers):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model.get_submodule("_orig_mod")
        else:
            return model


def watched(model: nn.Module, layers: Layers | None) -> dict[str, nn.Module]:
    """The modules to watch, by their paths in the model without wrappers.

    Raises:
        ValueError: nothing in the model is asked for, by a path or by a type.
        TypeError: neither a path nor a type.
    """
    modules = {
        ".".join(name for name in path.split(".") if name != "_orig_mod"): module
        for path, module in unwrapped(model).named_modules()
        if not hasattr(module, "_orig_mod")
    }
    name = type(unwrapped(model)).__name__
    if layers is None:
        found = {path: m for path, m in modules.items() if is_batch_norm(m)}
        if not found:
            raise ValueError(
                f"{name} has no batch norm to record: say which layers to watch, by path or type, "
                "as in layers=torch.nn.Linear"
            )
        return found
    if not isinstance(layers, Iterable | type):
        raise TypeError(
            f"layers is {layers!r}: expected the path of a layer, such as {list(modules)[-1]!r}, a "
            "type, such as torch.nn.Linear, or several of them"
        )
    asked = [layers] if isinstance(layers, str | type) else list(layers)
    wanted = {path for one in asked for path in _paths(modules, one, name)}
    if not wanted:
        raise ValueError(f"layers is {layers!r}: expected at least one path or type of a layer")
    return {path: module for path, module in modules.items() if path in wanted}


def _paths(modules: dict[str, nn.Module], one: Any, name: str) -> list[str]:
    if isinstance(one, type):
        found = [path for path, module in modules.items() if isinstance(module, one)]
        kinds = sorted({type(module).__name__ for module in modules.values()})
        if not found:
            raise ValueError(f"{name} has no layer of type {one.__name__}: it has {kinds}")
        return found
    if not isinstance(one, str):
        raise TypeError(
            f"layers holds {one!r}: expected the path of a layer, such as {list(modules)[-1]!r}, "
            "or a type, such as torch.nn.Linear"
        )
    found = [path for path in modules if path == one or fnmatchcase(path, one)]
    if not found:
        close = get_close_matches(one, modules, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"its layers are {list(modules)[1:]}"
        raise ValueError(f"{name} has no layer {one!r}: {hint}")
    return found


def is_batch_norm(module: nn.Module) -> bool:
    """Ours, torch's, and what is derived from them; instance norm has no batch statistics."""
    return isinstance(module, _NormBase) and not isinstance(module, _InstanceNorm)


def tells_moments(module: nn.Module) -> bool:
    """A layer of ours as it is, which leaves its input alone and tells what it measured."""
    ours = type(module).__module__ in ("batchnorm.layers.batch_norm", "batchnorm.layers.act")
    return ours and not getattr(module, "inplace", False)


def axis_of(module: nn.Module) -> int:
    """Where the channels of a layer's values are."""
    if is_batch_norm(module):
        axis = getattr(module, "axis", 1)
        return axis if isinstance(axis, int) else 1
    return -1 if isinstance(module, LAST) else 1


def tensor_in(value: Any) -> Tensor | None:
    """The floating tensor that a layer was given or gave: the first one of several."""
    if isinstance(value, Tensor):
        laid = value.layout == torch.strided or value.is_nested
        return value if laid and value.is_floating_point() and value.numel() else None
    if isinstance(value, tuple | list):
        return next((x for one in value if (x := tensor_in(one)) is not None), None)
    return None
