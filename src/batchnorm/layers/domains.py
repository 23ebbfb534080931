"""Batch norms with statistics of their own for each of several domains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from batchnorm.functional._check_kinds import WHOLE, check_flags, whole
from batchnorm.functional._hidden import hidden
from batchnorm.layers._of_each import OfEach
from batchnorm.layers._options import knowing_more_options
from batchnorm.layers._passes import InDomain, Passes
from batchnorm.layers._rows import telling
from batchnorm.layers._state import Layer
from batchnorm.layers.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d


class DomainBatchNorm1d(OfEach):
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
        AttributeError: what each domain has, such as `running_mean`, asked of the layer itself.

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

    @knowing_more_options(Layer.__init__)
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
        if not whole(domains) or domains < 1:
            raise ValueError(f"domains={domains!r}; expected how many there are, 1 or more")
        check_flags(affine=affine, own_affine=own_affine, weight=weight, bias=bias)
        if own_affine and affine:
            own |= {"weight": weight, "bias": bias}
        arguments = (eps, momentum, own_affine and affine, track_running_stats, device, dtype)
        self.domains = nn.ModuleList(
            [self.kind(num_features, *arguments, **own) for _ in range(domains)]
        )
        self.own_affine = own_affine
        for name, there, fill in (("weight", weight, torch.ones), ("bias", bias, torch.zeros)):
            value = fill(num_features, device=device, dtype=dtype) if there and affine else None
            if value is None or not own_affine:  # else each domain's
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
        asked = self.domain if domain is None else domain
        if isinstance(asked, Tensor) and hidden(asked) and asked.dim() == 0:
            return self(input[None], asked[None], mask=None if mask is None else mask[None])[0]
        merging = self._merging()
        with telling(merging):
            domain, mask = self._asked(input, domain, mask)
        if isinstance(domain, Tensor):
            return self._by_example(domain, input, mask, merging is not None)
        if merging is not None:
            return self._by_all(domain, input, mask)
        return self._by(domain, input, mask)

    def _merging(self) -> Any:
        """The process group over which this call merges statistics."""
        for i in range(len(self.domains)):
            norm = self._norm(i)
            if norm.process_group is not None and norm.training:
                return norm.process_group
        return None

    def _asked(
        self, input: Any, domain: Any, mask: Tensor | None
    ) -> tuple[int | Tensor, Tensor | None]:
        """The domain of this call, and for one of each example the mask that fits it."""
        if domain is None:
            domain = self.domain
            if self.passes is not None:
                (domain,) = self.passes.first(input, InDomain(domain))
        if domain is None:
            raise ValueError(
                f"no domain was given; expected one of 0 to {len(self.domains) - 1}, or a tensor "
                f"of one for each example: layer(x, domain), or with in_domain(model, domain)"
            )
        plain = isinstance(input, Tensor) and not input.is_nested
        if not isinstance(domain, Tensor):
            if not plain and self._merging() is not None:
                raise TypeError(
                    f"input is a {type(input).__name__} and there is a process_group, whose ranks "
                    f"may have other domains; expected a padded tensor with its mask"
                )
            return self.known(domain), mask
        if not plain:
            raise TypeError(
                f"domain is a tensor and the input a {type(input).__name__}; expected one domain "
                f"for all, an integer, or a padded tensor with its mask"
            )
        self._check(domain, input)
        ambient = self._norm(0).ambient
        if mask is None and ambient is not None:
            mask = ambient.fitted(input, self._norm(0).axis)
        return domain, mask

    def _by_example(self, domain: Tensor, input: Tensor, mask: Tensor | None, all: bool) -> Tensor:
        y = None
        for one in range(len(self.domains)) if all else self._present(domain):
            part = self._by(one, input, _within(domain == one, mask))
            y = part if y is None else y + part
        return torch.empty_like(input) if y is None else y

    def _by_all(self, domain: int, input: Tensor, mask: Tensor | None) -> Tensor:
        """Other ranks may have other domains: those join with nothing, forward and backward."""
        y, nothing = None, input.new_ones(0, dtype=torch.bool)
        for one in range(len(self.domains)):
            if one == domain:
                part = self._by(one, input, mask)
            else:
                part = self._by(one, input[:0], nothing).sum()
            y = part if y is None else y + part
        assert y is not None, "there is a domain"
        return y

    def _by(self, domain: int, input: Tensor, mask: Tensor | None) -> Tensor:
        shared = None if self.own_affine else (self.weight, self.bias)
        return self._norm(domain)._normalize(input, mask=mask, parameters=shared)

    def _norm(self, domain: int) -> Layer:
        norm = self.domains[domain]
        assert isinstance(norm, Layer), "made by the constructor"
        return norm

    def known(self, domain: int) -> int:
        """`domain`, checked to be one that there is."""
        if not whole(domain) or not 0 <= domain < len(self.domains):
            raise ValueError(
                f"domain={domain!r}; expected an integer from 0 to {len(self.domains) - 1}, or a "
                f"tensor of one for each example"
            )
        return domain

    def _check(self, domain: Tensor, input: Tensor) -> None:
        if domain.dtype not in WHOLE or domain.shape != input.shape[:1]:
            raise ValueError(
                f"domain is {domain.dtype} of shape {tuple(domain.shape)}; expected an integer, or "
                f"integers of shape ({input.shape[0]},), one for each example"
            )
        if len(domain) and _looked_at(domain):
            for bound in (domain.min(), domain.max()):
                self.known(int(bound))

    def _present(self, domain: Tensor) -> list[int]:
        """On the CPU those that occur; elsewhere looking would stall the device: all."""
        if not _looked_at(domain):
            return list(range(len(self.domains)))
        return domain.unique().tolist()

    def extra_repr(self) -> str:
        """How many domains, and whose gamma and beta."""
        return f"own_affine={self.own_affine}"


def _looked_at(domain: Tensor) -> bool:
    """Whether looking stalls no device and breaks no graph."""
    return domain.is_cpu and not torch.compiler.is_compiling() and not hidden(domain)


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
