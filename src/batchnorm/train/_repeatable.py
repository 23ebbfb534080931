"""What makes a run repeatable: seeds that are given back, and an order that they alone decide."""

import random
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


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


def batches(n: int, size: int, steps: int, seed: int) -> Iterator[Tensor]:
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
