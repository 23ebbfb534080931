"""A domain for the batch norms inside a model, whoever calls them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from torch import Tensor, nn

from batchnorm.functional._check_kinds import check_module
from batchnorm.layers._passes import Passes
from batchnorm.layers.domains import DomainBatchNorm1d


@contextmanager
def in_domain(model: nn.Module, domain: int | Tensor) -> Generator[None]:
    """Inside the block the domain norms of `model` take `domain`, however deep they lie.

    A compiled block in an eager activation checkpoint is recomputed under what holds then: let the
    domain's block last until after ``backward()``.

    Args:
        model: whose `DomainBatchNorm1d`, `2d` and `3d` are meant.
        domain: as they take it.

    Raises:
        ValueError: the model has none, or has no such domain.
        TypeError: ``model`` is no module.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 3), DomainBatchNorm1d(3, domains=2))
        >>> with in_domain(model, 1):
        ...     y = model(torch.randn(4, 2))
        >>> [norm.num_batches_tracked.item() for norm in model[1].domains]
        [0, 1]
    """
    check_module("in_domain", model)
    layers = [m for m in model.modules() if isinstance(m, DomainBatchNorm1d)]
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no batch norm with domains; expected a model with some, "
            f"such as batchnorm.DomainBatchNorm2d(64, domains=2)"
        )
    if not isinstance(domain, Tensor):
        for layer in layers:
            layer.known(domain)
    before = [layer.domain for layer in layers]
    try:
        for layer in layers:
            layer.domain = domain
            layer.passes = layer.passes or Passes()
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer.domain = own
