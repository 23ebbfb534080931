"""Whether a model with modules replaced still goes the way it went."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from torch import fx, nn

from batchnorm.graph import Reading, replace

See = Callable[[nn.Module], list[Reading]]

ANOTHER_WAY = (
    "its forward looks at the module itself (isinstance, an attribute such as in_features) and "
    "would go another way with a pair in that place"
)


class Paired(Protocol):
    """What is to stand at a path, made around a stand-in for the norm."""

    def pair(self, norm: nn.Module) -> nn.Module: ...


class _StandIn(nn.Identity):
    """In the place of a norm, so that every value stays what it was."""


def disturbing(
    model: nn.Module, planned: Mapping[str, Paired], readings: list[Reading], see: See
) -> list[str]:
    """The planned paths with whose pairs the model would not do all that it does.

    A forward that asks ``isinstance(layer, nn.Linear)`` skips its activation when it finds a pair.

    Args:
        model: as it is.
        planned: what is to stand at each path.
        readings: what `see` saw of the model as it is.
        see: traces and runs, which may raise.
    """
    expected = _course(model, readings, planned, ())

    def same(paths: Collection[str]) -> bool:
        pairs = {path: planned[path].pair(_StandIn()) for path in paths}
        tried = replace(model, pairs)
        try:
            return _course(tried, see(tried), planned, paths) == expected
        except Exception:  # a forward may raise anything where a pair has not what it asks for
            return False

    def among(paths: list[str]) -> list[str]:
        if not paths or same(paths):
            return []
        half = len(paths) // 2
        return (among(paths[:half]) + among(paths[half:]) if half else []) or paths

    alone = among(list(planned))
    rest = [path for path in planned if path not in alone]
    return alone if not alone or same(rest) else list(planned)


def _course(
    model: nn.Module, readings: list[Reading], planned: Collection[str], paths: Collection[str]
) -> list[Any]:
    """All calls in order, by the names that they have without pairs."""
    modules = dict(model.named_modules())
    return [
        [
            _calls(graph, modules, paths)
            for graph in reading.graphs
            if next(iter(graph.nodes)).meta["root"] not in planned  # the pair by itself
        ]
        for reading in readings
    ]


def _calls(
    graph: fx.Graph, modules: Mapping[str, nn.Module], paths: Collection[str]
) -> list[tuple[str, str]]:
    """What is called, and on which values, each counted from the first."""
    numbers: dict[fx.Node, Any] = {}
    found: list[tuple[str, str]] = []
    for node in graph.nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, _StandIn):
            taken = node.all_input_nodes  # none where the run did not show where it is from
            numbers[node] = numbers[taken[0]] if taken else None
            continue
        numbers[node] = f"%{len(found)}"
        name = _without(str(node.target), paths) if module else f"{node.op} {node.target}"
        given = fx.map_arg([*node.args, *node.kwargs.values()], numbers.__getitem__)
        found.append((name, str(given)))
    return found


def _without(path: str, paths: Collection[str]) -> str:
    """The path that a module had before pairs were put at some."""
    names: list[str] = []
    in_pair = False
    for name in path.split("."):
        names += [] if in_pair else [name]
        in_pair = not in_pair and ".".join(names) in paths
    return ".".join(names)
