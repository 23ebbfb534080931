"""Runs of a scratch copy of a model on the caller's example: who feeds whom, and what fails."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from batchnorm.copies import scratch, undisturbed
from batchnorm.graph import Reading, is_read_as_one

Call = tuple[tuple[Any, ...], dict[str, Any]]


def call_of(example: Any) -> Call:
    """The call that an example stands for: of one value, a tuple of them, or a dict by name."""
    if isinstance(example, dict):
        return (), example
    return (example if isinstance(example, tuple) else (example,)), {}


def _fresh(call: Call) -> Call:
    """The same call on copies of its tensors, since a model may change what it is given."""
    copies: dict[int, Tensor] = {}

    def copied(value: Any) -> Any:
        if isinstance(value, Tensor):
            return copies.setdefault(id(value), value.clone())
        return value

    return pytree.tree_map(copied, call)


def given(model: nn.Module, call: Call) -> set[str]:
    """The arguments of ``forward`` that the call passes; none where they do not fit."""
    try:
        bound = inspect.signature(model.forward).bind(*call[0], **call[1])
    except (TypeError, ValueError):
        return set()
    return set(bound.arguments)


def record(model: nn.Module, call: Call, *, training: bool) -> Reading:
    """Run a scratch copy once, and return who fed whom in that run, with the shapes of the values.

    Unlike a trace this follows control flow that depends on data, along the path the call takes.
    """
    copied, call = scratch(model).train(training), _fresh(call)
    recorder = _Recorder(copied, call)
    for path, module in copied.named_modules():
        if is_read_as_one(module) and not any(_inside_one(copied, path)):
            recorder.watch(path, module)
    with undisturbed(model), recorder:
        result = copied(*call[0], **call[1])
    recorder.graph.output(recorder.names(list(_tensors(result, set())))).meta["root"] = ""
    return Reading([recorder.graph], {}, training)


def _inside_one(model: nn.Module, path: str) -> list[str]:
    """The paths above that are read as one, outermost first."""
    names = path.split(".")[:-1]
    above = [".".join(names[: depth + 1]) for depth in range(len(names))]
    return [path for path in above if is_read_as_one(model.get_submodule(path))]


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """The tensors in a value, whatever objects they are in."""
    if id(value) in seen or isinstance(value, nn.Module | type):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
        return
    parts = list(getattr(value, "__dict__", {}).values())
    parts += [getattr(value, name, None) for name in getattr(type(value), "__slots__", ())]
    if isinstance(value, Mapping):
        parts += value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        parts += value
    for part in parts:
        yield from _tensors(part, seen)


class _Recorder(TorchFunctionMode):
    """Makes a torch.fx graph of what is called, one node for a layer or a function of torch's."""

    def __init__(self, model: nn.Module, call: Call) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.parameters = {id(value): name for name, value in model.named_parameters()}
        self.nodes: dict[int, fx.Node] = {}  # of tensors, by id
        self.alive: list[Tensor] = []  # so that no id is used again
        self.inside: list[Any] = []  # the calls of modules that are going on
        for value in pytree.tree_leaves(call):
            if isinstance(value, Tensor):
                self.note(self.graph.placeholder(f"input_{len(self.nodes)}"), value)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = self.names((args, kwargs)) if not self.inside else None
        result = func(*args, **kwargs)
        if given and any(isinstance(value, Tensor) for value in pytree.tree_leaves(result)):
            self.note(self.graph.call_function(func, *given), result)
        return result

    def watch(self, path: str, module: nn.Module) -> None:
        """Make one node of each call of the module, whatever it does inside."""
        if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
            return

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.inside.append(self.names((args, kwargs)))

        def leave(module: nn.Module, args: Any, result: Any) -> None:
            given = self.inside.pop()
            if not self.inside:
                self.note(self.graph.create_node("call_module", path, *given), result)

        # First in and last out: what the module's own hooks do belongs to the module.
        module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True)
        module.register_forward_hook(leave)

    def names(self, values: Any) -> Any:
        """The same values, with nodes in place of tensors; None where the origin is unseen."""
        return pytree.tree_map(self._name, values)

    def _name(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value if isinstance(value, bool | int | float | str) else None
        if id(value) not in self.nodes and id(value) in self.parameters:
            self.note(self.graph.create_node("get_attr", self.parameters[id(value)]), value)
        return self.nodes.get(id(value))

    def note(self, node: fx.Node, result: Any) -> None:
        """The tensors of the result come from this node, also where they came from another."""
        node.meta["root"] = ""
        for value in pytree.tree_leaves(result):
            if isinstance(value, Tensor):
                node.meta.setdefault("shape", tuple(value.shape))
                self.nodes[id(value)] = node
                self.alive.append(value)


def outputs(model: nn.Module, call: Call) -> list[Tensor]:
    """All tensors that a scratch copy gives in evaluation mode."""
    copied, fresh = scratch(model).eval(), _fresh(call)
    with undisturbed(model):
        return list(_tensors(copied(*fresh[0], **fresh[1]), set()))


def deviation(old: nn.Module, new: nn.Module, call: Call) -> float:
    """The greatest difference of two models' outputs on one call, in evaluation mode."""
    pairs = zip(outputs(old, call), outputs(new, call), strict=True)
    apart = [(a.double() - b.double()).abs().max().item() for a, b in pairs if a.numel()]
    return max(apart, default=0.0)


def verify(model: nn.Module, call: Call, places: list[str]) -> None:
    """Run a scratch copy of the new model in evaluation mode.

    Raises:
        RuntimeError: the model raises; the message names the place that was being run.
    """
    copied, call = scratch(model).eval(), _fresh(call)
    running: list[str] = []

    def enter(path: str) -> Callable[..., None]:
        def hook(*call: Any) -> None:
            running.append(path)

        return hook

    def leave(*call: Any) -> None:
        running.pop()

    for path in places:
        copied.get_submodule(path).register_forward_pre_hook(enter(path))
        copied.get_submodule(path).register_forward_hook(leave)
    try:
        with undisturbed(model):
            copied(*call[0], **call[1])
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"in {running[-1]!r}" if running else f"outside of them, at {frame.filename}"
        where += "" if running else f":{frame.lineno}"
        raise RuntimeError(
            f"the model with batch norm at {', '.join(places)} raises on the example, {where} "
            f"({type(error).__name__}: {error}); the model as given runs"
        ) from error
