import contextlib
import functools
import pickle
import random
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from batchnorm.copies import scratch, undisturbed
from batchnorm.graph import consumers, operation, read, replace


class Listed(nn.Module):
    """Calls its layers through a plain list, and hooks one with a method of its own."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.steps = [self.first, torch.relu, self.second]
        self.register_buffer("shift", torch.ones(3))
        self.mask = torch.ones(3)
        self.seen = []
        self.second.register_forward_hook(self.see)

    def see(self, module, args, output):
        self.seen.append(output.shape)

    def forward(self, x):
        for step in self.steps:
            x = step(x)
        return x + self.shift


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, x):
        return self.inner(x) if x.sum() > 0 else x


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(4, 4)
        self.branch = Branching()
        self.leave = nn.Linear(4, 2)

    def forward(self, x, mask=None):
        x = F.relu(self.enter(x))
        if mask is not None:
            x = x * mask
        x = self.branch(self.branch(x))
        self.last = x
        return self.leave(F.dropout(x, training=self.training))


def test_replace_shares_tensors_and_makes_new_modules():
    model = Listed()
    other = replace(model, {"first": nn.Sequential(model.first, nn.Tanh())})
    assert type(other) is Listed
    assert other.second.weight is model.second.weight
    assert other.first[0].weight is model.first.weight
    assert other.shift is model.shift
    assert not set(other.modules()) & set(model.modules())


def test_replace_reaches_plain_lists_and_methods_that_are_hooks():
    model = Listed()
    before = list(model.state_dict())
    x = torch.randn(2, 3)
    expected = model(x)
    other = replace(model, {"first": nn.Sequential(model.first, nn.Tanh())})
    assert other.steps[0] is other.first
    model.seen.clear()
    hidden = torch.tanh(model.first(x))
    wanted = F.linear(torch.relu(hidden), model.second.weight, model.second.bias) + 1
    assert torch.equal(other(x), wanted)
    assert len(other.seen) == 2  # what the copied list held, and the call above
    assert model.seen == []
    assert torch.equal(model(x), expected)
    assert list(model.state_dict()) == before


def test_replace_at_every_path_of_a_shared_module():
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    other = replace(model, {"a": nn.Sequential(shared, nn.ReLU())})
    assert other["a"] is other["b"][0]
    assert isinstance(other["a"][1], nn.ReLU)


def test_replace_inside_of_what_is_replaced():
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)))
    outer, inner = nn.Sequential(model[0], nn.ReLU()), nn.Sequential(model[0][0], nn.Tanh())
    other = replace(model, {"0": outer})
    assert other[0] is outer
    assert outer[0] is not model[0]
    assert outer[0][0].weight is model[0][0].weight
    both = replace(model, {"0": nn.Sequential(model[0], nn.ReLU()), "0.0": inner})
    assert both[0][0][0] is inner
    assert inner[0].weight is model[0][0].weight


def test_replace_names_a_missing_path():
    with pytest.raises(AttributeError, match="nowhere"):
        replace(nn.Sequential(nn.ReLU()), {"nowhere": nn.Tanh()})


class Forgetful(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()

    def __deepcopy__(self, memo):
        return Forgetful()


def test_replace_says_when_a_model_copies_itself_in_its_own_way():
    with pytest.raises(RuntimeError, match="Forgetful could not be copied with 'act' replaced"):
        replace(Forgetful(), {"act": nn.Tanh()})


def test_replace_shares_what_cannot_be_copied():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model.lock = threading.Lock()
    model.hidden = model[0](torch.ones(1, 2))  # no leaf: deepcopy refuses
    model[0].register_forward_hook(functools.partial(lambda lock, *call: None, model.lock))
    other = replace(model, {"1": nn.Tanh()})
    assert other.lock is model.lock
    assert other.hidden is model.hidden
    assert other[0].weight is model[0].weight


def test_replace_in_traced_and_scripted_models():
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    other = replace(traced, {"1": nn.Tanh()})
    x = torch.randn(3, 2)
    assert torch.equal(other(x), torch.tanh(traced.get_submodule("0")(x)))
    assert other.get_submodule("0").weight is traced.get_submodule("0").weight
    scripted = torch.jit.script(nn.Linear(2, 2))
    model = nn.Sequential(scripted, nn.ReLU())
    assert replace(model, {"1": nn.Tanh()})[0] is scripted
    assert scratch(model)[0] is not scripted


def test_the_result_of_replace_can_be_pickled():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    other = replace(model, {"1": nn.Tanh()})
    again = pickle.loads(pickle.dumps(other))
    x = torch.randn(3, 2)
    assert torch.equal(again(x), other(x))


def test_scratch_shares_parameters_and_nothing_else():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.LazyLinear(3))
    copied = scratch(model)
    copied(torch.randn(4, 2))
    assert copied[0].weight is model[0].weight
    assert copied[1].num_batches_tracked == 1
    assert model[1].num_batches_tracked == 0
    assert model[2].has_uninitialized_params()


def test_scratch_without_hooks_leaves_those_of_the_model():
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].register_forward_hook(lambda *call: None)
    assert not scratch(model, hooks=False)[0]._forward_hooks
    assert len(model[0]._forward_hooks) == 1
    assert len(scratch(model)[0]._forward_hooks) == 1


def test_read_goes_around_what_cannot_be_followed():
    model = Outer()
    training, evaluation = read(model)
    for reading in (training, evaluation):
        assert list(reading.unseen) == ["branch"]
        assert reading.unseen["branch"].startswith(
            "torch.fx cannot follow the forward of Branching at test_graph.py:"
        )
        assert "control flow" in reading.unseen["branch"]
        assert [graph_root(graph) for graph in reading.graphs] == ["", "branch.inner"]
        (site,) = reading.sites("enter")
        (relu,) = consumers(site)
        assert operation(relu) == "relu"
        assert [user.target for user in consumers(relu)] == ["branch"]  # not what it began with
        assert reading.calls("enter") == 1
        assert reading.calls("branch.inner.0") == 2  # its caller is called twice
        assert reading.calls("nowhere") == 0
    assert not hasattr(model, "last")
    assert model.training


def graph_root(graph):
    (root,) = {node.meta["root"] for node in graph.nodes}
    return root


def test_read_sees_each_mode():
    training, evaluation = read(Outer())
    flags = [
        node.kwargs["training"]
        for reading in (training, evaluation)
        for node in reading.graphs[0].nodes
        if operation(node) == "dropout"
    ]
    assert flags == [True, False]


def test_read_keeps_defaults_unless_the_caller_gives_the_argument():
    def multiplies(reading):
        return any(operation(node) == "mul" for node in reading.graphs[0].nodes)

    assert not multiplies(read(Outer())[0])
    assert multiplies(read(Outer(), given={"x", "mask"})[0])


class Root(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 2)])
        self.alias = self.blocks[0]

    def forward(self, x):
        for block in self.blocks[: int(x.shape[0])]:
            x = block(x)
        return x


def test_read_when_the_model_itself_cannot_be_followed():
    reading = read(Root())[0]
    assert list(reading.unseen) == [""]
    assert [graph_root(graph) for graph in reading.graphs] == ["blocks.0"]  # once, not by its alias
    assert reading.calls("blocks.0.0") == 1
    assert reading.calls("blocks.1") == 0


class Direct(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.fc2 = nn.Linear(2, 2)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count += 1
        rows = torch.zeros_like(x)
        return F.linear(self.fc2(x) + rows, self.fc.weight) * x.shape[0]


def test_read_tells_direct_use_of_parameters_and_leaves_buffers_alone():
    model = Direct()
    reading = read(model)[0]
    assert reading.read_directly("fc")
    assert not reading.read_directly("fc2")
    assert model.count == 0
    x = next(node for node in reading.graphs[0].nodes if node.op == "placeholder")
    assert [str(user.target) for user in consumers(x)] == ["fc2"]  # not who asks for the shape


def test_read_goes_on_around_a_part_deep_inside():
    reading = read(nn.Sequential(nn.Sequential(Outer()), nn.ReLU()))[0]
    assert list(reading.unseen) == ["0.0.branch"]
    assert len(reading.sites("0.0.branch")) == 2


class Twofold(nn.Module):
    """Cannot be followed, nor can its part."""

    def __init__(self):
        super().__init__()
        self.part = Branching()

    def forward(self, x):
        x = self.part(x)
        return x if x.sum() > 0 else -x


def test_what_a_part_inside_of_another_holds_is_read_once():
    reading = read(nn.Sequential(Twofold()))[0]
    assert list(reading.unseen) == ["0", "0.part"]
    assert [graph_root(graph) for graph in reading.graphs] == ["", "0.part.inner"]


class Casting(nn.Module):
    def forward(self, x):
        return x.type(torch.float64), x.type()


def test_a_cast_takes_the_value_and_asking_for_the_type_does_not():
    reading = read(Casting())[0]
    x = next(node for node in reading.graphs[0].nodes if node.op == "placeholder")
    assert [user.args[1:] for user in consumers(x)] == [(torch.float64,)]


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, x):
        y = x * self.scale
        return y if y.sum() > 0 else x


class UsesScale(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = Scaled()

    def forward(self, x):
        return self.part(x) * self.part.scale


def test_a_parameter_is_seen_again_after_a_part_that_could_not_be_followed():
    reading = read(UsesScale())[0]
    assert list(reading.unseen) == ["part"]
    (graph,) = reading.graphs
    scale = next(node for node in graph.nodes if node.op == "get_attr")
    assert [operation(user) for user in scale.users] == ["mul"]
    assert scale.target == "part.scale"


def test_undisturbed_gives_random_numbers_back_on_every_path():
    def draw():
        return torch.rand(1).item(), random.random(), np.random.rand()

    def seed():
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)

    seed()
    expected = draw()
    seed()
    with contextlib.suppress(KeyError), undisturbed(nn.ReLU()):
        assert not torch.is_grad_enabled()
        draw()
        raise KeyError
    assert draw() == expected
    assert torch.is_grad_enabled()
