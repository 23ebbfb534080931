"""What torch has of each activation besides its value: in place, kept for autograd, its gradient.

All of them on z, a tensor of the caller's own that nobody else sees.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from batchnorm.kernels._activation import Activation

Applied = Callable[[Tensor], Tensor]
_aten = torch.ops.aten


def over(f: Activation) -> Applied:
    """A function that writes f(z) over z."""
    parameter = f.parameter
    match f.kind:
        case "identity":
            return lambda z: z
        case "relu":
            return torch.relu_
        case "relu6":
            return lambda z: F.hardtanh_(z, 0.0, 6.0)
        case "leaky_relu":
            return lambda z: F.leaky_relu_(z, parameter)
        case "elu":
            return lambda z: F.elu_(z, parameter)
        case "silu":
            return lambda z: F.silu(z, inplace=True)
        case "hardswish":
            return lambda z: F.hardswish(z, inplace=True)
        case "gelu":
            return lambda z: _aten.gelu_(z)
        case "gelu_tanh":
            return lambda z: _aten.gelu_(z, approximate="tanh")
        case "sigmoid":
            return torch.sigmoid_
        case _:
            return torch.tanh_


def apart(f: Activation) -> Applied:
    """A function whose output autograd does not need: what is written over it changes no gradient.

    Torch's ReLU, sigmoid and tanh keep their output. A threshold of 0 is ReLU (but for the sign of
    a zero, which it loses) and keeps z; the other two give away a copy.
    """
    match f.kind:
        case "relu":
            return lambda z: torch.threshold(z, 0, 0)
        case "sigmoid":
            return lambda z: torch.sigmoid_(z).clone()
        case "tanh":
            return lambda z: torch.tanh_(z).clone()
        case _:
            return f.value


def flat(f: Activation) -> bool:
    """Whether torch's gradient multiplies by a slope of zero, of which infinity makes NaN."""
    return f.kind in ("leaky_relu", "elu") and f.parameter == 0


def back(f: Activation, dy: Tensor, z: Tensor) -> Tensor:
    """The gradient before the activation, over z; zero where that is flat on a stretch.

    Where it only levels off, as SiLU does, a gradient that is not finite becomes NaN, as in torch.
    """
    if flat(f):
        return _aten.threshold_backward.grad_input(dy, z, 0, grad_input=z)
    parameter = f.parameter
    match f.kind:
        case "relu":
            return _aten.threshold_backward.grad_input(dy, z, 0, grad_input=z)
        case "relu6":
            return _aten.hardtanh_backward.grad_input(dy, z, 0, 6, grad_input=z)
        case "leaky_relu":
            return _aten.leaky_relu_backward.grad_input(dy, z, parameter, False, grad_input=z)
        case "elu":
            return _aten.elu_backward.grad_input(dy, parameter, 1, 1, False, z, grad_input=z)
        case "silu":
            return _aten.silu_backward.grad_input(dy, z, grad_input=z)
        case "hardswish":
            return _aten.hardswish_backward.default(dy, z)
        case "gelu":
            return _aten.gelu_backward.grad_input(dy, z, grad_input=z)
        case "gelu_tanh":
            return _aten.gelu_backward.grad_input(dy, z, approximate="tanh", grad_input=z)
        case "sigmoid":
            return _aten.sigmoid_backward.grad_input(dy, z.sigmoid_(), grad_input=z)
        case _:
            return _aten.tanh_backward.grad_input(dy, z.tanh_(), grad_input=z)
