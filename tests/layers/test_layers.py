import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.lazy import LazyModuleMixin

import oracle
from batchnorm.layers import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    BatchNormAct1d,
    BatchNormAct2d,
    BatchNormAct3d,
    BatchRenorm3d,
    LazyBatchNorm1d,
    LazyBatchNorm2d,
)

FAMILY = [
    (BatchNorm1d, nn.BatchNorm1d, (5, 3)),
    (BatchNorm1d, nn.BatchNorm1d, (5, 3, 4)),
    (BatchNorm2d, nn.BatchNorm2d, (5, 3, 4, 2)),
    (BatchNorm3d, nn.BatchNorm3d, (5, 3, 2, 1, 2)),
]
ACT = [(BatchNormAct1d, (5, 3)), (BatchNormAct2d, (5, 3, 4, 2)), (BatchNormAct3d, (5, 3, 2, 1, 2))]
OPTIONS = [
    {},
    {"eps": 1e-2, "momentum": 0.4},
    {"momentum": None},
    {"affine": False},
    {"track_running_stats": False},
    {"affine": False, "track_running_stats": False},
]


@pytest.mark.parametrize(("ours", "theirs", "shape"), FAMILY)
@pytest.mark.parametrize("options", OPTIONS)
def test_three_steps_and_an_evaluation_equal_torch_in_float64(ours, theirs, shape, options):
    layers = [kind(3, dtype=torch.float64, **options) for kind in (ours, theirs)]
    if layers[0].affine:
        nn.init.normal_(layers[0].weight)
        nn.init.normal_(layers[0].bias)
    layers[1].load_state_dict(layers[0].state_dict())
    layers[0].load_state_dict(layers[1].state_dict())
    for step in range(4):
        x = torch.randn(shape, dtype=torch.float64)
        dy = torch.randn(shape, dtype=torch.float64)
        results = []
        for layer in layers:
            layer.train(step < 3)
            leaf = x.clone().requires_grad_()
            y = layer(leaf)
            gradients = torch.autograd.grad(y, (leaf, *layer.parameters()), dy)
            results.append((y, *gradients, *layer.state_dict().values()))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("kind", "shape"), ACT)
@pytest.mark.parametrize("activation", ["relu", nn.LeakyReLU(0.2), "gelu", None])
def test_activation_and_residual_equal_the_three_steps_in_torch(kind, shape, activation):
    layer = kind(3, activation, dtype=torch.float64)
    plain = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)](3).double()
    plain.load_state_dict(layer.state_dict())
    x, residual = torch.randn(2, *shape, dtype=torch.float64)
    f = {"relu": F.relu, "gelu": F.gelu, None: lambda z: z}.get(activation, activation)
    torch.testing.assert_close(layer(x, residual), f(plain(x) + residual))
    torch.testing.assert_close(layer(x), f(plain(x)))
    torch.testing.assert_close(layer.eval()(x), f(plain.eval()(x)))


def test_isinstance_holds_for_drop_ins_and_not_for_those_with_an_activation():
    for ours, theirs, _ in FAMILY:
        assert isinstance(ours(3), theirs)
    for kind, _ in ACT:
        assert not isinstance(kind(3), nn.modules.batchnorm._BatchNorm)


def test_torchs_sync_conversion_leaves_an_activation_where_it_is():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), BatchNormAct2d(3, "relu"))
    assert type(nn.SyncBatchNorm.convert_sync_batchnorm(model)[1]) is BatchNormAct2d


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_compute_the_same_and_share_nothing(copied):
    for layer in (BatchNorm1d(3, axis=-1, bias=False), BatchNormAct1d(3, nn.ELU(0.5))):
        x = torch.randn(4, 3)
        layer(x)
        twin = copied(layer)
        assert torch.equal(twin(x), layer(x))
        twin.running_mean.add_(1)
        assert not torch.equal(twin.running_mean, layer.running_mean)


def test_bias_can_be_left_out():
    layer = BatchNorm1d(3, bias=False)
    assert layer.bias is None
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    assert layer(torch.randn(4, 3)).mean(0).abs().max() < 1e-6


def test_channels_on_the_last_axis():
    layer = BatchNorm1d(3, axis=-1)
    assert layer(torch.randn(4, 7, 3)).shape == (4, 7, 3)
    assert layer.running_mean.abs().sum() > 0
    assert "axis=-1" in repr(layer)


@pytest.mark.parametrize(
    "cast", [lambda m: m.half(), lambda m: m.bfloat16(), lambda m: m.to(torch.float16)]
)
def test_running_statistics_stay_in_float32(cast):
    layer = cast(BatchNorm1d(2))
    x = torch.tensor([[900.0], [-900.0], [900.0], [-900.0]]).expand(4, 2).to(layer.weight.dtype)
    layer(x)
    assert layer.running_var.dtype == torch.float32
    assert layer.running_var[0].item() == pytest.approx(
        0.9 + 0.1 * x.float().var(0)[0].item(), rel=1e-5
    )
    assert BatchNorm1d(2, dtype=torch.bfloat16).running_mean.dtype == torch.float32
    assert BatchNorm1d(2).double().running_mean.dtype == torch.float64


