"""One kernel launch as a record in memory, which Python packs and compiled code reads by name.

Packing a buffer costs less than a microsecond, of which the addresses that vary from call to call
are the smaller part; Numba's own conversion of as many arguments costs ten.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import torch

from batchnorm.kernels._numba_math import mapping
from batchnorm.kernels._numba_memory import WIDE, load, put

# Tensors are seen as (outer, channels, inner), `inner` being contiguous; an address of 0 is None.
VARYING = (
    *("x", "residual", "dy", "out", "out_residual", "weights", "moments", "sums", "scratch"),
    *("weight", "bias", "dweight", "dbias", "first", "streams"),
)
CONSTANT = (
    *("x_outer", "residual_outer", "dy_outer", "x_channel", "residual_channel", "dy_channel"),
    *("outer", "channels", "inner"),
    *("parts", "span", "columns", "joined", "group"),  # how sums are divided: by shape alone
    *("weight_type", "weight_step", "bias_type", "bias_step"),
    *("measure", "fixed", "activation", "recover"),
    *("threads", "thread_number", "cursors", "rest", "phase", "phase_end"),
)
_INTEGERS = VARYING + CONSTANT
FIELDS = np.dtype([(n, np.int64) for n in _INTEGERS] + [(n, np.float64) for n in ("slope", "eps")])
PACK_VARYING = struct.Struct(f"{len(VARYING)}q")
PACK_CONSTANT = struct.Struct(f"{len(CONSTANT)}q2d")
PARAMETER_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}

CURSOR = 64  # bytes: a cache line to each counter


@mapping
def parameter(address: Any, kind: Any, index: Any, missing: Any) -> Any:
    """Element `index` of a parameter of the type `kind`, or `missing` if there is none."""
    if address == 0:
        return missing
    if kind == 0:
        return load(address, index, np.float32(0))
    if kind == 1:
        return load(address, index, WIDE)
    if kind == 2:
        return load(address, index, np.uint16(0))
    return load(address, index, np.int16(0))


@mapping
def put_parameter(address: Any, kind: Any, index: Any, value: Any) -> None:
    """Write element `index` of a parameter, if there is one."""
    if address == 0:
        return
    if kind == 0:
        put(address, index, value, np.float32(0))
    elif kind == 1:
        put(address, index, value, WIDE)
    elif kind == 2:
        put(address, index, value, np.uint16(0))
    else:
        put(address, index, value, np.int16(0))
