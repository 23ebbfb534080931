"""What an option takes; one that a constructor has not: which was meant, or where it lives."""

from __future__ import annotations

import difflib
import functools
import inspect
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
_LAZY = "a lazy layer takes it from its first input"
ELSEWHERE = {
    **dict.fromkeys(("activation", "inplace"), _ACT),
    **dict.fromkeys(("r_max", "d_max", "renorm"), _RENORM),
    **dict.fromkeys(("domains", "own_affine"), _DOMAIN),
    **dict.fromkeys(("statistics", "update"), _SET),
    **dict.fromkeys(("mask", "residual", "domain"), _GIVEN),
    "num_features": _LAZY,
}


def knowing_its_options(init: Callable[P, None]) -> Callable[P, None]:
    """A constructor that says of an option which it has not what it has.

    Its signature stays as it is, for editors, type checkers and `inspect`.
    """
    return _checked(init, _named(init))


def knowing_more_options(
    inner: Callable[..., None],
) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """As `knowing_its_options`, of a constructor that hands options on to another one.

    Only what the other takes by keyword is handed on.
    """
    code = inspect.unwrap(inner).__code__
    handed = _named(inner)[code.co_argcount - 1 :]

    def decorator(init: Callable[P, None]) -> Callable[P, None]:
        return _checked(init, tuple(dict.fromkeys((*_named(init), *handed))))

    return decorator


def _named(init: Callable[..., None]) -> tuple[str, ...]:
    code = inspect.unwrap(init).__code__
    return code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]


def _checked(init: Callable[P, None], known: Sequence[str]) -> Callable[P, None]:
    @functools.wraps(init)
    def checked(*args: P.args, **options: P.kwargs) -> None:
        kind = type(args[0]).__name__
        for name in options:
            if name not in known:
                raise _unknown(kind, name, known)
        try:
            init(*args, **options)
        except TypeError as error:
            here = error.__traceback__
            if here is None or here.tb_next is not None:  # raised inside
                raise
            told = str(error).replace(init.__qualname__, f"{kind}.__init__")
            raise TypeError(f"{told}; expected {', '.join(known)}") from None

    return checked


def _unknown(kind: str, name: str, known: Sequence[str]) -> Any:
    hint = "" if difflib.get_close_matches(name, known, 1, 0.9) else ELSEWHERE.get(name, "")
    if close := difflib.get_close_matches(name, known, 1, 0.5):
        hint = hint or f"did you mean {close[0]}?"
    return TypeError(
        f"{kind} has no option {name!r}{': ' if hint else ''}{hint}; expected {', '.join(known)}"
    )
