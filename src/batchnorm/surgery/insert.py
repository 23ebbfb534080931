"""Put batch norm into a network: before each activation, on z, or after it, on a."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from batchnorm.surgery._changes import Changes

Placement = Literal["before", "after"]


def insert(model: nn.Module, placement: Placement = "before", example: Any = None) -> Changes:
    r"""Put a batch norm at each Linear or convolution that an activation follows.

    ``before``: :math:`a = g(\mathrm{BN}(W a_{prev}))`. The layer becomes
    ``nn.Sequential(layer, norm)`` at its path, without its bias, which the mean that batch norm
    subtracts would cancel; the bias stays where something else sees it too. ``after``:
    :math:`a = \mathrm{BN}(g(W a_{prev} + b))`. The activation becomes
    ``nn.Sequential(activation, norm)`` where it is a module used once; otherwise the one module
    that takes its value becomes ``nn.Sequential(norm, module)``.

    A layer is left alone where a ``forward`` looks at it (``isinstance(layer, nn.Linear)``) and
    would go another way with a pair: what the model calls, on which values, is compared with and
    without pairs, as traced and as run. Where neither is possible (no example, and torch.fx cannot
    follow), a part that can be followed by itself is changed only if the code around it names
    neither the class nor an attribute of the layer.

    The result is of the model's own class. Its modules are new; its parameters and buffers are the
    model's, so that an optimizer keeps working for them (give it the new ones). The model itself
    stays as it is, and shares its other batch norms' running statistics with the result.

    Args:
        model: any model; whatever of its ``forward`` torch.fx cannot follow is left alone.
        placement: on z, before the activation, or on a, after it.
        example: what the model is called with: a value, a tuple of them, or a dict by name. With
            it the path that the call takes is followed through any ``forward``, the number of axes
            is known (without it a Linear whose input cannot be told is taken to see ``(N, C)`` or
            ``(N, L, C)``), and the new model is tried. A copy of the model is run, in evaluation
            mode (in training mode too where the code cannot be followed).

    Raises:
        TypeError: ``model`` is no module, or wrapped or compiled.
        ValueError: ``placement`` is neither; the model cannot run the example.
        RuntimeError: the new model cannot run the example; the message names the place.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.Sigmoid(), nn.Linear(100, 10))
        >>> print(insert(net))
        Sequential: 1 changed, 1 left alone
        changed:
          1  BatchNorm1d(100) before sigmoid; bias dropped
        left alone:
          3  no activation follows: its output is the model's output
    """
    # Only here: few who import the package change a model.
    from batchnorm.surgery._inserting import inserted

    return inserted(model, placement, example)
