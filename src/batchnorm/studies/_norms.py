"""The batch norms of a network: put in beside the biases, found, and what they take in."""

from typing import Any

import torch
from torch import Tensor, nn

from batchnorm.data import Data
from batchnorm.studies._arms import _inserted
from batchnorm.surgery import is_batch_norm


def norms_of(model: nn.Module) -> list[Any]:
    """Every batch norm, in the order in which the model holds them."""
    return [module for module in model.modules() if is_batch_norm(module)]


def beside_biases(name: str, plain: nn.Module, data: Data) -> tuple[nn.Module, list[nn.Parameter]]:
    """A network with batch norm put in, whose layers keep the biases that insertion drops.

    Returns:
        The model, and those biases: parameters of its own that begin with the plain ones' values.
    """
    changes = _inserted(name, plain, data)
    biases: list[nn.Parameter] = []
    for path, what in changes.changed:
        if "bias dropped" in what:
            layer = changes.model.get_submodule(f"{path}.0")
            bias: Any = plain.get_submodule(path).bias
            layer.bias = nn.Parameter(bias.detach().clone())
            biases.append(layer.bias)
    return changes.model, biases


def paired(model: nn.Module, biases: list[nn.Parameter]) -> list[tuple[Any, nn.Parameter]]:
    """Each of the biases with the batch norm behind its layer."""
    pairs: list[tuple[Any, nn.Parameter]] = []
    for module in model.modules():
        if isinstance(module, nn.Sequential) and len(module) == 2 and is_batch_norm(module[1]):
            bias: Any = getattr(module[0], "bias", None)
            pairs += [(module[1], bias)] if any(bias is one for one in biases) else []
    return pairs


def taken_in(model: nn.Module, x: Tensor) -> list[Tensor]:
    """What each batch norm takes in when the model is called, as its mode is; the last call's."""
    norms = norms_of(model)
    seen: dict[nn.Module, Tensor] = {}

    def see(norm: nn.Module, args: tuple[Any, ...]) -> None:
        seen[norm] = args[0]

    hooks = [norm.register_forward_pre_hook(see) for norm in norms]
    try:
        with torch.no_grad():
            model(x.clone())
    finally:
        for hook in hooks:
            hook.remove()
    return [seen[norm] for norm in norms if norm in seen]
