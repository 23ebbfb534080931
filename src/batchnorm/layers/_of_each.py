"""What each domain of a layer has, and the layer around them has not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from batchnorm.layers._foreign import OWN
from batchnorm.layers._forwards import name_forward

_KEPT = ("running_mean", "running_var", "num_batches_tracked", "weight", "bias")  # in state dicts
_SET = (*_KEPT, "momentum", "eps", *OWN)
_READ = (*_SET, "skipped", "num_features", "affine", "track_running_stats", "reset_running_stats")


class OfEach(nn.Module):
    """A layer with ``domains``, which says of theirs where it is.

    Gamma and beta may be its own.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        name_forward(cls)

    if not TYPE_CHECKING:  # a type checker knows that there is no such attribute

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                if name not in _READ:
                    raise
            raise AttributeError(self._elsewhere(name))

    def __setattr__(self, name: str, value: Any) -> None:
        """As torch's; what would have no effect here is refused."""
        if name in _SET and name not in self.__dict__.get("_parameters", ()):
            raise AttributeError(self._elsewhere(name))
        super().__setattr__(name, value)

    def _elsewhere(self, name: str) -> str:
        told = (
            f"{type(self).__name__} has no {name} of its own, but each of its domains has: "
            f"layer.domains[0].{name} is that of the first"
        )
        if name in _KEPT:
            told += f", in the state dict domains.0.{name}"
        if name in ("statistics", "update"):
            told += f"; batchnorm.switches(layer, {name}=...) sets it for all in a block"
        return told
