"""From a call to a launch: tensors brought into one layout, the record packed, the threads sent."""

from __future__ import annotations

import ctypes
import struct

import torch
from torch import Tensor

from batchnorm.kernels import _team
from batchnorm.kernels._call import Call
from batchnorm.kernels._layout import Layout, divide, steps
from batchnorm.kernels._numba_call import CURSOR, PACK, PARAMETER_TYPES, PHASE_OFFSET
from batchnorm.kernels._numba_compile import Kernel, kernel
from batchnorm.kernels._numba_row_loops import VECTORS
from batchnorm.moments import mask_weight

_GRAIN = 32768  # elements that a thread should have for waking it to pay
_BENDS = {"identity": 1.0, "relu": 0.0}
_CURSORS_AT = -(-PACK.size // CURSOR) * CURSOR


def launch(
    direction: str,
    call: Call,
    like: Layout,
    moments: Tensor,
    *,
    out: Tensor | None = None,
    dy: Tensor | None = None,
    out_residual: Tensor | None = None,
    sums: Tensor | None = None,
    dweight: Tensor | None = None,
    dbias: Tensor | None = None,
    measure: bool = False,
    fixed: bool = False,
) -> None:
    """Run the kernel of `direction` ("forward" or "backward").

    Args:
        direction: which kernel.
        call: what to compute; its x need not lie like `out`.
        like: the layout of `out`.
        moments: read, or written by a forward kernel with `measure`.
        out: y or dx; None to leave it out.
        dy: the gradient of y, in a backward kernel.
        out_residual: the gradient of the residual; None to leave it out.
        sums: read by a backward kernel, or written with `measure`.
        dweight: written with `measure`.
        dbias: written with `measure`.
        measure: whether to take the sums.
        fixed: whether the statistics did not depend on x.
    """
    x, weight, bias, residual, mask, eps, activation = call
    kind = activation.kind
    if dy is not None and kind == "identity":
        residual = None  # its gradient does not need it
    bend = mask is None and kind in ("identity", "relu", "leaky_relu")
    if dy is not None and (out is not None or out_residual is not None):
        # the quick kernel writes the gradient of x, and of the residual where there is one
        bend = bend and out is not None and (residual is None) == (out_residual is None)
    x, x_steps = _lying(x, like)
    residual, residual_steps = (None, _NOWHERE) if residual is None else _lying(residual, like)
    dy, dy_steps = (None, _NOWHERE) if dy is None else _lying(dy, like)
    weights, first = (None, 0) if mask is None else _weights(mask, x.shape, like)
    if first:
        first = first // like.inner * x_steps[0] + first % like.inner

    width = like.channels * like.inner
    parts, span, columns = like.parts, like.span, like.columns
    present = [x_steps[0]]
    if residual is not None:
        present.append(residual_steps[0])
    if dy is not None:
        present.append(dy_steps[0])
    if columns > width and any(step != width for step in present):
        parts, span, columns = divide(like.outer, width, joined=False)
    count = _team.threads(x.numel(), _GRAIN)
    whole = like.planar and (count == 1 or parts == 1 or like.channels >= 4 * count)
    if like.planar:
        phases = (0, 1) if whole else (1, 4)
        size = 0 if whole else 3 * like.channels * parts
    else:
        phases = (0, 4)
        size = VECTORS * columns + 3 * parts * like.channels
    scratch = torch.empty(size + 2 * like.channels, dtype=torch.float64)
    scratch_at = scratch.data_ptr()

    buffer = ctypes.create_string_buffer(_CURSORS_AT + CURSOR * 4 * count)
    PACK.pack_into(
        buffer,
        0,
        x.data_ptr(),
        _address(residual),
        _address(dy),
        _address(out),
        _address(out_residual),
        _address(weights),
        moments.data_ptr(),
        scratch_at + 8 * size if sums is None else sums.data_ptr(),
        scratch_at,
        _address(weight),
        _address(bias),
        _address(dweight),
        _address(dbias),
        *x_steps,
        *residual_steps,
        *dy_steps,
        like.outer,
        like.channels,
        like.inner,
        parts,
        span,
        columns,
        columns // width if width else 1,
        0 if weight is None else PARAMETER_TYPES[weight.dtype],
        0 if weight is None else weight.stride(0),
        0 if bias is None else PARAMETER_TYPES[bias.dtype],
        0 if bias is None else bias.stride(0),
        measure,
        fixed,
        first,
        activation.code,
        kind == "relu",
        count,
        _team.thread_number() if count > 1 else 0,
        ctypes.addressof(buffer) + _CURSORS_AT,
        *phases,
        _BENDS.get(kind, activation.parameter),
        eps,
    )
    name = f"{'planar' if like.planar else 'rows'} {direction}{'' if bend else ' general'}"
    _run(kernel(name, x.dtype), buffer, count, phases)


_NOWHERE = (0, 0)
_BOUNDS = struct.Struct("2q")


def _run(
    code: Kernel, buffer: ctypes.Array[ctypes.c_char], count: int, phases: tuple[int, int]
) -> None:
    if count == 1:
        code.function(buffer)
        return
    for phase in range(*phases):
        _BOUNDS.pack_into(buffer, PHASE_OFFSET, phase, phase + 1)
        _team.run(code.function, code.address, buffer, count)


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _lying(x: Tensor, like: Layout) -> tuple[Tensor, tuple[int, int]]:
    """`x` and its steps; a copy where its channels do not lie as those of the output.

    Two strides describe a slice of batch or channels, and a tensor expanded along the batch. A crop
    of the image, a transposed residual or an expanded gradient has more of them, and none that is
    contiguous: the loops would gather element by element, which costs more than this copy.
    """
    found = steps(x, like)
    if found is not None:
        return x, found
    order = (*like.outer_dims, 1, *like.inner_dims)
    rest = [d for d in range(x.dim()) if d not in order]
    order = (*rest, *order)
    x = x.permute(order).contiguous().permute([order.index(d) for d in range(x.dim())])
    return x, (like.channels * like.inner, like.inner)


def _weights(mask: Tensor, shape: torch.Size, like: Layout) -> tuple[Tensor, int]:
    """The weight of each position in the layout's order, and the first that counts.

    In float64, so that weights of any type keep their value; 1 / C of x's elements.
    """
    weights = mask_weight(mask, torch.float64).expand(shape[0], 1, *shape[2:])
    order = (*like.outer_dims, 1, *like.inner_dims)
    rest = [d for d in range(weights.dim()) if d not in order]
    weights = weights.permute(*rest, *order).contiguous()
    first = int((weights > 0).flatten().to(torch.uint8).argmax()) if weights.numel() else 0
    return weights, first
