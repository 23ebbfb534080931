"""The batch norm for one place, the pair that it makes there, and the line that tells of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from batchnorm.layers import BatchNorm1d, BatchNorm2d, BatchNorm3d
from batchnorm.surgery._flow import Modules, Refusal
from batchnorm.surgery._places import Place

_NORMS = (BatchNorm1d, BatchNorm2d, BatchNorm3d)


@dataclass(frozen=True)
class Insertion:
    """A batch norm for the output of a layer.

    Attributes:
        path: of the layer.
        layer: whose channels the norm has.
        place: what the pair replaces: the layer, its activation, or what takes its value.
        module: what stands there.
        norm: the batch norm.
        bias: why the layer keeps its bias, or that there is none; empty where it is dropped.
    """

    path: str
    layer: nn.Module
    place: Place
    module: nn.Module
    norm: nn.Module
    bias: str

    def pair(self, norm: nn.Module) -> nn.Sequential:
        """The module with a norm, in their order."""
        both = (norm, self.module) if self.place.first else (self.module, norm)
        pair = nn.Sequential(*both)
        pair.training = self.module.training
        return pair

    @property
    def what(self) -> str:
        """The change in words."""
        axis = "" if self.norm.axis == 1 else f", axis={self.norm.axis}"
        text = f"{type(self.norm).__name__}({self.norm.num_features}{axis}) "
        if self.place.first:
            text += f"in front of it, after {self.place.activation} of {self.path}"
        elif self.place.path != self.path:
            text += f"after it, on {self.path}"
        else:
            text += f"before {self.place.activation}; {self.bias or 'bias dropped'}"
        if isinstance(self.layer, nn.Linear) and self.place.rank is None:
            text += "; its output assumed (N, C) or (N, L, C)"
        if self.place.root:
            text += f"; {self.place.root} assumed to be called once"
        return text


_MARK = "_inserted"


def mark(pair: nn.Module, one: Insertion) -> None:
    """Note in a pair which of the two stood there before, and the bias that was dropped.

    In a plain dict, which is no part of the state dict, and whose tensors copies share.
    """
    dropped = one.place.path == one.path and not one.bias
    bias = one.layer.bias if dropped else None
    vars(pair)[_MARK] = {"kept": "1" if one.place.first else "0", "bias": bias}


def inserted_in(module: nn.Module) -> dict[str, Any] | None:
    """What :func:`mark` noted; None for what is no such pair."""
    return vars(module).get(_MARK) if type(module) is nn.Sequential else None


def insertion(path: str, layer: nn.Module, place: Place, modules: Modules) -> Insertion | Refusal:
    """The batch norm for the layer's channels, on the layer's device, of its dtype and in its mode.

    It is in the mode of the module beside which its values pass.
    """
    if isinstance(layer, nn.Linear):
        dims = max(1, (place.rank or 3) - 2)
        axis, channels = (1 if place.rank == 2 else -1), layer.out_features
        if place.rank is not None and not 2 <= place.rank <= 5:
            return Refusal(f"its output has {place.rank} axes; batch norm takes 2 to 5")
    else:
        conv = cast(nn.Conv2d, layer)
        dims, axis, channels = len(conv.kernel_size), 1, conv.out_channels
        if place.rank is not None and place.rank != dims + 2:
            return Refusal(f"its output has {place.rank} axes: there is no axis of examples")
    weight, module = cast(Tensor, layer.weight), modules[place.path]
    norm = _NORMS[dims - 1](channels, device=weight.device, dtype=weight.dtype, axis=axis)
    norm.train((layer if place.first else module).training)
    return Insertion(path, layer, place, module, norm, _bias_kept(layer, modules))


def _bias_kept(layer: nn.Module, modules: Mapping[str, nn.Module]) -> str:
    """Why the bias stays; empty where batch norm is the only one to see it."""
    bias = cast(Tensor | None, layer.bias)
    if bias is None:
        return "there was no bias"
    if layer._forward_hooks:
        return "bias kept, since a hook sees z"
    if layer._parameters.get("bias") is None:
        return "bias kept, since it is parametrized"
    for path, module in modules.items():
        if module is not layer and any(value is bias for value in module._parameters.values()):
            return f"bias kept, since {path or 'the model'} shares it"
    return ""
