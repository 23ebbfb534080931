"""Batch renormalization: for batches that are small, or whose examples depend on each other."""

from __future__ import annotations

from typing import Any

import torch

from batchnorm.functional._check_kinds import check_flag
from batchnorm.functional._check_small import check_renorm
from batchnorm.layers._options import knowing_more_options
from batchnorm.layers._state import Layer
from batchnorm.layers.batch_norm import BatchNorm1d


class BatchRenorm1d(Layer):
    r"""Batch renormalization over ``(N, C)`` or ``(N, C, L)``, for small or dependent batches.

    .. math:: y = \gamma \left(r \frac{x - \mu}{\sigma} + d\right) + \beta, \quad
        r = \mathrm{clip}\left(\frac{\sigma}{\sigma_{run}}\right), \quad
        d = \mathrm{clip}\left(\frac{\mu - \mu_{run}}{\sigma_{run}}\right)

    Training then computes what evaluation will, within the limits: r in ``[1 / r_max, r_max]``, d
    in ``[-d_max, d_max]``, both constants to the gradient, from the running statistics as they were
    before this batch. In evaluation it is batch norm. State-dict keys are torch's.

    It is none of torch's batch norms on purpose: `convert_sync_batchnorm` would make it one.

    Args:
        num_features: and all that follow as in `BatchNorm1d`.
        eps: as there.
        momentum: as there.
        affine: as there.
        track_running_stats: True; there is nothing to renormalize by without.
        device: as there.
        dtype: as there.
        r_max: 1 or more; an attribute, to be raised in the course of training: the paper's goes
            from 1 to 3, after steps of plain batch norm that give the running statistics sense.
        d_max: 0 or more; an attribute, which in the paper goes from 0 to 5.
        own: `axis`, `bias_correction`, `ghost_size` and what else `BatchNorm1d` takes by keyword.

    Raises:
        ValueError: as `BatchNorm1d`; limits out of their range; no running statistics.

    Example:
        >>> layer = BatchRenorm1d(1, r_max=2.0, d_max=0.5)
        >>> layer(torch.tensor([[1.0], [3.0]])).tolist()
        [[-0.4999949...], [1.4999949...]]

    Source: Ioffe, "Batch Renormalization" (2017), algorithm 1. It keeps a running sigma, where this
    keeps torch's running variance.
    """

    ranks = (2, 3)

    @knowing_more_options(Layer.__init__)
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
        r_max: float = 3.0,
        d_max: float = 5.0,
        **own: Any,
    ) -> None:
        check_flag("track_running_stats", track_running_stats)
        if not track_running_stats:
            raise ValueError(
                "track_running_stats=False; batch renormalization expects running statistics, "
                "towards which it corrects: leave it True, or take BatchNorm1d"
            )
        super().__init__(num_features, eps, momentum, affine, True, device, dtype, **own)
        check_renorm((r_max, d_max))
        self.r_max, self.d_max = r_max, d_max

    @property
    def renorm(self) -> tuple[float, float]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The limits, as `batchnorm.functional.batch_norm` takes them."""
        return self.r_max, self.d_max

    forward = BatchNorm1d.forward

    def _shown(self) -> list[str]:
        return [f"r_max={self.r_max}", f"d_max={self.d_max}"]


class BatchRenorm2d(BatchRenorm1d):
    """`BatchRenorm1d` over ``(N, C, H, W)``.

    Example:
        >>> BatchRenorm2d(3)(torch.randn(2, 3, 4, 4)).shape
        torch.Size([2, 3, 4, 4])
    """

    ranks = (4,)


class BatchRenorm3d(BatchRenorm1d):
    """`BatchRenorm1d` over ``(N, C, D, H, W)``.

    Example:
        >>> BatchRenorm3d(3)(torch.randn(2, 3, 2, 4, 4)).shape
        torch.Size([2, 3, 2, 4, 4])
    """

    ranks = (5,)
