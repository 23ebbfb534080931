"""For each layer the place where a batch norm goes, or the reason why none does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from batchnorm.graph import Reading, consumers, inside, is_read_as_one
from batchnorm.surgery._flow import (
    Modules,
    Refusal,
    activated,
    describe,
    is_normalization,
    rank,
)

_NORMED_WEIGHTS = {
    "WeightNorm": "weight norm",
    "_WeightNorm": "weight norm",
    "SpectralNorm": "spectral norm",
    "_SpectralNorm": "spectral norm",
    "_Orthogonal": "an orthogonal parametrization",
}


@dataclass(frozen=True)
class Place:
    """The module that a pair with the batch norm replaces.

    Attributes:
        path: of that module.
        first: the batch norm goes in front of the module, not behind it.
        activation: its name.
        rank: how many axes the normalized values have, where that is known.
        root: the part that was read without its caller, "" where the whole was read.
    """

    path: str
    first: bool
    activation: str
    rank: int | None
    root: str


def layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The Linear and Conv layers of the model, and what stands for some: quantized, TorchScript."""
    whole: list[str] = []
    for path, module in model.named_modules():
        if any(inside(path, root) for root in whole):
            continue
        name = type(module).__name__
        quantized = "quantized" in type(module).__module__ and ("Linear" in name or "Conv" in name)
        if quantized or isinstance(module, torch.jit.ScriptModule):
            whole.append(path)
        if isinstance(module, nn.Linear | _ConvNd) or path in whole:
            yield path, module


def place(
    path: str, layer: nn.Module, readings: list[Reading], modules: Modules, placement: str
) -> Place | Refusal:
    """Decide for one layer, from every reading that saw it called."""
    if reason := _unfit(layer) or pinned(path, readings) or _uncalled(path, readings, modules):
        return Refusal(reason)
    decide = _before if placement == "before" else _after
    found = [
        decide(site, reading, readings, modules)
        for reading in readings
        for site in reading.sites(path)
    ]
    refusals = [one for one in found if isinstance(one, Refusal)]
    places = [one for one in found if isinstance(one, Place)]
    sure = [refusal for refusal in refusals if refusal.sure]
    if sure or not places:
        return (sure or refusals)[0]
    if len({(one.path, one.first) for one in places}) > 1:
        return Refusal("its activation feeds different modules in training and in evaluation")
    (there,) = {one.path for one in places}
    if any(each.sites(there) and not each.sites(path) for each in readings if not each.unseen):
        takes = "takes" if places[0].first else "gives"
        return Refusal(f"{places[0].activation} of its output is not all that {there} {takes}")
    # The whole tells more than a part of it, and a run, which is read last, more than a trace.
    return max(reversed(places), key=lambda one: (not one.root, one.rank is not None))


def _before(
    site: fx.Node, reading: Reading, readings: list[Reading], modules: Modules
) -> Place | Refusal:
    if extra := extra_arguments(site):
        return Refusal(extra)
    found = activated(site, reading, modules)
    if isinstance(found, Refusal):
        return found
    return Place(str(site.target), False, found.name, rank(site, modules), site.meta["root"])


def _after(
    site: fx.Node, reading: Reading, readings: list[Reading], modules: Modules
) -> Place | Refusal:
    found = activated(site, reading, modules)
    if isinstance(found, Refusal):
        return found
    if len(found.nodes) != 1:
        return Refusal("its output goes to several activations")
    if found.name == "glu":
        return Refusal("glu of its output has half as many channels")
    if found.reshaped:
        return Refusal(f"its output is reshaped before {found.name}, which moves the channels")
    (node,) = found.nodes
    norms = [user for user in consumers(node) if is_normalization(user, modules)]
    if norms:
        return Refusal(f"{found.name} is already followed by a norm, {describe(norms[0], modules)}")
    own = node.op == "call_module" and not extra_arguments(node)
    if own and _calls(str(node.target), readings) == 1:
        path = str(node.target)
        return Place(path, False, found.name, rank(node, modules), node.meta["root"])
    return _in_front(node, found.name, readings, modules)


