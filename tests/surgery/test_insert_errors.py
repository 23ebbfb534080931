"""What wrong arguments get: one message that names the thing, its value and the way out."""

import pytest
import torch
from torch import nn

from batchnorm.surgery import insert


def message(error):
    return str(error.value)


def test_placement():
    with pytest.raises(ValueError, match="placement") as error:
        insert(nn.Sequential(), "between")
    assert message(error) == (
        "placement is 'between'; expected 'before' (batch norm on z, before the activation) or "
        "'after' (on a, after it)"
    )


@pytest.mark.parametrize(
    ("value", "way_out"),
    [
        ([nn.Linear(2, 2)], "Make one: nn.Sequential(*layers)"),
        (nn.Linear, "Make one of the class: Linear(...)"),
        (None, "Make one: nn.Sequential(*layers)"),
    ],
)
def test_not_a_model(value, way_out):
    with pytest.raises(TypeError, match=r"torch\.nn\.Module") as error:
        insert(value)
    assert f"got {type(value).__name__} (" in message(error)
    assert message(error).endswith(way_out)


@pytest.mark.parametrize(
    "wrap", [torch.jit.script, nn.DataParallel, lambda model: torch.compile(model, backend="eager")]
)
def test_wrapped_models(wrap):
    model = wrap(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    with pytest.raises(TypeError, match="the model itself") as error:
        insert(model)
    assert f"got it as {type(model).__name__}" in message(error)
    assert "Insert first, then wrap or compile" in message(error)


@pytest.mark.parametrize(
    ("example", "shown"),
    [
        (torch.randn(3, 5), "(=a tensor of shape (3, 5))"),
        ((torch.randn(3, 4), 1), "(=a tensor of shape (3, 4), int 1)"),
        ({"z": torch.randn(3, 4)}, "(=z: a tensor of shape (3, 4))"),
        ("text", "(=str text)"),
        ((), "(=no argument)"),
    ],
)
def test_an_example_that_the_model_cannot_run(example, shown):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    with pytest.raises(ValueError, match="before anything is changed") as error:
        insert(model, example=example)
    assert message(error).startswith(f"example {shown} does not run through Sequential as it is")
    assert "a value, a tuple of them, or a dict by name" in message(error)
    assert error.value.__cause__ is not None
    assert [type(module) for module in model] == [nn.Linear, nn.ReLU]


class AsksForFeatures(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return torch.relu(self.fc(x)) * self.fc.out_features


@pytest.mark.parametrize("example", [None, torch.randn(2, 4)])
def test_a_layer_whose_attribute_the_forward_reads_is_left_alone(example):
    changes = insert(AsksForFeatures(), example=example)
    assert "fc" not in dict(changes.changed)
    assert "looks at the module itself" in dict(changes.skipped)["fc"]


class WholeNumbers(nn.Linear):
    def forward(self, input):
        if not torch.equal(input, input.round()):
            raise ValueError("takes whole numbers only")
        return super().forward(input)


class Rounded(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.out = WholeNumbers(2, 1)
        nn.init.ones_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x):
        return self.out(torch.relu(self.fc(x)))


def test_the_place_that_raises_is_named_and_the_model_left_as_it_was():
    model, example = Rounded(), torch.ones(3, 2)
    expected, modules = model(example), list(model.named_modules())
    with pytest.raises(RuntimeError, match="raises on the example") as error:
        insert(model, "after", example)
    assert list(model.named_modules()) == modules
    assert torch.equal(model(example), expected)
    assert message(error) == (
        "the model with batch norm at out raises on the example, in 'out' "
        "(ValueError: takes whole numbers only); the model as given runs"
    )
