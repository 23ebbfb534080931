"""For what a kernel is compiled: a constant of its loops, which Numba sees as a type.

A question asked for every vector costs as much as the vector, and no constant comes through a
compiled function's arguments, but types do. Kernels are for one bend each, with a residual or
without: compiling one for all would take twice as long, and few networks have all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numba import types
from numba.extending import models, register_model, typeof_impl

FLAT, SLOPED, PLAIN = "flat", "sloped", "plain"  # below zero: nothing; a slope; as above
GENERAL = "general"  # any activation, residual and mask, which is asked when the kernel runs
_WORDS = {
    FLAT: "ReLU",
    PLAIN: "no activation",
    SLOPED: "leaky ReLU",
    GENERAL: "any activation and mask",
}


@dataclass(frozen=True)
class Variant:
    """Which kernel.

    Attributes:
        direction: "forward", "backward", or "recover" where x is the output.
        planar: whether channels lie in segments.
        bend: `FLAT`, `SLOPED`, `PLAIN` or `GENERAL`.
        residual: whether there is one, in kernels for a bend.
    """

    direction: str
    planar: bool
    bend: str
    residual: bool = False

    def __str__(self) -> str:
        recover = self.direction == "recover"
        words = "backward from the output" if recover else self.direction
        words += ", NCHW, " if self.planar else ", channels last, "
        words += "ELU" if recover and self.bend == GENERAL else _WORDS[self.bend]
        return words + " after a residual" * self.residual


class Kind(types.Dummy):
    """A variant as a type.

    Attributes:
        variant: which.
    """

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        super().__init__(f"kind({variant!r})")


register_model(Kind)(models.OpaqueModel)


@typeof_impl.register(Variant)
def _typeof(value: Variant, context: Any) -> Kind:
    return Kind(value)


def bend_of(slope: float) -> str:
    """Which bend has that slope below zero."""
    return {0.0: FLAT, 1.0: PLAIN}.get(slope, SLOPED)


def _variants() -> list[Variant]:
    bends = FLAT, PLAIN, SLOPED
    found = []
    for planar in (True, False):
        for direction in ("forward", "backward"):
            found += [Variant(direction, planar, bend) for bend in (*bends, GENERAL)]
            found += [Variant(direction, planar, bend, True) for bend in bends]
        found += [Variant("recover", planar, bend) for bend in (PLAIN, SLOPED, GENERAL)]
    return found


VARIANTS = tuple(_variants())
USUAL = tuple(
    each
    for each in VARIANTS
    if each.bend in (FLAT, PLAIN) and not each.residual and each.direction != "recover"
)
