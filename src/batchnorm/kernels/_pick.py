"""Which backend takes a call: an ordered list, and the reasons of those that refuse."""

from __future__ import annotations

from batchnorm.kernels import numba, plain
from batchnorm.kernels._call import Backend, Call

ORDER: tuple[Backend, ...] = (numba, plain)


def pick(call: Call, name: str = "") -> Backend:
    """The first backend that takes `call`; a named one takes it or raises.

    Raises:
        ValueError: `name` is no backend, or that backend refuses; the message gives the reasons.
    """
    for backend in ORDER:
        if name in ("", backend.name) and backend.refuses(call) is None:
            return backend
    names = [backend.name for backend in ORDER]
    if name not in names:
        raise ValueError(f"backend={name!r} is not known; expected None or one of {names}")
    reasons = "; ".join(f"{b.name}: {b.refuses(call) or 'would take it'}" for b in ORDER)
    raise ValueError(
        f"backend={name!r} cannot take x of shape {tuple(call.x.shape)}, {call.x.dtype} on "
        f"{call.x.device} ({reasons}); use backend=None to let the first that can take it"
    )
