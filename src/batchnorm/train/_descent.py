"""What changes the parameters: torch's optimizers by name, or the caller's own."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "momentum": partial(torch.optim.SGD, momentum=0.9),
    "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam,
}


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that descent changes; the first says where the model lives."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(
            f"{type(model).__name__} has no parameters that require a gradient: nothing to train"
        )
    return parameters


def descent_of(
    parameters: list[nn.Parameter], optimizer: str | MakeOptimizer, learning_rate: float
) -> torch.optim.Optimizer:
    """The optimizer of that name, or the one that the caller's function makes."""
    if not isinstance(optimizer, str):
        return optimizer(parameters)
    if optimizer not in OPTIMIZERS:
        raise ValueError(
            f"no optimizer {optimizer!r}: expected one of {', '.join(OPTIMIZERS)}, or a function "
            "of the parameters that returns a torch.optim.Optimizer"
        )
    return OPTIMIZERS[optimizer](parameters, lr=learning_rate)


def check_numbers(learning_rate: float, steps: int, batch_size: int, every: int) -> None:
    """Refuse a learning rate or a count that nothing can be trained with."""
    if not (learning_rate > 0 and math.isfinite(learning_rate)):
        raise ValueError(f"learning_rate is {learning_rate}; expected a finite number above 0")
    for name, value in (("steps", steps), ("batch_size", batch_size), ("every", every)):
        if value < 1:
            raise ValueError(f"{name} is {value}; expected a whole number of at least 1")
