"""A layer's calls are known until something about it changes; then it does as one that knew none."""

import contextlib
import copy
import pickle
from unittest import mock

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.nn.utils import parametrize

import batchnorm
from batchnorm import BatchNorm2d, BatchNormAct2d, BatchRenorm2d
from batchnorm.functional import _normalize


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


@contextlib.contextmanager
def as_it_is(layer):
    yield


def setting(**attributes):
    def change(layer):
        for name, value in attributes.items():
            setattr(layer, name, value)

    return change


def parameter(name, make):
    return lambda layer: setattr(layer, name, nn.Parameter(make(getattr(layer, name))))


CHANGES = {
    "eps": setting(eps=0.5),
    "momentum": setting(momentum=0.9),
    "no momentum": setting(momentum=None),
    "evaluation": lambda layer: layer.eval(),
    "update": setting(update=False),
    "statistics": setting(statistics="running"),
    "statistics without update": setting(statistics="running", update=False),
    "track_running_stats": setting(track_running_stats=False),
    "no running statistics": setting(running_mean=None, running_var=None),
    "no count": setting(num_batches_tracked=None),
    "bias_correction": setting(bias_correction=True),
    "ghost_size": setting(ghost_size=2),
    "one_value": setting(one_value="beta"),
    "axis": setting(axis=-1),
    "activation": setting(activation=batchnorm.kernels._activation.Activation.parse("silu")),
    "another module as activation": setting(activation=nn.LeakyReLU(0.3)),
    "inplace": setting(activation=batchnorm.kernels._activation.Activation(), inplace=True),
    "no weight": setting(weight=None),
    "no bias": setting(bias=None),
    "another weight": parameter("weight", lambda w: w.detach() * 3),
    "a frozen weight": lambda layer: layer.weight.requires_grad_(False),
    "a wide weight": parameter("weight", lambda w: w.detach().double()),
    "bias data": lambda layer: layer.bias.data.fill_(7),
    "half": lambda layer: layer.half(),
    "double": lambda layer: layer.double(),
    "half statistics": lambda layer: setattr(layer, "running_var", layer.running_var.half()),
    "statistics in another place": lambda layer: layer._buffers.update(running_mean=torch.ones(4)),
    "parameters in another place": lambda layer: layer._parameters.update(bias=None),
    "a parametrization": lambda layer: parametrize.register_parametrization(
        layer, "weight", Doubled()
    ),
    "reset": lambda layer: layer.reset_running_stats(),
    "loaded": lambda layer: layer.load_state_dict(
        {k: v + 1 for k, v in layer.state_dict().items()}, assign=True
    ),
    "masked": lambda layer: batchnorm.masked(layer, torch.arange(6) < 4),
    "switched": lambda layer: batchnorm.switches(layer, update=False),
    "a hook": lambda layer: layer.register_forward_pre_hook(lambda _, args: (args[0] * 2,)) and None,
    "in bfloat16": lambda layer: torch.autocast("cpu", torch.bfloat16),
    "saved elsewhere": lambda layer: torch.autograd.graph.save_on_cpu(),
    "nothing": lambda layer: None,
}  # fmt: skip


def outcome(layer, x, around):
    """Everything that comes of a call, or what it raises."""
    layer.zero_grad()
    x = x.detach().requires_grad_()
    try:
        with around if around is not None else contextlib.nullcontext():
            y = layer(x * 1)
        (y * torch.arange(y.numel()).view(y.shape).sin()).sum().backward()
    except Exception as error:
        return repr(error)
    state = {k: v.clone() for k, v in layer.named_buffers()}
    gradients = {f"gradient of {k}": v.grad for k, v in layer.named_parameters()}
    return {"y": y.detach(), "dx": x.grad} | state | gradients


def same(got, expected):
    if isinstance(got, str) or isinstance(expected, str):
        return type(got) is type(expected) and got == expected
    return got.keys() == expected.keys() and all(
        (got[k] is expected[k] is None)
        or (got[k].dtype is expected[k].dtype and torch.equal(got[k], expected[k]))
        for k in got
    )


