"""Batch norm for one layer, as the lectures write it: NumPy, float64, no framework.

`z` has shape `(n, m)`: a row for each of the `n` hidden units, a column for each of the `m`
examples of the mini-batch. `gamma`, `beta`, `mean` and `var` have shape `(n, 1)`. torch lays the
same numbers out as `(m, n)`: pass `z.T`, and transpose what comes back.

    mean = 1/m sum_i z(i)                     z_norm = (z - mean) / sqrt(var + eps)
    var  = 1/m sum_i (z(i) - mean)^2          z~     = gamma z_norm + beta

A bias added to `z` vanishes in `z - mean`, so the layer in front of this one needs none: `beta`
takes its place. This file is a definition to read and to test against, not the product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MiniBatch:
    """What `forward` saw in one mini-batch; `backward` and the running averages need it."""

    mean: Array
    var: Array
    z_norm: Array
    gamma: Array
    eps: float


def forward(
    z: npt.ArrayLike, gamma: npt.ArrayLike, beta: npt.ArrayLike, eps: float = 1e-5
) -> tuple[Array, MiniBatch]:
    """Training: normalize `z` with the mini-batch's own mean and variance, then scale and shift it.

    A unit that is constant over the mini-batch has `var` 0; thanks to `eps` it comes out as `beta`.

    Args:
        z: what the layer computed before its activation, `(n, m)`.
        gamma: the standard deviation that each unit is to have (`eps` takes a little), `(n, 1)`.
        beta: the mean that each unit is to have, `(n, 1)`.
        eps: keeps the root away from zero.

    Returns:
        `z~` of shape `(n, m)`, and what this mini-batch was like.

    Raises:
        ValueError: for another shape, no examples, or an `eps` that is not positive.
        TypeError: for values that are not real numbers.

    Example:
        >>> z_tilde, batch = forward([[1.0, 3.0]], gamma=[[2.0]], beta=[[10.0]])
        >>> print(z_tilde.round(3), batch.mean, batch.var)
        [[ 8. 12.]] [[2.]] [[1.]]
    """
    z = _matrix("z", z)
    gamma, beta, eps = _column("gamma", gamma, z), _column("beta", beta, z), _positive("eps", eps)
    mean = z.mean(axis=1, keepdims=True)
    # Again over what is left: a constant unit then deviates by exactly 0, however large it is.
    mean = mean + (z - mean).mean(axis=1, keepdims=True)
    var = ((z - mean) ** 2).mean(axis=1, keepdims=True)
    z_norm = (z - mean) / np.sqrt(var + eps)
    return gamma * z_norm + beta, MiniBatch(mean, var, z_norm, gamma, eps)


def backward(dz_tilde: npt.ArrayLike, batch: MiniBatch) -> tuple[Array, Array, Array]:
    """The loss's gradients `dz`, `dgamma`, `dbeta`, from its gradient `dz~`.

    Write `s = sqrt(var + eps)` and `u = z_norm`. From `z~ = gamma u + beta`, unit by unit:

        dbeta = sum_i dz~(i)        dgamma = sum_i dz~(i) u(i)        du(i) = gamma dz~(i)

    `u(i) = (z(i) - mean) / s` depends on every `z(j)`: on `z(i)` itself, and on all of them through

        d mean / d z(j) = 1/m
        d var  / d z(j) = 2/m (z(j) - mean) = 2/m s u(j)   (by mean: sum_i (z(i) - mean) = 0)
        d s    / d z(j) = 1/(2s) d var / d z(j) = u(j) / m

    so that `d u(i) / d z(j) = 1/s ([i = j] - 1/m - u(i) u(j) / m)`. The chain rule sums over `i`:

        dz(j) = sum_i du(i) d u(i) / d z(j)
              = gamma/s (dz~(j) - 1/m sum_i dz~(i) - u(j) 1/m sum_i dz~(i) u(i))
              = gamma/s (dz~(j) - dbeta/m - u(j) dgamma/m)

    `sum_j dz(j) = 0`, because `sum_j u(j) = 0`: this sum would be the gradient of a bias in front.

    Args:
        dz_tilde: the gradient with respect to `z~`, `(n, m)`.
        batch: what `forward` returned for this mini-batch.

    Returns:
        `dz` of shape `(n, m)`, `dgamma` and `dbeta` of shape `(n, 1)`.

    Raises:
        ValueError: if `dz_tilde` has not the mini-batch's shape.
        TypeError: for values that are not real numbers.

    Example:
        >>> _, batch = forward([[1.0, 3.0, 8.0]], gamma=[[2.0]], beta=[[10.0]])
        >>> dz, dgamma, dbeta = backward([[1.0, 1.0, 1.0]], batch)
        >>> print(dz.round(12), dgamma.round(12), dbeta)  # one more in every z~: no z can do that
        [[0. 0. 0.]] [[0.]] [[3.]]
    """
    dz_tilde = _matrix("dz_tilde", dz_tilde)
    if dz_tilde.shape != batch.z_norm.shape:
        raise ValueError(
            f"dz_tilde has shape {dz_tilde.shape}, expected {batch.z_norm.shape}, the shape of the "
            "z that forward got; pass the MiniBatch that forward returned for the same mini-batch"
        )
    m = dz_tilde.shape[1]
    dbeta = dz_tilde.sum(axis=1, keepdims=True)
    dgamma = (dz_tilde * batch.z_norm).sum(axis=1, keepdims=True)
    std = np.sqrt(batch.var + batch.eps)
    dz = batch.gamma / std * (dz_tilde - dbeta / m - batch.z_norm * dgamma / m)
    return dz, dgamma, dbeta


@dataclass(frozen=True)
class RunningAverages:
    """Exponentially weighted averages of the mini-batches' `mean` and `var`, for test time.

    The lecture averages the variance that normalizes, `1/m sum (z - mean)^2` (the biased one), and
    so does this class. torch normalizes with it too, but averages `m/(m-1)` times it (the unbiased
    one) into `running_var`; its `momentum` is `1 - decay`. Both start at mean 0 and variance 1.

    Example:
        >>> _, batch = forward([[1.0, 3.0]], gamma=[[1.0]], beta=[[0.0]])
        >>> averages = RunningAverages.start(n=1).update(batch, decay=0.9)
        >>> print(averages.mean.round(3), averages.var)
        [[0.2]] [[1.]]
    """

    mean: Array
    var: Array

    @classmethod
    def start(cls, n: int) -> RunningAverages:
        """The averages of `n` units before the first mini-batch."""
        return cls(np.zeros((n, 1)), np.ones((n, 1)))

    def update(self, batch: MiniBatch, decay: float = 0.9) -> RunningAverages:
        """`decay` of the old average and `1 - decay` of this mini-batch's value, for both."""
        if not 0 <= decay <= 1:
            raise ValueError(
                f"decay is {decay}, expected a number from 0 to 1: the part of the old average "
                "that is kept, such as 0.9 (torch's momentum is 1 - decay)"
            )
        if batch.mean.shape != self.mean.shape:
            raise ValueError(
                f"the mini-batch has {len(batch.mean)} units, these averages have {len(self.mean)}"
                "; keep one RunningAverages for each layer"
            )
        return RunningAverages(
            decay * self.mean + (1 - decay) * batch.mean,
            decay * self.var + (1 - decay) * batch.var,
        )


