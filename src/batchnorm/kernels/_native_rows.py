"""Many rows, which torch's kernel adds up one after another in float32: here in parts.

So it does on a CPU where neighbours in memory are of different channels: in matrices, and images
channels last. On one thread the variance of 400,000 rows was wrong by 1e-4, of 3,000,000 by 3e-3,
of 40,000,000 by a tenth; sums of gradients likewise. In parts they are right to the last digits.
Forward and backward took 0.3 times as long of (3000000, 2), 1.05 of rows of 16, 1.5 of rows of 64.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

MOST = 2**19  # rows that torch's kernel may add up: in parts, fewer of them took half as long again
_PART = 2**11  # rows that are added up here
_COLUMNS = 256  # torch's kernel takes longer for shorter rows, and for longer ones
_CHUNK = 2**19  # elements that stay in the cache from one operation to the next

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
_backward = torch.ops.aten.native_batch_norm_backward.default

# Mean, variance and ``1 / sqrt(var + eps)`` of each channel.
Constants = tuple[Tensor, Tensor, Tensor]


def many(x: Tensor) -> bool:
    """Whether torch's kernel would add up too many rows."""
    channels = x.shape[1]
    if not x.is_cpu or x.dtype is torch.float64 or x.numel() <= MOST * channels:
        return False
    if x.is_contiguous():
        return x.numel() == x.shape[0] * channels
    form = _FORMATS.get(x.dim())
    return form is not None and x.is_contiguous(memory_format=form)


def moments(x: Tensor) -> Tensor:
    """The packed moments of such an x."""
    channels = x.shape[1]
    counts: list[int] = []
    found: list[Tensor] = []
    still = torch.empty(0), torch.empty(0)
    for part, rows in _parts(x):
        if part.shape[1] != len(still[0]):
            # What may move is given so that halves are added up in float32; it has no share.
            still = torch.zeros(part.shape[1]), torch.ones(part.shape[1])
        found += torch.batch_norm_update_stats(part, *still, 0.0)
        counts += [rows] * (part.shape[1] // channels)
    mean, var = (torch.cat(found[row::2]).double().view(-1, channels) for row in (0, 1))
    count = torch.tensor(counts, dtype=torch.float64)[:, None]
    share = count / count.sum()
    middle = (share * mean).sum(0)
    spread = (share * (var + (mean - middle).square())).sum(0)
    return torch.stack((count.sum().expand(channels), middle, spread))


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    constants: Constants,
    fixed: bool,
    eps: float,
    wanted: list[bool],
) -> tuple[Tensor | None, Tensor, Tensor]:
    """What torch's operator gives: the gradients of x, if that is wanted, of weight and of bias."""
    mean, var, invstd = constants
    if fixed:
        dx, dweight, dbias = _backward(
            dy, x, weight, mean, var, mean, invstd, False, eps, [wanted[0], False, False]
        )
        if wanted[1] or wanted[2]:
            dweight, dbias = _sums(dy, x, constants, eps)
        return dx, dweight, dbias
    dweight, dbias = _sums(dy, x, constants, eps)
    dx = _input(dy, x, weight, constants, eps, dweight, dbias) if wanted[0] else None
    return dx, dweight, dbias


def _rows(t: Tensor) -> Tensor:
    """``(positions, channels)``; a view of what lies so."""
    return t.movedim(1, -1).reshape(-1, t.shape[1])


def _parts(*tensors: Tensor) -> Iterator[tuple[*tuple[Tensor, ...], int]]:
    """The same rows of each tensor, a part at a time, and how many each column adds up.

    Of short rows several that follow one another are one: a channel then has several columns. What
    is left over comes last.
    """
    rows = [_rows(t) for t in tensors]
    count, channels = rows[0].shape
    joined = max(1, _COLUMNS // channels)
    whole, most = count // joined * joined, _PART * joined
    for first in range(0, whole, most):
        stop = min(first + most, whole)
        parts = [t[first:stop].view(-1, joined * channels) for t in rows]
        yield *parts, len(parts[0])
    if whole < count:
        yield *(t[whole:] for t in rows), count - whole


def _sums(dy: Tensor, x: Tensor, constants: Constants, eps: float) -> tuple[Tensor, Tensor]:
    """``sum(dy xhat)`` and ``sum(dy)``."""
    channels = x.shape[1]
    found: list[Tensor] = []
    mean = var = invstd = torch.empty(0)
    for part, of, _ in _parts(dy, x):
        if part.shape[1] != len(mean):
            mean, var, invstd = (t.repeat(part.shape[1] // channels) for t in constants)
        found += _backward(
            part, of, None, mean, var, mean, invstd, False, eps, [False, True, True]
        )[1:]
    dweight, dbias = (torch.cat(found[row::2]).view(-1, channels) for row in (0, 1))
    return dweight.sum(0, dtype=torch.float64), dbias.sum(0, dtype=torch.float64)


def _input(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    constants: Constants,
    eps: float,
    dweight: Tensor,
    dbias: Tensor,
) -> Tensor:
    """``scale (dy - (dbias + xhat dweight) / count)``, of which torch's kernel knows the latter."""
    mean, var, invstd = constants
    scale = invstd if weight is None else weight * invstd
    dx = torch.empty_like(x)
    to, of, given = _rows(dx), _rows(x), _rows(dy)
    gamma, beta = (-(scale * total / len(of)).to(scale.dtype) for total in (dweight, dbias))
    nothing = torch.empty(0)
    step = max(1, _CHUNK // x.shape[1])
    for first in range(0, len(of), step):
        rows = slice(first, first + step)
        out = to[rows]
        torch.native_batch_norm(
            of[rows], gamma, beta, mean, var, False, 0.0, eps, out=(out, nothing, nothing)
        )
        out.addcmul_(given[rows], scale)
    return dx
