"""The recorder on a fixed set of examples: what comes to the hidden activations, in either arm."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from batchnorm.copies import scratch
from batchnorm.data import Data
from batchnorm.observe import record
from batchnorm.studies._network import build
from batchnorm.studies._trial import Trial
from batchnorm.surgery import is_batch_norm
from batchnorm.train import seeded

EXAMPLES = 300  # looked at: 15 % of them are 45

Look = dict[str, dict[str, Any]]  # by place and quantity: one value a channel


def places(trial: Trial, data: Data) -> list[str]:
    """Where batch norm stands, or would stand; the same paths lead there in both arms."""
    with_it, without = (build(replace(trial, batch_norm=arm), data) for arm in (True, False))
    plain = {path for path, _ in without.named_modules()}
    found = [path for path, module in with_it.named_modules() if is_batch_norm(module)]
    # Where it was put in, it follows a layer inside of that layer's place.
    return [path if path in plain else path.rpartition(".")[0] for path in found]


def look(model: nn.Module, at: list[str], x: Tensor, *, training: bool, bins: int = 40) -> Look:
    """One forward of a copy, in training or in evaluation mode; the model stays as it is."""
    outer = nn.Sequential(scratch(model, hooks=False))
    outer[0].train(training)  # the outer one stays in training mode: that is what is counted
    paths = {f"0.{place}" if place else "0": place for place in at}
    with (
        seeded(0, x.device),
        torch.enable_grad(),
        record(outer, every=1, layers=list(paths), bins=bins) as seen,
    ):
        outer(x.clone())
    out: Look = {}
    for row in seen.rows:
        out.setdefault(paths[row["path"]], {})[row["quantity"]] = row["values"]
    return out
