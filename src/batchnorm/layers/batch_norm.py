"""Batch norm for 2D to 5D input: drop-ins for torch's, argument for argument."""

from __future__ import annotations

import torch
from torch import Tensor

from batchnorm.layers._calls import Input
from batchnorm.layers._state import Layer


class BatchNorm1d(Layer, torch.nn.BatchNorm1d):
    r"""Batch norm over ``(N, C)`` or ``(N, C, L)``; replaces `torch.nn.BatchNorm1d`.

    .. math:: y = \gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta

    In training mu and sigma^2 (biased) are the batch's own, per channel, exact however far the
    mean is from zero; the running statistics move by `momentum` towards mu and the unbiased
    variance, in float32 or wider whatever the module is cast to, and a batch that is empty or not
    finite leaves them alone. In evaluation the running statistics are used.

    Args:
        num_features: C.
        eps: added to the variance; above zero.
        momentum: the share of the new batch in the running statistics, from 0 to 1; None for the
            plain average.
        affine: learn gamma (`weight`) and beta (`bias`).
        track_running_stats: keep running statistics; without them evaluation uses the batch's.
        device: where parameters and buffers are made.
        dtype: of the parameters.
        weight: learn gamma; beta alone without.
        bias: learn beta; gamma alone without.
        axis: where the channels are; -1 for ``(N, L, C)``.
        bias_correction: running statistics that are right from the first step on, without a share
            of the zeros and ones that they start from.
        process_group: the processes that share their statistics in training: "world" for all, a
            group of `torch.distributed.new_group`, or None for this one alone. In evaluation a
            layer talks to nobody. `batchnorm.functional.batch_norm` says what each rank must do.
        one_value: what a batch with one value per channel gets in training: "raise" an error,
            normalize it with the "running" statistics, or "beta" for what lies at its mean; the
            last two leave the running statistics alone.
        ghost_size: normalize each group of so many examples by itself.

    Attributes:
        statistics: which statistics normalize: "auto" for the batch's own in training and the
            running ones in evaluation, "batch" or "running" for always these.
        update: whether the running statistics move in training. ``statistics = "running"`` and
            ``update = False`` freeze the layer, whatever `train()` says.
        skipped: how many batches were kept out of the running statistics for being not finite; on
            the CPU the layer shows it when it is printed.

    Raises:
        ValueError: an argument of the wrong kind or out of its range, when it is given; input of
            another rank or number of channels, or one value per channel in training.

    Example:
        >>> layer = BatchNorm1d(2)
        >>> layer(torch.tensor([[1.0, 100.0], [3.0, 300.0]])).tolist()
        [[-0.9999949..., -1.0], [0.9999949..., 1.0]]
        >>> layer.running_mean.tolist()
        [0.2000000..., 20.0]

    Source: Ioffe and Szegedy, "Batch Normalization" (2015), algorithms 1 and 2.
    """

    ranks = (2, 3)

    def forward(self, input: Input, *, mask: Tensor | None = None) -> Input:
        """Normalize `input`, a tensor, nested tensor or `PackedSequence`.

        `mask` says which examples or positions are data. A residual goes to `BatchNormAct1d`, 2d
        or 3d, with activation="identity" if there is none.
        """
        return self._normalize(input, mask=mask)


class BatchNorm2d(Layer, torch.nn.BatchNorm2d):
    """Batch norm over ``(N, C, H, W)``; replaces `torch.nn.BatchNorm2d`.

    Formula, arguments and errors are those of `BatchNorm1d`.

    Example:
        >>> BatchNorm2d(3)(torch.randn(2, 3, 4, 4)).shape
        torch.Size([2, 3, 4, 4])
    """

    ranks = (4,)
    forward = BatchNorm1d.forward


class BatchNorm3d(Layer, torch.nn.BatchNorm3d):
    """Batch norm over ``(N, C, D, H, W)``; replaces `torch.nn.BatchNorm3d`.

    Formula, arguments and errors are those of `BatchNorm1d`.

    Example:
        >>> BatchNorm3d(3)(torch.randn(2, 3, 2, 4, 4)).shape
        torch.Size([2, 3, 2, 4, 4])
    """

    ranks = (5,)
    forward = BatchNorm1d.forward
