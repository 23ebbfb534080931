"""From a call to a launch: tensors brought into one layout, the record packed, the threads sent."""

from __future__ import annotations

import ctypes
import struct
from functools import cache

import torch
from torch import Tensor

from batchnorm.kernels import _memory, _team
from batchnorm.kernels._call import Call
from batchnorm.kernels._layout import Ints, Layout, Plan, plan
from batchnorm.kernels._numba_call import CURSOR, PACK, PARAMETER_TYPES, PHASE_OFFSET
from batchnorm.kernels._numba_compile import Kernel, kernel
from batchnorm.kernels._numba_row_loops import VECTORS
from batchnorm.moments import mask_weight

_GRAIN = 32768  # elements that a thread should have for waking it to pay
_SLOPES = {"identity": 1.0, "relu": 0.0}
_CURSORS_AT = -(-PACK.size // CURSOR) * CURSOR
_PHASES = struct.Struct("2q")


def launch(
    direction: str,
    call: Call,
    strides: Ints,
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
    """Run the kernel of `direction`: "forward", "backward", or "recover" where x is the output.

    Args:
        direction: which kernel.
        call: what to compute; its x need not lie like `out`.
        strides: those of `out` and `out_residual`, without gaps, or of what they would be.
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
    if direction == "recover":
        bend = True  # its only kernel
    elif dy is not None and (out is not None or out_residual is not None):
        # the quick kernel writes the gradient of x, and of the residual where there is one
        bend = bend and out is not None and (residual is None) == (out_residual is None)
    planned = _plan(strides, x, residual, dy)
    if None in planned.outer_steps:
        x, residual, dy = _laid_out(planned, x, residual, dy)
        planned = _plan(strides, x, residual, dy)
    like, planar, outer_steps, channel_steps, parts, span, columns, joined = planned
    weights, first = (None, 0) if mask is None else _weights(mask, x.shape, like)
    if first:
        first = first // like.inner * (outer_steps[0] or 0) + first % like.inner

    count = _team.threads(x.numel(), _GRAIN)
    phases, size = _division(planned, count)
    # small scratch memory comes with the record, in one allocation
    inside = size <= 4096
    scratch_at = _CURSORS_AT + CURSOR * 4 * count
    buffer = _room(scratch_at + 8 * size if inside else scratch_at)()
    here = ctypes.addressof(buffer)
    scratch = None if inside else torch.empty(size, dtype=torch.float64)
    address = here + scratch_at if scratch is None else scratch.data_ptr()
    PACK.pack_into(
        buffer,
        0,
        x.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        0 if dy is None else dy.data_ptr(),
        0 if out is None else out.data_ptr(),
        0 if out_residual is None else out_residual.data_ptr(),
        0 if weights is None else weights.data_ptr(),
        moments.data_ptr(),
        address if sums is None else sums.data_ptr(),
        address + 16 * like.channels,
        0 if weight is None else weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        0 if dweight is None else dweight.data_ptr(),
        0 if dbias is None else dbias.data_ptr(),
        *outer_steps,
        *channel_steps,
        like.outer,
        like.channels,
        like.inner,
        parts,
        span,
        columns,
        joined,
        0 if weight is None else PARAMETER_TYPES[weight.dtype],
        0 if weight is None else weight.stride(0),
        0 if bias is None else PARAMETER_TYPES[bias.dtype],
        0 if bias is None else bias.stride(0),
        measure,
        fixed,
        first,
        activation.code,
        kind == "relu",
        out is not None and out is not x and out is not dy and _memory.streams(out),
        direction == "recover",
        count,
        _team.thread_number() if count > 1 else 0,
        here + _CURSORS_AT,
        *phases,
        _SLOPES.get(kind, activation.parameter),
        eps,
    )
    code = kernel(direction, planar, not bend, x.dtype)
    if count == 1:
        code.function(buffer)
    else:
        _together(code, buffer, count, phases)


def _plan(strides: Ints, x: Tensor, residual: Tensor | None, dy: Tensor | None) -> Plan:
    return plan(
        x.shape,
        strides,
        x.stride(),
        None if residual is None else residual.stride(),
        None if dy is None else dy.stride(),
    )


def _laid_out(
    planned: Plan, x: Tensor, residual: Tensor | None, dy: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Copies of those that do not lie like the output.

    Two strides describe a slice of batch or channels, and a tensor expanded along the batch. A crop
    of the image, a transposed residual or an expanded gradient has more of them, and none that is
    contiguous: the loops would gather element by element, which costs more than this copy.
    """
    order = planned.layout.order
    back = [order.index(d) for d in range(x.dim())]

    def copy(t: Tensor) -> Tensor:
        return t.permute(order).contiguous().permute(back)

    of_x, of_residual, of_dy = (step is None for step in planned.outer_steps)
    return (
        copy(x) if of_x else x,
        copy(residual) if of_residual and residual is not None else residual,
        copy(dy) if of_dy and dy is not None else dy,
    )


@cache
def _room(size: int) -> type[ctypes.Array[ctypes.c_char]]:
    return ctypes.c_char * size


def _division(planned: Plan, count: int) -> tuple[tuple[int, int], int]:
    """The phases of a kernel for `count` threads, and how much scratch memory they need."""
    like, parts = planned.layout, planned.parts
    sums = 2 * like.channels
    if not planned.planar:
        return (0, 4), sums + VECTORS * planned.columns + 3 * parts * like.channels
    if count == 1 or parts == 1 or like.channels >= 4 * count:
        return (0, 1), sums
    return (1, 4), sums + 3 * parts * like.channels


def _together(
    code: Kernel, buffer: ctypes.Array[ctypes.c_char], count: int, phases: tuple[int, int]
) -> None:
    for phase in range(*phases):
        _PHASES.pack_into(buffer, PHASE_OFFSET, phase, phase + 1)
        _team.run(code.function, code.address, buffer, count)


def _weights(mask: Tensor, shape: torch.Size, like: Layout) -> tuple[Tensor, int]:
    """The weight of each position in the layout's order, and the first that counts.

    In float64, so that weights of any type keep their value; 1 / C of x's elements.
    """
    weights = mask_weight(mask, torch.float64).expand(shape[0], 1, *shape[2:])
    weights = weights.permute(like.order).contiguous()
    first = int((weights > 0).flatten().to(torch.uint8).argmax()) if weights.numel() else 0
    return weights, first
