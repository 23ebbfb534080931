"""Networks that normalize groups of a mini-batch, and how well they do on training and test set."""

import math
from typing import Any

from torch import nn

from batchnorm.copies import replace
from batchnorm.data import Data
from batchnorm.layers import BatchNorm1d, BatchNorm2d, BatchNorm3d
from batchnorm.studies._norms import norms_of
from batchnorm.studies._taught import tested_on
from batchnorm.surgery import is_batch_norm, recalibrate
from batchnorm.train import evaluate

OURS: dict[type, type] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
}
CHUNK = 1000  # examples in one call
Found = dict[str, Any]


def in_groups(model: nn.Module, size: int) -> nn.Module:
    """The model with batch norms that normalize ``size`` examples together, whatever they are fed.

    Parameters and buffers are the model's own. An example that is left over alone, which has no
    variance, is normalized with the running statistics.

    Raises:
        ValueError: a batch norm of a class that cannot do that.
    """
    new: dict[str, nn.Module] = {}
    for path, norm in model.named_modules():
        if is_batch_norm(norm) and not hasattr(norm, "ghost_size"):
            if type(norm) not in OURS:
                raise ValueError(f"{path}, {type(norm).__name__}, cannot normalize by groups")
            new[path] = _ours(norm)
    out = replace(model, new) if new else model
    for norm in norms_of(out):
        norm.ghost_size, norm.one_value = size, "running"
    return out


def _ours(norm: Any) -> nn.Module:
    ours = OURS[type(norm)](
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
    )
    for name, value in [*norm.named_parameters(), *norm.named_buffers()]:
        setattr(ours, name, value)
    return ours.train(norm.training)


def gap_of(model: nn.Module, data: Data) -> Found:
    """Loss and accuracy on training and test set, with the training set's own statistics.

    Running averages of small groups are noisier than those of large ones, which is not what is
    asked; so all are judged with the statistics of the whole training set.
    """
    like = next(model.parameters())
    about = tested_on(data)
    numbers = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
    none: Found = about | dict.fromkeys(numbers)
    if not all(p.isfinite().all() for p in model.parameters()):
        return none
    x = data.train.x.to(like.device, like.dtype)
    recalibrate(model, x.split(CHUNK), layer_by_layer=True)
    out: Found = about
    for name, part in (("train", data.train), ("test", data.test)):
        loss, accuracy = evaluate(model, part)
        out[f"{name}_loss"], out[f"{name}_accuracy"] = loss, accuracy
    return out if math.isfinite(out["train_loss"] + out["test_loss"]) else none
