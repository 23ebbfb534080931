"""The two arms of a comparison: a network with batch norm and without it, of equal weights."""

from torch import Tensor, nn

from batchnorm.data import Data
from batchnorm.surgery import Changes, insert, is_batch_norm, remove
from batchnorm.surgery.insert import Placement


def normed(name: str, model: nn.Module, data: Data) -> nn.Module:
    """The network with batch norm: as it is where it has some, otherwise with batch norm put in.

    Raises:
        ValueError: batch norm finds no place in it, or the result does not run.
    """
    if any(map(is_batch_norm, model.modules())):
        return model
    return placed(name, model, data, "before")


def placed(name: str, model: nn.Module, data: Data, placement: Placement) -> nn.Module:
    """The network, which has no batch norm, with batch norm put before its activations or after.

    Raises:
        ValueError: batch norm finds no place in it, or the result does not run.
    """
    changes = _inserted(name, model, data, placement)
    if not changes.changed:
        raise ValueError(_no_place(name, changes))
    return changes.model


def plain(name: str, model: nn.Module, data: Data) -> nn.Module:
    """The network without batch norm: taken out where there was some.

    Raises:
        ValueError: some of it cannot be taken out.
    """
    if not any(map(is_batch_norm, model.modules())):
        return model
    try:
        changes = remove(model, _example(model, data))
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"batch norm cannot be taken out of {name!r}: {error}") from error
    if left := _left(changes):
        raise ValueError(f"{name}: {left}")
    return changes.model


def why_not(name: str, model: nn.Module, data: Data) -> str | None:
    """Why the network cannot be had with batch norm and without; None where it can.

    Raises:
        ValueError: batch norm has a place in it, but the result does not run.
    """
    if any(map(is_batch_norm, model.modules())):
        try:
            plain(name, model, data)
        except ValueError as error:
            return f"{error}; the study needs the network without it"
        return None
    changes = _inserted(name, model, data)
    return None if changes.changed else _no_place(name, changes)


def _inserted(name: str, model: nn.Module, data: Data, placement: Placement = "before") -> Changes:
    try:
        return insert(model, placement, example=_example(model, data))
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"batch norm cannot be put into {name!r}: {error}") from error


def _example(model: nn.Module, data: Data) -> Tensor:
    """Two inputs, in a copy: the model may write into them."""
    like = next(model.parameters(), data.train.x)
    return data.train.x[:2].clone().to(like.device, like.dtype)


def _no_place(name: str, changes: Changes) -> str:
    whole = f"the {type(changes.model).__name__} itself"
    reasons = "; ".join(f"{path or whole}: {reason}" for path, reason in changes.skipped)
    return f"batch norm finds no place in {name}" + (f" ({reasons})" if reasons else "")


def _left(changes: Changes) -> str:
    """What is left of batch norm in a network that it was taken out of, and why."""
    norms = {path for path, one in changes.model.named_modules() if is_batch_norm(one)}
    reasons = [f"{at or 'it'} stays: {reason}" for at, reason in changes.skipped if at in norms]
    return f"batch norm cannot be taken out of it ({'; '.join(reasons)})" if norms else ""
