"""Population statistics for the batch norms of a trained model, measured anew on any batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import nn

from batchnorm.surgery._changes import Changes

if TYPE_CHECKING:
    from batchnorm.surgery._batches import Forward


def recalibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    examples: int | None = None,
    prior: float = 0,
    layer_by_layer: bool = False,
    forward: Forward | None = None,
) -> Changes:
    r"""Measure the running statistics of a model's batch norms anew, in place.

    Each becomes the mean and the unbiased variance of all that its batch norm takes in,

    .. math:: \mu = \frac1n \sum_i x_i \qquad \sigma^2 = \frac1{n-1} \sum_i (x_i - \mu)^2

    merged exactly over batches of any sizes, whatever momentum is set. For a model whose weights
    have just been changed (averaged, pruned, loaded in part), whose running averages trail behind
    the weights, or which is to see data from elsewhere.

    The model is run in evaluation mode, since that is what the statistics are for: nothing is
    dropped out, and a batch norm's output is made from running statistics, never from those of one
    batch, whose noise deeper layers would measure as if it belonged to the data. In the one
    pass, each batch norm meanwhile normalizes with what has been merged so far, this batch
    included. The first batch norm comes out exact; deeper ones have seen the first batches through
    statistics of few examples, which matters where batches are tiny or sorted by class.
    ``layer_by_layer`` takes a pass for each batch norm in the order of their calls, all earlier
    ones final by then: exact for all, whatever the batches' sizes and order.

    Left as they are: weights, gradients, every module's mode, ``num_batches_tracked`` (no training
    step was taken), random states, and the statistics of batch norms that are frozen: in evaluation
    mode within a model in training mode, with ``statistics="running"`` or with ``update=False``.
    The process group of a synchronized batch norm is asked for its moments once, after the pass.

    Args:
        model: changed in place; ours and torch's batch norms, `SyncBatchNorm` too.
        batches: a DataLoader or any iterable. The model is called with a tensor, with the first of
            a tuple or list ``(x, y)``, or by name with those of a dict that its ``forward`` takes;
            tensors are moved to the model's device.
        examples: at most so many, the last batch cut to fit; all for None.
        prior: the statistics as they are count as those of so many examples beside the new ones.
        layer_by_layer: one pass a batch norm; ``batches`` must give the same at each pass.
        forward: called with model and batch where that is not how the model is to be called.

    Returns:
        The same model; how far each batch norm's statistics have moved, and which were left alone.

    Raises:
        TypeError: no module, one that is wrapped or compiled, or ``batches`` that cannot be used.
        ValueError: no examples, values that are not finite, one value a channel in all, a number
            out of range. On any error the model is as it was.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.BatchNorm1d(1), nn.ReLU())
        >>> x = torch.tensor([[1.0], [2.0], [6.0]])
        >>> print(recalibrate(net, [x[:1], x[1:]]))
        Sequential: 1 changed, 0 left alone
        changed:
          0  3 values a channel: mean moved by 3 standard deviations, variance times 7
        >>> net[0].running_mean, net[0].running_var
        (tensor([3.]), tensor([7.]))
    """
    # Only here: few who import the package change a model.
    from batchnorm.surgery._recalibrating import recalibrated

    return recalibrated(model, batches, examples, prior, layer_by_layer, forward)
