"""A folder of images, with a folder for each class."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from batchnorm.data._packages import Arrays

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".pgm", ".ppm", ".tif", ".tiff"}
PARTS = ("train", "validation", "test")


def folder(path: Path) -> list[Arrays]:
    """The images below ``path``: ``class/image.png``, or ``train/class/image.png`` and so on.

    Classes are numbered in the order of their names, and images taken in the order of theirs. Gray
    images have one channel, all others three; values are in [0, 1].

    Returns:
        One set of images and labels; or three where there are folders train, validation and test.

    Raises:
        ValueError: no classes, no images, images of several sizes, or one that cannot be read; it
            names the folder or the file.
    """
    parts = [path / part for part in PARTS]
    split = all(part.is_dir() for part in parts)
    sets = [_listed(part) for part in parts] if split else [_listed(path)]
    names = sorted({name for found in sets for name, _ in found})
    if len(names) < 2:
        held = ", ".join(names) or "none"
        raise ValueError(
            f"data {str(path)!r} has images of {len(names)} classes ({held}); expected a folder "
            "with a folder of images for each of two or more classes: cats/1.png, dogs/1.png"
        )
    color = any(_colored(image) for found in sets for _, image in found)
    return [_read(found, names, color) for found in sets]


def _listed(path: Path) -> list[tuple[str, Path]]:
    """Class and file, sorted."""
    return [
        (place.name, image)
        for place in sorted(path.iterdir())
        if place.is_dir() and not place.name.startswith(".")
        for image in sorted(place.rglob("*"))
        if image.suffix.lower() in IMAGES and image.is_file()
    ]


def _colored(path: Path) -> bool:
    """Whether the image has colors."""
    with _open(path) as image:
        return image.mode not in ("1", "L", "LA", "I", "I;16", "F")


def _read(found: list[tuple[str, Path]], names: list[str], color: bool) -> Arrays:
    pixels: list[np.ndarray] = []
    for _, path in found:
        try:
            with _open(path) as image:
                values = np.asarray(image.convert("RGB" if color else "L"), dtype=np.uint8)
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"image {str(path)!r} cannot be read: {error}") from error
        if pixels and values.shape != pixels[0].shape:
            first, other = (f"{one.shape[1]}x{one.shape[0]}" for one in (pixels[0], values))
            raise ValueError(
                f"image {str(path)!r} is {other} pixels, {str(found[0][1])!r} is {first}: make "
                "all images of one size"
            )
        pixels.append(values)
    if not pixels:
        raise ValueError("one of the folders train, validation and test has no images")
    x = torch.from_numpy(np.stack(pixels)).float().div_(255)
    x = x.permute(0, 3, 1, 2).contiguous() if color else x[:, None]
    return x, torch.tensor([names.index(name) for name, _ in found])


def _open(path: Path) -> "Image":
    try:
        from PIL.Image import open as opened
    except ImportError as error:
        raise ValueError(
            f"image {str(path)!r} is read by Pillow, which is not installed: pip install pillow"
        ) from error
    try:
        return opened(path)
    except OSError as error:
        raise ValueError(f"image {str(path)!r} cannot be read: {error}") from error