def test_a_momentum_of_a_thousandth_does_not_stall_in_bfloat16():
    layers = BatchNorm1d(1, momentum=1e-3).bfloat16(), nn.BatchNorm1d(1, momentum=1e-3).bfloat16()
    x = torch.tensor([[2.0], [4.0]], dtype=torch.bfloat16)
    for layer in layers:
        for _ in range(2000):
            layer(x)
    right = 3 * (1 - 0.999**2000)
    assert layers[0].running_mean.item() == pytest.approx(right, rel=1e-3)
    assert layers[1].running_mean.item() < 0.5 * right, "torch's own stalls: the test can fail"


def test_to_meta_and_back():
    layer = BatchNorm2d(3, device="meta")
    assert layer(torch.empty(2, 3, 4, 4, device="meta")).shape == (2, 3, 4, 4)
    layer = layer.to_empty(device="cpu")
    layer.reset_parameters()
    assert torch.isfinite(layer(torch.randn(2, 3, 4, 4))).all()


@pytest.mark.parametrize("momentum", [0.1, None])
def test_compiles_as_one_graph_with_gradients_and_statistics(momentum):
    torch._dynamo.reset()  # other tests compile the same code, and it counts how often
    model = nn.Sequential(BatchNorm1d(3, momentum=momentum), BatchNormAct1d(3, "silu"))
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 3, requires_grad=True)
    for _ in range(2):
        ours, theirs = model(x), compiled(x)
        torch.testing.assert_close(theirs, ours)
        torch.testing.assert_close(
            torch.autograd.grad(theirs.square().sum(), x),
            torch.autograd.grad(ours.square().sum(), x),
        )
    for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(
        torch.compile(twin.eval(), fullgraph=True, backend="aot_eager")(x), model.eval()(x)
    )


OURS_ALONE = {
    "ghost_size": {"ghost_size": 4},
    "one_value": {"one_value": "beta"},
    "momentum": {"momentum": None},
    "bias_correction": {"bias_correction": True},
}


@pytest.mark.parametrize("option", OURS_ALONE)
def test_exported_graphs_hold_our_operators_where_torchs_have_no_such_option(option):
    model = nn.Sequential(BatchNorm1d(3, **OURS_ALONE[option]))
    twin, x = copy.deepcopy(model), torch.randn(8, 3)
    program = torch.export.export(model, (x,))
    assert "batchnorm.train" in str(program.graph)
    torch.testing.assert_close(program.module()(x), twin(x))
    program = torch.export.export(model.eval(), (x,))
    assert "batchnorm." not in str(program.graph)


def test_exported_graphs_hold_torchs_own_operators():
    model = nn.Sequential(BatchNorm1d(3), BatchNormAct1d(3, "gelu")).eval()
    x = torch.randn(5, 3)
    exported = torch.export.export(model, (x,))
    names = {str(n.target) for n in exported.graph.nodes if n.op == "call_function"}
    assert names == {"aten.batch_norm.default", "aten.gelu.default"}
    torch.testing.assert_close(exported.module()(x), model(x))


def test_wrong_ranks_are_named():
    with pytest.raises(
        ValueError, match=r"expected 2D or 3D input \(got 4D input of shape \(2, 3, 4, 4\)\)"
    ):
        BatchNorm1d(3)(torch.randn(2, 3, 4, 4))
    with pytest.raises(TypeError, match=r"input is of type list, \[1.0\]; expected a tensor, such"):
        BatchNorm1d(3)([1.0])
    with pytest.raises(ValueError, match=r"expected 4D input \(got 2D"):
        BatchNorm2d(3)(torch.randn(2, 3))
    with pytest.raises(ValueError, match=r"running_mean has shape \(3,\); expected \(4,\)"):
        BatchNorm2d(3)(torch.randn(2, 4, 5, 5))


def test_a_mask_reaches_the_function():
    layer, x = BatchNorm1d(3), torch.randn(6, 3)
    mask = torch.arange(6) < 4
    x[4:] = float("nan")
    torch.testing.assert_close(layer(x, mask=mask)[:4], BatchNorm1d(3)(x[:4]))
    assert oracle.relative_error(layer.running_mean, 0.1 * x[:4].double().mean(0)) < 1e-6


KINDS = [BatchNorm1d, BatchNormAct2d, LazyBatchNorm1d, LazyBatchNorm2d, BatchRenorm3d]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axis", [5, 0, -5, 1.0, "1", None, True])
def test_an_axis_that_no_input_has_is_told_by_the_constructor(kind, axis):
    arguments = () if issubclass(kind, LazyModuleMixin) else (3,)
    with pytest.raises(
        ValueError,
        match=rf"axis={axis!r} is no channel axis of input of \d dim.*; expected one of 1",
    ):
        kind(*arguments, axis=axis)


def test_a_lazy_layer_takes_no_channels_from_input_that_it_refuses():
    layer = LazyBatchNorm1d(axis=2)
    with pytest.raises(ValueError, match=r"axis=2 is no channel axis of input of 2 dimensions"):
        layer(torch.randn(4, 3))
    with pytest.raises(ValueError, match=r"expected 2D or 3D input \(got 4D"):
        layer(torch.randn(4, 3, 2, 2))
    layer(torch.randn(4, 3, 2))
    assert layer.num_features == 2


@pytest.mark.parametrize("channels", [4.0, "4", -4, True, None])
def test_a_number_of_channels_is_an_integer(channels):
    with pytest.raises(ValueError, match=rf"num_features={channels!r}; expected how many channels"):
        BatchNorm1d(channels)
