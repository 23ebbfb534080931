"""The networks that trials train: the embedded one, and the user's own."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import Tensor, nn

from batchnorm.data import Data
from batchnorm.named import call
from batchnorm.studies._arms import normed, plain
from batchnorm.train import seeded, take_sizes

if TYPE_CHECKING:
    from batchnorm.studies._trial import Trial

EMBEDDED = ("mlp", "cnn")
CHANNELS = (8, 16, 32)  # of "cnn"
CNN = f"cnn, {'-'.join(map(str, CHANNELS))} channels of 3x3 with ReLU"
ACTIVATIONS: dict[str, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU}
Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)
LABELS = {"relu": "ReLU", "own": "your network"}


def build(trial: "Trial", data: Data) -> nn.Module:
    """The trial's network with initial weights from its seed.

    The arm with batch norm is the plain network with batch norm inserted, so both start from the
    same weights. A user's network that has batch norm is that arm itself, and the plain one is what
    is left without it.

    Raises:
        ValueError: an unknown network or activation, a user's function that fails or returns
            something else than a module, or a network that batch norm cannot be put into or taken
            out of.
    """
    with seeded(trial.seed):
        if trial.network == "mlp":
            model = mlp(data, trial.activation, trial.depth, trial.width)
        else:
            model = fresh(trial.network, data)
        scale_weights(model, trial.init_scale)
        model = (normed if trial.batch_norm else plain)(trial.network, model, data)
        if trial.batch_norm_inputs:
            model = nn.Sequential(_input_norm(data), model)
    return model


def fresh(name: str, data: Data) -> nn.Module:
    """The small CNN, or the user's own network with its sizes decided by the data.

    Raises:
        ValueError: as :func:`cnn` and :func:`own`.
    """
    if name == "cnn":
        return cnn(data)
    model = own(name)
    take_sizes(model, data)
    return model


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
        layers += [linear(inputs, width, gain), ACTIVATIONS[activation]()]
        inputs = width
    return nn.Sequential(*layers, linear(inputs, data.classes, 1.0))


def cnn(data: Data) -> nn.Sequential:
    """Three convolutions of 3x3 pixels, each with half the height and width, then the logits.

    8, 16 and 32 channels, ReLU, He initialization (variance 2 / inputs), biases zero.

    Raises:
        ValueError: the examples are no images.

    >>> from batchnorm.data import load
    >>> [tuple(p.shape) for p in cnn(load("digits")).parameters()][::2]
    [(8, 1, 3, 3), (16, 8, 3, 3), (32, 16, 3, 3), (10, 512)]
    """
    if len(data.shape) != 3:
        raise ValueError(
            f"model 'cnn' takes images of shape (channels, height, width); an example of data "
            f"{data.name!r} has shape {data.shape}: leave --model out for the fully connected "
            "network, or give your own as module:function"
        )
    inputs, height, width = data.shape
    layers: list[nn.Module] = []
    for channels in CHANNELS:
        conv = nn.Conv2d(inputs, channels, kernel_size=3, stride=2, padding=1)
        layers += [_drawn(conv, 9 * inputs, gain=2.0), nn.ReLU()]
        inputs, height, width = channels, (height + 1) // 2, (width + 1) // 2
    pixels = inputs * height * width
    return nn.Sequential(*layers, nn.Flatten(), linear(pixels, data.classes, 1.0))


def own(name: str) -> nn.Module:
    """The network that the user's function returns.

    Raises:
        ValueError: it is not importable, raised, or returned something else than a module.
    """
    if ":" not in name:
        raise ValueError(
            f"model {name!r} is not of the form module:function, nor one of the embedded networks, "
            f"{' and '.join(EMBEDDED)}"
        )
    model = call(name, "model")
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model {name!r} returned {type(model).__name__}; expected a torch.nn.Module that maps "
            "inputs to logits"
        )
    return model


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
            hidden = [trial.width] * trial.depth or [f"{trial.width}…{trial.width}"]
            sizes = [math.prod(data.shape), *hidden, data.classes]
            shape, activation = "-".join(map(str, sizes)), f"with {label(trial.activation)}"
        else:
            shape = CNN if trial.network == "cnn" else trial.network
            activation = ""
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


def linear(inputs: int, outputs: int, gain: float) -> nn.Linear:
    """Weights from a Gaussian with variance ``gain / inputs``, a bias of zeros."""
    return _drawn(nn.Linear(inputs, outputs), inputs, gain)


def _drawn(layer: Layer, inputs: int, gain: float) -> Layer:
    """The layer with Gaussian weights of variance gain / inputs, and a bias of zero."""
    nn.init.normal_(layer.weight, std=math.sqrt(gain / inputs))
    nn.init.zeros_(cast(Tensor, layer.bias))
    return layer


def _input_norm(data: Data) -> nn.Module:
    kinds = {1: nn.BatchNorm1d, 2: nn.BatchNorm1d, 3: nn.BatchNorm2d, 4: nn.BatchNorm3d}
    # Without gamma and beta: the mini-batch's own normalization of the inputs and nothing more.
    return kinds[len(data.shape)](data.shape[0], affine=False)
