"""Sums in float64, of channels of half precision whose squares float32 does not hold."""

from __future__ import annotations

from typing import Any

import numpy as np

from batchnorm.kernels import _numba_row_columns as rows
from batchnorm.kernels._numba_constants import STEP, shift_of
from batchnorm.kernels._numba_math import mapping
from batchnorm.kernels._numba_memory import WIDE, load, put
from batchnorm.kernels._numba_scalar import narrow

_NONE = 1e-30  # what squares of less add up to vanishes beside any eps of more


@mapping
def take_anew(p: Any, first: Any, n: Any, w: Any, tag: Any) -> None:
    """Take again the sums that are too large or too small; those under a mask were in float64."""
    if not narrow(tag) or p.weights != 0:
        return
    for k in range(n):
        q = load(w, k + STEP * rows.B, WIDE)
        if not np.isfinite(q) or (q <= _NONE and p.eps <= _NONE):
            s, q = _sums(p, p.first + (first + k) * p.x_channel, shift_of(w, k), tag)
            put(w, k + STEP * rows.A, s, WIDE)
            put(w, k + STEP * rows.B, q, WIDE)


@mapping
def _sums(p: Any, start: Any, shift: Any, tag: Any) -> Any:
    s = q = 0.0
    for o in range(p.outer):
        for i in range(p.inner):
            d = load(p.x, start + o * p.x_outer + i, tag) - shift
            s += d
            q += d * d
    return s, q