def _in_front(
    node: fx.Node, name: str, readings: list[Reading], modules: Modules
) -> Place | Refusal:
    """The place in front of the one module that takes the activation's value."""
    users, root = consumers(node), node.meta["root"]
    own = node.op == "call_module" and not extra_arguments(node)
    calls = f"called {_calls(str(node.target), readings)} times" if own else ""
    goes = f"{name} is {calls or 'not a module of its own'}, and its value goes to "
    goes += " and ".join(describe(user, modules) for user in users) or "nothing"
    if len(users) == 1 and users[0].op == "output" and root:
        return Refusal(f"{name} of its output leaves {root}, and what follows is unseen", False)
    if len(users) != 1 or users[0].op != "call_module":
        return Refusal(f"{goes}, not straight into one module")
    path = str(users[0].target)
    if (calls := _calls(path, readings)) != 1:
        return Refusal(f"{goes}, which is called {calls} times")
    if reason := extra_arguments(users[0]) or _unmovable(modules[path]) or pinned(path, readings):
        return Refusal(f"{goes}: {reason}")
    return Place(path, True, name, rank(node, modules), root)


def _calls(path: str, readings: list[Reading]) -> int:
    return max(reading.calls(path) for reading in readings)


def extra_arguments(site: fx.Node) -> str:
    """A pair passes one argument on."""
    one = len(site.args) + len(site.kwargs) == 1 and set(site.kwargs) <= {"input"}
    return "" if one else "called with more than its input, which a pair could not pass on"


def _unmovable(module: nn.Module) -> str:
    if isinstance(module, torch.jit.ScriptModule):
        return "compiled TorchScript: insert first, then compile"
    if any(is_lazy(value) for value in module.parameters()):
        return "not initialized yet: run one batch through the model first"
    return ""


def _unfit(layer: nn.Module) -> str:
    """Why a layer of this kind is left alone wherever it stands."""
    if reason := _unmovable(layer):
        return reason
    kind = type(layer)
    if not isinstance(layer, nn.Linear | _ConvNd):
        return "quantized: insert first, then quantize"
    if "forward" in vars(layer) or not kind.forward.__module__.startswith("torch.nn.modules."):
        return f"{kind.__name__} has a forward of its own, so its output may not be z"
    if layer.weight.is_complex():
        return f"its values are complex ({layer.weight.dtype})"
    changers: list[object] = [*layer._forward_pre_hooks.values()]
    if parametrize.is_parametrized(layer):
        changers += cast(nn.Module, layer.parametrizations).modules()
    for changer in changers:
        if name := _NORMED_WEIGHTS.get(type(changer).__name__):
            return f"its weight is under {name}, which batch norm would undo: remove that first"
    return ""


def _uncalled(path: str, readings: list[Reading], modules: Modules) -> str:
    calls = _calls(path, readings)
    if calls > 1:
        return f"called {calls} times, and one batch norm would mix their statistics"
    if calls == 1:
        return ""
    if path == "":
        return "the model is this one layer: no activation follows"
    names = path.split(".")
    above = [".".join(names[:depth]) for depth in range(len(names))]
    for parent in above:
        if parent in modules and is_read_as_one(modules[parent]):
            kind = type(modules[parent]).__name__
            return f"part of {parent or 'the model'}, and {kind} uses its parts in its own way"
    if any(parent in reading.unseen for parent in above for reading in readings):
        return "called where the forward could not be read; give an example, if none was given"
    return "never called in forward"


def pinned(path: str, readings: list[Reading]) -> str:
    """Why the module at `path` must stay at its path; empty where it need not."""
    direct = any(reading.read_directly(path) for reading in readings)
    return "its parameters are used directly, and would get another path" if direct else ""