@pytest.fixture
def asked(monkeypatch):
    """Counts the calls that are asked about."""
    calls, normalize = [], _normalize.normalize
    monkeypatch.setattr(
        "batchnorm.layers._calls.normalize", lambda *args: calls.append(1) or normalize(*args)
    )
    return calls


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("lay", ["contiguous", "channels_last"])
def test_whatever_changes_is_noticed(name, lay, asked):
    layer, x = BatchNormAct2d(4, "relu"), torch.randn(6, 4, 5, 4)
    if lay == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    nn.init.normal_(layer.weight)
    for _ in range(3):
        before = outcome(layer, x, None)
    assert len(asked) == 1
    assert layer.usual is not None
    twin, left = copy.deepcopy(layer), copy.deepcopy(layer)
    assert twin.usual is None
    untouched = outcome(left, x, None)
    for turn in range(2):
        expected = outcome(twin, x, CHANGES[name](twin) if turn == 0 else None)
        got = outcome(layer, x, CHANGES[name](layer) if turn == 0 else None)
        assert same(got, expected)
        if turn == 0:
            harmless = name in ("nothing", "saved elsewhere", "in bfloat16", "one_value")
            assert same(got, untouched) is harmless
    assert not same(before, untouched)  # running statistics have moved


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("lay", ["contiguous", "channels_last"])
def test_whatever_changes_is_noticed_in_place(name, lay, asked):
    layer, x = BatchNormAct2d(4, "leaky_relu", inplace=True), torch.randn(6, 4, 5, 4)
    if lay == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    nn.init.uniform_(layer.weight, 0.5, 1.5)
    for _ in range(3):
        outcome(layer, x, None)
    assert len(asked) == 1
    twin = copy.deepcopy(layer)
    for turn in range(2):
        expected = outcome(twin, x, CHANGES[name](twin) if turn == 0 else None)
        got = outcome(layer, x, CHANGES[name](layer) if turn == 0 else None)
        assert same(got, expected)


def test_an_input_that_must_stay_is_left_alone_and_told_of_once(asked, caplog):
    layer, x = BatchNormAct2d(4, "identity", inplace=True), torch.randn(6, 4, 5, 4)
    twin = BatchNormAct2d(4, "identity")
    x.requires_grad_()
    for one in (layer, layer, twin, twin):
        one(x * 1)
    with caplog.at_level("INFO", logger="batchnorm"):
        y = layer(x)
    assert [record.getMessage() for record in caplog.records] == [
        "batch norm not in place: the input is a leaf that requires a gradient"
    ]
    assert y is not x
    assert torch.equal(y, twin(x))
    assert layer.num_batches_tracked == twin.num_batches_tracked == 3
    assert torch.equal(layer.running_var, twin.running_var)
    z = x * 1
    assert layer(z) is z
    assert len(asked) == 2  # one of each layer


def test_data_that_is_overwritten_fills_no_memory_of_calls():
    layer, x = BatchNormAct2d(4, "identity", inplace=True), torch.randn(6, 4, 5, 4)
    for _ in range(12):
        y = layer(x.clone())  # which requires no gradient, as y does
        assert y.requires_grad
    for shape in [(3, 4, 2, 2), (5, 4, 3, 3)]:
        layer(torch.randn(shape))
    assert not layer.usual._guards.full()


def test_known_calls_are_not_asked_about(asked):
    layer, small, large = BatchNorm2d(4), torch.randn(6, 4, 5, 4), torch.randn(3, 4, 2, 2)
    for x in (small, large):
        layer(x)
    for _ in range(3):
        layer.train()  # as it was
        for x in (small, large):
            layer(x)
            layer(x.clone())
    assert len(asked) == 2
    layer.eval()
    for _ in range(3):
        layer(small)
        layer(large)
    assert len(asked) == 4


def test_many_shapes_are_asked_about_as_before():
    layer = BatchNorm2d(4)
    twin = nn.BatchNorm2d(4)
    for size in [*range(2, 30), *range(2, 30)]:
        x = torch.randn(size, 4, 2, 3)
        torch.testing.assert_close(layer(x), twin(x))
    torch.testing.assert_close(layer.running_var, twin.running_var)


def test_other_arguments_of_the_same_layer():
    layer, x = BatchNormAct2d(4, "relu"), torch.randn(6, 4, 5, 4)
    for _ in range(2):
        layer(x)
    for arguments in ({"residual": x}, {"mask": torch.arange(6) < 3}):
        twin = copy.deepcopy(layer)
        assert torch.equal(layer(x, **arguments), twin(x, **arguments))
        assert torch.equal(layer.running_mean, twin.running_mean)
    with pytest.raises(ValueError, match="channels"):
        layer(x[:, :3])
    with pytest.raises(ValueError, match="expected"):
        layer(x[0])


