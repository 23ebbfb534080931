"""What torch's tools that read or rebuild modules get from a layer."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Any, Never

import torch

if TYPE_CHECKING:
    from batchnorm.layers._state import Layer


# What torch has no name for, and what a layer of torch's would be.
OWN = {
    "axis": 1,
    "bias_correction": False,
    "process_group": None,
    "one_value": "raise",
    "ghost_size": None,
    "statistics": "auto",
    "update": True,
}


def called(layer: Layer, input: Any, residual: Any, mask: Any) -> Any:
    """A call of the layer as torch.fx records it: the layer itself, with its state when it runs.

    Recording what it does would fix the mode that it is in while it is traced. Hooks have been
    recorded by then, so that a layer with hooks is called past them.
    """
    tracer = input.tracer
    target = tracer.path_of_module(layer)
    arguments = (input,) if residual is None else (input, residual)
    options = {} if mask is None else {"mask": mask}
    if not (layer._forward_hooks or layer._forward_pre_hooks):
        return tracer.create_proxy("call_module", target, arguments, options)
    itself = tracer.create_proxy("get_attr", target, (), {})
    return tracer.create_proxy("call_method", "forward", (itself, *arguments), options)


class Refusal:
    """Stops `torch.nn.SyncBatchNorm.convert_sync_batchnorm` where it would drop an option.

    It builds a layer of its own from the arguments that it knows, and asks for `qconfig` then.
    """

    def __get__(self, layer: Layer | None, owner: type | None = None) -> Any:
        if layer is not None and sys._getframe(1).f_code.co_name == "convert_sync_batchnorm":
            lost = layer.beyond_torch()
            if lost:
                raise TypeError(
                    f"torch.nn.SyncBatchNorm has no {' and no '.join(lost)}, which this "
                    f"{type(layer).__name__} was given; convert_sync_batchnorm would drop it: "
                    f"leave this layer out of the conversion, or give the layer torch's defaults"
                )
        raise AttributeError("qconfig")


def refuse_script(layer: Layer) -> Never:
    """Say what `torch.jit.script` gets, which asks before it compiles a module's source."""
    raise TypeError(
        f"torch.jit.script cannot compile {type(layer).__name__}, which chooses its kernel in "
        f"Python; expected torch.compile or torch.export.export, or in evaluation, model.eval(), "
        f"torch.jit.trace, whose graphs hold torch's own operators"
    )


def jit_traced(self: Layer, *input: Any, **options: Any) -> Any:
    """What `torch.jit.trace` calls in the place of `forward`.

    It warns of each look at a shape; what is looked at here is checked, and not computed with.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return torch.nn.Module._slow_forward(self, *input, **options)
