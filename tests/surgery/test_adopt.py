"""Torch's batch norms made ours: the same network, the same tensors, hooks and state dict."""

import copy
import pickle

import pytest
import torch
import torchvision.models as zoo
from torch import nn
from torch.nn.parameter import is_lazy

import batchnorm
from batchnorm import adopt
from batchnorm.layers._state import Layer


def network():
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6, momentum=None), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(6 * 9, 5), nn.BatchNorm1d(5, affine=False), nn.Linear(5, 2)),
    )


def step(model, x):
    """Output, gradients and buffers of one training step, and the output in evaluation."""
    model.train()
    model.zero_grad()
    y = model(x)
    y.square().sum().backward()
    grads = [p.grad.clone() for p in model.parameters()]
    buffers = [b.clone() for b in model.state_dict().values()]
    return [y.detach(), *grads, *buffers, model.eval()(x).detach()]


def test_the_network_computes_what_it_did():
    model, x = network().double(), torch.randn(7, 3, 5, 5, dtype=torch.float64)
    twin = copy.deepcopy(model)
    changes = adopt(model, x)
    assert changes.error < 1e-12
    assert changes.skipped == []
    assert changes.changed == [
        ("1", "torch's BatchNorm2d(6) is ours"),
        ("5", "torch's BatchNorm1d(5) is ours"),
    ]
    assert type(changes.model[1]) is batchnorm.BatchNorm2d
    assert type(changes.model[5]) is batchnorm.BatchNorm1d
    for ours, theirs in zip(step(changes.model, x), step(twin, x), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert int(changes.model[1].num_batches_tracked) == 1


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "densenet121", "shufflenet_v2_x0_5"]
)
def test_models_of_torchvision(name):
    torch.manual_seed(0)
    model = zoo.get_model(name, weights=None, num_classes=5).double()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    x = torch.randn(6, 3, 64, 64, dtype=torch.float64)  # few positions would magnify rounding
    twin = copy.deepcopy(model)
    ours = adopt(model, x).model
    norms = [m for m in ours.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(m, Layer) for m in norms)
    assert list(ours.state_dict()) == list(twin.state_dict())
    for a, b in zip(step(ours, x), step(twin, x), strict=True):
        assert (a - b).double().norm() <= 1e-8 * b.double().norm() + 1e-10
    twin.load_state_dict(ours.state_dict())
    torch.testing.assert_close(twin.eval()(x), ours.eval()(x), rtol=1e-9, atol=1e-9)


def test_parameters_and_buffers_are_shared_and_the_model_given_stays_as_it_was():
    model = network()
    before = str(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ours = adopt(model).model
    old, new = (m.state_dict(keep_vars=True) for m in (model, ours))
    assert list(old) == list(new)
    assert all(old[name] is new[name] for name in old)
    assert str(model) == before
    assert type(model[1]) is nn.BatchNorm2d
    weight = ours[1].weight.clone()
    ours(torch.randn(4, 3, 5, 5)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(ours[1].weight, weight)


def test_mode_hooks_and_what_else_was_set_on_a_layer_stay():
    model, seen = network(), []
    model[1].eval().register_forward_hook(lambda m, args, y: seen.append(type(m)))
    model[1].weight.requires_grad_(False)
    model[1].note = "mine"
    ours = adopt(model).model
    assert not ours[1].training
    assert ours[5].training
    assert ours[1].note == "mine"
    assert not ours[1].weight.requires_grad
    ours(torch.randn(4, 3, 5, 5))
    assert seen == [batchnorm.BatchNorm2d]
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(adopt(network()).model))):
        assert type(other[1]) is batchnorm.BatchNorm2d
        other(torch.randn(4, 3, 5, 5))


def test_a_layer_at_two_places_stays_one_and_the_whole_model_may_be_one():
    norm = nn.BatchNorm1d(4)
    ours = adopt(nn.ModuleList([norm, nn.Sequential(norm)])).model
    assert ours[0] is ours[1][0]
    assert type(ours[0]) is batchnorm.BatchNorm1d
    alone = adopt(norm).model
    assert type(alone) is batchnorm.BatchNorm1d
    assert alone.weight is norm.weight


