"""Mini-batch gradient descent, with or without batch norm: one loop, any torch optimizer."""

import math
import random
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from batchnorm.data import Data, Examples

Row = dict[str, float | int | None]
MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "momentum": partial(torch.optim.SGD, momentum=0.9),
    "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam,
}
CHUNK = 1000  # examples evaluated at once: bounds memory, and large enough to cost nothing


def train(
    model: nn.Module,
    data: Data,
    *,
    optimizer: str | MakeOptimizer = "sgd",
    learning_rate: float = 0.1,
    steps: int = 400,
    batch_size: int = 60,
    seed: int = 0,
    every: int = 10,
    on_row: Callable[[Row], object] | None = None,
) -> list[Row]:
    """Train a classifier in place by mini-batch gradient descent on cross-entropy.

    Each epoch goes through the training set in a new order. The last mini-batch of an epoch may be
    smaller; should it hold one single example, which has no variance to normalize with, that
    example joins the mini-batch before it.

    Args:
        model: maps ``(m, *data.shape)`` to logits ``(m, data.classes)``. A model in evaluation mode
            is switched to training; in a model in training mode, parts that the caller has put in
            evaluation mode (frozen layers) stay there. Every mode is given back at the end.
        data: the three sets; moved to the model's device and floating dtype.
        optimizer: "sgd" (plain descent), "momentum" (0.9), "rmsprop", "adam", or a function
            of the list of parameters that returns a ``torch.optim.Optimizer``.
        learning_rate: for the named optimizers; a function brings its own.
        steps: mini-batches to train on.
        batch_size: examples in a mini-batch.
        seed: of the order of examples and of whatever the model draws (dropout). The same seed
            gives the same bits on one thread; the global random states are given back.
        every: steps between rows; there is also one at step 0 and one at the last step.
        on_row: called with each row as it is made.

    Returns:
        Rows with "step", "loss" (mean over the mini-batches since the last row), "peak_loss" (the
        largest of them), "validation_loss", "validation_accuracy", "test_loss", "test_accuracy".
        A number that is not finite is None. Training stops at the first mini-batch whose loss is
        not finite, with a last row that says ``"diverged": True``.

    Raises:
        ValueError: an unknown optimizer, a number out of range, a model without parameters to
            train, or one whose output is not ``(m, classes)``.

    >>> from batchnorm.data import load
    >>> digits = load("digits")
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    >>> rows = train(model, digits, learning_rate=0.5, steps=100, every=50)
    >>> [row["step"] for row in rows]
    [0, 50, 100]
    >>> rows[-1]["test_accuracy"] > 0.7
    True
    """
    _check(learning_rate, steps, batch_size, every)
    first, descent = _descent(model, optimizer, learning_rate)
    x, y = _moved(data.train, first)
    judged = [
        (name, *_moved(part, first))
        for name, part in (("validation", data.validation), ("test", data.test))
    ]
    rows: list[Row] = []

    def add(step: int, losses: list[float]) -> None:
        row: Row = {"step": step, "loss": None, "peak_loss": None}
        if losses:
            row |= {"loss": _finite(sum(losses) / len(losses)), "peak_loss": _finite(max(losses))}
        for name, inputs, labels in judged:
            loss, accuracy = _evaluate(model, inputs, labels)
            row[f"{name}_loss"] = _finite(loss)
            row[f"{name}_accuracy"] = accuracy if math.isfinite(loss) else None
        rows.append(row)
        if on_row is not None:
            on_row(row)

    with seeded(seed, first.device), _modes_given_back(model):
        if not model.training:
            model.train()
        _check_output(model, judged[0][1], data)
        add(0, [])
        losses: list[float] = []
        for step, batch in enumerate(_batches(len(y), batch_size, steps, seed), start=1):
            batch = batch.to(first.device)
            loss = cross_entropy(model(x.index_select(0, batch)), y.index_select(0, batch))
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                rows.append({**dict.fromkeys(rows[0]), "step": step, "diverged": True})
                if on_row is not None:
                    on_row(rows[-1])
                break
            descent.zero_grad()
            loss.backward()
            descent.step()
            if step % every == 0 or step == steps:
                add(step, losses)
                losses = []
    return rows


