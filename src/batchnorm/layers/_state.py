"""What all layers share: parameters, buffers and options."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import init
from torch.nn.modules.batchnorm import _NormBase

from batchnorm.functional import _group
from batchnorm.functional._check_kinds import check_axis, check_channels, check_flags, check_place
from batchnorm.functional._check_small import check_small
from batchnorm.functional._usual import Usual
from batchnorm.layers._buffers import keep, kept_out, place_count, take_count, widen
from batchnorm.layers._calls import normalized
from batchnorm.layers._foreign import OWN, Refusal, jit_traced, refuse_script
from batchnorm.layers._forwards import name_forward
from batchnorm.layers._options import CHECKS, knowing_its_options
from batchnorm.layers._passes import Given, Passes

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from batchnorm.layers._masked import Ambient

_COUNT = "num_batches_tracked"
_OF_NOW = ("ambient", "passes", "pool", "usual", "changed")
STATISTICS = ("auto", "batch", "running")
_RARE = {
    "process_group": None,
    "one_value": "raise",
    "ghost_size": None,
    "pool": None,
    "passes": None,
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
    __prepare_scriptable__ = refuse_script
    _slow_forward = jit_traced
    process_group: ProcessGroup | str | _group.Elsewhere | None = None
    ambient: Ambient | None = None  # what `batchnorm.masked` puts around a block
    passes: Passes[Given] | None = None  # from the first such block on
    _normalize = normalized
    plain: bool = True  # whether no option is set that a call rarely has
    usual: Usual | None = None  # what is known of calls while no attribute changes
    changed: object = None  # another one after each change

    @knowing_its_options
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
        check_channels(num_features)
        check_axis(axis, max(self.ranks), f"input of {max(self.ranks)} dimensions")
        check_flags(weight=weight, bias=bias)
        check_place(device, dtype)
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

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        name_forward(cls)

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

    def __setattr__(self, name: str, value: Any) -> None:
        """As torch's; what a call would have to look at each time is looked at here."""
        if name in CHECKS:
            CHECKS[name](name, value)
        same = self.__dict__.get(name, self) is value
        super().__setattr__(name, value)
        if name in _RARE:
            plain = all(getattr(self, one) is default for one, default in _RARE.items())
            self.__dict__["plain"] = plain and type(self).renorm is None
        if not same:
            self._forget()

    def __delattr__(self, name: str) -> None:
        """As torch's; a default of the class may come back by it."""
        super().__delattr__(name)
        self._forget()

    def _forget(self) -> None:
        """What is known of calls, and what a call that is going on comes to know."""
        self.__dict__["changed"] = []  # no other is the same; Dynamo cannot make an object()
        self.__dict__.pop("usual", None)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Layer:
        """Casts and moves as torch does, but running statistics stay in float32 or wider."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        keep(self, before)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        complaint = take_count(state_dict, prefix + _COUNT, self._buffers.get(_COUNT))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if complaint:
            args[-1].append(complaint)  # error_msgs
        widen(self)
        place_count(self, self._buffers.get("skipped"))

    def reset_running_stats(self) -> None:
        """Running statistics of nothing yet, and nothing counted.

        Not those of a layer whose `update` is off, which nothing would fill again:
        `torch.optim.swa_utils.update_bn` begins with a reset of every layer. A warning tells so.
        """
        if not self.update and self._buffers.get("running_mean") is not None:
            warnings.warn(
                f"reset_running_stats() left a {type(self).__name__} alone: its update=False keeps "
                f"its statistics; set update=True before, or call reset_parameters()",
                stacklevel=2,
            )
            return
        self.reset_anew()

    def reset_anew(self) -> None:
        """As `reset_running_stats`, whatever the switches say."""
        super().reset_running_stats()
        skipped = self._buffers.get("skipped")
        if skipped is not None:
            skipped.zero_()

    def reset_parameters(self) -> None:
        """Running statistics of nothing yet, gamma 1 and beta 0, whichever there are."""
        self.reset_anew()
        for name, fill in (("weight", init.ones_), ("bias", init.zeros_)):
            parameter = getattr(self, name)
            if parameter is not None:
                fill(parameter)

    def __getstate__(self) -> dict[str, Any]:
        """A copy or pickle remembers a group by its name and its ranks, and no block around it."""
        state = {k: v for k, v in self.__dict__.items() if k not in _OF_NOW}
        return state | {"process_group": _group.remembered(self.process_group)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()
        self.process_group = _group.recalled(self.process_group)

    def beyond_torch(self) -> list[str]:
        """What torch's layer of the same arguments has no name for, where it is no default."""
        off = ["weight=False"] if self.affine and self._parameters["weight"] is None else []
        return off + [
            f"{name}={getattr(self, name)!r}"
            for name, default in OWN.items()
            if getattr(self, name) != default
        ]

    def __repr__(self) -> str:
        """Torch's; `torch.vmap` asks in a compiled graph too, where torch's cannot be traced."""
        return self._get_name() if torch.compiler.is_dynamo_compiling() else super().__repr__()

    def extra_repr(self) -> str:
        """Torch's line, what differs from the defaults, and how many batches were kept out."""
        shown = [super().extra_repr(), *self.beyond_torch(), *self._shown()]
        if count := kept_out(self._buffers.get("skipped")):
            shown.append(f"skipped={count}")
        return ", ".join(shown)

    def _shown(self) -> list[str]:
        """What layers of this kind have besides."""
        return []