def test_all_get_the_options():
    changes = adopt(network(), ghost_size=2, one_value="beta", bias_correction=True)
    assert changes.changed[0][1].endswith(
        "ours, ghost_size=2, one_value='beta', bias_correction=True"
    )
    x = torch.randn(6, 3, 5, 5)
    alone = batchnorm.BatchNorm2d(3, ghost_size=2, one_value="beta", bias_correction=True)
    ours = adopt(nn.BatchNorm2d(3), ghost_size=2, one_value="beta", bias_correction=True).model
    assert not ours.plain
    assert torch.equal(ours(x), alone(x))
    assert torch.equal(ours.running_var, alone.running_var)


def test_half_precision_statistics_become_float32():
    model = nn.BatchNorm1d(3).bfloat16()
    changes = adopt(model)
    assert changes.model.running_mean.dtype == torch.float32
    assert changes.model.weight.dtype == torch.bfloat16
    assert model.running_mean.dtype == torch.bfloat16
    assert changes.changed[0][1].endswith("running statistics in float32 instead of bfloat16")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_running_statistics_that_two_layers_share_stay_shared(dtype):
    model = nn.ModuleList([nn.BatchNorm1d(3).to(dtype), nn.BatchNorm1d(3).to(dtype)])
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        setattr(model[1], name, getattr(model[0], name))
    one, other = adopt(model).model
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert getattr(one, name) is getattr(other, name)
    one(torch.randn(4, 3))
    other(torch.randn(4, 3))
    assert int(one.num_batches_tracked) == 2
    assert one.running_mean.dtype == other.running_mean.dtype == torch.float32


def test_a_batch_that_is_not_finite_is_counted_wherever_the_layer_lies():
    for options in ({}, {"track_running_stats": False}, {"device": "meta"}):
        ours = adopt(nn.BatchNorm1d(3, **options)).model
        made = batchnorm.BatchNorm1d(3, **options)
        assert (ours.skipped is None) == (made.skipped is None)
        assert ours.skipped is None or ours.skipped.device == made.skipped.device
        assert vars(ours).keys() == vars(made).keys()
        assert ours._buffers.keys() == made._buffers.keys()
        assert ours._non_persistent_buffers_set == made._non_persistent_buffers_set
    ours = adopt(nn.BatchNorm1d(1)).model
    ours(torch.tensor([[float("nan")], [1.0]]))
    assert int(ours.skipped) == 1


class Own(nn.BatchNorm2d):
    def forward(self, input):
        return super().forward(input).relu()


def test_what_may_do_otherwise_is_left_alone_with_the_reason():
    patched = nn.BatchNorm2d(3)
    patched.forward = lambda x: x
    model = nn.Sequential(
        Own(3), patched, nn.SyncBatchNorm(3), nn.LazyBatchNorm2d(), batchnorm.BatchNorm2d(3)
    )
    changes = adopt(model)
    assert changes.changed == []
    left = dict(changes.skipped)
    assert left["0"].endswith("Own is a class of its own: it may do otherwise")
    assert left["1"] == "a forward was put on it, which may do otherwise"
    assert left["2"].startswith("SyncBatchNorm takes input of any rank: adopt the model before")
    assert left["3"] == "has not seen yet how many channels there are: run the model first"
    assert left["4"] == "ours already: set on it what it should do"
    assert type(changes.model[0]) is Own


def test_a_lazy_model_with_an_example_stays_lazy():
    model = nn.Sequential(
        nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Linear(4, 3), nn.BatchNorm1d(3)
    )
    changes = adopt(model, torch.randn(5, 2))
    assert changes.error < 1e-6
    assert [path for path, _ in changes.changed] == ["3"]
    assert [path for path, _ in changes.skipped] == ["1"]
    for one in (model, changes.model):
        assert type(one[1]) is nn.LazyBatchNorm1d
        assert all(is_lazy(t) for t in (one[0].weight, one[1].weight, one[1].running_mean))
    model(torch.randn(5, 2))
    assert changes.model[1].running_mean is model[1].running_mean


