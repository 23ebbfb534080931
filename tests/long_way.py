"""What the tests of calls that were made before share."""

import pytest
import torch

from batchnorm.functional import _direct, _familiar


@pytest.fixture
def long(monkeypatch):
    """Counts the calls that went the long way, forward and backward."""
    return counted(
        monkeypatch,
        forward=(_direct, "batch_norm"),
        backward=(_familiar, "gradients"),
    )


def counted(monkeypatch, **functions):
    """How often each function, given as its owner and name, is called from here on."""
    taken = dict.fromkeys(functions, 0)

    def counting(label, function):
        def call(*args, **options):
            taken[label] += 1
            return function(*args, **options)

        return call

    for label, (owner, name) in functions.items():
        monkeypatch.setattr(owner, name, counting(label, getattr(owner, name)))
    return taken


def same(got, expected):
    """Whether two calls gave the same bits, of as many tensors."""
    assert len(got) == len(expected)
    return all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
