"""A forward that bears its class's name: Python's own errors of a call tell it."""

from __future__ import annotations

from functools import cache
from types import FunctionType
from typing import Any


@cache
def ours(kind: type) -> bool:
    """Whether a layer's class is the package's own."""
    return kind.__module__.partition(".")[0] == __name__.partition(".")[0]


def name_forward(kind: Any) -> None:
    """Give a class of the package a forward named after it, in the place of an inherited one.

    It is the same code. To look at the arguments instead would cost each call.
    """
    shared = kind.forward
    name = f"{kind.__qualname__}.forward"
    if not ours(kind) or shared.__qualname__ == name:
        return
    own = FunctionType(
        shared.__code__, shared.__globals__, "forward", shared.__defaults__, shared.__closure__
    )
    own.__kwdefaults__, own.__annotations__ = shared.__kwdefaults__, shared.__annotations__
    own.__doc__, own.__module__, own.__qualname__ = shared.__doc__, shared.__module__, name
    kind.forward = own
