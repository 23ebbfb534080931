"""From a call to a launch: tensors brought into one layout, addresses packed, threads sent."""

from __future__ import annotations

import torch
from torch import Tensor

from batchnorm.kernels import _memory, _team
from batchnorm.kernels._address import address
from batchnorm.kernels._call import Call
from batchnorm.kernels._layout import Ints, Plan
from batchnorm.kernels._numba_call import PACK_VARYING
from batchnorm.kernels._numba_prepare import Flags, Prepared, described, prepare
from batchnorm.moments import mask_weight

GRAIN = 32768  # elements that a thread should have for waking it to pay


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
    if dy is not None and call.activation.kind == "identity":
        call = call._replace(residual=None)  # its gradient does not need it
    flags = call.mask is not None, out is not None, out_residual is not None, measure, fixed
    prepared = _prepared(direction, call, strides, dy, flags)
    if prepared.scattered:
        x, residual, dy = _laid_out(prepared.plan, call.x, call.residual, dy)
        call = call._replace(x=x, residual=residual)
        prepared = _prepared(direction, call, strides, dy, flags)
    x, weight, bias, residual, mask, _, _ = call
    streams = out is not None and out is not x and out is not dy and _memory.prepare(out)
    if out_residual is not None:
        streams = _memory.prepare(out_residual) and streams
    weights, first = (None, 0) if mask is None else _weights(mask, x.shape, prepared.plan)
    send(
        prepared,
        address("x", x),
        address("residual", residual),
        address("dy", dy),
        address("out", out),
        address("out_residual", out_residual),
        address("weights", weights),
        address("moments", moments),
        address("sums", sums),
        address("weight", weight),
        address("bias", bias),
        address("dweight", dweight),
        address("dbias", dbias),
        first,
        streams,
    )


def _prepared(
    direction: str, call: Call, strides: Ints, dy: Tensor | None, flags: Flags
) -> Prepared:
    x, weight, bias, residual, _, eps, activation = call
    return prepare(
        direction,
        x.dtype,
        x.shape,
        strides,
        x.stride(),
        None if residual is None else residual.stride(),
        None if dy is None else dy.stride(),
        described(weight),
        described(bias),
        flags,
        eps,
        activation.kind,
        activation.parameter,
        _team.threads(x.numel(), GRAIN),
    )


def send(
    prepared: Prepared,
    x: int,
    residual: int,
    dy: int,
    out: int,
    out_residual: int,
    weights: int,
    moments: int,
    sums: int,
    weight: int,
    bias: int,
    dweight: int,
    dbias: int,
    first: int,
    streams: bool,
) -> None:
    """Run what is prepared on memory at these addresses, 0 for what there is not."""
    room = prepared.room()
    scratch = torch.empty(prepared.size, dtype=torch.float64) if room.scratch == 0 else None
    PACK_VARYING.pack_into(
        room.record, 0, x, residual, dy, out, out_residual, weights, moments, sums or room.sums,
        room.scratch if scratch is None else scratch.data_ptr(),
        weight, bias, dweight, dbias, first, streams,
    )  # fmt: skip
    if prepared.count == 1:
        prepared.kernel.function(room.record)
    else:
        room.clear()
        kernel = prepared.kernel
        _team.run(kernel.function, kernel.address, room.record, prepared.count)
    prepared.free.append(room)


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


def _weights(mask: Tensor, shape: torch.Size, plan: Plan) -> tuple[Tensor, int]:
    """The weight of each position in the layout's order, and where in x the first that counts is.

    In float64, so that weights of any type keep their value; 1 / C of x's elements.
    """
    like = plan.layout
    weights = mask_weight(mask, torch.float64).expand(shape[0], 1, *shape[2:])
    weights = weights.permute(like.order).contiguous()
    first = int((weights > 0).flatten().to(torch.uint8).argmax()) if weights.numel() else 0
    if first:
        first = first // like.inner * (plan.outer_steps[0] or 0) + first % like.inner
    return weights, first
