"""Whether a model with modules replaced still goes the way it went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping

from torch import fx, nn

from batchnorm.graph import Reading, is_norm, operation, replace

Read = Callable[[nn.Module], list[Reading]]

LOOKS = (
    "its forward looks at the module itself (isinstance, an attribute such as in_features) and "
    "would go another way with a pair in that place"
)


def disturbing(model: nn.Module, new: Mapping[str, nn.Module], read: Read) -> Collection[str]:
    """The paths in `new` that cannot be replaced without changing what else the model does.

    A forward that asks ``isinstance(layer, nn.Linear)`` skips its activation when it finds a pair.
    """
    if not new or any(reading.unseen for reading in read(model)):
        return ()  # what is not seen cannot be compared
    course = _course(model, read)
    if _course(_tried(model, new), read) == course:
        return ()
    alone = [p for p, m in new.items() if _course(_tried(model, {p: m}), read) != course]
    rest = {path: module for path, module in new.items() if path not in alone}
    return alone if _course(_tried(model, rest), read) == course else new.keys()


def _tried(model: nn.Module, new: Mapping[str, nn.Module]) -> nn.Module:
    return replace(model, {path: nn.Sequential(*pair.children()) for path, pair in new.items()})


def _course(model: nn.Module, read: Read) -> list[Counter[str]]:
    """How often each operation is done, norms left out."""
    modules = dict(model.named_modules())
    return [
        Counter(filter(None, (_name(n, modules) for graph in one.graphs for n in graph.nodes)))
        for one in read(model)
    ]


def _name(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    if node.op != "call_module":
        return operation(node) if node.op.startswith("call") else ""
    module = modules.get(str(node.target))
    return "" if module is None or is_norm(module) else type(module).__name__
