"""Torch's tools that read or rebuild modules: fx, torchvision's feature extractor, converters."""

import copy
import io
import warnings

import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import batchnorm
from batchnorm import BatchNorm1d, BatchNorm2d, BatchNormAct1d, BatchNormAct2d


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = BatchNorm1d(3)
        self.second = nn.Sequential(BatchNormAct1d(3, "elu"))

    def forward(self, x, mask=None):
        return self.second[0](self.first(x, mask=mask), x, mask=mask)


@pytest.mark.parametrize("traced_in", [True, False])
def test_a_traced_model_follows_the_mode_of_its_layers(traced_in):
    model = Block().train(traced_in)
    twin = copy.deepcopy(model)
    traced = torch.fx.symbolic_trace(twin)
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == ["first", "second.0"]
    mask = torch.tensor([True, True, False, True, True])
    for train in (True, False, True):
        model.train(train)
        traced.train(train)
        x = torch.randn(5, 3)
        assert torch.equal(traced(x, mask), model(x, mask))
        for a, b in zip(traced.state_dict().values(), model.state_dict().values(), strict=True):
            assert torch.equal(a, b)
    assert model.first.num_batches_tracked == 2


def test_a_traced_model_follows_the_switches():
    model = nn.Sequential(BatchNorm1d(3))
    traced = torch.fx.symbolic_trace(model)
    model[0].update = False
    traced(torch.randn(4, 3))
    assert model[0].num_batches_tracked == 0


def test_a_traced_model_is_copied_with_its_layers():
    traced = copy.deepcopy(torch.fx.symbolic_trace(nn.Sequential(BatchNorm1d(3)))).eval()
    x = torch.randn(4, 3)
    torch.testing.assert_close(traced(x), x / (1 + 1e-5) ** 0.5)


def test_hooks_are_recorded_once():
    model = nn.Sequential(BatchNorm1d(3))
    model[0].register_forward_hook(lambda module, args, y: y * 2)
    x = torch.randn(4, 3)
    expected = model(x)
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(x), expected)
    model.eval()
    assert torch.equal(traced(x), model(x))


def swapped(model):
    """`model` with our layers in the place of torch's."""
    for name, child in model.named_children():
        if type(child) is nn.BatchNorm2d:
            setattr(model, name, BatchNorm2d(child.num_features))
        else:
            swapped(child)
    return model


def test_torchvisions_feature_extractor():
    torch.manual_seed(0)
    theirs = resnet18(num_classes=3).double()
    ours = swapped(resnet18(num_classes=3)).double()
    ours.load_state_dict(theirs.state_dict())
    assert get_graph_node_names(ours) == get_graph_node_names(theirs)
    nodes = {"layer1.0.bn1": "norm", "layer2.1.relu_1": "relu", "fc": "y"}
    extractors = [create_feature_extractor(m, nodes) for m in (ours, theirs)]
    for train in (True, False):
        x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
        results = [e.train(train)(x) for e in extractors]
        assert list(results[0]) == list(results[1])
        for a, b in zip(results[0].values(), results[1].values(), strict=True):
            torch.testing.assert_close(a, b)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        create_feature_extractor(nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4)), ["1"])


OWN = {
    "axis=-1": lambda: BatchNorm1d(3, axis=-1),
    "weight=False": lambda: BatchNorm1d(3, weight=False),
    "bias_correction=True": lambda: BatchNorm1d(3, bias_correction=True),
}


@pytest.mark.parametrize("option", OWN)
def test_torchs_sync_conversion_refuses_what_it_would_drop(option):
    model = nn.Sequential(nn.Linear(3, 3), OWN[option]())
    with pytest.raises(
        TypeError, match=f"SyncBatchNorm has no {option}, which this BatchNorm1d was given"
    ):
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert not hasattr(model[1], "qconfig")


def test_torchs_sync_conversion_refuses_a_frozen_layer():
    layer = BatchNorm2d(3)
    layer.statistics, layer.update = "running", False
    with pytest.raises(TypeError, match=r"no statistics='running' and no update=False"):
        nn.SyncBatchNorm.convert_sync_batchnorm(layer)


def test_torchs_sync_conversion_takes_what_it_can_keep():
    layer = BatchNorm2d(3, eps=1e-3, momentum=0.2, bias=False)
    made = nn.SyncBatchNorm.convert_sync_batchnorm(layer)
    assert type(made) is nn.SyncBatchNorm
    assert (made.eps, made.momentum, made.bias) == (1e-3, 0.2, None)
    assert made.weight is layer.weight


def test_an_attribute_of_that_name_is_the_users_own():
    layer = BatchNorm2d(3)
    layer.qconfig = "mine"
    assert nn.SyncBatchNorm.convert_sync_batchnorm(layer).qconfig == "mine"


SCRIPTED = [
    lambda: BatchNorm1d(3),
    lambda: BatchNormAct1d(3),
    lambda: batchnorm.BatchRenorm1d(3),
    lambda: nn.Sequential(nn.Linear(3, 3), BatchNorm1d(3)),
    lambda: batchnorm.DomainBatchNorm1d(3, domains=2),
]


@pytest.mark.parametrize("make", SCRIPTED)
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_torch_jit_script_is_told_the_ways_that_work(make):
    model = make()
    before = list(model.modules())
    with pytest.raises(
        TypeError,
        match=r"torch.jit.script cannot compile Batch\w+, .*expected torch.compile or torch",
    ):
        torch.jit.script(model)
    assert all(a is b for a, b in zip(model.modules(), before, strict=True))


@pytest.mark.parametrize("kind", [BatchNorm1d, BatchNormAct1d])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_torch_jit_trace_holds_torchs_operators(kind, training):
    model = nn.Sequential(nn.Linear(3, 3), kind(3))
    model(torch.randn(5, 3))
    model.train(training)
    traced = torch.jit.trace(model, torch.randn(5, 3))
    assert "aten::batch_norm" in str(traced.inlined_graph)
    assert "batchnorm::" not in str(traced.inlined_graph)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    loaded, x = torch.jit.load(file), torch.randn(7, 3) + 2
    twin = copy.deepcopy(model)
    torch.testing.assert_close(loaded(x), twin(x))
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value)