def test_torchscript_is_named_with_the_way_out():
    part = torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
    changes = adopt(nn.Sequential(part, nn.BatchNorm1d(3)), torch.randn(4, 3))
    assert [path for path, _ in changes.changed] == ["1"]
    assert changes.skipped == [
        ("0.1", "runs as TorchScript, outside of Python: adopt the model, then script it")
    ]


def test_what_torch_is_to_quantize_stays_torchs():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    model[0].qconfig, model[1].qconfig = object(), None
    changes = adopt(model)
    assert [path for path, _ in changes.changed] == ["1"]
    reason = "is to be quantized, by what knows torch's classes alone: it has a qconfig"
    assert changes.skipped == [("0", reason)]


@pytest.mark.parametrize("name", ["axis", "update", "skipped", "statistics", "pool"])
def test_an_attribute_that_means_something_else_in_ours_is_named(name):
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    setattr(model[0], name, 0)
    changes = adopt(model)
    assert [path for path, _ in changes.changed] == ["1"]
    reason = f"has an attribute {name!r} of its own, which means something else in ours"
    assert changes.skipped == [("0", reason)]
    assert type(changes.model[0]) is nn.BatchNorm1d


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"ghost_size": 0}, ValueError, "ghost_size=0"),
        ({"one_value": "no"}, ValueError, "one_value='no'"),
        ({"axis": -1}, TypeError, "axis=-1 is no option of adopt: layers keep the axis"),
        ({"ghosts": 2}, TypeError, "ghosts"),
        ({"process_group": "all"}, (TypeError, ValueError), "process_group='all'"),
    ],
)
def test_options_that_no_layer_takes_are_errors_whatever_the_model_holds(options, error, words):
    for model in (network(), nn.Linear(1, 1)):
        with pytest.raises(error, match=words):
            adopt(model, **options)


def test_what_is_no_model_or_no_example_of_it_is_told():
    with pytest.raises(TypeError, match=r"adopt takes a model, a torch\.nn\.Module; got list"):
        adopt([nn.BatchNorm1d(2)])
    with pytest.raises(TypeError, match=r"Make one of the class: Identity\(\.\.\.\)"):
        adopt(nn.Identity)
    with pytest.raises(TypeError, match=r"It holds one: give its \.model"):
        adopt(adopt(network()))
    with pytest.raises(TypeError, match="adopt takes the model itself; got it as DataParallel"):
        adopt(nn.DataParallel(network()))
    with pytest.raises(ValueError, match=r"example \(=a tensor of shape \(2, 2\)\) does not run"):
        adopt(network(), torch.randn(2, 2))


def test_what_a_graph_calls_as_a_function_is_told():
    x = torch.randn(4, 3)
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.BatchNorm1d(3)).eval()
    graph = torch.export.export(net, (x,)).module()
    words = "its graph calls batch_norm as a function, {}: there is no module to make ours; adopt"
    for made, path, times in (
        (adopt(graph), "", "2 times"),
        (adopt(nn.Sequential(nn.BatchNorm1d(3), graph), x), "1", "2 times"),
        (adopt(torch.export.export(net[1], (x,)).module()), "", "once"),
    ):
        ((where, why),) = made.skipped
        assert where == path
        assert why.startswith(words.format(times))


def test_a_model_without_batch_norm_has_nothing_to_change():
    for verb in (adopt, batchnorm.remove):
        assert str(verb(nn.Linear(3, 3))) == "Linear: nothing to change"


def test_whoever_takes_the_account_for_the_model_is_told():
    changes = adopt(network())
    with pytest.raises(
        TypeError, match=r"an account of what was done to a model; call its \.model"
    ):
        changes(torch.randn(2, 3, 5, 5))
    with pytest.raises(AttributeError, match=r"Changes has no 'parameters'; .* its \.model"):
        changes.parameters()
    assert copy.deepcopy(changes).changed == changes.changed
    assert pickle.loads(pickle.dumps(changes)).changed == changes.changed
