"""Take batch norm out of a network, and put the biases back that it had made redundant."""

from __future__ import annotations

from typing import Any

from torch import nn

from batchnorm.surgery._changes import Changes


def remove(model: nn.Module, example: Any = None) -> Changes:
    r"""Take out each batch norm; what feeds it gets its bias back.

    A batch norm that is as it was made (gamma 1, beta 0, running mean 0 and variance 1) has nothing
    to hand on: weights stay the model's own tensors, so that networks with and without it start
    from the same ones, and a layer without a bias gets the one that :func:`insert` took from it,
    or zeros. Evaluation differs by that bias, and by the factor :math:`1/\sqrt{1+\epsilon}`.

    One that has been trained is folded into the Linear or convolution that feeds it:
    :math:`s = \gamma / \sqrt{var + \epsilon}`, :math:`W' = sW`, :math:`b' = s (b - mean) + \beta`.
    Evaluation stays what it was, to rounding; where no layer could take scale and shift (what feeds
    it is an addition, is used elsewhere too, shares its weights), it is left alone.

    ``nn.Identity`` takes its place, the fused activation that of a ``BatchNormAct``; a pair that
    :func:`insert` made becomes the one module again that stood there, so that ``remove`` undoes
    ``insert``. As there, the result is of the model's own class and shares what did not change.

    Args:
        model: any model; whatever of its ``forward`` torch.fx cannot follow is left alone.
        example: what the model is called with: a value, a tuple of them, or a dict by name. With
            it the path that the call takes is followed through any ``forward``, and the new
            model's output is compared with the old one's, in evaluation mode.

    Raises:
        TypeError: ``model`` is no module, or wrapped or compiled.
        ValueError: the model cannot run the example.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        >>> print(remove(net))
        Sequential: 1 changed, 0 left alone
        changed:
          1  BatchNorm2d(8) out; 0 has a bias again
    """
    # Only here: few who import the package change a model.
    from batchnorm.surgery._removing import removed

    return removed(model, example)
