"""Batch norm layers that take the number of channels from the first input."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter, is_lazy
from torch.nn.utils.rnn import PackedSequence

from batchnorm.functional._check_kinds import check_axis, check_flags
from batchnorm.layers._options import knowing_more_options
from batchnorm.layers._rows import check_rank, telling, with_batch_axis
from batchnorm.layers._state import Layer
from batchnorm.layers.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d


class _Awaited(UninitializedBuffer):
    """Torch's cannot be copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            make: Any = type(self)
            memo[id(self)] = make(self.requires_grad, self.device, self.dtype)
        return memo[id(self)]


class _Lazy(LazyModuleMixin, Layer):
    """Torch's lazy layer, with our arguments, on any channel axis."""

    @knowing_more_options(Layer.__init__)
    def __init__(
        self,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        weight: bool = True,
        bias: bool = True,
        **own: Any,
    ) -> None:
        check_flags(weight=weight, bias=bias)
        mixin: Any = LazyModuleMixin  # whose __init__ goes on to Layer's, past torch's lazy one
        mixin.__init__(self, 0, eps, momentum, False, False, device, dtype, **own)
        parameter: Any = UninitializedParameter
        buffer: Any = _Awaited
        self.affine, self.track_running_stats = affine, track_running_stats
        for name, there in (("weight", affine and weight), ("bias", affine and bias)):
            if there:
                self.register_parameter(name, parameter(device=device, dtype=dtype))
        if track_running_stats:
            kind = torch.empty(0, dtype=dtype, device="meta").dtype
            wide = torch.float32 if kind.itemsize < 4 else kind
            for name in ("running_mean", "running_var"):
                self.register_buffer(name, buffer(device=device, dtype=wide))
            for name in ("num_batches_tracked", "skipped"):
                count = torch.zeros((), dtype=torch.int64, device=device)
                self.register_buffer(name, count, persistent=name != "skipped")

    forward = BatchNorm1d.forward

    def reset_parameters(self) -> None:
        """As torch's: nothing before the first input."""
        if self.num_features and not self._awaiting():
            super().reset_parameters()

    def initialize_parameters(self, input: Any = None, *_: object, **__: object) -> None:
        """Make what is not there yet for the channels of `input`."""
        if isinstance(input, PackedSequence):
            channels = input.data.shape[1]
        else:
            input = with_batch_axis(input, self.ranks)
            with telling(self.process_group if self.training else None):
                check_rank(input, self.ranks)
                check_axis(self.axis, input.dim(), f"input of {input.dim()} dimensions")
            channels = input.size(self.axis)
        if not self.num_features:
            self.num_features = channels
        awaiting = self._awaiting()
        for made in awaiting:
            made.materialize((channels,))
        if awaiting:
            self.reset_parameters()

    def _awaiting(self) -> list[Any]:
        held = (*self._parameters.values(), *self._buffers.values())
        return [t for t in held if t is not None and is_lazy(t)]


class LazyBatchNorm1d(_Lazy, nn.LazyBatchNorm1d):
    """`BatchNorm1d` that takes C from its first input, and is a `BatchNorm1d` from then on.

    Args:
        eps: and all that follow as in `BatchNorm1d`.
        momentum: as there.
        affine: as there.
        track_running_stats: as there.
        device: as there.
        dtype: as there.
        weight: as there.
        bias: as there.
        own: `axis`, `bias_correction` and whatever else `BatchNorm1d` takes by keyword.

    Example:
        >>> layer = LazyBatchNorm1d(axis=-1)
        >>> _ = layer(torch.randn(2, 5, 3))
        >>> layer
        BatchNorm1d(3, eps=1e-05, momentum=0.1, ..., axis=-1)
    """

    cls_to_become = BatchNorm1d
    ranks = BatchNorm1d.ranks


class LazyBatchNorm2d(_Lazy, nn.LazyBatchNorm2d):
    """`BatchNorm2d` that takes C from its first input; arguments as `LazyBatchNorm1d`.

    Example:
        >>> LazyBatchNorm2d()(torch.randn(2, 3, 4, 4)).shape
        torch.Size([2, 3, 4, 4])
    """

    cls_to_become = BatchNorm2d
    ranks = BatchNorm2d.ranks


class LazyBatchNorm3d(_Lazy, nn.LazyBatchNorm3d):
    """`BatchNorm3d` that takes C from its first input; arguments as `LazyBatchNorm1d`.

    Example:
        >>> LazyBatchNorm3d()(torch.randn(2, 3, 2, 4, 4)).shape
        torch.Size([2, 3, 2, 4, 4])
    """

    cls_to_become = BatchNorm3d
    ranks = BatchNorm3d.ranks
