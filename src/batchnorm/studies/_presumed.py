"""About how long trials of the embedded network take here, though none of them is tried."""

import time
from collections.abc import Iterable
from itertools import pairwise

import torch

from batchnorm.studies._trial import Trial

# In steps of a bare loop over a network of the same size, whose time is taken here. Measured: one
# trial of each kind at the quick scale, each beside such a loop in the same process.
START = 40.0
STEP = {False: (1.0, 1.2), True: (1.5, 2.0)}  # whatever the mini-batch, and for each 60 examples
ROW = {False: 10.0, True: 15.0}
TIMES = {  # what studies do besides training
    "depth": 0.7,
    "shift": 1.25,
    "landscape": 2.0,
    "noise": 3.0,
    "dropout": 1.1,
    "small_batch": 1.1,
    "test_time": 2.6,
    "new_domain": 2.2,
    "scale_and_shift": 1.2,
    "identity": 4.7,
    "bias": 2.1,
}
SIZES, EXAMPLES, TRIED = (784, 100, 100, 100, 10), 60, 30


class Presumed:
    """Seconds of trials, as :meth:`Estimate.seconds` gives them, from one loop that is timed."""

    def __init__(self) -> None:
        self.unit = _step()

    def seconds(self, trials: Iterable[Trial]) -> list[float]:
        """Of each trial, on one thread."""
        return [self.unit * steps_of(trial) for trial in trials]


def steps_of(trial: Trial) -> float:
    """A trial's cost, in steps of the bare loop.

    >>> round(steps_of(Trial(steps=200, every=100)))
    510
    """
    fixed, examples = STEP[trial.batch_norm]
    step = fixed + examples * trial.batch_size / EXAMPLES
    rows = 1 + trial.steps / trial.every
    cost = START + trial.steps * step + rows * ROW[trial.batch_norm]
    return TIMES.get(trial.procedure, 1.0) * cost


def _step() -> float:
    """Seconds of a step of the loop: the least, since whatever else runs only adds."""
    generator = torch.Generator().manual_seed(0)
    weights = [
        (torch.randn(a, b, generator=generator) / a**0.5).requires_grad_()
        for a, b in pairwise(SIZES)
    ]
    x, y = torch.randn(EXAMPLES, SIZES[0], generator=generator), torch.zeros(EXAMPLES).long()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as trials have
    try:
        return min(_timed(weights, x, y) for _ in range(TRIED))
    finally:
        torch.set_num_threads(threads)


def _timed(weights: list[torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> float:
    start = time.perf_counter()
    for weight in weights[:-1]:
        x = torch.relu(x @ weight)
    loss = torch.nn.functional.cross_entropy(x @ weights[-1], y)
    gradients = torch.autograd.grad(loss, weights)
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.sub_(gradient, alpha=0.01)
    return time.perf_counter() - start
