"""ResNet-18 for 32x32 images, with the batch norm of your choice, or none."""

import torch
from torch import nn
from torch.nn import functional as F

import batchnorm


def act(y, kind, inplace=False):
    """The activation, as torch users write it."""
    if kind == "leaky_relu":
        return F.leaky_relu(y, inplace=inplace)
    return y if kind is None else F.relu(y, inplace=inplace)


class Torch(nn.Module):
    """Batch norm, residual and activation as torchvision writes them: the latter two in place."""

    def __init__(self, channels, kind):
        super().__init__()
        self.norm, self.kind = nn.BatchNorm2d(channels), kind

    def forward(self, x, residual=None):
        y = self.norm(x)
        if residual is not None:
            y += residual
        return act(y, self.kind, inplace=True)


class Without(nn.Module):
    """The same network with no batch norm at all."""

    def __init__(self, channels, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x, residual=None):
        return act(x if residual is None else x + residual, self.kind)


class InPlace(nn.Module):
    """Ours over its input; where a residual is added it follows, and the activation in its place."""

    def __init__(self, channels, kind):
        super().__init__()
        self.kind = kind
        self.fused = batchnorm.BatchNormAct2d(channels, kind, inplace=True)
        self.bare = batchnorm.BatchNormAct2d(channels, None, inplace=True)

    def forward(self, x, residual=None):
        if residual is None:
            return self.fused(x)
        return act(self.bare(x) + residual, self.kind, inplace=True)


NORMS = {  # beside which "adopted" is torch's with its batch norms made ours
    "ours": batchnorm.BatchNormAct2d,
    "ours in place": InPlace,
    "torch": Torch,
    "without": Without,
}


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, norm, kind, inputs, outputs, stride):
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = norm(outputs, kind)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = norm(outputs, kind)
        self.shortcut = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs, None)
            )

    def forward(self, x):
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return self.second_norm(self.second(self.first_norm(self.first(x))), shortcut)


def resnet18(norm, kind):
    """The network; `norm(channels, kind)` makes each batch norm with its activation."""
    blocks, inputs = [], 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        blocks += [
            Block(norm, kind, inputs, outputs, stride),
            Block(norm, kind, outputs, outputs, 1),
        ]
        inputs = outputs
    stem = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), norm(64, kind)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def training_step(name, layout, batch, kind="relu"):
    """A step of plain gradient descent on a fixed batch, to be timed."""
    torch.manual_seed(0)
    if name == "adopted":
        model = batchnorm.adopt(resnet18(Torch, kind)).model
    else:
        model = resnet18(NORMS[name], kind)
    x, labels = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    if layout == "channels_last":
        model, x = (
            model.to(memory_format=torch.channels_last),
            x.to(memory_format=torch.channels_last),
        )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def step():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss

    return step
