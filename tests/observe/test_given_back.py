"""A forward that raises leaves hooks, modes and random numbers as they would be without a record."""

import pytest
import torch
from torch import nn

from batchnorm import record

from .test_record import batches, hooks_of, network, train


class Fails(nn.Module):
    def forward(self, x):
        raise RuntimeError("mine")


def failing(look):
    """Random numbers, modes and hooks after a block that a failing forward ended."""
    torch.manual_seed(3)
    model = nn.Sequential(network(), nn.Dropout(0.5), Fails())
    model[0][1].eval()
    if look:
        with pytest.raises(RuntimeError, match="mine"), record(model, every=1):
            model(batches(1)[0])
    else:
        with pytest.raises(RuntimeError, match="mine"):
            model(batches(1)[0])
    return torch.get_rng_state(), [m.training for m in model.modules()], hooks_of(model)


def test_a_block_that_a_forward_ended_leaves_no_trace():
    seen, unseen = failing(True), failing(False)
    assert torch.equal(seen[0], unseen[0])
    assert seen[1:] == unseen[1:]
    assert seen[2] == 0


def test_the_forward_after_one_that_raised_is_a_whole_step():
    model = network()
    with record(model, every=1) as seen:
        last, model[3] = model[3], Fails()
        with pytest.raises(RuntimeError, match="mine"):
            model(batches(1)[0])
        found = model[1].running_mean.tolist()
        model[3] = last
        train(model, batches(1))
    assert seen.forwards == 1
    (row,) = [r for r in seen.rows if r["quantity"] == "running_mean"]
    assert row["values"] == pytest.approx(found), "as this batch found them, not the failed one"
