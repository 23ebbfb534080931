"""Models that we did not write, and models that torch.fx cannot follow as a whole."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as zoo
from torch import nn
from torch.utils.checkpoint import checkpoint

from batchnorm.surgery import insert


def build(name):
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return zoo.get_model(name, weights=None, num_classes=5, **options)


def outputs(model, x):
    torch.manual_seed(1)
    with torch.no_grad():
        found = model(x)
    return [found] if isinstance(found, torch.Tensor) else [one for one in found if one is not None]


ZOO = [
    # name, image size, changed before, changed after, left alone before
    ("alexnet", 64, 7, 7, 1),
    ("vgg11", 32, 10, 10, 1),
    ("vgg11_bn", 32, 2, 2, 9),
    ("squeezenet1_1", 32, 26, 26, 0),
    ("resnet18", 32, 0, 0, 21),
    ("densenet121", 32, 0, 0, 121),
    ("mobilenet_v3_small", 32, 19, 19, 35),
    ("convnext_tiny", 32, 18, 18, 41),
    ("swin_t", 32, 12, 12, 41),
    ("googlenet", 64, 2, 2, 62),
    pytest.param("inception_v3", 299, 0, 0, 98, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("placement", ["before", "after"])
@pytest.mark.parametrize(("name", "size", "before", "after", "left"), ZOO)
@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
def test_zoo(name, size, before, after, left, placement, neutral):
    model = build(name)
    x = torch.randn(2, 3, size, size)
    expected = model.eval()(x)
    model.train()
    keys = list(model.state_dict())
    traced = insert(model, placement)
    changes = insert(model, placement, x)
    assert len(changes.changed) == (before if placement == "before" else after)
    paths = [path for path, _ in changes.changed + changes.skipped]
    assert len(paths) == len(set(paths))
    also = sum("otherwise left alone" in what for _, what in changes.changed)
    assert len(changes.skipped) + also == left + (before - after) * (placement == "after")
    if name != "swin_t":  # there a run alone can tell how many axes there are
        assert str(traced) == str(changes)
    assert list(model.state_dict()) == keys
    assert torch.equal(model.eval()(x), expected)

    twin = neutral(model, changes)
    for mode in (False, True):
        torch.testing.assert_close(outputs(twin.train(mode), x), outputs(model.train(mode), x))

    new = changes.model
    assert type(new) is type(model)
    output = new.train()(x)
    if name in ("googlenet", "inception_v3"):
        assert type(output).__name__.endswith("Outputs")  # with the auxiliary ones
        output = sum(value for value in output if value is not None)
    output.square().sum().backward()
    norms = [part for path, _ in changes.changed for part in new.get_submodule(path).children()]
    norms = [part for part in norms if type(part).__module__.startswith("batchnorm.")]
    assert len(norms) == len(changes.changed)
    assert all(part.weight.grad is not None for part in norms)
    assert all(part.num_batches_tracked == 1 for part in norms)
    assert new.eval()(x).shape == expected.shape


def test_vision_transformer():
    model = zoo.VisionTransformer(16, 8, 2, 2, 32, 64, num_classes=5)
    x = torch.randn(2, 3, 16, 16)
    for changes in (insert(model), insert(model, example=x)):
        assert changes.changed == [
            (
                f"encoder.layers.encoder_layer_{i}.mlp.0",
                "BatchNorm1d(64, axis=-1) before gelu; bias dropped",
            )
            for i in range(2)
        ]
        changes.model(x).sum().backward()
    reasons = dict(changes.skipped)
    assert reasons["heads.head"] == "no activation follows: its output is the model's output"
    assert (
        "MultiheadAttention uses its parts"
        in reasons["encoder.layers.encoder_layer_1.self_attention.out_proj"]
    )


class Mixer(nn.Module):
    """Two perceptrons in turn, one over tokens and one over channels."""

    def __init__(self, tokens, channels):
        super().__init__()
        self.tokens = nn.Sequential(nn.Linear(tokens, 7), nn.GELU(), nn.Linear(7, tokens))
        self.channels = nn.Sequential(nn.Linear(channels, 9), nn.GELU(), nn.Linear(9, channels))

    def forward(self, x):
        x = x + self.tokens(x.transpose(1, 2)).transpose(1, 2)
        return x + self.channels(x)


def test_mixer():
    x = torch.randn(4, 6, 5)
    changes = insert(Mixer(6, 5), example=x)
    assert changes.changed == [
        ("tokens.0", "BatchNorm1d(7, axis=-1) before gelu; bias dropped"),
        ("channels.0", "BatchNorm1d(9, axis=-1) before gelu; bias dropped"),
    ]
    z = changes.model.tokens[0](x.transpose(1, 2))
    torch.testing.assert_close(z.mean((0, 1)), torch.zeros(7), atol=1e-5, rtol=0)


class Generator(nn.Module):
    """As in the DCGAN example: a branch on the input's device keeps torch.fx out."""

    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(4, 6, 3), nn.ReLU(True), nn.ConvTranspose2d(6, 1, 3), nn.Tanh()
        )
        self.other = nn.Linear(3, 3)

    def forward(self, z):
        if z.is_cuda:
            raise NotImplementedError
        return self.main(z)


