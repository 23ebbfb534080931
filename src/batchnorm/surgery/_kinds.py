"""What counts as a batch norm."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.layers import BatchNormAct1d


def is_batch_norm(module: nn.Module) -> bool:
    """Torch's batch norms, what derives from them, and ours."""
    return isinstance(module, _BatchNorm | BatchNormAct1d)
