"""Copies of a model around the same tensors: with modules replaced, or to run and throw away."""

from __future__ import annotations

import contextlib
import copy
import random
import sys
from collections.abc import Generator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree


def replace(model: nn.Module, new: Mapping[str, nn.Module]) -> nn.Module:
    """Return a model of the same class with the modules at these paths replaced.

    All modules of the result are new objects; parameters and buffers are the argument's own. A
    module that stands at several paths, or in a plain list of the user's, is replaced wherever it
    stands. A new module may hold the one it replaces (``nn.Sequential(old, norm)``); it becomes
    part of the result, and a copy of ``old`` takes that place.

    Args:
        model: left as it is.
        new: the new module for each path, as ``model.named_modules()`` spells it.

    Raises:
        AttributeError: there is no module at a path.
        RuntimeError: the model has a ``__deepcopy__`` that does not use its memo.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> other = replace(model, {"1": nn.Tanh()})
        >>> other[1], other[0] is model[0], other[0].weight is model[0].weight
        (Tanh(), False, True)
    """
    old = {path: model.get_submodule(path) for path in new}
    memo = _memo(model, own_state=False)
    memo.update({id(old[path]): module for path, module in new.items()})
    result = _deepcopy(model, memo)
    for path, module in new.items():
        for parent in module.modules():
            for name, child in parent.named_children():
                if child is old[path]:
                    del memo[id(child)]
                    setattr(parent, name, copy.deepcopy(child, memo))
                    memo[id(child)] = module
    for path, module in new.items():
        if module not in set(result.modules()):
            raise RuntimeError(
                f"{type(model).__name__} could not be copied with {path!r} replaced: a "
                "__deepcopy__ in it does not use the memo it is given; let it pass the memo on"
            )
    return result


def scratch(model: nn.Module, *, hooks: bool = True) -> nn.Module:
    """Return a copy to run or trace: it shares the parameters, and owns all other state.

    Args:
        model: left as it is.
        hooks: whether the copy has the hooks of the model's modules.
    """
    result = _deepcopy(model, _memo(model, own_state=True))
    for module in result.modules() if not hooks else ():
        for name, value in vars(module).items():
            if "hooks" in name and isinstance(value, dict):
                value.clear()
    return result


def _memo(model: nn.Module, *, own_state: bool) -> dict[int, Any]:
    """A memo for deepcopy in which the model's tensors stand for themselves."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            # A copy of TorchScript would have tensors of its own, so the module itself is shared.
            memo |= {} if own_state else {id(module): module}
            continue
        for value in _held(module):
            if isinstance(value, Tensor) and own_state and is_lazy(value):
                make: Any = type(value)  # a run gives it memory; torch cannot copy its lazy buffers
                memo[id(value)] = make(value.requires_grad, value.device, value.dtype)
            elif isinstance(value, Tensor):
                own = own_state and not isinstance(value, nn.Parameter)
                memo[id(value)] = value.detach().clone() if own else value
    return memo


def _held(module: nn.Module) -> list[Any]:
    """What a module holds besides other modules, looked up in its lists and dicts too."""
    return pytree.tree_leaves({k: v for k, v in vars(module).items() if k != "_modules"})


def _deepcopy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Deepcopy; what a module holds that cannot be copied (a lock, a socket) is shared."""
    given = dict(memo)
    try:
        return copy.deepcopy(model, memo)
    except Exception:
        memo.clear()
        memo.update(given)
    for value in (value for module in model.modules() for value in _held(module)):
        if not isinstance(value, nn.Module) and id(value) not in memo:
            try:
                copy.deepcopy(value, dict(memo))
            except Exception:
                memo[id(value)] = value
    return copy.deepcopy(model, memo)


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Generator[None]:
    """No gradients inside; the random numbers of torch, Python and NumPy go on as before."""
    devices = {value.device for value in model.parameters() if value.device.type == "cuda"}
    numpy = sys.modules.get("numpy")
    ours, theirs = random.getstate(), numpy and numpy.random.get_state()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(ours)
        if numpy:
            numpy.random.set_state(theirs)
