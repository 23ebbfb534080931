"""What our autograd functions are made of."""

from __future__ import annotations

from typing import Any

from torch.autograd.function import _SingleLevelFunction


class Function(_SingleLevelFunction):
    """`torch.autograd.Function` without its ``apply``, whose questions cost microseconds a call.

    They are for function transforms, which are known to be absent here or are met on their own.
    """

    @staticmethod
    def _compiled_autograd_key(ctx: Any) -> tuple[Any, ...]:  # torch asks under compiled autograd
        return (ctx._autograd_function_id,)
