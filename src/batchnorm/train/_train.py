"""Mini-batch gradient descent, with or without batch norm: one loop, any torch optimizer."""

import math
from collections.abc import Callable

from torch import nn
from torch.nn.functional import cross_entropy

from batchnorm.data import Data
from batchnorm.train._descent import MakeOptimizer, check_numbers, descent_of, trainable
from batchnorm.train._evaluate import modes_given_back, moved
from batchnorm.train._fits import check_output
from batchnorm.train._repeatable import batches, seeded
from batchnorm.train._rows import Row, Rows


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
        A number that is not finite is None. The first row also has "validation_examples" and
        "test_examples", how many the accuracies are shares of. Training stops at the first
        mini-batch whose loss is not finite, with a last row that says ``"diverged": True``.

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
    check_numbers(learning_rate, steps, batch_size, every)
    first = trainable(model)[0]
    x, y = moved(data.train, first)
    rows = Rows(model, data, first, on_row)
    with seeded(seed, first.device), modes_given_back(model):
        if not model.training:
            model.train()
        rows.overwrites = check_output(model, x[:batch_size], data)
        descent = descent_of(trainable(model), optimizer, learning_rate)
        rows.judge(0, [])
        losses: list[float] = []
        for step, batch in enumerate(batches(len(y), batch_size, steps, seed), start=1):
            batch = batch.to(first.device)
            loss = cross_entropy(model(x.index_select(0, batch)), y.index_select(0, batch))
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                rows.diverged(step)
                break
            descent.zero_grad()
            loss.backward()
            descent.step()
            if step % every == 0 or step == steps:
                rows.judge(step, losses)
                losses = []
    return rows.made
