"""Batch norm in other frameworks' words, argument for argument, for torch tensors.

TensorFlow's line:

mean, variance = moments(x, [0, 1, 2])
y = batch_normalization(x, mean, variance, offset, scale, 1e-3)
"""

import math
import operator
from collections.abc import Iterable
from numbers import Real

import torch
from torch import Tensor


def batch_normalization(
    x: Tensor,
    mean: Tensor | float,
    variance: Tensor | float,
    offset: Tensor | float | None,
    scale: Tensor | float | None,
    variance_epsilon: float,
    name: str | None = None,
) -> Tensor:
    """TensorFlow's `tf.nn.batch_normalization`: `scale (x - mean) / sqrt(variance + eps) + offset`.

    Everything broadcasts as in TensorFlow, last axes first: `(C,)` fits an `x` of `(N, H, W, C)`,
    `(C, 1, 1)` fits `(N, C, H, W)`, and what `moments(..., keepdims=True)` returns fits any `x`.
    The result is differentiable with respect to every tensor; nothing is updated.

    It equals TensorFlow's to rounding, and is the more exact where they differ: TensorFlow computes
    `x inv + (offset - mean inv)`, which loses the digits of data whose mean is large against its
    standard deviation. Here the mean is subtracted first; half precision is computed in float32.

    Args:
        x: the values to normalize, of a floating dtype, which is also the result's.
        mean: of any shape that broadcasts; may be wider than `x`, as may the three that follow.
        variance: as `mean`. Where it is below `-variance_epsilon` the result is NaN.
        offset: added at the end (`beta`); None for nothing.
        scale: multiplied in (`gamma`); None for 1.
        variance_epsilon: keeps the root away from zero.
        name: the operation's name in a TensorFlow graph; without effect here.

    Returns:
        A tensor with `x`'s dtype and the broadcast shape.

    Raises:
        TypeError: for an argument that is neither a tensor nor a number, or not real and floating.
        ValueError: for shapes that do not broadcast, two devices, or a negative `variance_epsilon`.

    Example:
        >>> x = torch.tensor([[1.0, 1000.0], [3.0, 3000.0]])
        >>> mean, variance = moments(x, [0])
        >>> batch_normalization(x, mean, variance, 5.0, None, 1e-3)
        tensor([[4.0005, 4.0000],
                [5.9995, 6.0000]])
    """
    _floating("x", x)
    _check_epsilon(variance_epsilon)
    given = {"mean": mean, "variance": variance, "offset": offset, "scale": scale}
    tensors = {
        key: _tensor(key, value, x)
        for key, value in given.items()
        if value is not None or key in ("mean", "variance")
    }
    _check_shapes({"x": x, **tensors})
    # One dtype for all the arithmetic, so that a wide mean is not rounded before it is subtracted.
    dtype = _arithmetic(x, *tensors.values())
    tensors = {key: t.to(dtype) for key, t in tensors.items()}
    inv = torch.rsqrt(tensors["variance"] + variance_epsilon)
    if "scale" in tensors:
        inv = inv * tensors["scale"]
    y = (x.to(dtype) - tensors["mean"]) * inv
    if "offset" in tensors:
        y = y + tensors["offset"]
    return y.to(x.dtype)


