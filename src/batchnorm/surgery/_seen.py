"""What a verb is given, checked; and the model as every way of reading it saw it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from batchnorm.functional._check_kinds import check_module
from batchnorm.graph import Reading, read
from batchnorm.surgery._recording import Call, given, record


def check_model(verb: str, model: Any) -> None:
    """Refuse what is no model, and what is wrapped around one.

    Raises:
        TypeError: it says which, and what to do.
    """
    check_module(verb, model)
    wrapped = isinstance(model, DataParallel | DistributedDataParallel | torch.jit.ScriptModule)
    if wrapped or hasattr(model, "_orig_mod"):
        raise TypeError(
            f"{verb} takes the model itself; got it as {type(model).__name__}, which could not be "
            f"edited. {verb.capitalize()} first, then wrap or compile the new model"
        )


def seen(model: nn.Module, call: Call | None) -> list[Reading]:
    """As :func:`see`.

    Raises:
        ValueError: the model cannot run the example.
    """
    if call is None:
        return see(model, call)
    with explaining(model, call):
        return see(model, call)


@contextmanager
def explaining(model: nn.Module, call: Call) -> Generator[None]:
    """Inside, an error is one of the example: the model as it is cannot run it.

    Raises:
        ValueError: it says so, and what to give.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"example (={_describe(call)}) does not run through {type(model).__name__} as it is, "
            f"before anything is changed ({type(error).__name__}: {error}); give what the model "
            "is called with: a value, a tuple of them, or a dict by name"
        ) from error


def see(model: nn.Module, call: Call | None) -> list[Reading]:
    """Traces in training and in evaluation mode, then runs on the example.

    The run in training mode is the last, where what was traced leaves something to see; some
    models cannot do it: they want targets in training, or more than one example.
    """
    readings = read(model, given=given(model, call) if call else ())
    if call is not None:
        readings.append(record(model, call, training=False))
        if readings[0].unseen:
            with suppress(Exception):
                readings.append(record(model, call, training=True))
    return readings


def _describe(call: Call) -> str:
    named = [*((None, value) for value in call[0]), *call[1].items()]
    shown = [
        f"a tensor of shape {tuple(value.shape)}"
        if isinstance(value, Tensor)
        else f"{type(value).__name__} {str(value)[:40]}"
        for _, value in named
    ]
    names = [f"{name}: " if name else "" for name, _ in named]
    return ", ".join(name + text for name, text in zip(names, shown, strict=True)) or "no argument"
