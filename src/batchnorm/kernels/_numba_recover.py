"""The backward pass from the output, which was written over the input, with a bend.

``z = f^-1(y)`` and ``xhat = (z - bias) / weight``; the derivative f' comes from y too. The loops
are those that read the input.
"""

from __future__ import annotations

from typing import Any

from batchnorm.kernels import _numba_planar as planar
from batchnorm.kernels import _numba_row_gradients as row_gradients
from batchnorm.kernels import _numba_row_sums as row_sums
from batchnorm.kernels import _numba_rows as rows
from batchnorm.kernels import _numba_segment_gradients as gradients
from batchnorm.kernels import _numba_segment_sums as sums
from batchnorm.kernels._numba_math import mapping


@mapping
def planar_reduce(p: Any, c: Any, channels: Any, part: Any, w: Any, work: Any, tag: Any) -> None:
    """Add a part's sums of g and ``g (z - bias)``; the bias stands where the mean does."""
    planar.reduce_by(p, c, channels, part, w, tag, sums.reduce_from_output)


@mapping
def planar_spread(p: Any, c: Any, channels: Any, part: Any, w: Any, work: Any, tag: Any) -> None:
    """A part's gradient of x."""
    planar.spread_by(p, c, channels, part, w, tag, gradients.spread_from_output)


@mapping
def rows_reduce(p: Any, part: Any, work: Any, tag: Any) -> None:
    """A block's sums of g and ``g (z - bias)``; the bias stands where the mean does."""
    four, one = row_sums.reduce_from_output, row_sums.reduce_one_from_output
    rows.sum_by(p, part, work, tag, four, one)


@mapping
def rows_spread(p: Any, part: Any, work: Any, tag: Any) -> None:
    """A block's gradient of x."""
    four, one = row_gradients.spread_from_output, row_gradients.spread_one_from_output
    rows.spread_by(p, part, work, tag, four, one)
