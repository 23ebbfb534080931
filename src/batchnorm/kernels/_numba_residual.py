"""The passes with a residual and a bend: kernels of their own, which few networks compile."""

from __future__ import annotations

from typing import Any

from batchnorm.kernels import _numba_planar as planar
from batchnorm.kernels import _numba_row_gradients as row_gradients
from batchnorm.kernels import _numba_row_normal as row_normal
from batchnorm.kernels import _numba_row_sums as row_sums
from batchnorm.kernels import _numba_rows as rows
from batchnorm.kernels import _numba_segment_gradients as gradients
from batchnorm.kernels import _numba_segment_normal as normal
from batchnorm.kernels import _numba_segment_sums as sums
from batchnorm.kernels._numba_math import mapping


@mapping
def planar_write(p: Any, c: Any, channels: Any, part: Any, w: Any, work: Any, tag: Any) -> None:
    """Normalize a part and add the residual."""
    planar.write_by(p, c, channels, part, w, tag, normal.normalize_residual)


@mapping
def planar_reduce(p: Any, c: Any, channels: Any, part: Any, w: Any, work: Any, tag: Any) -> None:
    """Add a part's sums of g and ``g (x - mean)``."""
    planar.reduce_by(p, c, channels, part, w, tag, sums.reduce_residual)


@mapping
def planar_spread(p: Any, c: Any, channels: Any, part: Any, w: Any, work: Any, tag: Any) -> None:
    """A part's gradients of x and of the residual."""
    planar.spread_by(p, c, channels, part, w, tag, gradients.spread_residual)


@mapping
def rows_write(p: Any, part: Any, work: Any, tag: Any) -> None:
    """Normalize a block and add the residual."""
    four, one = row_normal.normalize_residual, row_normal.normalize_one_residual
    rows.write_by(p, part, work, tag, four, one)


@mapping
def rows_reduce(p: Any, part: Any, work: Any, tag: Any) -> None:
    """A block's sums of g and ``g (x - mean)``."""
    rows.sum_by(p, part, work, tag, row_sums.reduce_residual, row_sums.reduce_one_residual)


@mapping
def rows_spread(p: Any, part: Any, work: Any, tag: Any) -> None:
    """A block's gradients of x and of the residual."""
    four, one = row_gradients.spread_residual, row_gradients.spread_one_residual
    rows.spread_by(p, part, work, tag, four, one)
