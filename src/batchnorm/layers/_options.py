"""What an option takes; one that a constructor has not: which was meant, or where it lives."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

from batchnorm.functional._check_kinds import check_eps, check_flag, check_share, check_switch

P = ParamSpec("P")

# Of attributes, whenever they are set; those not named here are looked at by the call.
CHECKS: dict[str, Callable[[str, Any], None]] = {
    "eps": check_eps,
    "momentum": check_share,
    "affine": check_flag,
    "track_running_stats": check_flag,
    "update": check_switch,
    "bias_correction": check_switch,
    "inplace": check_switch,
}

_ACT = "BatchNormAct1d, 2d and 3d have it"
_RENORM = "BatchRenorm1d, 2d and 3d have r_max and d_max"
_DOMAIN = "DomainBatchNorm1d, 2d and 3d have it"
_SET = "it is an attribute, to be set on the layer, or by batchnorm.switches for a block"
_GIVEN = "it is given to the layer's call"
ELSEWHERE = {
    **dict.fromkeys(("activation", "inplace"), _ACT),
    **dict.fromkeys(("r_max", "d_max", "renorm"), _RENORM),
    **dict.fromkeys(("domains", "own_affine"), _DOMAIN),
    **dict.fromkeys(("statistics", "update"), _SET),
    **dict.fromkeys(("mask", "residual", "domain"), _GIVEN),
}


def knowing_its_options(init: Callable[P, None]) -> Callable[P, None]:
    """A constructor that says of an option which it has not what it has.

    Its signature stays as it is, for editors, type checkers and `inspect`.
    """
    code = init.__code__
    known = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]

    @functools.wraps(init)
    def checked(*args: P.args, **options: P.kwargs) -> None:
        for name in options:
            if name not in known:
                raise _unknown(type(args[0]).__name__, name, known)
        init(*args, **options)

    return checked


def _unknown(kind: str, name: str, known: Sequence[str]) -> Any:
    hint = ELSEWHERE.get(name, "")
    if close := difflib.get_close_matches(name, known, 1, 0.5):
        hint = hint or f"did you mean {close[0]}?"
    return TypeError(
        f"{kind} has no option {name!r}{': ' if hint else ''}{hint}; expected {', '.join(known)}"
    )
