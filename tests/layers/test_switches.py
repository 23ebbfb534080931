"""The two switches of a layer: what normalizes, and whether the running statistics move."""

import copy

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm import BatchNorm1d, BatchNormAct1d, switches

EPS = 1e-5


def moved(layer):
    layer.running_mean.copy_(torch.tensor([1.0, -2.0]))
    layer.running_var.copy_(torch.tensor([4.0, 9.0]))
    return layer


def by(x, mean, var):
    return (x - mean) / (var + EPS).sqrt()


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("update", [True, False])
@pytest.mark.parametrize("statistics", ["auto", "batch", "running"])
@pytest.mark.parametrize("compiled", [False, True])
def test_every_combination(statistics, update, train, compiled):
    torch._dynamo.reset()  # each combination is a graph of its own, more than it keeps
    layer = moved(BatchNorm1d(2)).train(train)
    layer.statistics, layer.update = statistics, update
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    x = torch.randn(6, 2)
    run = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
    y = run(x)
    own = statistics == "batch" or (statistics == "auto" and train)
    torch.testing.assert_close(
        y, by(x, x.mean(0), x.var(0, correction=0)) if own else by(x, mean, var)
    )
    if train and update:
        torch.testing.assert_close(layer.running_mean, 0.9 * mean + 0.1 * x.mean(0))
        torch.testing.assert_close(layer.running_var, 0.9 * var + 0.1 * x.var(0))
        assert layer.num_batches_tracked == 1
    else:
        assert torch.equal(layer.running_mean, mean)
        assert torch.equal(layer.running_var, var)
        assert layer.num_batches_tracked == 0


@pytest.mark.parametrize("statistics", ["auto", "batch", "running"])
def test_without_running_statistics_it_is_always_the_batchs(statistics):
    layer = BatchNorm1d(2, track_running_stats=False).eval()
    layer.statistics = statistics
    x = torch.randn(6, 2)
    torch.testing.assert_close(layer(x), by(x, x.mean(0), x.var(0, correction=0)))


def test_frozen_stays_frozen_after_train():
    layer = moved(BatchNorm1d(2))
    layer.statistics, layer.update = "running", False
    before = copy.deepcopy(layer.state_dict())
    x = torch.randn(6, 2)
    y = nn.Sequential(layer).train()[0](x)
    torch.testing.assert_close(y, by(x, layer.running_mean, layer.running_var))
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])
    assert "statistics='running', update=False" in repr(layer)


def test_the_switches_are_copied_with_the_layer():
    layer = BatchNorm1d(2)
    layer.statistics, layer.update = "running", False
    twin = copy.deepcopy(layer)
    assert (twin.statistics, twin.update) == ("running", False)


def test_statistics_of_another_name_are_refused():
    layer = BatchNorm1d(2)
    with pytest.raises(
        ValueError, match=r"statistics='eval'; expected one of auto, batch, running"
    ):
        layer.statistics = "eval"
    assert layer.statistics == "auto"
    with (
        pytest.raises(ValueError, match=r"statistics='eval'; expected one of"),
        switches(layer, statistics="eval"),
    ):
        pass


def model():
    return nn.Sequential(nn.Linear(3, 2), BatchNorm1d(2), nn.Sequential(BatchNormAct1d(2)))


def test_a_block_switches_all_and_gives_each_its_own_back():
    net = model()
    net[1].update = False
    with switches(net, statistics="running", update=True):
        assert [(m.statistics, m.update) for m in (net[1], net[2][0])] == [("running", True)] * 2
        with switches(net, update=False):
            net(torch.randn(4, 3))
            assert [(m.statistics, m.update) for m in (net[1], net[2][0])] == [
                ("running", False)
            ] * 2
    assert [(m.statistics, m.update) for m in (net[1], net[2][0])] == [
        ("auto", False),
        ("auto", True),
    ]
    assert net[2][0].num_batches_tracked == 0


def test_they_are_given_back_after_an_exception():
    net = model()
    with pytest.raises(RuntimeError, match="in between"), switches(net, update=False):
        raise RuntimeError("in between")
    assert net[1].update


def test_a_second_forward_does_not_count():
    """The first pass of sharpness-aware minimization counts, the second at moved weights not."""
    net, twin = model(), None
    twin = copy.deepcopy(net)
    x = torch.randn(5, 3)
    net(x)
    twin(x)
    with switches(net, update=False):
        net(2 * x).sum().backward()
    for a, b in zip(net.buffers(), twin.buffers(), strict=True):
        assert torch.equal(a, b)


def test_batch_norms_without_switches_are_named():
    net = nn.Sequential(BatchNorm1d(2), nn.Sequential(nn.BatchNorm2d(3)))
    with pytest.raises(
        ValueError,
        match=r"1\.0 \(BatchNorm2d\) cannot switch; expected batch norms of this package: model = "
        r"batchnorm.adopt\(model\).model",
    ):
        switches(net, update=False).__enter__()
    assert net[0].update
    with pytest.raises(
        ValueError, match=r"Linear has no batch norm to switch; expected a model with"
    ):
        switches(nn.Linear(1, 1)).__enter__()


@pytest.mark.parametrize("value", ["no", 0, None])
def test_update_is_a_bool(value):
    layer = BatchNorm1d(3)
    with pytest.raises(ValueError, match=f"update={value!r}; expected True or False"):
        layer.update = value
    assert layer.update is True


def test_a_model_that_is_one_of_torchs_is_named_and_adopted():
    layer = torch.nn.BatchNorm1d(3)
    with pytest.raises(ValueError, match=r"^the model \(BatchNorm1d\) cannot switch"):
        switches(layer, update=False).__enter__()
    with pytest.raises(ValueError, match=r"^no mask reaches the model \(BatchNorm1d\); expected"):
        batchnorm.masked(layer, torch.ones(3)).__enter__()
    with switches(batchnorm.adopt(layer).model, update=False):
        pass


def test_a_reset_leaves_a_frozen_layer_alone():
    frozen, free = moved(BatchNorm1d(2)), moved(BatchNorm1d(2))
    frozen.statistics, frozen.update = "running", False
    model, x = nn.Sequential(frozen, free), torch.randn(64, 2)
    with pytest.warns(UserWarning, match=r"left a BatchNorm1d alone: its update=False"):
        torch.optim.swa_utils.update_bn([x], model)
    assert frozen.running_mean.tolist() == [1.0, -2.0]
    assert frozen.running_var.tolist() == [4.0, 9.0]
    seen = by(x, torch.tensor([1.0, -2.0]), torch.tensor([4.0, 9.0]))
    torch.testing.assert_close(free.running_mean, seen.mean(0))
    frozen.reset_parameters()
    assert frozen.running_mean.tolist() == [0.0, 0.0]


def test_a_frozen_layer_from_meta_has_its_first_statistics():
    layer = BatchNorm1d(2, device="meta")
    layer.update = False
    layer.to_empty(device="cpu")
    assert layer.running_mean.tolist() == [0.0, 0.0]
    assert layer.running_var.tolist() == [1.0, 1.0]
