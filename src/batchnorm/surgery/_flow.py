"""Where a value goes in a graph: to an activation, a norm, out of the model; and its rank."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn.modules import activation, dropout, pooling

from batchnorm.graph import Reading, consumers, is_norm, operation

Modules = Mapping[str, nn.Module]

_NOT_HIDDEN = {"Softmax", "Softmax2d", "Softmin", "LogSoftmax", "MultiheadAttention"}
_ACTIVATIONS = tuple(
    getattr(activation, name) for name in activation.__all__ if name not in _NOT_HIDDEN
)
_ACTIVATES = {kind.__name__.lower() for kind in _ACTIVATIONS} | {
    *("leaky_relu", "log_sigmoid", "clamp", "clamp_min", "clip")
}
# Activations that also serve as the last step of a model, where what they take is its answer.
_ANSWERS = {"sigmoid", "tanh", "hardsigmoid", "hardtanh", "softplus", "logsigmoid", "clamp", "clip"}
_NORMS = {
    *("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "normalize"),
    "local_response_norm",
}
_KEEPS = {"contiguous", "clone", "detach", "float", "to", "stochastic_depth"}
_RESHAPES = {
    *("view", "reshape", "flatten", "unflatten", "permute", "transpose", "squeeze", "unsqueeze"),
    *("movedim", "swapaxes", "pixel_shuffle"),
}
_KEEPS_RANK = (nn.Linear, nn.Identity, dropout._DropoutNd, *_ACTIVATIONS)
_RANK_KEPT = {
    *("add", "sub", "mul", "truediv", "div", "iadd", "imul", "neg", "exp", "sin", "pow", "cat"),
    *("concat", "transpose", "permute", "roll", "dropout", "layer_norm"),
    *(_KEEPS | _ACTIVATES),
}


@dataclass(frozen=True)
class Refusal:
    """Why nothing is inserted; not sure where what follows could not be seen in this reading."""

    reason: str
    sure: bool = True


@dataclass(frozen=True)
class Activated:
    """The values that a layer's output becomes, and whether its axes were moved before."""

    nodes: list[fx.Node]
    name: str
    reshaped: bool


def activated(node: fx.Node, reading: Reading, modules: Modules) -> Activated | Refusal:
    """Follow a layer's output to its activation, through what neither computes nor normalizes."""
    reshaped = False
    while True:
        users = consumers(node)
        found = [user for user in users if is_activation(user, modules)]
        gated = [user for user in users if user not in found and _is_gate(user, node, found)]
        if found and len(found) + len(gated) == len(users):
            name = activation_name(found[0], modules)
            return _hidden(Activated(gated or found, name, reshaped), modules)
        if len(users) != 1 or found:
            if users:
                names = " and ".join(describe(user, modules) for user in users)
                return Refusal(f"its output goes to {names}")
            # In a run this may be a call that torch does not show, as of an autograd.Function.
            return Refusal("no activation follows: its output goes no further", False)
        (user,) = users
        if is_normalization(user, modules):
            return Refusal(f"already followed by a norm, {describe(user, modules)}")
        if user.op == "output" and node.meta["root"]:
            root = node.meta["root"]
            return Refusal(f"its output leaves {root}, and what follows could not be seen", False)
        if user.op == "call_module" and user.target in reading.unseen:
            return Refusal(f"its output goes to {user.target}, which could not be read", False)
        if user.op == "output":
            return Refusal("no activation follows: its output is the model's output")
        if not _passes(user, modules):
            return Refusal(f"no activation follows: its output goes to {describe(user, modules)}")
        reshaped = reshaped or _reshapes(user, modules)
        node = user


def _is_gate(user: fx.Node, node: fx.Node, found: list[fx.Node]) -> bool:
    """Whether it multiplies the value by its own activation, as ``x * torch.sigmoid(x)`` does."""
    return operation(user) in {"mul", "imul"} and any(
        set(user.all_input_nodes) == {node, other} for other in found
    )


def _hidden(found: Activated, modules: Modules) -> Activated | Refusal:
    """Refuse an activation that ends the model: what it takes is the model's answer."""
    ends = found.name in _ANSWERS and all(_ends(node, modules) for node in found.nodes)
    if ends and (root := found.nodes[0].meta["root"]):
        return Refusal(f"{found.name} of its output leaves {root}, perhaps as the answer", False)
    if ends:
        return Refusal(f"not a hidden layer: {found.name} of its output is the model's output")
    return found


