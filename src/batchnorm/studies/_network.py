"""The networks that trials train: the embedded one, and the user's own."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn

from batchnorm.data import Data, load
from batchnorm.named import call
from batchnorm.surgery import Changes, insert
from batchnorm.train import seeded, take_sizes

if TYPE_CHECKING:
    from batchnorm.studies._trial import Trial

ACTIVATIONS: dict[str, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU}
BATCH_NORMS = (nn.modules.batchnorm._NormBase,)
LABELS = {"relu": "ReLU", "own": "your network"}


def build(trial: "Trial", data: Data) -> nn.Module:
    """The trial's network with initial weights from its seed.

    The arm with batch norm is the plain network with batch norm inserted, so both start from the
    same weights.

    Raises:
        ValueError: an unknown network or activation, a user's function that fails or returns
            something else than a module, or a network that batch norm cannot be put into.
    """
    with seeded(trial.seed):
        if ":" in trial.network:
            model = own(trial.network)
            take_sizes(model, data)
        elif trial.network == "mlp":
            model = mlp(data, trial.activation, trial.depth, trial.width)
        else:
            raise ValueError(f"no network {trial.network!r}: expected mlp or your module:function")
        scale_weights(model, trial.init_scale)
        if trial.batch_norm:
            changes = _inserted(trial.network, model, data)
            if not changes.changed:
                raise ValueError(_no_place(trial.network, changes))
            model = changes.model
        if trial.batch_norm_inputs:
            model = nn.Sequential(_input_norm(data), model)
    return model


def _inserted(name: str, model: nn.Module, data: Data) -> Changes:
    like = next(model.parameters(), data.train.x)
    # A copy: the model may write into its input.
    example = data.train.x[:2].clone().to(like.device, like.dtype)
    try:
        return insert(model, example=example)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"batch norm cannot be put into {name!r}: {error}") from error


def mlp(data: Data, activation: str, depth: int, width: int) -> nn.Sequential:
    """Fully connected: ``depth`` hidden layers of ``width`` units, then the logits.

    With sigmoid, the network of Ioffe & Szegedy 2015, section 4.1 (784-100-100-100-10), whose
    "small random Gaussian values" are drawn here with variance 1 / inputs (the paper gives no
    number); with ReLU, He initialization, variance 2 / inputs. Biases start at zero.

    Raises:
        ValueError: an unknown activation.

    >>> from batchnorm.data import load
    >>> [tuple(p.shape) for p in mlp(load("digits"), "relu", 1, 100).parameters()]
    [(100, 784), (100,), (10, 100), (10,)]
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"no activation {activation!r}: expected one of {', '.join(ACTIVATIONS)}")
    gain = 2.0 if activation == "relu" else 1.0
    layers: list[nn.Module] = [nn.Flatten()]
    inputs = math.prod(data.shape)
    for _ in range(depth):
        layers += [_linear(inputs, width, gain), ACTIVATIONS[activation]()]
        inputs = width
    return nn.Sequential(*layers, _linear(inputs, data.classes, 1.0))


def own(name: str) -> nn.Module:
    """The network that the user's function returns.

    Raises:
        ValueError: it is not importable, raised, or returned something else than a module.
    """
    model = call(name, "model")
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model {name!r} returned {type(model).__name__}; expected a torch.nn.Module that maps "
            "inputs to logits"
        )
    return model


def why_not(name: str, data: str) -> str | None:
    """Why batch norm cannot be put into the user's network; None where it can.

    Raises:
        ValueError: the network or the data cannot be used at all.
    """
    model = own(name)
    for path, module in model.named_modules():
        if isinstance(module, BATCH_NORMS):
            return (
                f"{name} already has batch norm ({path or 'the model itself'}: "
                f"{type(module).__name__}); the study needs the network without it"
            )
    changes = _inserted(name, model, load(data))
    if changes.changed:
        return None
    return _no_place(name, changes)


def _no_place(name: str, changes: Changes) -> str:
    reasons = "; ".join(f"{path}: {reason}" for path, reason in changes.skipped)
    return f"batch norm finds no place in {name}" + (f" ({reasons})" if reasons else "")


def label(activation: str) -> str:
    """What a measure calls the network with this activation, or the user's own.

    >>> label("relu"), label("own")
    ('ReLU', 'your network')
    """
    return LABELS.get(activation, activation)


def phrase(activation: str) -> str:
    """The same within a sentence.

    >>> phrase("relu"), phrase("own")
    ('the ReLU network', 'your network')
    """
    return label(activation) if activation == "own" else f"the {label(activation)} network"


def summary(trials: "Iterable[Trial]", data: Data) -> str:
    """The networks of trials on these data: layer sizes and activations, or the user's own name.

    >>> from batchnorm.data import load
    >>> from batchnorm.studies._trial import Trial
    >>> summary([Trial(activation="sigmoid"), Trial()], load("digits"))
    '784-100-100-100-10, fully connected, with sigmoid and with ReLU'
    """
    shapes: dict[str, list[str]] = {}
    for trial in trials:
        if trial.network == "mlp":
            sizes = [math.prod(data.shape), *[trial.width] * trial.depth, data.classes]
            shape, activation = "-".join(map(str, sizes)), f"with {label(trial.activation)}"
        else:
            shape, activation = trial.network, ""
        if activation not in shapes.setdefault(shape, []):
            shapes[shape].append(activation)
    return "; ".join(
        f"{shape}, fully connected, {' and '.join(found)}" if any(found) else shape
        for shape, found in shapes.items()
    )


def scale_weights(model: nn.Module, factor: float) -> None:
    """Multiply every weight matrix and kernel in place; biases and batch norm's gamma stay."""
    if factor == 1:
        return
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(factor)


def _linear(inputs: int, outputs: int, gain: float) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=math.sqrt(gain / inputs))
    nn.init.zeros_(layer.bias)
    return layer


def _input_norm(data: Data) -> nn.Module:
    kinds = {1: nn.BatchNorm1d, 2: nn.BatchNorm1d, 3: nn.BatchNorm2d, 4: nn.BatchNorm3d}
    # Without gamma and beta: the mini-batch's own normalization of the inputs and nothing more.
    return kinds[len(data.shape)](data.shape[0], affine=False)
