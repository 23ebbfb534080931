"""What a data set is: three disjoint sets of examples, checked once."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


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
        if self.classes > len(self.train):
            raise ValueError(
                f"data {self.name!r}: {self.classes} classes, more than the {len(self.train)} "
                "training examples: number the classes from 0 without gaps"
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
    sets = [Examples(everything.x[rows], everything.y[rows]) for rows in stratified(y, shares)]
    return Data(name, *sets, classes=int(y.max()) + 1, shape=tuple(x.shape[1:]))


def stratified(y: Tensor, shares: tuple[float, ...]) -> list[Tensor]:
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
