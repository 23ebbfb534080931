"""Who feeds whom in a model, and why it could not be seen; `replace` edits modules by path.

torch.fx reads and never rewrites: a traced model has lost its class and its train/eval behavior.
It reads a scratch copy, so that nothing of the caller's is run or changed.
"""

from __future__ import annotations

import inspect
import traceback
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from batchnorm.copies import replace as replace
from batchnorm.copies import scratch, undisturbed

_CONTAINERS = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict)
_READ_AS_ONE = ("torch.nn.modules.", "torch.ao.", "torch.jit.")
# What asks a value for its shape, dtype or device only.
_METADATA = frozenset(
    {"size", "dim", "numel", "ndimension", "stride", "type", "get_device", "len", "is_contiguous"}
    | {"is_floating_point", "element_size", "zeros_like", "ones_like", "empty_like", "full_like"}
    | {"rand_like", "randn_like", "new_zeros", "new_ones", "new_empty", "new_full", "new_tensor"}
)
_ATTRIBUTES = {"shape", "dtype", "device", "ndim", "is_cuda", "requires_grad", "layout"}
_TORCH = str(Path(torch.__file__).parent)


@dataclass(frozen=True)
class Reading:
    """What one way of reading a model saw: in training mode, in evaluation mode, or in a run.

    Nodes are torch.fx's, with the module's path in the whole model as target. A part that was read
    without its caller is a graph of its own; ``node.meta["root"]`` is that part's path, "" for
    the whole. A recorded run has each value's shape in ``node.meta["shape"]``.
    """

    graphs: list[fx.Graph]
    unseen: dict[str, str]  # path of a module whose forward could not be read -> why
    training: bool

    @cached_property
    def _calls(self) -> dict[str, list[fx.Node]]:
        found: dict[str, list[fx.Node]] = {}
        for node in self._nodes("call_module"):
            found.setdefault(str(node.target), []).append(node)
        return found

    @cached_property
    def _parameters(self) -> set[str]:
        return {str(node.target) for node in self._nodes("get_attr")}

    def _nodes(self, op: str) -> list[fx.Node]:
        return [node for graph in self.graphs for node in graph.nodes if node.op == op]

    def sites(self, path: str) -> list[fx.Node]:
        """Where the module at this path is called."""
        return self._calls.get(path, [])

    def calls(self, path: str) -> int:
        """How often the module is called; a caller that was not read may itself be called often."""
        sites = len(self.sites(path))
        callers = [len(self.sites(one)) for one in self.unseen if one and inside(path, one)]
        return max([sites, *callers]) if sites else 0

    def read_directly(self, path: str) -> bool:
        """Whether a forward uses the module's parameters itself (``self.fc.weight``)."""
        return any(inside(name, path) for name in self._parameters)


def inside(path: str, root: str) -> bool:
    """Whether the path is below the root's."""
    return root == "" or path.startswith(f"{root}.")


def consumers(node: fx.Node) -> list[fx.Node]:
    """Who takes a node's value, without those who only ask for its shape, dtype or device."""
    return [user for user in node.users if not _asks_only(user)]


def operation(node: fx.Node) -> str:
    """A call's plain name: ``relu`` for F.relu, torch.relu_ and x.relu() alike."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name.strip("_")


def _asks_only(node: fx.Node) -> bool:
    if node.op not in ("call_method", "call_function"):
        return False
    if operation(node) == "type" and node.args[1:]:
        return False  # x.type(dtype) is a cast
    asked = node.args[1] if node.target is getattr else None
    return operation(node) in _METADATA or asked in _ATTRIBUTES


def is_read_as_one(module: nn.Module) -> bool:
    """Whether a module is one node of a graph: torch's layers, what derives from them, norms."""
    return is_norm(module) or any(
        f"{base.__module__}.".startswith(_READ_AS_ONE) and base not in _CONTAINERS
        for base in type(module).__mro__
    )


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalizes: its class is called a norm, and there are no layers inside."""
    named = any("norm" in base.__name__.lower() for base in type(module).__mro__)
    return named and not any(module.children())


def read(model: nn.Module, *, given: Collection[str] = ()) -> list[Reading]:
    """Trace a model in training and in evaluation mode, each as far as torch.fx can follow.

    A module whose forward cannot be followed is one node where it is called, is named in
    ``unseen`` with the reason, and what it holds is traced by itself.

    Args:
        model: left as it is: a scratch copy is traced.
        given: the arguments of ``forward`` that come from the caller; others keep their defaults.
    """
    readings: list[Reading] = []
    for training in (True, False):
        copied = scratch(model, hooks=False).train(training)
        paths = {module: path for path, module in copied.named_modules()}
        readings.append(Reading([], {}, training))
        with undisturbed(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _trace(copied, paths, given, readings[-1])
    return readings


def _trace(
    module: nn.Module, paths: dict[nn.Module, str], given: Collection[str], reading: Reading
) -> None:
    """Add the module's graph to the reading, and the graphs of the parts that it could not see."""
    if is_read_as_one(module):
        return
    unseen: Collection[nn.Module] = [module]
    if type(module).forward is not nn.Module.forward:  # a ModuleList has none
        tracer = _Tracer()
        try:
            graph = tracer.trace(module, concrete_args=_defaults(module, given))
        except Exception as error:
            tracer.unseen = {module: _why(module, error)}
        else:
            for node in graph.nodes:
                node.meta["root"] = paths[module]
                if node.op == "call_module":
                    node.target = paths[module.get_submodule(str(node.target))]
                elif node.op == "get_attr":
                    node.target = f"{paths[module]}.{node.target}".lstrip(".")
            reading.graphs.append(graph)
        unseen = tracer.unseen
        reading.unseen.update({paths[part]: why for part, why in tracer.unseen.items()})
    for part in unseen:
        for name, child in part.named_children():
            if paths[child] == f"{paths[part]}.{name}".lstrip("."):  # once, where it has aliases
                _trace(child, paths, (), reading)


class _Tracer(fx.Tracer):
    """Follows a model; where a module's forward cannot be followed, takes the call as one node."""

    trace_asserts = True

    def __init__(self) -> None:
        super().__init__()
        self.unseen: dict[nn.Module, str] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m in self.unseen or is_read_as_one(m)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        before, stack = len(self.graph.nodes), self.module_stack.copy()
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:
            if self.is_leaf_module(m, self.path_of_module(m)):
                raise
            for node in reversed(list(self.graph.nodes)[before:]):
                if node.op != "get_attr":  # those the tracer keeps, to use again
                    self.graph.erase_node(node)
            within = set(m.modules())
            self.unseen = {part: why for part, why in self.unseen.items() if part not in within}
            self.unseen[m] = _why(m, error)
            self.module_stack = stack
            return super().call_module(m, forward, args, kwargs)


def _defaults(module: nn.Module, given: Collection[str]) -> dict[str, Any]:
    """The arguments that keep their defaults: traced as a value, ``None`` would not be None."""
    parameters = inspect.signature(type(module).forward).parameters
    return {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.default is not parameter.empty and name not in given
    }


def _why(module: nn.Module, error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((_TORCH, __file__))]
    at = f" at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
    message = str(error).strip().partition("\n")[0]
    return (
        f"torch.fx cannot follow the forward of {type(module).__name__}{at} "
        f"({type(error).__name__}: {message})"
    )