def test_a_model_that_cannot_be_followed_is_read_in_parts():
    changes = insert(Generator())
    assert changes.changed == [
        ("main.0", "BatchNorm2d(6) before relu; bias dropped; main assumed to be called once")
    ]
    reasons = dict(changes.skipped)
    assert reasons["main.2"] == "tanh of its output leaves main, perhaps as the answer"
    assert reasons["other"] == (
        "called where the forward could not be read; give an example, if none was given"
    )
    assert "cannot follow the forward of Generator at test_insert_models.py:" in reasons[""]
    assert "control flow" in reasons[""]
    assert "\n  .       torch.fx cannot follow" in str(changes)


def test_with_an_example_the_same_model_is_seen():
    changes = insert(Generator(), example=torch.randn(2, 4, 1, 1))
    assert changes.changed == [("main.0", "BatchNorm2d(6) before relu; bias dropped")]
    assert dict(changes.skipped) == {
        "main.2": "not a hidden layer: tanh of its output is the model's output",
        "other": "called where the forward could not be read; give an example, if none was given",
    }
    assert isinstance(changes.model, Generator)


class Looping(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(4, 4)
        self.cell = nn.Linear(4, 4)
        self.leave = nn.Linear(4, 1)

    def forward(self, x, steps=None):
        x = F.relu(self.enter(x))
        for _ in range(3 if x.sum() > 0 else 2):
            x = F.relu(self.cell(x))
        return self.leave(x)


def test_a_cell_called_in_a_loop_is_left_alone():
    changes = insert(Looping(), example=torch.randn(3, 4).abs())
    assert [path for path, _ in changes.changed] == ["enter"]
    assert dict(changes.skipped)["cell"].startswith("called ")
    assert insert(Looping()).changed == []


class Switching(nn.Module):
    """A part that cannot be followed inside one that can."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Conv2d(1, 2, 3)
        self.inside = Branch()
        self.head = nn.Linear(2, 2)

    def forward(self, x):
        x = self.inside(torch.relu(self.enter(x)))
        return self.head(x.mean((2, 3)))


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU())

    def forward(self, x):
        if x.max() > 100:
            return x
        return self.body(x)


@pytest.mark.parametrize("example", [None, torch.randn(2, 1, 9, 9)], ids=["traced", "run"])
def test_a_part_that_cannot_be_followed(example):
    changes = insert(Switching(), example=example)
    assert [path for path, _ in changes.changed] == ["enter", "inside.body.0"]
    assert ("assumed" in changes.changed[1][1]) == (example is None)
    assert ("inside" in dict(changes.skipped)) == (example is None)
    changes.model(torch.randn(2, 1, 9, 9)).sum().backward()


class Tail(nn.Module):
    """The activation is in a part, its layer where the forward cannot be followed."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(4, 4)
        self.tail = nn.Sequential(nn.ReLU(), nn.Linear(4, 2))

    def forward(self, x):
        return self.tail(self.enter(x if x.sum() < 1e9 else -x))


def test_a_run_tells_whose_activation_a_part_holds():
    changes = insert(Tail(), "after", torch.randn(3, 4))
    assert changes.changed == [("tail.0", "BatchNorm1d(4) after it, on enter")]


class Auxiliary(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.aux = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = F.dropout(F.relu(self.body(x)), 0.5, self.training)
        if self.training:
            return self.head(x), self.aux(x)
        return self.head(x)


@pytest.mark.parametrize("mode", [True, False])
def test_a_branch_of_training_only_is_seen_and_stays(mode):
    model = Auxiliary().train(mode)
    changes = insert(model, example=torch.randn(3, 4))
    assert [path for path, _ in changes.changed] == ["body", "aux.0"]
    assert changes.model.training is mode
    assert isinstance(changes.model.train()(torch.randn(3, 4)), tuple)
    assert not isinstance(changes.model.eval()(torch.randn(3, 4)), tuple)


class BranchingAuxiliary(Auxiliary):
    def forward(self, x):
        z = self.body(x) if x.sum() > 0 else self.body(-x)
        y = self.head(F.relu(z))
        return (y, z) if self.training else y


@pytest.mark.parametrize("mode", [True, False])
def test_a_consumer_in_training_only_where_the_forward_cannot_be_followed(mode):
    changes = insert(BranchingAuxiliary().train(mode), example=torch.randn(3, 4))
    assert dict(changes.skipped)["body"] == "its output goes to relu and the output"


class Answer(dict):
    """As the outputs of many libraries, not known to torch's pytrees."""


@dataclasses.dataclass
class Outputs:
    answer: Answer
    z: torch.Tensor


class Unfollowed(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.answer = answer

    def forward(self, x):
        z = self.body(x if x.sum() < 1e9 else -x)
        return self.answer(self.head(F.relu(z)), z)


@pytest.mark.parametrize(
    "answer",
    [
        lambda y, z: Outputs(Answer(y=y), z),
        lambda y, z: Answer(y=y, z=z),
        lambda y, z: [Outputs(Answer(y=y), Answer(z=[z]))],
    ],
)
def test_values_that_leave_in_objects_are_seen(answer):
    changes = insert(Unfollowed(answer), example=torch.randn(3, 4))
    assert changes.changed == []
    assert dict(changes.skipped) == {
        "body": "its output goes to relu and the output",
        "head": "no activation follows: its output is the model's output",
    }


class InPlace(nn.Module):
    """Changes what it is called with, and cannot be followed."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x, again):
        if x is not again or x.sum() != 12:
            raise ValueError("expected ones, twice")
        x = x.mul_(2)
        return self.head(F.relu(self.body(x)))


def test_the_example_is_left_as_it_was():
    example = torch.ones(3, 4)
    changes = insert(InPlace(), example=(example, example))
    assert [path for path, _ in changes.changed] == ["body"]
    assert torch.equal(example, torch.ones(3, 4))


class Stateful(nn.Module):
    """Draws random numbers, counts its calls, remembers its input, and prefers its own defaults."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.out = nn.Linear(4, 2)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.inputs = []

    def forward(self, x, mask=None, *, scale=None):
        self.calls.add_(1)
        self.inputs.append(x)
        x = F.relu(self.fc(x + torch.rand(4)))
        if mask is not None:
            x = x * mask
        return checkpoint(self.out, x, use_reentrant=False) if scale else self.out(x)


@pytest.mark.parametrize(
    "example",
    [
        None,
        torch.randn(3, 4),
        (torch.randn(3, 4), torch.ones(4)),
        {"x": torch.randn(3, 4), "scale": 2.0},
    ],
    ids=["none", "tensor", "tuple", "dict"],
)
def test_a_model_with_state_is_not_run(example):
    model = Stateful()
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    changes = insert(model, example=example)
    assert torch.equal(torch.rand(2), expected)
    assert [path for path, _ in changes.changed] == ["fc"]
    assert model.calls == 0
    assert model.inputs == changes.model.inputs == []


class Blocks(nn.Module):
    """Layers in a ModuleList, and a container that is called twice."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.twice = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, x):
        for block in self.blocks:
            x = torch.tanh(block(x)) + x
        return self.twice(self.twice(x))


def test_module_lists_and_containers_called_twice():
    changes = insert(Blocks())
    assert [path for path, _ in changes.changed] == ["blocks.0", "blocks.1", "blocks.2"]
    assert dict(changes.skipped) == {
        "twice.0": "called 2 times, and one batch norm would mix their statistics"
    }
