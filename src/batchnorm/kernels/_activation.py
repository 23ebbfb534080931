"""Activations that a kernel can fuse, with the two derivatives that training needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Activation:
    """One elementwise function and its parameter.

    Attributes:
        kind: one of `KINDS`.
        parameter: the slope of ``leaky_relu`` or the alpha of ``elu``; unused by the others.
    """

    kind: str = "identity"
    parameter: float = 0.0

    @property
    def code(self) -> int:
        """The kind as an integer, which operators and compiled kernels pass."""
        return KINDS.index(self.kind)

    @classmethod
    def from_code(cls, code: int, parameter: float) -> Activation:
        """The inverse of `code`."""
        return cls(KINDS[code], parameter)

    @classmethod
    def parse(cls, given: str | nn.Module | Activation | None) -> Activation:
        """Read an activation as users write it: a name, a `torch.nn` module, or None.

        Raises:
            ValueError: a name that is not known.
            TypeError: a module that has no fused form.
        """
        if given is None:
            return cls()
        if isinstance(given, Activation):
            return given
        if isinstance(given, nn.Module):
            return _from_module(given)
        if given not in KINDS:
            raise ValueError(
                f"activation={given!r} is not known; expected one of {', '.join(KINDS)}, "
                f"a torch.nn activation module, or None"
            )
        return cls(given, _DEFAULTS.get(given, 0.0))

    def value(self, z: Tensor) -> Tensor:
        """``f(z)``."""
        return _FORMULAS[self.kind].value(z, self.parameter)

    def slope(self, z: Tensor) -> Tensor:
        """``f'(z)``; at a kink the value that torch takes."""
        return _FORMULAS[self.kind].slope(z, self.parameter)

    def curvature(self, z: Tensor) -> Tensor:
        """``f''(z)``, zero at a kink."""
        return _FORMULAS[self.kind].curvature(z, self.parameter)


class _Formula(NamedTuple):
    value: Callable[[Tensor, float], Tensor]
    slope: Callable[[Tensor, float], Tensor]
    curvature: Callable[[Tensor, float], Tensor]


def _zero(z: Tensor, _: float) -> Tensor:
    return torch.zeros_like(z)


def _silu_slope(z: Tensor, _: float) -> Tensor:
    s = z.sigmoid()
    return s * (1 + z * (1 - s))


def _silu_curvature(z: Tensor, _: float) -> Tensor:
    s = z.sigmoid()
    return s * (1 - s) * (2 + z * (1 - 2 * s))


def _phi(z: Tensor) -> Tensor:
    return (-0.5 * z * z).exp() / math.sqrt(2 * math.pi)


def _gelu_slope(z: Tensor, _: float) -> Tensor:
    return 0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * _phi(z)


_ROOT, _CUBIC = math.sqrt(2 / math.pi), 0.044715


def _tanh_parts(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The tanh t of u, u' and u'' for u = sqrt(2/pi) (z + 0.044715 z^3)."""
    t = torch.tanh(_ROOT * (z + _CUBIC * z * z * z))
    return t, _ROOT * (1 + 3 * _CUBIC * z * z), 6 * _ROOT * _CUBIC * z


def _gelu_tanh_slope(z: Tensor, _: float) -> Tensor:
    t, du, _ddu = _tanh_parts(z)
    return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * du


def _gelu_tanh_curvature(z: Tensor, _: float) -> Tensor:
    t, du, ddu = _tanh_parts(z)
    return (1 - t * t) * (du + 0.5 * z * (ddu - 2 * t * du * du))


def _sigmoid_slope(z: Tensor, _: float) -> Tensor:
    s = z.sigmoid()
    return s * (1 - s)


def _sigmoid_curvature(z: Tensor, _: float) -> Tensor:
    s = z.sigmoid()
    return s * (1 - s) * (1 - 2 * s)


def _tanh_slope(z: Tensor, _: float) -> Tensor:
    return 1 - z.tanh().square()


def _tanh_curvature(z: Tensor, _: float) -> Tensor:
    t = z.tanh()
    return -2 * t * (1 - t * t)


def _inside(z: Tensor, low: float, high: float) -> Tensor:
    return (z > low) & (z < high)


_FORMULAS: dict[str, _Formula] = {
    "identity": _Formula(lambda z, _: z, lambda z, _: torch.ones_like(z), _zero),
    "relu": _Formula(lambda z, _: z.relu(), lambda z, _: (z > 0).to(z.dtype), _zero),
    "relu6": _Formula(
        lambda z, _: F.relu6(z), lambda z, _: _inside(z, 0.0, 6.0).to(z.dtype), _zero
    ),
    "leaky_relu": _Formula(
        F.leaky_relu,
        lambda z, a: torch.where(z > 0, torch.ones_like(z), a),
        _zero,
    ),
    "elu": _Formula(
        F.elu,
        lambda z, a: torch.where(z > 0, torch.ones_like(z), a * z.clamp(max=0).exp()),
        lambda z, a: torch.where(z > 0, torch.zeros_like(z), a * z.clamp(max=0).exp()),
    ),
    "silu": _Formula(lambda z, _: F.silu(z), _silu_slope, _silu_curvature),
    "hardswish": _Formula(
        lambda z, _: F.hardswish(z),
        lambda z, _: torch.where(_inside(z, -3.0, 3.0), z / 3 + 0.5, (z >= 3).to(z.dtype)),
        lambda z, _: _inside(z, -3.0, 3.0).to(z.dtype) / 3,
    ),
    "gelu": _Formula(
        lambda z, _: F.gelu(z),
        _gelu_slope,
        lambda z, _: _phi(z) * (2 - z * z),
    ),
    "gelu_tanh": _Formula(
        lambda z, _: F.gelu(z, approximate="tanh"), _gelu_tanh_slope, _gelu_tanh_curvature
    ),
    "sigmoid": _Formula(lambda z, _: z.sigmoid(), _sigmoid_slope, _sigmoid_curvature),
    "tanh": _Formula(lambda z, _: z.tanh(), _tanh_slope, _tanh_curvature),
}

KINDS = tuple(_FORMULAS)
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


def _from_module(module: nn.Module) -> Activation:
    if type(module) is nn.LeakyReLU:
        return Activation("leaky_relu", float(module.negative_slope))
    if type(module) is nn.ELU:
        return Activation("elu", float(module.alpha))
    if type(module) is nn.GELU:
        return Activation("gelu_tanh" if module.approximate == "tanh" else "gelu")
    kind = _MODULES.get(type(module))
    if kind is None:
        known = ", ".join([m.__name__ for m in _MODULES] + ["LeakyReLU", "ELU", "GELU"])
        raise TypeError(
            f"activation={module} has no fused form; expected one of torch.nn's {known}; "
            f"otherwise leave activation=None and apply the module to the result"
        )
    return Activation(kind)
