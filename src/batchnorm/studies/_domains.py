"""The same images from elsewhere: inverted, dimmed, brightened, noised, blurred."""

import torch
from torch import Tensor
from torch.nn import functional as F

DIM, BRIGHTER, NOISE = 0.3, 0.5, 0.5  # of the range of the training images' values
KERNEL, PASSES = (0.25, 0.5, 0.25), 4  # of the blur, along each axis: 1.4 pixels
DOMAINS = ("inverted", "dimmed", "brightened", "noised", "blurred")


def seen_in(domain: str, x: Tensor, ends: tuple[float, float], seed: int) -> Tensor:
    """The images as they look in a domain.

    Args:
        domain: one of ``DOMAINS``.
        x: images, ``(n, channels, height, width)``.
        ends: the lowest and the highest value of a training image.
        seed: of the noise.

    >>> x = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    >>> seen_in("inverted", x, (0.0, 1.0), 0).flatten().tolist()
    [1.0, 0.0]
    """
    low, high = ends
    if domain == "inverted":
        return low + high - x
    if domain == "dimmed":
        return low + DIM * (x - low)
    if domain == "brightened":
        return x + BRIGHTER * (high - low)
    if domain == "noised":
        drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
        return x + NOISE * (high - low) * drawn.to(x)
    if domain == "blurred":
        for _ in range(PASSES):
            x = _blurred(x)
        return x
    raise ValueError(f"no domain {domain!r}: expected one of {', '.join(DOMAINS)}")


def _blurred(x: Tensor) -> Tensor:
    line = torch.tensor(KERNEL).to(x)
    kernel = (line[:, None] * line).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, groups=x.shape[1])
