"""Batch norm, residual add and activation in one layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from batchnorm.functional._check import check_invertible
from batchnorm.kernels._activation import Activation
from batchnorm.layers._calls import Input
from batchnorm.layers._options import knowing_its_options
from batchnorm.layers._state import Layer

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class BatchNormAct1d(Layer):
    r"""Batch norm over ``(N, C)`` or ``(N, C, L)``, then the residual, then the activation.

    .. math:: y = f\left(\gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta + r\right)

    State-dict keys are those of `torch.nn.BatchNorm1d`, so weights move between the two. The class
    is none of torch's batch norms on purpose: `torch.nn.SyncBatchNorm.convert_sync_batchnorm` and
    torch's fusers rebuild any batch norm that they find, and would drop the activation.

    Args:
        num_features: C.
        activation: a name ("relu", "relu6", "leaky_relu", "elu", "silu", "hardswish", "gelu",
            "gelu_tanh", "sigmoid", "tanh", "identity"), or a `torch.nn` activation module, whose
            slope or alpha is taken over.
        eps: and all that follow as in `BatchNorm1d`.
        inplace: write the output over the input, which saves the memory of one tensor a layer, for
            identity, leaky_relu and elu; `batchnorm.functional.batch_norm` says where fresh memory
            is used all the same. As after any in-place operation, the input's values are gone.

    Raises:
        ValueError: an activation name that is not known, or that cannot be undone in place; input
            as for `BatchNorm1d`; a residual of another shape than the input.
        TypeError: an activation module that has no fused form.

    Example:
        >>> layer = BatchNormAct1d(2, "relu")
        >>> layer(torch.tensor([[1.0, 100.0], [3.0, 300.0]])).tolist()
        [[0.0, 0.0], [0.9999949..., 1.0]]
    """

    ranks = (2, 3)

    @knowing_its_options
    def __init__(
        self,
        num_features: int,
        activation: str | nn.Module | Activation | None = "relu",
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
        inplace: bool = False,
    ) -> None:
        super().__init__(
            num_features,
            eps,
            momentum,
            affine,
            track_running_stats,
            device,
            dtype,
            weight=weight,
            bias=bias,
            axis=axis,
            bias_correction=bias_correction,
            process_group=process_group,
            one_value=one_value,
            ghost_size=ghost_size,
        )
        self.activation = Activation.parse(activation)
        self.inplace = inplace
        if inplace:
            check_invertible(self.activation)

    def forward(
        self, input: Input, residual: Input | None = None, *, mask: Tensor | None = None
    ) -> Input:
        """Normalize `input`, add `residual`, apply the activation."""
        return self._normalize(input, self.activation, residual, mask, self.inplace)

    def _shown(self) -> list[str]:
        return [f"activation={self.activation}", *(["inplace=True"] if self.inplace else [])]


class BatchNormAct2d(BatchNormAct1d):
    """`BatchNormAct1d` over ``(N, C, H, W)``.

    Example:
        >>> x, shortcut = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
        >>> bool((BatchNormAct2d(3)(x, shortcut) >= 0).all())
        True
    """

    ranks = (4,)


class BatchNormAct3d(BatchNormAct1d):
    """`BatchNormAct1d` over ``(N, C, D, H, W)``.

    Example:
        >>> BatchNormAct3d(3, "silu")(torch.randn(2, 3, 2, 4, 4)).shape
        torch.Size([2, 3, 2, 4, 4])
    """

    ranks = (5,)
