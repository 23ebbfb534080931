"""For each batch norm what takes over its shift and scale, or the reason why it stays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from batchnorm.graph import Reading, consumers
from batchnorm.layers import BatchNormAct1d
from batchnorm.surgery._flow import Modules, Refusal, describe, rank
from batchnorm.surgery._kinds import called_as_functions
from batchnorm.surgery._places import extra_arguments, pinned

_OWN_FORWARD = ("torch.nn.modules.", "batchnorm.layers.")
_NOWHERE = "it has been trained, and its scale and shift have nowhere to go: "
_SIMPLE = {
    **{"identity": nn.Identity, "relu": nn.ReLU, "relu6": nn.ReLU6, "silu": nn.SiLU},
    **{"hardswish": nn.Hardswish, "gelu": nn.GELU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh},
}


@dataclass(frozen=True)
class Removal:
    """A batch norm that can go.

    Attributes:
        norm: the batch norm.
        layers: the paths of the layers that feed it, and take over its shift.
        fresh: it has seen and learned nothing: it only normalizes, so nothing is folded.
        fed: what feeds it where that is no such layer.
        assumed: what was taken for granted, in words.
    """

    norm: _NormBase
    layers: tuple[str, ...]
    fresh: bool
    fed: str
    assumed: str

    def pair(self, norm: nn.Module) -> nn.Module:
        """What stands in its place while the forward is watched."""
        return _Passing()

    def left(self) -> nn.Module:
        """What stands in its place: nothing, or the activation that it had fused."""
        if not isinstance(self.norm, BatchNormAct1d):
            return nn.Identity()
        activation = self.norm.activation
        match activation.kind:
            case "leaky_relu":
                return nn.LeakyReLU(activation.parameter)
            case "elu":
                return nn.ELU(activation.parameter)
            case "gelu_tanh":
                return nn.GELU(approximate="tanh")
            case kind:
                return _SIMPLE[kind]()


class _Passing(nn.Identity):
    def forward(self, input: Tensor) -> Tensor:
        return input.clone()  # a run tells values apart by the tensors that hold them


def removal(
    path: str, norm: _NormBase, readings: list[Reading], modules: Modules
) -> Removal | Refusal:
    """Decide for one batch norm, from every reading that saw it called."""
    sites = [(site, reading) for reading in readings for site in reading.sites(path)]
    if reason := _unfit(norm) or pinned(path, readings) or _uncalled(path, sites, readings):
        return Refusal(reason)
    if any(extra_arguments(site) for site, _ in sites):
        return Refusal("called with more than its input (a residual, a mask), which would be lost")
    fresh = is_fresh(norm)
    of_batch = norm.running_mean is None or getattr(norm, "statistics", "auto") == "batch"
    if not fresh and of_batch:
        why = "keeps no running statistics"
        if norm.running_mean is not None:
            why = 'its statistics are set to "batch"'
        return Refusal(
            f"it has been trained and {why}: what it computes in evaluation "
            "depends on the batch, and no layer computes that"
        )
    layers, why = _feeders(sites, readings, modules)
    unknown = any(isinstance(modules[each], nn.Linear) for each in layers) and not any(
        rank(site, modules) for site, _ in sites
    )
    assumed = "; its input assumed (N, C)" if unknown else ""
    if fresh:
        return Removal(norm, tuple(layers), True, why, assumed)
    if not why:
        why = next(filter(None, (_unscalable(each, modules) for each in layers)), "")
    return Refusal(_NOWHERE + why) if why else Removal(norm, tuple(layers), False, "", assumed)


def is_fresh(norm: _NormBase) -> bool:
    """Whether gamma, beta and the running statistics are as they were made."""
    made = ((norm.weight, 1), (norm.bias, 0), (norm.running_mean, 0), (norm.running_var, 1))
    return all(held is None or bool((held == value).all()) for held, value in made)


def _unfit(norm: _NormBase) -> str:
    kind = type(norm)
    if any(is_lazy(one) for one in (*norm.parameters(), *norm.buffers())):
        return "not initialized yet: run one batch through the model first"
    if "forward" in vars(norm) or not kind.forward.__module__.startswith(_OWN_FORWARD):
        return f"{kind.__name__} has a forward of its own, which may do more than normalize"
    if norm._forward_hooks or norm._forward_pre_hooks:
        return "a hook is registered on it"
    held = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    if not all(one is None or bool(torch.isfinite(one).all()) for one in held):
        return "its parameters or running statistics are not finite"
    return ""


def _uncalled(path: str, sites: list[Any], readings: list[Reading]) -> str:
    if sites:
        return ""
    if path == "":
        return "the model is this one layer, whose call was not seen: give an example"
    if any(reading.unseen for reading in readings):
        return "called where the forward could not be read; give an example, if none was given"
    return "never called in forward"


def _feeders(
    sites: list[tuple[fx.Node, Reading]], readings: list[Reading], modules: Modules
) -> tuple[list[str], str]:
    """The paths of the layers that feed it at all sites; and why some site has no such layer."""
    layers: dict[str, None] = {}
    whys: list[str] = []
    for site, _ in sites:
        (fed,) = site.all_input_nodes or (None,)
        why = _unlike(fed, site, readings, modules)
        if why:
            whys.append(why)
        else:
            layers[str(cast(fx.Node, fed).target)] = None
    return list(layers), (whys or [""])[0]


def _unlike(fed: fx.Node | None, site: fx.Node, readings: list[Reading], modules: Modules) -> str:
    """Why what feeds a batch norm is no layer that could take over what it does."""
    if fed is None:
        return "what feeds it was not seen"
    norm = cast(_NormBase, modules[str(site.target)])
    layer = modules.get(str(fed.target)) if fed.op == "call_module" else None
    if fed.op in ("placeholder", "output"):
        return "what feeds it is the input of the model, or of a part of it"
    if not isinstance(layer, nn.Linear | _ConvNd):
        return f"what feeds it is {describe(fed, modules)}, no Linear or convolution"
    path = str(fed.target)
    if "forward" in vars(layer) or not type(layer).forward.__module__.startswith(_OWN_FORWARD[0]):
        return f"{path} ({type(layer).__name__}) has a forward of its own"
    if layer._forward_hooks or pinned(path, readings):
        return f"the output or the parameters of {path} are seen elsewhere too"
    users = {
        user.target for one in readings for each in one.sites(path) for user in consumers(each)
    }
    if users != {site.target}:
        return f"{path} feeds something else too"
    axes = rank(site, modules) or 2
    axis = getattr(norm, "axis", 1) % axes
    if axis != (axes - 1 if isinstance(layer, nn.Linear) else 1):
        return f"it normalizes another axis than that of the channels of {path}"
    return ""


def _unscalable(path: str, modules: Modules) -> str:
    """Why the weights of a layer cannot be scaled for this layer alone."""
    layer = modules[path]
    if parametrize.is_parametrized(layer) or layer._parameters.get("weight") is None:
        return f"the weight of {path} is computed (parametrized)"
    mine = [one for one in layer._parameters.values() if one is not None]
    for other, module in modules.items():
        if module is not layer and any(o is m for o in module._parameters.values() for m in mine):
            return f"{path} shares its parameters with {other or 'the model'}"
    return ""


def folded(layer: nn.Linear | _ConvNd, norm: _NormBase) -> tuple[Tensor, Tensor]:
    """Weight and bias with which the layer computes what both do in evaluation; in float64 first.

    :math:`W' = s W`, :math:`b' = s (b - mean) + beta`, with
    :math:`s = gamma / sqrt(var + eps)` for each output channel.
    """
    mean, var = (cast(Tensor, one).double() for one in (norm.running_mean, norm.running_var))
    scale = (var + norm.eps).rsqrt()
    gamma, beta = norm._parameters.get("weight"), norm._parameters.get("bias")
    scale = scale if gamma is None else scale * gamma.detach().double()
    weight = layer.weight.detach().double()
    if isinstance(layer, _ConvTransposeNd):  # (in, out / groups, ...), the groups along in
        grouped = weight.view(layer.groups, -1, *weight.shape[1:])
        shape = (layer.groups, 1, -1, *[1] * (weight.dim() - 2))
        weight = (grouped * scale.view(shape)).view_as(weight)
    else:
        weight = weight * scale.view(-1, *[1] * (weight.dim() - 1))
    before = 0 if layer.bias is None else layer.bias.detach().double()
    bias = scale * (before - mean)
    bias = bias if beta is None else bias + beta.detach().double()
    return weight.to(layer.weight.dtype), bias.to(layer.weight.dtype)


def others(
    readings: list[Reading], modules: Modules, norms: Iterator[str]
) -> Iterator[tuple[str, str]]:
    """What normalizes and is no batch norm to take out, with the reason."""
    for path in norms:
        name = type(modules[path]).__name__
        if "batchnorm" in name.lower():
            yield path, f"{name} is a class of its own, no batch norm of torch's or ours"
        else:
            yield path, f"{name} is no batch norm: it normalizes each example by itself"
    calls = {
        node.meta.get("root", "")
        for reading in readings
        for graph in reading.graphs
        for node in called_as_functions(graph)
    }
    for root in sorted(calls):
        yield root, "its forward calls batch_norm as a function: there is no module to take out"
