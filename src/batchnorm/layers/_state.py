"""What all layers share: parameters, buffers and the one call that forward makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.fx import Proxy
from torch.nn import init
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.rnn import PackedSequence

from batchnorm.functional import _group, _sync, batch_norm
from batchnorm.functional._check_small import check_small
from batchnorm.kernels._activation import Activation
from batchnorm.layers._buffers import keep, place_count, widen
from batchnorm.layers._foreign import Refusal, called
from batchnorm.layers._passes import Given, Passes

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from batchnorm.layers._masked import Ambient

Input = TypeVar("Input", Tensor, PackedSequence)
_COUNT = "num_batches_tracked"
STATISTICS = ("auto", "batch", "running")
OWN = {
    "axis": 1,
    "bias_correction": False,
    "process_group": None,
    "one_value": "raise",
    "ghost_size": None,
    "statistics": "auto",
    "update": True,
}


class Layer(_NormBase):
    """Torch's state (the same arguments, parameters, buffers and state-dict keys), our function."""

    ranks: tuple[int, ...]
    axis: int
    bias_correction: bool = False
    one_value: str = "raise"
    ghost_size: int | None = None
    renorm: tuple[float, float] | None = None
    pool: Tensor | None = None  # what `batchnorm.pooled` gathers
    update: bool = True
    _statistics: str = "auto"
    qconfig = Refusal()
    process_group: ProcessGroup | str | _group.Elsewhere | None = None
    ambient: Ambient | None = None  # what `batchnorm.masked` puts around a block
    passes: Passes[Given] | None = None  # from the first such block on

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
        bias_correction: bool = False,
        process_group: ProcessGroup | str | None = None,
        one_value: str = "raise",
        ghost_size: int | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        if not weight:
            self.register_parameter("weight", None)
        if not bias:
            self.register_parameter("bias", None)
        self.axis = axis
        if process_group is not None:
            _group.check(process_group)
            self.process_group = process_group
        self.bias_correction = bias_correction
        check_small(one_value, ghost_size)
        self.one_value, self.ghost_size = one_value, ghost_size
        counts = torch.zeros((), dtype=torch.int64, device=device) if track_running_stats else None
        self.register_buffer("skipped", counts, persistent=False)
        widen(self)

    @property
    def statistics(self) -> str:
        """Which statistics normalize.

        "auto": the batch's own in training, the running ones in evaluation; "batch" and "running":
        always these. Without running statistics they are always the batch's.
        """
        return self._statistics

    @statistics.setter
    def statistics(self, value: str) -> None:
        if value not in STATISTICS:
            raise ValueError(f"statistics={value!r}; expected one of {', '.join(STATISTICS)}")
        self._statistics = value

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Layer:
        """Casts and moves as torch does, but running statistics stay in float32 or wider."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        keep(self, before)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        widen(self)
        place_count(self, self._buffers.get("skipped"))

    def reset_running_stats(self) -> None:
        """Running statistics of nothing yet, and nothing counted."""
        super().reset_running_stats()
        skipped = self._buffers.get("skipped")
        if skipped is not None:
            skipped.zero_()

    def reset_parameters(self) -> None:
        """Running statistics of nothing yet, gamma 1 and beta 0, whichever there are."""
        self.reset_running_stats()
        for name, fill in (("weight", init.ones_), ("bias", init.zeros_)):
            parameter = getattr(self, name)
            if parameter is not None:
                fill(parameter)

    def __getstate__(self) -> dict[str, Any]:
        """A copy or pickle remembers a group by its name and its ranks, and no block around it."""
        state = {k: v for k, v in self.__dict__.items() if k not in ("ambient", "passes", "pool")}
        return state | {"process_group": _group.remembered(self.process_group)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.process_group = _group.recalled(self.process_group)

    def _normalize(
        self,
        input: Input,
        activation: Activation | None = None,
        residual: Input | None = None,
        mask: Tensor | None = None,
        inplace: bool = False,
        parameters: tuple[Tensor | None, Tensor | None] | None = None,
    ) -> Input:
        if isinstance(input, Proxy):
            return called(self, input, residual, mask)
        weight, bias, running_mean, running_var, num_batches_tracked, skipped = self._state()
        if parameters is not None:
            weight, bias = parameters
        statistics = self._statistics
        if self.passes is not None:
            now = Given(statistics, self.ambient, running_mean, running_var)
            statistics, ambient, running_mean, running_var = self.passes.first(input, now)
            if mask is None and ambient is not None:
                mask = ambient.fitted(input, self.axis)
        batch, moves = self.training, self.training and self.track_running_stats and self.update
        if statistics != "auto":
            batch = statistics == "batch"
        if running_mean is None or running_var is None:
            batch = batch or running_mean is running_var
        elif running_mean.dtype.itemsize < 4 or running_var.dtype.itemsize < 4:
            widen(self, in_place=True)
        return layer_batch_norm(
            input,
            self.ranks,
            running_mean,
            running_var,
            weight,
            bias,
            batch,
            self.momentum,
            self.eps,
            activation=activation,
            residual=residual,
            mask=mask,
            axis=self.axis,
            num_batches_tracked=num_batches_tracked if moves else None,
            inplace=inplace,
            update=moves,
            skipped=skipped if moves else None,
            bias_correction=self.bias_correction,
            process_group=self.process_group if self.training and (batch or moves) else None,
            one_value=self.one_value,
            ghost_size=self.ghost_size,
            renorm=self.renorm,
            pool=self.pool,
        )

    def _state(self) -> tuple[Tensor | None, ...]:
        """What `forward` reads; by attribute only where another module keeps it: that is slower."""
        p, b = self._parameters, self._buffers
        if "weight" in p and "bias" in p and "running_mean" in b and "running_var" in b:
            state = p["weight"], p["bias"], b["running_mean"], b["running_var"]
            return (*state, b.get(_COUNT), b.get("skipped"))
        state = self.weight, self.bias, self.running_mean, self.running_var
        return (*state, getattr(self, _COUNT), getattr(self, "skipped", None))

    def beyond_torch(self) -> list[str]:
        """What torch's layer of the same arguments has no name for, where it is no default."""
        off = ["weight=False"] if self.affine and self._parameters["weight"] is None else []
        return off + [
            f"{name}={getattr(self, name)!r}"
            for name, default in OWN.items()
            if getattr(self, name) != default
        ]

    def extra_repr(self) -> str:
        """Torch's line, and what differs from the defaults."""
        return ", ".join((super().extra_repr(), *self.beyond_torch()))


def layer_batch_norm(x: Input, ranks: tuple[int, ...], *arguments: Any, **options: Any) -> Input:
    """`batch_norm` for inputs of the given ranks."""
    if isinstance(x, PackedSequence):
        return _packed(x, *arguments, **options)
    if x.dim() not in ranks:
        if options["process_group"] is not None:
            _sync.refuse(_group.name_of(options["process_group"]))
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
    if options["ghost_size"] is not None:
        raise ValueError(
            f"ghost_size={options['ghost_size']} with a PackedSequence, whose values are one "
            f"batch; expected ghost_size=None, or the padded sequence with its mask"
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
