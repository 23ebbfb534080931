"""A forward that looks at its modules must not lose what it does when one becomes a pair."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.functional import layer_norm

from batchnorm import insert
from batchnorm.graph import replace
from batchnorm.surgery import _course


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


class Branching(Loop):
    """Loops as above, where torch.fx cannot follow."""

    def forward(self, x):
        return super().forward(x if x.sum() < 1e9 else -x)


class Lonely(nn.Module):
    """Torch.fx cannot follow it, and only its run in training asks for a Linear."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        z = self.hidden(x) if x.sum() < 1e9 else x
        if self.training and type(self.hidden) is not nn.Linear:
            return self.out(z)
        return self.out(F.relu(z))


class Scaling(nn.Module):
    """Goes the same way, with another number."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        scale = 0.5 if isinstance(self.hidden, nn.Linear) else 1.0
        return self.out(F.relu(self.hidden(x)) * scale)


class Crossing(nn.Module):
    """Calls the same modules, each on the other's value."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        a, b = F.relu(self.left(x)), F.relu(self.right(x))
        return a - b if isinstance(self.left, nn.Linear) else b - a


@pytest.mark.parametrize("model", [Branching(), Lonely(), Scaling(), Crossing()])
def test_what_a_run_shows_is_compared_too(model):
    changes = insert(model, example=torch.randn(3, 4))
    left = {path for path, reason in changes.skipped if "isinstance" in reason}
    assert left == {"Branching": {"layers.0", "layers.1"}, "Crossing": {"left"}}.get(
        type(model).__name__, {"hidden"}
    )
    x = torch.randn(5, 4)
    if changes.changed:
        assert [path for path, _ in changes.changed] == ["right"]
    else:
        assert torch.equal(changes.model(x), model(x))


class Reaching(nn.Module):
    """Cannot be followed, and reaches into a part that can."""

    def __init__(self):
        super().__init__()
        self.part = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))

    def forward(self, x):
        if x.sum() > 1e9:
            return x
        for layer in self.part:
            x = self.one(layer, x)
        return x

    def one(self, layer, x):
        return scaled(layer, x)


KINDS = (nn.Linear, nn.Conv2d)


def scaled(layer, x):
    return layer(2 * x) if isinstance(layer, KINDS) else layer(x)


class ReachingByName(Reaching):
    def one(self, layer, x):
        return layer(2 * x) if type(layer).__name__ == "Linear" else layer(x)


class ReachingForAttribute(Reaching):
    def one(self, layer, x):
        return layer(2 * x) if hasattr(layer, "in_features") else layer(x)


class ReachingInside(Reaching):
    def one(self, layer, x):
        is_layer = lambda it: isinstance(it, nn.Linear)  # noqa: E731
        return layer(2 * x) if is_layer(layer) else layer(x)


class NotReaching(Reaching):
    def one(self, layer, x):
        x = layer_norm(x, (x.shape[-1],))  # whose own code has words such as weight
        return layer(x) if isinstance(x, torch.Tensor) else x


@pytest.mark.parametrize(
    "kind", [Reaching, ReachingByName, ReachingForAttribute, ReachingInside, NotReaching]
)
def test_without_an_example_a_caller_that_cannot_be_followed_is_looked_at(kind):
    model, x = kind(), torch.randn(5, 4)
    changes = insert(model)
    if kind is NotReaching:
        assert [path for path, _ in changes.changed] == ["part.0"]
        return
    assert changes.changed == []
    assert dict(changes.skipped)["part.0"] == (
        f"the forward of {kind.__name__} may look at the module itself (isinstance, an attribute "
        "such as in_features), and could not be followed: give an example, if none was given"
    )
    assert torch.equal(changes.model(x), model(x))
    with_example = insert(model, example=x)
    assert "would go another way" in dict(with_example.skipped)["part.0"]


class PartThatLooks(nn.Module):
    """Cannot be followed; its part can, and asks."""

    def __init__(self):
        super().__init__()
        self.part = Loop()

    def forward(self, x):
        return self.part(x) if x.sum() < 1e9 else x


def test_a_part_that_can_be_followed_is_compared_by_itself():
    reasons = dict(insert(PartThatLooks()).skipped)
    assert "would go another way" in reasons["part.layers.0"]


class Wanting(Lonely):
    """Cannot be run in training with the example alone."""

    def forward(self, x, target=None):
        if self.training and target is None:
            raise ValueError("a target is needed")
        return super().forward(x)


def test_what_a_run_in_training_cannot_show_is_looked_at():
    changes = insert(Wanting(), example=torch.randn(3, 4))
    assert "may look at the module itself" in dict(changes.skipped)["hidden"]
    assert insert(Wanting(), example=(torch.randn(3, 4), torch.ones(1))).changed == []


def test_many_places_are_tried_in_few_runs(monkeypatch):
    model = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(16)], Loop())
    tries = []
    monkeypatch.setattr(_course, "replace", lambda *args: tries.append(1) or replace(*args))
    changes = insert(model)
    assert len(changes.changed) == 16
    assert len(tries) <= 14  # not one for each of the 18


class Counting(nn.Module):
    """Minds the first layer, and the second only together with the third."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x):
        plain = [isinstance(layer, nn.Linear) for layer in (self.a, self.b, self.c, self.d)]
        for layer in (self.a, self.b, self.c, self.d):
            x = F.relu(layer(x))
        return x * (2 if plain[0] and (plain[1] or plain[2]) else 1)


def test_layers_that_are_looked_at_together_are_all_left_alone():
    model, x = Counting(), torch.randn(5, 4)
    changes = insert(model)
    assert changes.changed == []
    assert torch.equal(changes.model(x), model(x))
    assert all("would go another way" in reason for _, reason in changes.skipped)
