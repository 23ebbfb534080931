"""A forward that looks at its modules must not lose what it does when one becomes a pair."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from batchnorm import insert


class Loop(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)])

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if isinstance(layer, nn.Linear) and i < 2:
                x = F.relu(x)
        return x


class Attribute(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)
        self.last = nn.Linear(3, 2)

    def forward(self, x):
        x = F.relu(self.first(x.view(-1, self.first.in_features)))
        return self.last(F.relu(self.second(x)))


@pytest.mark.parametrize("example", [None, torch.randn(3, 4)])
def test_activations_that_ask_for_a_linear_are_not_lost(example):
    model = Loop()
    changes = insert(model, example=example)
    assert changes.changed == []
    reasons = dict(changes.skipped)
    assert "isinstance" in reasons["layers.0"]
    assert "isinstance" in reasons["layers.1"]
    x = torch.randn(5, 4)
    assert torch.equal(changes.model(x), model(x))


@pytest.mark.parametrize("example", [None, torch.randn(3, 4)])
def test_a_layer_whose_attribute_is_read_is_left_alone_and_the_others_are_not(example):
    changes = insert(Attribute(), example=example)
    assert [path for path, _ in changes.changed] == ["second"]
    assert "in_features" in dict(changes.skipped)["first"]
    assert changes.model(torch.randn(5, 4)).shape == (5, 2)
    assert changes.model.second[0].bias is None
    assert changes.model.first.bias is not None