@pytest.mark.parametrize("affine", [True, False])
def test_no_input_is_refused_as_ever(affine):
    layer, x = BatchNorm2d(4, affine=affine), torch.randn(6, 4, 5, 4)
    for _ in range(3):
        with pytest.raises(TypeError, match="input is of type NoneType"):
            layer(None)
        layer(x)


def test_other_parameters_for_a_call():
    layer, x = BatchNorm2d(4), torch.randn(6, 4, 5, 4)
    for _ in range(2):
        layer(x)
    state = {k: v.clone() * 3 for k, v in layer.state_dict().items()}
    y = functional_call(layer, state, (x,))
    torch.testing.assert_close(y, 3 * copy.deepcopy(layer)(x))
    assert layer.num_batches_tracked == 2
    assert state["num_batches_tracked"] == 7
    many = vmap(lambda w: functional_call(layer, {"weight": w}, (x,)))(torch.ones(2, 4))
    torch.testing.assert_close(many[1], layer(x))


def test_layers_of_a_kind_of_their_own(asked):
    """What a subclass passes on is not taken for what it passed before."""

    class Turns(BatchNorm2d):
        turn = 0

        def forward(self, input):
            self.__dict__["turn"] += 1
            f = batchnorm.kernels._activation.Activation.parse("relu" if self.turn % 2 else None)
            return self._normalize(input, f)

    layer, x = Turns(4), torch.randn(6, 4, 5, 4)
    layer.turn = 0
    signs = [bool((layer(x) < 0).any()) for _ in range(6)]
    assert signs == [False, True] * 3
    renormalized, plain = BatchRenorm2d(4), BatchNorm2d(4)
    for one in (x, x + 1, 2 * x):
        ours, other = renormalized(one), plain(one)
    assert not torch.equal(ours, other)


def test_options_that_come_back_or_change_without_being_set():
    layer, x = BatchNorm2d(4), torch.randn(6, 4, 5, 4)
    layer(x)
    with mock.patch.object(layer, "update", False):
        layer(x)
    layer(x)
    assert layer.num_batches_tracked == 2
    layer.__dict__["training"] = False
    layer(x)
    assert layer.num_batches_tracked == 2
    other = BatchNorm2d(4, eps=0.5).eval()
    layer.train()
    layer(x)
    layer.__setstate__(other.__getstate__())
    assert torch.equal(layer(x), other(x))


def test_a_module_as_activation_may_change():
    layer, x = BatchNormAct2d(4), torch.randn(6, 4, 5, 4)
    layer.activation = nn.LeakyReLU(0.3)
    for _ in range(3):
        layer(x)
    layer.activation.negative_slope = 0.9
    assert torch.equal(layer(x), copy.deepcopy(layer)(x))


def test_a_class_of_anybodys_own_may_compute_its_options():
    class Falling(BatchNorm2d):
        @property
        def momentum(self):
            return 0.5 ** int(self.num_batches_tracked)

        @momentum.setter
        def momentum(self, value):
            pass

    layer, twin = Falling(4), BatchNorm2d(4)
    for k in range(5):
        x = torch.randn(6, 4, 5, 4)
        layer(x)
        twin.momentum = 0.5**k
        twin(x)
    assert torch.equal(layer.running_mean, twin.running_mean)


def test_a_mode_that_changes_during_a_call_is_not_lost(monkeypatch):
    layer, x = BatchNorm2d(4), torch.randn(6, 4, 5, 4)
    normalize = _normalize.normalize

    def meanwhile(*args):
        y = normalize(*args)
        layer.eval()  # as another thread would
        return y

    monkeypatch.setattr("batchnorm.layers._calls.normalize", meanwhile)
    layer(x)
    monkeypatch.undo()
    assert torch.equal(layer(x), copy.deepcopy(layer)(x))
    assert layer.num_batches_tracked == 1


def test_attributes_set_inside_a_graph():
    layer, twin, x = BatchNorm2d(4), BatchNorm2d(4), torch.randn(6, 4, 5, 4)
    for one in (layer, twin):
        one(x)

    def steps(one):
        one.momentum = 0.9
        return one(x)

    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(steps, backend="eager")(layer), steps(twin))
    torch.testing.assert_close(layer(x), twin(x))
    torch.testing.assert_close(layer.running_mean, twin.running_mean)


def test_copies_and_pickles_know_nothing(asked):
    layer, x = BatchNorm2d(4), torch.randn(6, 4, 5, 4)
    for _ in range(2):
        layer(x)
    for other in (copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert not {"usual", "changed"} & vars(other).keys() or other.usual is None
        other(x)
    assert len(asked) == 4