def _ends(node: fx.Node, modules: Modules) -> bool:
    return all(
        user.op == "output" or (_passes(user, modules) and _ends(user, modules))
        for user in consumers(node)
    )


def _module(node: fx.Node, modules: Modules) -> nn.Module | None:
    return modules.get(str(node.target)) if node.op == "call_module" else None


def _is_call(node: fx.Node) -> bool:
    return node.op in ("call_function", "call_method")


def is_activation(node: fx.Node, modules: Modules) -> bool:
    """Whether the call is an activation, as a module, a function or a method."""
    if node.op == "call_module":
        return isinstance(_module(node, modules), _ACTIVATIONS)
    return _is_call(node) and operation(node) in _ACTIVATES


def activation_name(node: fx.Node, modules: Modules) -> str:
    """Its name as a function: ``relu`` for nn.ReLU too, and for what derives from it."""
    module = _module(node, modules)
    kinds = [kind for kind in type(module).__mro__ if kind in _ACTIVATIONS]
    return kinds[0].__name__.lower() if kinds else operation(node)


def is_normalization(node: fx.Node, modules: Modules) -> bool:
    """Whether the call normalizes, as a module or a function."""
    module = _module(node, modules)
    return is_norm(module) if module else _is_call(node) and operation(node) in _NORMS


def _passes(node: fx.Node, modules: Modules) -> bool:
    """Whether the call only drops, pools or moves what it takes."""
    if module := _module(node, modules):
        kept = (dropout._DropoutNd, nn.Identity, nn.Flatten, nn.Unflatten)
        return isinstance(module, kept) or _is_pooling(module)
    name = operation(node)
    pools = "pool" in name or "dropout" in name
    packs = isinstance(node.target, type)  # a named tuple of outputs
    return _is_call(node) and (pools or packs or name in _KEEPS or name in _RESHAPES)


def _is_pooling(module: nn.Module) -> bool:
    return any(base.__module__ == pooling.__name__ for base in type(module).__mro__)


def _reshapes(node: fx.Node, modules: Modules) -> bool:
    if module := _module(node, modules):
        return isinstance(module, nn.Flatten | nn.Unflatten)
    return operation(node) in _RESHAPES


def describe(node: fx.Node, modules: Modules) -> str:
    """A consumer in words."""
    if node.op == "output":
        return "the output"
    if module := _module(node, modules):
        return f"{node.target} ({type(module).__name__})"
    return operation(node)


def rank(node: fx.Node, modules: Modules) -> int | None:
    """How many axes the value has, where a run recorded it or the calls before it settle it."""
    if "shape" in node.meta:
        return len(node.meta["shape"])
    if "rank" not in node.meta:
        for each in node.graph.nodes:  # in the order of the calls
            each.meta["rank"] = _rank(each, modules)
    return node.meta["rank"]


def _rank(node: fx.Node, modules: Modules) -> int | None:
    module = _module(node, modules)
    name = type(module).__name__ if module else operation(node)
    if node.op == "get_attr":
        path, _, last = str(node.target).rpartition(".")
        held = getattr(modules.get(path), last, None)
        return held.dim() if isinstance(held, torch.Tensor) else None
    # Parameters are broadcast to what they are added to.
    feeding = [one for one in node.all_input_nodes if one.op != "get_attr"]
    ranks = [one.meta["rank"] for one in feeding or node.all_input_nodes]
    known = max((one for one in ranks if one is not None), default=None)
    if not (module or _is_call(node)):
        return None
    if name not in {"BatchNorm1d", "BatchNormAct1d"} and (dims := re.search(r"([123])d$", name)):
        return int(dims[1]) + 2
    if isinstance(module, nn.Flatten):
        return 2 if (module.start_dim, module.end_dim) == (1, -1) else None
    if name == "flatten":
        start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
        return 2 if start == 1 and len(node.args) < 3 and "end_dim" not in node.kwargs else None
    if name in {"view", "reshape"} and len(node.args) > 1:
        sizes = node.args[1] if isinstance(node.args[1], tuple | list) else node.args[1:]
        return None if len(node.args) == 2 and isinstance(node.args[1], fx.Node) else len(sizes)
    if name == "unsqueeze":
        return known and known + 1
    if module:
        return known if isinstance(module, _KEEPS_RANK) or is_norm(module) else None
    return known if name in _RANK_KEPT else None