def evaluate(model: nn.Module, examples: Examples) -> tuple[float, float]:
    """Mean cross-entropy and the share of examples classified right, in evaluation mode.

    Batch norm uses its running averages. The mode of every submodule is given back.

    Args:
        model: maps ``(m, ...)`` to logits ``(m, classes)``.
        examples: moved to the model's device and floating dtype.

    Raises:
        ValueError: there are no examples.

    >>> from batchnorm.data import load
    >>> untrained = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    >>> loss, accuracy = evaluate(untrained, load("digits8x8").test)
    >>> 0 <= accuracy < 0.5
    True
    """
    if len(examples) == 0:
        raise ValueError("examples is empty: expected at least one example to evaluate on")
    return _evaluate(model, *_moved(examples, next(model.parameters(), examples.x)))


def _moved(examples: Examples, like: Tensor) -> tuple[Tensor, Tensor]:
    return examples.x.to(like.device, like.dtype), examples.y.to(like.device)


def _evaluate(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    loss, right = 0.0, 0
    with torch.no_grad(), _modes_given_back(model):
        model.eval()
        for inputs, labels in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
            logits = model(inputs)
            loss += cross_entropy(logits, labels, reduction="sum").item()
            right += int((logits.argmax(1) == labels).sum())
    return loss / len(y), right / len(y)


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Generator[None]:
    """Seed torch (CPU and ``device``), NumPy and ``random``; give all their states back."""
    borrowed = [] if device is None or device.type == "cpu" else [device]
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(borrowed, device_type=borrowed[0].type if borrowed else "cuda"):
        try:
            # torch.manual_seed would also reseed devices whose state is not given back here.
            torch.default_generator.manual_seed(seed)
            for one in borrowed:
                torch.get_device_module(one).manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


@contextmanager
def _modes_given_back(model: nn.Module) -> Generator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _batches(n: int, size: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Rows of ``steps`` mini-batches: epoch after epoch, each a new permutation of all ``n``."""
    # A generator of its own: the order is the same whatever the model draws.
    generator = torch.Generator().manual_seed(seed)
    given = 0
    while given < steps:
        epoch = list(torch.randperm(n, generator=generator).split(size))
        if len(epoch) > 1 and len(epoch[-1]) == 1 < size:
            alone = epoch.pop()
            epoch[-1] = torch.cat([epoch[-1], alone])
        yield from epoch[: steps - given]
        given += len(epoch)


def _descent(
    model: nn.Module, optimizer: str | MakeOptimizer, learning_rate: float
) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    """The first parameter, which says where the model lives, and the optimizer of all."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(
            f"{type(model).__name__} has no parameters that require a gradient: nothing to train"
        )
    if not isinstance(optimizer, str):
        return parameters[0], optimizer(parameters)
    if optimizer not in OPTIMIZERS:
        raise ValueError(
            f"no optimizer {optimizer!r}: expected one of {', '.join(OPTIMIZERS)}, or a function "
            "of the parameters that returns a torch.optim.Optimizer"
        )
    return parameters[0], OPTIMIZERS[optimizer](parameters, lr=learning_rate)


def _check(learning_rate: float, steps: int, batch_size: int, every: int) -> None:
    if not (learning_rate > 0 and math.isfinite(learning_rate)):
        raise ValueError(f"learning_rate is {learning_rate}; expected a finite number above 0")
    for name, value in (("steps", steps), ("batch_size", batch_size), ("every", every)):
        if value < 1:
            raise ValueError(f"{name} is {value}; expected a whole number of at least 1")


def _check_output(model: nn.Module, x: Tensor, data: Data) -> None:
    with torch.no_grad(), _modes_given_back(model):
        model.eval()
        try:
            logits = model(x[:2])
        except RuntimeError as error:
            raise ValueError(
                f"{type(model).__name__} cannot take inputs of shape {tuple(x[:2].shape)}, two "
                f"examples of data {data.name!r}: {error}"
            ) from error
    got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if got != (len(x[:2]), data.classes):
        raise ValueError(
            f"{type(model).__name__} gives {got} for inputs of shape {tuple(x[:2].shape)}; "
            f"expected logits of shape {(len(x[:2]), data.classes)}, one for each of the "
            f"{data.classes} classes of data {data.name!r}"
        )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
