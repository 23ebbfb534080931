"""What all layers share: parameters, buffers and the one call that forward makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.nn import init
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.rnn import PackedSequence

from batchnorm.functional import batch_norm
from batchnorm.kernels._activation import Activation

if TYPE_CHECKING:
    from batchnorm.layers._masked import Ambient

Input = TypeVar("Input", Tensor, PackedSequence)
_COUNT = "num_batches_tracked"


class Layer(_NormBase):
    """Torch's state (the same arguments, parameters, buffers and state-dict keys), our function."""

    ranks: tuple[int, ...]
    axis: int
    ambient: Ambient | None = None  # what `batchnorm.masked` puts around a block

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        weight: bool = True,
        bias: bool = True,
        axis: int = 1,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        if not weight:
            self.register_parameter("weight", None)
        if not bias:
            self.register_parameter("bias", None)
        self.axis = axis
        for name in ("running_mean", "running_var"):
            buffer = getattr(self, name)
            if buffer is not None and buffer.dtype.itemsize < 4:
                setattr(self, name, buffer.float())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Layer:
        """Casts and moves as torch does, but running statistics stay in float32 or wider."""
        before = {name: self._buffers.get(name) for name in ("running_mean", "running_var")}
        super()._apply(fn, recurse)
        for name, kept in before.items():
            cast = self._buffers.get(name)
            if kept is not None and cast is not None and cast.dtype.itemsize < 4:
                self._buffers[name] = kept.to(device=cast.device, dtype=torch.float32)
        return self

    def reset_parameters(self) -> None:
        """Running statistics of nothing yet, gamma 1 and beta 0, whichever there are."""
        self.reset_running_stats()
        for name, fill in (("weight", init.ones_), ("bias", init.zeros_)):
            parameter = getattr(self, name)
            if parameter is not None:
                fill(parameter)

    def _normalize(
        self,
        input: Input,
        activation: Activation | None = None,
        residual: Input | None = None,
        mask: Tensor | None = None,
        inplace: bool = False,
    ) -> Input:
        weight, bias, running_mean, running_var, num_batches_tracked = self._state()
        batch = self.training or (running_mean is None and running_var is None)
        tracked = not self.training or self.track_running_stats
        if mask is None and self.ambient is not None:
            mask = self.ambient.fitted(input, self.axis)
        return layer_batch_norm(
            input,
            self.ranks,
            running_mean if tracked else None,
            running_var if tracked else None,
            weight,
            bias,
            batch,
            self.momentum,
            self.eps,
            activation=activation,
            residual=residual,
            mask=mask,
            axis=self.axis,
            num_batches_tracked=num_batches_tracked if tracked and batch else None,
            inplace=inplace,
        )

    def _state(self) -> tuple[Tensor | None, ...]:
        """What `forward` reads; by attribute only where another module keeps it: that is slower."""
        p, b = self._parameters, self._buffers
        if "weight" in p and "bias" in p and "running_mean" in b and "running_var" in b:
            return p["weight"], p["bias"], b["running_mean"], b["running_var"], b.get(_COUNT)
        return self.weight, self.bias, self.running_mean, self.running_var, getattr(self, _COUNT)

    def extra_repr(self) -> str:
        """Torch's line, and what differs from the defaults."""
        off = ", weight=False" if self.affine and self._parameters["weight"] is None else ""
        return f"{super().extra_repr()}{off}" + (f", axis={self.axis}" if self.axis != 1 else "")


@torch.fx.wrap
def layer_batch_norm(x: Input, ranks: tuple[int, ...], *arguments: Any, **options: Any) -> Input:
    """`batch_norm` for inputs of the given ranks; one node in a graph that torch.fx traces."""
    if isinstance(x, PackedSequence):
        return _packed(x, *arguments, **options)
    if x.dim() not in ranks:
        wanted = " or ".join(f"{rank}D" for rank in ranks)
        raise ValueError(
            f"expected {wanted} input (got {x.dim()}D input of shape {tuple(x.shape)}); "
            f"BatchNorm1d takes 2D or 3D, BatchNorm2d 4D and BatchNorm3d 5D input"
        )
    return batch_norm(x, *arguments, **options)


def _packed(x: Any, *arguments: Any, residual: Any, mask: Tensor | None, **options: Any) -> Any:
    """The values of all sequences as rows: each is data, and the channels come last."""
    if mask is not None:
        raise ValueError(
            f"mask of shape {tuple(mask.shape)} with a PackedSequence; expected mask=None, since "
            f"all of its values are data: leave others out of it, or give the padded sequence"
        )
    if residual is not None:
        if not isinstance(residual, PackedSequence):
            raise TypeError(
                f"residual is a {type(residual).__name__} and the input a PackedSequence; expected "
                f"a residual packed as the input is"
            )
        residual = residual.data
    options["axis"] = 1
    y = batch_norm(x.data, *arguments, residual=residual, mask=None, **options)
    return x._replace(data=y)