def moments(
    x: Tensor,
    axes: int | Iterable[int] | None,
    shift: object = None,
    keepdims: bool = False,
    name: str | None = None,
) -> tuple[Tensor, Tensor]:
    """TensorFlow's `tf.nn.moments`: the mean and the (biased) variance of `x` over `axes`.

    Rounding in the mean does not reach the variance, so that it is right however far from zero `x`
    is; half precision is computed in float32.

    Args:
        x: a tensor of a floating dtype.
        axes: the axes to average over: `[0]` for `(N, C)`, `[0, 1, 2]` for `(N, H, W, C)`,
            `[0, 2, 3]` for `(N, C, H, W)`; None for all.
        shift: without effect, as in TensorFlow.
        keepdims: keep the averaged axes with length 1, ready for `batch_normalization`.
        name: without effect.

    Returns:
        Mean and variance, in `x`'s dtype.

    Raises:
        TypeError: if `x` is not a floating tensor or an axis is not an integer.
        ValueError: for an axis that `x` does not have, or one that is named twice; a `keepdims`
            that is neither True nor False.

    Example:
        >>> moments(torch.tensor([[1.0, 10.0], [3.0, 30.0]]), [0])
        (tensor([ 2., 20.]), tensor([  1., 100.]))
    """
    _floating("x", x)
    if not isinstance(keepdims, int) or keepdims not in (0, 1):
        raise ValueError(f"keepdims is {keepdims!r}, expected True or False")
    dims = _dims(x, axes)
    if not dims:  # torch takes no axes for all axes
        return x.clone(), x - x
    values = x.to(_arithmetic(x))
    center = values.detach().mean(dims, keepdim=True)
    center = torch.where(center.isfinite(), center, 0)
    deviation = values - center
    left_over = deviation.mean(dims, keepdim=True)
    mean = center + left_over
    variance = (deviation - left_over).square().mean(dims, keepdim=True)
    if not keepdims:
        mean, variance = mean.squeeze(dims), variance.squeeze(dims)
    return mean.to(x.dtype), variance.to(x.dtype)


def _floating(name: str, value: object, expected: str = "a tensor") -> Tensor:
    if not isinstance(value, Tensor):
        what = "None" if value is None else f"a {type(value).__name__}"
        raise TypeError(f"{name} is {what}, expected {expected}; torch.as_tensor makes one")
    if not value.is_floating_point():
        raise TypeError(
            f"{name} has dtype {value.dtype}, expected a floating one; {name}.float() converts it"
        )
    return value


def _check_epsilon(value: float) -> None:
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not 0 <= value < math.inf:
        raise (ValueError if number else TypeError)(
            f"variance_epsilon is {value if number else 'a ' + type(value).__name__}, expected a "
            "number from 0 up such as 1e-3; the order is (x, mean, variance, offset, scale, "
            "variance_epsilon)"
        )


def _tensor(name: str, value: Tensor | float | None, x: Tensor) -> Tensor:
    if isinstance(value, Real) and not isinstance(value, bool):
        return torch.tensor(value, dtype=_arithmetic(x), device=x.device)
    tensor = _floating(name, value, "a tensor or a number")
    one_number = tensor.ndim == 0 and tensor.device.type == "cpu"  # goes with any device in torch
    if tensor.device != x.device and not one_number:
        raise ValueError(
            f"{name} is on {tensor.device}, expected {x.device}, where x is; move it with "
            f"{name}.to(x.device)"
        )
    return tensor


def _arithmetic(*tensors: Tensor) -> torch.dtype:
    wide = any(t.dtype == torch.float64 for t in tensors)
    return torch.float64 if wide else torch.float32


def _check_shapes(tensors: dict[str, Tensor]) -> None:
    try:
        torch.broadcast_shapes(*(t.shape for t in tensors.values()))
    except RuntimeError:
        shapes = ", ".join(f"{key} {tuple(t.shape)}" for key, t in tensors.items())
        raise ValueError(
            f"the shapes do not broadcast: {shapes}; expected shapes whose last axes match x's or "
            "are 1: for channels in axis 1 of (N, C, H, W) pass mean.reshape(-1, 1, 1), or use "
            "moments(..., keepdims=True)"
        ) from None


def _dims(x: Tensor, axes: int | Iterable[int] | None) -> tuple[int, ...]:
    if axes is None:
        return tuple(range(x.ndim))
    try:
        given = list(axes) if isinstance(axes, Iterable) else [axes]
        listed = [operator.index(axis) for axis in given]
        if any(isinstance(axis, bool) for axis in given):
            raise TypeError
    except TypeError:
        raise TypeError(f"axes is {axes!r}, expected integers such as [0, 2, 3]") from None
    for axis in listed:
        if not -x.ndim <= axis < x.ndim:
            raise ValueError(
                f"axes holds {axis}, expected {-x.ndim} to {x.ndim - 1}, since x has shape "
                f"{tuple(x.shape)}; count from the end with negative numbers"
            )
    dims = tuple(axis % x.ndim for axis in listed)
    if len(set(dims)) < len(dims):
        raise ValueError(f"axes is {listed}, expected each axis of x once; drop the repeated one")
    return dims
