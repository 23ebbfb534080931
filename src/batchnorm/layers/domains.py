"""Batch norms with statistics of their own for each of several domains."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from batchnorm.layers._passes import InDomain, Passes
from batchnorm.layers._state import Layer
from batchnorm.layers.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d


class DomainBatchNorm1d(nn.Module):
    """`BatchNorm1d` with statistics of their own for each of several domains.

    Gamma and beta are shared, or with ``own_affine=True`` each domain's too. Each domain is a
    `BatchNorm1d` in ``layer.domains``: switches, snapshots, masks and pooling work on it as on any.

    Args:
        num_features: C.
        domains: how many.
        eps: and all that follow as in `BatchNorm1d`.
        momentum: as there.
        affine: as there.
        track_running_stats: as there.
        device: as there.
        dtype: as there.
        own_affine: a gamma and a beta for each domain.
        weight: as there.
        bias: as there.
        own: `axis`, `one_value` and whatever else `BatchNorm1d` takes by keyword.

    Attributes:
        domain: the domain of a call that names none; `in_domain` sets it for a block.

    Raises:
        ValueError: as `BatchNorm1d`; no domain, or one that there is not.

    Example:
        >>> layer = DomainBatchNorm1d(2, domains=3)
        >>> x = torch.randn(4, 2)
        >>> y = layer(x, 1)
        >>> y = layer(x, torch.tensor([0, 0, 2, 2]))
        >>> [norm.num_batches_tracked.item() for norm in layer.domains]
        [1, 1, 1]

    Source: Chang and others, "Domain-Specific Batch Normalization" (2019), with
    ``own_affine=True``; without, Li and others, "Revisiting Batch Normalization For Practical
    Domain Adaptation" (2016).
    """

    kind: type[Layer] = BatchNorm1d
    domain: int | Tensor | None = None
    passes: Passes[InDomain] | None = None  # from the first block of `in_domain` on
    weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        num_features: int,
        domains: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        own_affine: bool = False,
        weight: bool = True,
        bias: bool = True,
        **own: Any,
    ) -> None:
        super().__init__()
        if isinstance(domains, bool) or domains < 1:
            raise ValueError(f"domains={domains}; expected how many there are, 1 or more")
        if own_affine and affine:
            own |= {"weight": weight, "bias": bias}
        arguments = (eps, momentum, own_affine and affine, track_running_stats, device, dtype)
        self.domains = nn.ModuleList(
            [self.kind(num_features, *arguments, **own) for _ in range(domains)]
        )
        self.own_affine = own_affine
        for name, there, fill in (("weight", weight, torch.ones), ("bias", bias, torch.zeros)):
            shared = there and affine and not own_affine
            value = fill(num_features, device=device, dtype=dtype) if shared else None
            self.register_parameter(name, None if value is None else nn.Parameter(value))

    def forward(
        self, input: Tensor, domain: int | Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        """Normalize each example by its domain.

        Args:
            input: as `BatchNorm1d` takes it.
            domain: that of the whole batch, or an integer tensor ``(N,)``, one for each example: by
                the statistics of those that share it. None for the attribute.
            mask: which examples or positions are data.
        """
        if domain is None:
            domain = self.domain
            if self.passes is not None:
                (domain,) = self.passes.first(input, InDomain(domain))
        if domain is None:
            raise ValueError(
                f"no domain was given; expected one of 0 to {len(self.domains) - 1}, or a tensor "
                f"of one for each example: layer(x, domain), or around a model's call "
                f"with batchnorm.in_domain(model, domain)"
            )
        if not isinstance(domain, Tensor):
            return self._by(self._known(domain), input, mask)
        self._check(domain, input)
        y = None
        for one in self._present(domain):
            axis, ambient = self._norm(one).axis, self._norm(one).ambient
            given = ambient.fitted(input, axis) if mask is None and ambient is not None else mask
            part = self._by(one, input, _within(domain == one, given))
            y = part if y is None else y + part
        return torch.empty_like(input) if y is None else y

    def _by(self, domain: int, input: Tensor, mask: Tensor | None) -> Tensor:
        shared = None if self.own_affine else (self.weight, self.bias)
        return self._norm(domain)._normalize(input, mask=mask, parameters=shared)

    def _norm(self, domain: int) -> Layer:
        norm = self.domains[domain]
        assert isinstance(norm, Layer), "made by the constructor"
        return norm

    def _known(self, domain: int) -> int:
        if not 0 <= domain < len(self.domains):
            raise ValueError(
                f"domain={domain}; expected one of 0 to {len(self.domains) - 1}, or a tensor of "
                f"one for each example"
            )
        return domain

    def _check(self, domain: Tensor, input: Tensor) -> None:
        if domain.is_floating_point() or domain.shape != input.shape[:1]:
            raise ValueError(
                f"domain is {domain.dtype} of shape {tuple(domain.shape)}; expected an integer, or "
                f"integers of shape ({input.shape[0]},), one for each example"
            )

    def _present(self, domain: Tensor) -> list[int]:
        """On the CPU those that occur; elsewhere looking would stall the device: all."""
        if not domain.is_cpu or torch.compiler.is_compiling():
            return list(range(len(self.domains)))
        return [self._known(one) for one in domain.unique().tolist()]

    def extra_repr(self) -> str:
        """How many domains, and whose gamma and beta."""
        return f"own_affine={self.own_affine}"


def _within(chosen: Tensor, mask: Tensor | None) -> Tensor:
    """`mask` where the examples are `chosen`, else nothing."""
    if mask is None:
        return chosen
    chosen = chosen.view(-1, *[1] * (mask.dim() - 1))
    return chosen & mask if mask.dtype == torch.bool else torch.where(chosen, mask, 0)


class DomainBatchNorm2d(DomainBatchNorm1d):
    """`DomainBatchNorm1d` over ``(N, C, H, W)``.

    Example:
        >>> DomainBatchNorm2d(3, domains=2)(torch.randn(2, 3, 4, 4), 0).shape
        torch.Size([2, 3, 4, 4])
    """

    kind = BatchNorm2d


class DomainBatchNorm3d(DomainBatchNorm1d):
    """`DomainBatchNorm1d` over ``(N, C, D, H, W)``.

    Example:
        >>> DomainBatchNorm3d(3, domains=2)(torch.randn(2, 3, 2, 4, 4), 0).shape
        torch.Size([2, 3, 2, 4, 4])
    """

    kind = BatchNorm3d


@contextmanager
def in_domain(model: nn.Module, domain: int | Tensor) -> Generator[None]:
    """Inside the block the domain norms of `model` take `domain`, however deep they lie.

    Args:
        model: whose `DomainBatchNorm1d`, `2d` and `3d` are meant.
        domain: as they take it.

    Raises:
        ValueError: the model has none.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), DomainBatchNorm1d(3, domains=2))
        >>> with in_domain(model, 1):
        ...     y = model(torch.randn(4, 2))
        >>> [norm.num_batches_tracked.item() for norm in model[1].domains]
        [0, 1]
    """
    layers = [m for m in model.modules() if isinstance(m, DomainBatchNorm1d)]
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no batch norm with domains; expected a model with some, "
            f"such as batchnorm.DomainBatchNorm2d(64, domains=2)"
        )
    before = [layer.domain for layer in layers]
    try:
        for layer in layers:
            layer.domain = domain
            layer.passes = layer.passes or Passes()
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer.domain = own