def predict(
    z: npt.ArrayLike,
    averages: RunningAverages,
    gamma: npt.ArrayLike,
    beta: npt.ArrayLike,
    eps: float = 1e-5,
) -> Array:
    """Test time: normalize with the running averages, so that one example, `(n, 1)`, is enough.

    The arguments are those of `forward`, with the layer's `averages` in place of the mini-batch's
    mean and variance. Returns `z~`: an example's result does not depend on the others beside it.

    Raises:
        ValueError: for another shape or an `eps` that is not positive.
        TypeError: for values that are not real numbers.

    Example:
        >>> averages = RunningAverages(mean=np.array([[2.0]]), var=np.array([[1.0]]))
        >>> print(predict([[3.0]], averages, gamma=[[2.0]], beta=[[10.0]]).round(3))
        [[12.]]
    """
    z = _matrix("z", z)
    gamma, beta, eps = _column("gamma", gamma, z), _column("beta", beta, z), _positive("eps", eps)
    mean = _column("averages.mean", averages.mean, z)
    var = _column("averages.var", averages.var, z)
    return gamma * (z - mean) / np.sqrt(var + eps) + beta


def identity(batch: MiniBatch) -> tuple[Array, Array]:
    """The `gamma = sqrt(var + eps)` and `beta = mean` with which `z~ = z` for this mini-batch.

    Example:
        >>> z = [[1.0, 3.0, 8.0]]
        >>> _, batch = forward(z, gamma=[[1.0]], beta=[[0.0]])
        >>> print(forward(z, *identity(batch))[0].round(12))
        [[1. 3. 8.]]
    """
    return np.sqrt(batch.var + batch.eps), batch.mean


def _matrix(name: str, value: npt.ArrayLike) -> Array:
    matrix = _real(name, value)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(
            f"{name} has shape {matrix.shape}, expected (n, m): n hidden units in rows and at "
            f"least one example in columns; make one example a column with {name}.reshape(-1, 1)"
        )
    return matrix


def _column(name: str, value: npt.ArrayLike, z: Array) -> Array:
    column, n = _real(name, value), len(z)
    if column.shape != (n, 1):
        raise ValueError(
            f"{name} has shape {column.shape}, expected ({n}, 1): a number for each of the {n} "
            f"rows of z, whose shape is {z.shape}; {name}.reshape(-1, 1) makes a vector a column, "
            "and if z has its examples in rows, as in torch, pass z.T"
        )
    return column


def _real(name: str, value: npt.ArrayLike) -> Array:
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} has dtype {array.dtype}, expected real numbers; convert it first")
    return array.astype(np.float64)


def _positive(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise ValueError(
            f"{name} is {value}, expected a small positive number such as 1e-5: it keeps a unit of "
            "variance 0 from being divided by 0"
        )
    return value
