"""Compiled autograd, under which backward passes become graphs: the gradients of eager mode."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo import compiled_autograd

from batchnorm import BatchNorm2d, BatchNormAct1d, BatchNormAct2d
from batchnorm.layers import masked


class Residual(nn.Module):
    """Adds before the activation."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), BatchNormAct2d(4, "silu", eps=0.5)

    def forward(self, x):
        return self.norm(self.conv(x), residual=x)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        BatchNorm2d(4, momentum=None),
        nn.Conv2d(4, 4, 3),
        BatchNormAct2d(4, "leaky_relu", inplace=True),
        Residual(),
        BatchNorm2d(4, affine=False, eps=2.0),
        nn.Flatten(),
        nn.Linear(4 * 6 * 6, 5),
        BatchNormAct1d(5, "gelu"),
    )


@pytest.fixture(autouse=True)
def anew():
    torch._dynamo.reset()


def steps(model, images, forward=None):
    """Three, and the gradients of the last."""
    for x in images:
        model.zero_grad()
        (forward or model)(x).pow(2).sum().backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch's, of its own doing
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mask", [None, torch.arange(5) < 4])
def test_of_eager_layers(training, mask):
    model = network().train(training)
    twin, images = copy.deepcopy(model), torch.randn(3, 5, 3, 10, 10)
    with masked(model, mask), masked(twin, mask):
        expected = steps(twin, images)
        with compiled_autograd._enable(torch.compile(backend="eager")):
            torch.testing.assert_close(steps(model, images), expected)
    torch.testing.assert_close(dict(model.named_buffers()), dict(twin.named_buffers()))


def test_of_compiled_layers():
    model = network()
    twin, images = copy.deepcopy(model), torch.randn(3, 5, 3, 10, 10)
    expected = steps(twin, images)
    with torch._dynamo.config.patch(compiled_autograd=True):
        compiled = torch.compile(model, backend="aot_eager")
        torch.testing.assert_close(steps(model, images, compiled), expected)
    torch.testing.assert_close(dict(model.named_buffers()), dict(twin.named_buffers()))
