"""Whether a forward that nothing could follow may look at the modules that it calls."""

from __future__ import annotations

from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

from torch import nn

MAY_LOOK = (
    "the forward of {} may look at the module itself (isinstance, an attribute such as "
    "in_features), and could not be followed: give an example, if none was given"
)


def may_look(caller: nn.Module, layer: nn.Module) -> bool:
    """Whether the caller's code names a class or an attribute of the layer that a pair has not."""
    kinds = {kind.__name__ for kind in type(layer).__mro__}
    kinds -= {kind.__name__ for kind in nn.Sequential.__mro__}
    attributes = {name for name in dir(layer) if not name.startswith("_")} - set(dir(nn.Sequential))
    forward = getattr(caller.forward, "__func__", caller.forward)
    return any(name in kinds | attributes for name in _named(forward, type(caller), set()))


def _named(function: Any, kind: type[nn.Module], seen: set[Any]) -> Iterator[str]:
    """The names and strings in a function, and in what it calls of the user's, methods too."""
    if not isinstance(function, FunctionType) or function in seen:
        return
    if function.__module__.partition(".")[0] == "torch":
        return
    seen.add(function)
    for name in _words(function.__code__):
        yield name
        value = function.__globals__.get(name)
        yield from _classes(value)
        yield from _named(value, kind, seen)
        yield from _named(getattr(kind, name, None), kind, seen)


def _words(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    pending: list[Any] = [code.co_consts]
    while pending:
        match pending.pop():
            case str() as text:
                yield text
            case tuple() | frozenset() as several:
                pending += several
            case CodeType() as inner:
                yield from _words(inner)
            case _:
                pass


def _classes(value: Any) -> Iterator[str]:
    """The names of a class that has another one here, or of several: ``KINDS = (nn.Linear,)``."""
    several = value if isinstance(value, tuple | list | set | frozenset) else (value,)
    yield from (one.__name__ for one in several if isinstance(one, type))
