import pytest
import torch
from torch import nn

from batchnorm.copies import replace


@pytest.fixture(autouse=True)
def _repeatable():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small tensors: a second thread only waits where cores are shared
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def neutral():
    """A copy of an insert's result in which each new norm gives what it takes.

    It normalizes with mean 0 and variance 1 even in training, has a gamma that takes eps back, and
    the bias that its layer lost as beta: the copy computes what the model computed.
    """

    def make(model, changes):
        new = replace(changes.model, {})
        for path, what in changes.changed:
            (norm,) = (m for m in new.get_submodule(path) if type(m).__module__ == NORMS)
            norm.eval()
            norm.train = lambda mode=True, norm=norm: norm
            norm.weight = nn.Parameter(torch.full_like(norm.weight, (1 + norm.eps) ** 0.5))
            if "bias dropped" in what:
                norm.bias = model.get_submodule(path).bias
        return new

    return make


NORMS = "batchnorm.layers.batch_norm"
