"""Where batch norm goes in a network, and the network with it there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from torch import nn

from batchnorm.graph import Reading, inside, replace
from batchnorm.surgery._changes import Changes
from batchnorm.surgery._course import ANOTHER_WAY, disturbing
from batchnorm.surgery._flow import Modules, Refusal
from batchnorm.surgery._insertion import Insertion, insertion, mark
from batchnorm.surgery._looks import MAY_LOOK, may_look
from batchnorm.surgery._places import layers, place
from batchnorm.surgery._recording import call_of, verify
from batchnorm.surgery._seen import check_model, see, seen
from batchnorm.surgery.insert import Placement


def inserted(model: nn.Module, placement: Placement, example: Any) -> Changes:
    """As :func:`batchnorm.surgery.insert` says."""
    _check(model, placement)
    call = None if example is None else call_of(example)
    readings = seen(model, call)
    modules = dict(model.named_modules())
    planned, left = _planned(model, readings, modules, placement)
    _leave(_unfollowed(planned, readings, modules), planned, left)
    apart = disturbing(model, planned, readings, lambda model: see(model, call))
    _leave(dict.fromkeys(apart, ANOTHER_WAY), planned, left)
    result = replace(model, {path: one.pair(one.norm) for path, one in planned.items()})
    for path, one in planned.items():
        mark(result.get_submodule(path), one)
        if path == one.path and not one.bias:
            result.get_submodule(f"{path}.0").register_parameter("bias", None)
    if call and planned:
        verify(result, call, list(planned))
    left |= {} if call else _unread(readings)
    changed = [(path, _told(path, one, left)) for path, one in planned.items()]
    return Changes(result, changed, list(left.items()))


def _check(model: nn.Module, placement: str) -> None:
    check_model("insert", model)
    if placement not in get_args(Placement):
        raise ValueError(
            f"placement is {placement!r}; expected 'before' (batch norm on z, before the "
            "activation) or 'after' (on a, after it)"
        )


def _planned(
    model: nn.Module, readings: list[Reading], modules: Modules, placement: Placement
) -> tuple[dict[str, Insertion], dict[str, str]]:
    """What to insert, by the path where the pair goes; why nothing, by the layer's path."""
    claims: dict[str, list[Insertion]] = {}
    left: dict[str, str] = {}
    for path, layer in layers(model):
        found = place(path, layer, readings, modules, placement)
        one = found if isinstance(found, Refusal) else insertion(path, layer, found, modules)
        if isinstance(one, Refusal):
            left[path] = one.reason
        else:
            claims.setdefault(one.place.path, []).append(one)
    for several in claims.values():
        if len(several) > 1:
            names = " and ".join(one.path for one in several)
            reason = f"the place after {several[0].place.activation} is that of {names}, "
            reason += "and one batch norm would mix their statistics"
            left |= {one.path: reason for one in several}
    return {path: ones[0] for path, ones in claims.items() if len(ones) == 1}, left


def _unfollowed(
    planned: Mapping[str, Insertion], readings: list[Reading], modules: Modules
) -> dict[str, str]:
    """Which planned paths are left alone, since who calls them was not followed in some mode."""
    callers: list[str] = []
    for training in (True, False):
        unseen = [reading.unseen for reading in readings if reading.training == training]
        callers += unseen[0] if all(unseen) else []
    return {
        path: MAY_LOOK.format(type(modules[caller]).__name__)
        for path in planned
        for caller in callers
        if inside(path, caller) and may_look(modules[caller], modules[path])
    }


def _leave(paths: Mapping[str, str], planned: dict[str, Insertion], left: dict[str, str]) -> None:
    for path, reason in paths.items():
        one = planned.pop(path)
        left[one.path] = reason if path == one.path else f"at {path}: {reason}"


def _told(path: str, one: Insertion, left: dict[str, str]) -> str:
    """What was done at a path, and why nothing else was; each path is told of once."""
    reason = left.pop(path, "")
    return f"{one.what}; otherwise left alone, {reason}" if reason else one.what


def _unread(readings: list[Reading]) -> dict[str, str]:
    """What torch.fx could not follow."""
    return {path: why for one in readings for path, why in one.unseen.items()}
