"""Activations that a kernel can fuse, with the two derivatives that training needs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KINDS = (
    "identity",
    "relu",
    "relu6",
    "leaky_relu",
    "elu",
    "silu",
    "hardswish",
    "gelu",
    "gelu_tanh",
    "sigmoid",
    "tanh",
)
_DEFAULTS = {"leaky_relu": 0.01, "elu": 1.0}
_MODULES: dict[type[nn.Module], str] = {
    nn.Identity: "identity",
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
}


@dataclass(frozen=True)
class Activation:
    """One elementwise function and its parameter.

    Attributes:
        kind: one of `KINDS`.
        parameter: the slope of ``leaky_relu`` or the alpha of ``elu``; unused by the others.
    """

    kind: str = "identity"
    parameter: float = 0.0

    def __str__(self) -> str:
        return f"{self.kind}({self.parameter:g})" if self.kind in _DEFAULTS else self.kind

    @property
    def code(self) -> int:
        """The kind as an integer, which operators and compiled kernels pass."""
        return KINDS.index(self.kind)

    @classmethod
    def from_code(cls, code: int, parameter: float) -> Activation:
        """The inverse of `code`."""
        return _of_code(code, parameter)

    @classmethod
    def parse(cls, given: str | nn.Module | Activation | None) -> Activation:
        """Read an activation as users write it: a name, a `torch.nn` module, or None.

        Raises:
            ValueError: a name that is not known.
            TypeError: a module that has no fused form.
        """
        if given is None:
            return _IDENTITY
        if isinstance(given, Activation):
            return given
        if isinstance(given, nn.Module):
            return _from_module(given)
        if given not in KINDS:
            raise ValueError(
                f"activation={given!r} is not known; expected one of {', '.join(KINDS)}, "
                f"a torch.nn activation module such as torch.nn.ReLU(), or None"
            )
        return cls(given, _DEFAULTS.get(given, 0.0))

    def value(self, z: Tensor) -> Tensor:
        """``f(z)``, by torch's own functions."""
        match self.kind:
            case "identity":
                return z
            case "relu":
                return F.relu(z)
            case "relu6":
                return F.relu6(z)
            case "leaky_relu":
                return F.leaky_relu(z, self.parameter)
            case "elu":
                return F.elu(z, self.parameter)
            case "silu":
                return F.silu(z)
            case "hardswish":
                return F.hardswish(z)
            case "gelu":
                return F.gelu(z)
            case "gelu_tanh":
                return F.gelu(z, approximate="tanh")
            case "sigmoid":
                return torch.sigmoid(z)
            case _:
                return torch.tanh(z)

    def inverse(self, y: Tensor) -> Tensor:
        """The z with ``f(z) = y``, for identity, leaky ReLU and ELU of a parameter above zero."""
        match self.kind:
            case "leaky_relu":
                return torch.where(y > 0, y, y / self.parameter)
            case "elu":
                return torch.where(y > 0, y, (y.clamp(max=0) / self.parameter).log1p())
            case _:
                return y

    def slope(self, z: Tensor) -> Tensor:
        """``f'(z)``; at a kink the value that torch takes."""
        match self.kind:
            case "identity":
                return torch.ones_like(z)
            case "relu":
                return (z > 0).to(z.dtype)
            case "relu6":
                return ((z > 0) & (z < 6)).to(z.dtype)
            case "leaky_relu":
                return torch.where(z > 0, torch.ones_like(z), self.parameter)
            case "elu":
                return torch.where(z > 0, torch.ones_like(z), self._exponential(z))
            case "silu":
                s = z.sigmoid()
                return s * (1 + z * (1 - s))
            case "hardswish":
                return torch.where((z > -3) & (z < 3), z / 3 + 0.5, (z >= 3).to(z.dtype))
            case "gelu":
                return 0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * _gaussian(z)
            case "gelu_tanh":
                t, du, _ = _tanh_of_cubic(z)
                return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * du
            case "sigmoid":
                s = z.sigmoid()
                return s * (1 - s)
            case _:
                return 1 - z.tanh().square()

    def curvature(self, z: Tensor) -> Tensor:
        """``f''(z)``, zero at a kink."""
        match self.kind:
            case "elu":
                return torch.where(z > 0, torch.zeros_like(z), self._exponential(z))
            case "silu":
                s = z.sigmoid()
                return s * (1 - s) * (2 + z * (1 - 2 * s))
            case "hardswish":
                return ((z > -3) & (z < 3)).to(z.dtype) / 3
            case "gelu":
                return _gaussian(z) * (2 - z * z)
            case "gelu_tanh":
                t, du, ddu = _tanh_of_cubic(z)
                return (1 - t * t) * (du + 0.5 * z * (ddu - 2 * t * du * du))
            case "sigmoid":
                s = z.sigmoid()
                return s * (1 - s) * (1 - 2 * s)
            case "tanh":
                t = z.tanh()
                return -2 * t * (1 - t * t)
            case _:
                return torch.zeros_like(z)

    def _exponential(self, z: Tensor) -> Tensor:
        """``alpha exp(z)`` for z <= 0, where it is the slope and the curvature of ELU."""
        return self.parameter * z.clamp(max=0).exp()


def _gaussian(z: Tensor) -> Tensor:
    return (-0.5 * z * z).exp() / math.sqrt(2 * math.pi)


def _tanh_of_cubic(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``tanh(u)``, ``u'`` and ``u''`` for ``u = sqrt(2/pi) (z + 0.044715 z^3)``."""
    root, cubic = math.sqrt(2 / math.pi), 0.044715
    t = torch.tanh(root * (z + cubic * z * z * z))
    return t, root * (1 + 3 * cubic * z * z), 6 * root * cubic * z


def _from_module(module: nn.Module) -> Activation:
    if isinstance(module, nn.LeakyReLU):
        return Activation("leaky_relu", float(module.negative_slope))
    if isinstance(module, nn.ELU):
        return Activation("elu", float(module.alpha))
    if isinstance(module, nn.GELU):
        return Activation("gelu_tanh" if module.approximate == "tanh" else "gelu")
    kind = _MODULES.get(type(module))
    if kind is None:
        known = ", ".join([m.__name__ for m in _MODULES] + ["LeakyReLU", "ELU", "GELU"])
        raise TypeError(
            f"activation={module} has no fused form; expected one of torch.nn's {known}; "
            f"otherwise leave activation=None and apply the module to the result"
        )
    return Activation(kind)


_IDENTITY = Activation()


@lru_cache
def _of_code(code: int, parameter: float) -> Activation:
    return Activation(KINDS[code], parameter)
