"""Batch norm taken out: insert undone, trained ones folded, and what is left alone, with reasons."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import batchnorm
from batchnorm import insert, remove


def trained(model, *shape, steps=3):
    """The model after some batches in training mode, with gammas and betas of its own."""
    model.train()
    for _ in range(steps):
        model(2 * torch.randn(*shape) + 1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 2)
            if module.bias is not None:
                nn.init.normal_(module.bias)
    return model.eval()


def deep():
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3, bias=False), nn.Tanh()),
        *(nn.Flatten(), nn.Linear(6 * 16, 5), nn.ReLU(), nn.Linear(5, 2)),
    )


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.bn = nn.Linear(4, 5), nn.BatchNorm1d(5)
        self.second = nn.Linear(5, 2)

    def forward(self, x):
        return self.second(F.relu(self.bn(self.first(x))))


@pytest.mark.parametrize("placement", ["before", "after"])
@pytest.mark.parametrize("given", [True, False])
def test_it_undoes_insert_to_the_tensor(placement, given):
    for model, x in ((deep(), torch.randn(2, 3, 8, 8)), (Functional(), torch.randn(2, 4))):
        example = x if given else None
        plain = model if isinstance(model, nn.Sequential) else remove(model, example).model
        inserted = insert(plain, placement, example)
        assert inserted.changed
        back = remove(inserted.model, example)
        assert back.skipped == []
        before, after = (m.state_dict(keep_vars=True) for m in (plain, back.model))
        assert list(before) == list(after)
        assert all(before[name] is after[name] for name in before)
        assert str(plain) == str(back.model)
        assert torch.equal(plain(x), back.model(x))


def test_insert_is_undone_in_pairs_inside_pairs_and_after_a_copy_a_pickle_and_a_cast():
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), nn.Linear(4, 2))
    inserted = insert(insert(model).model, "after").model
    for other in (inserted, copy.deepcopy(inserted), pickle.loads(pickle.dumps(inserted))):
        assert str(remove(other).model) == str(model)
    back = remove(inserted.double()).model
    x = torch.randn(5, 3)
    assert torch.allclose(back(x.double()).float(), model.double()(x.double()).float())


def test_what_has_a_batch_norm_of_its_own_keeps_its_weights_and_gets_zero_biases():
    conv = nn.Conv2d(3, 4, 3, bias=False)
    model = nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    changes = remove(model, torch.randn(2, 3, 8, 8))
    assert changes.changed == [("1", "BatchNorm2d(4) out; 0 has a bias again")]
    assert changes.model[0].weight is conv.weight
    assert torch.equal(changes.model[0].bias, torch.zeros(4))
    assert isinstance(changes.model[0].bias, nn.Parameter)
    assert conv.bias is None
    assert isinstance(model[1], nn.BatchNorm2d)
    assert changes.error < 1e-5
    again = insert(changes.model, example=torch.randn(2, 3, 8, 8))
    assert again.model[0][0].weight is conv.weight, "paired initial weights"


FOLDABLE = {
    "linear": (lambda: nn.Linear(3, 8), lambda: nn.BatchNorm1d(8), (16, 3)),
    "no bias": (lambda: nn.Linear(3, 8, bias=False), lambda: nn.BatchNorm1d(8), (16, 3)),
    "no affine": (lambda: nn.Linear(3, 8), lambda: nn.BatchNorm1d(8, affine=False), (16, 3)),
    "no beta": (lambda: nn.Linear(3, 8), lambda: batchnorm.BatchNorm1d(8, bias=False), (16, 3)),
    "last axis": (lambda: nn.Linear(3, 8), lambda: batchnorm.BatchNorm1d(8, axis=-1), (6, 5, 3)),
    "conv": (lambda: nn.Conv1d(3, 8, 2), lambda: nn.BatchNorm1d(8), (6, 3, 5)),
    "conv, groups": (lambda: nn.Conv2d(6, 8, 3, groups=2), lambda: nn.BatchNorm2d(8), (4, 6, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 8, 3), lambda: nn.BatchNorm2d(8), (4, 6, 5, 5)),
    "transposed, groups": (
        lambda: nn.ConvTranspose2d(6, 8, 3, groups=2), lambda: nn.BatchNorm2d(8), (4, 6, 5, 5),
    ),
    "transposed, 3d, groups": (
        lambda: nn.ConvTranspose3d(6, 9, 2, groups=3), lambda: batchnorm.BatchNorm3d(9), (2, 6, 3, 3, 3),
    ),
    "double": (lambda: nn.Linear(3, 8).double(), lambda: nn.BatchNorm1d(8).double(), (16, 3)),
    "synchronized": (lambda: nn.Linear(3, 8), lambda: nn.BatchNorm1d(8), (16, 3)),
    "fused leaky": (
        lambda: nn.Conv2d(3, 8, 2), lambda: batchnorm.BatchNormAct2d(8, nn.LeakyReLU(0.2)), (4, 3, 5, 5),
    ),
    "fused gelu": (
        lambda: nn.Linear(3, 8), lambda: batchnorm.BatchNormAct1d(8, "gelu_tanh"), (16, 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOLDABLE)
@pytest.mark.parametrize("given", [True, False])
def test_what_was_trained_is_folded_and_evaluation_stays(kind, given):
    layer, norm, shape = FOLDABLE[kind]
    model = nn.Sequential(layer(), norm())
    if kind == "double":
        model.double()
        x = torch.randn(*shape).double()
        model.train()(2 * x + 1)
        model.eval()
    else:
        trained(model, *shape)
        x = torch.randn(*shape)
    if kind == "synchronized":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    expected = model(x)
    changes = remove(model, x if given else None)
    assert [path for path, _ in changes.changed] == ["1"]
    assert "folded into the weight and bias of 0" in changes.changed[0][1]
    assert torch.allclose(changes.model(x), expected, rtol=1e-5, atol=1e-5)
    assert changes.error is None or changes.error < 1e-5
    assert not any(isinstance(m, nn.modules.batchnorm._NormBase) for m in changes.model.modules())
    assert torch.equal(model(x), expected), "the argument still computes what it did"


@pytest.mark.parametrize("activation", ["identity", "relu", "relu6", "leaky_relu", "elu", "silu",
                                        "hardswish", "gelu", "gelu_tanh", "sigmoid", "tanh"])  # fmt: skip
def test_a_fused_activation_stays(activation):
    norm = batchnorm.BatchNormAct1d(8, activation, affine=False)
    model = trained(nn.Sequential(nn.Linear(3, 8), norm), 16, 3)
    x = torch.randn(16, 3)
    assert torch.allclose(remove(model).model(x), model(x), rtol=1e-5, atol=1e-5)


class Residual(nn.Module):
    """Its norm takes a sum, which no layer computes."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.bn = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.bn(self.a(x) + self.b(x))


class Shared(nn.Module):
    """One layer called twice, with a norm for each call."""

    def __init__(self, several=True):
        super().__init__()
        self.layer = nn.Linear(4, 4, bias=False)
        self.bn1 = nn.BatchNorm1d(4)
        self.bn2 = nn.BatchNorm1d(4) if several else self.bn1

    def forward(self, x):
        return self.bn2(self.layer(F.relu(self.bn1(self.layer(x)))))


class TwoLayersOneNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.bn = nn.Linear(4, 5), nn.Linear(5, 5), nn.BatchNorm1d(5)

    def forward(self, x):
        return self.bn(self.b(F.relu(self.bn(self.a(x)))))


class SeenTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.bn = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x):
        z = self.a(x)
        return self.bn(z) + z


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.bn, self.b = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.bn(self.a(x)))


class FrozenBatchNorm2d(nn.Module):
    """As torchvision's, which derives from no batch norm."""

    def forward(self, x):
        return 2 * x


class Called(nn.Module):
    """Normalizes with a function."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x):
        return F.batch_norm(self.a(x), self.mean, self.var, training=self.training)


class Looks(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.bn = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x):
        z = self.a(x)
        if isinstance(self.bn, nn.BatchNorm1d):
            return torch.relu(self.bn(z))
        return self.bn(z)


class Reads(Looks):
    def forward(self, x):
        return self.bn(self.a(x)) * self.bn.weight


class Rows(nn.Module):
    def forward(self, x):
        return x.unsqueeze(-1)


class Own(nn.BatchNorm1d):
    def forward(self, input):
        return super().forward(input).relu()


class WithResidual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.bn = nn.Linear(4, 4), batchnorm.BatchNormAct1d(4)

    def forward(self, x):
        return self.bn(self.a(x), x)


def spoiled():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[1].running_var[0] = torch.nan
    return model


NOWHERE = "it has been trained, and its scale and shift have nowhere to go: "
LEFT = {
    "sum": (Residual, "bn", f"{NOWHERE}what feeds it is add, no Linear or convolution"),
    "shared": (Shared, "bn1", f"{NOWHERE}layer feeds something else too"),
    "seen": (SeenTwice, "bn", f"{NOWHERE}a feeds something else too"),
    "tied": (Tied, "bn", f"{NOWHERE}a shares its parameters with b"),
    "input": (
        lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4)),
        *("0", f"{NOWHERE}what feeds it is the input of the model, or of a part of it"),
    ),
    "weight norm": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.BatchNorm1d(4)),
        *("1", f"{NOWHERE}the weight of 0 is computed (parametrized)"),
    ),
    "other axis": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 4), Rows(), nn.Linear(1, 4), nn.BatchNorm1d(4)),
        *("4", f"{NOWHERE}it normalizes another axis than that of the channels of 3"),
    ),
    "no statistics": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)),
        *("1", "it has been trained and keeps no running statistics: what it computes in"),
    ),
    "function": (Called, "", "its forward calls batch_norm as a function: there is no module"),
    "looks": (Looks, "bn", "the forward looks at it (isinstance, an attribute such as num_fea"),
    "reads": (Reads, "bn", "its parameters are used directly"),
    "own": (lambda: nn.Sequential(nn.Linear(4, 4), Own(4)), "1", "Own has a forward of its own"),
    "residual": (WithResidual, "bn", "called with more than its input (a residual, a mask)"),
    "other norm": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)),
        *("1", "LayerNorm is no batch norm: it normalizes each example by itself"),
    ),
    "frozen": (
        lambda: nn.Sequential(nn.Linear(4, 4), FrozenBatchNorm2d()),
        *("1", "FrozenBatchNorm2d is a class of its own, no batch norm of torch's or ours"),
    ),
    "nan": (spoiled, "1", "its parameters or running statistics are not finite"),
}  # fmt: skip


def test_a_model_that_is_a_batch_norm_is_told_so():
    ((path, why),) = remove(nn.BatchNorm1d(4)).skipped
    assert (path, why) == (
        "",
        "the model is this one layer, whose call was not seen: give an example",
    )
    assert type(remove(nn.BatchNorm1d(4), torch.randn(3, 4)).model) is nn.Identity


@pytest.mark.parametrize("kind", LEFT)
@pytest.mark.parametrize("given", [True, False])
def test_what_cannot_go_is_left_alone_with_the_reason(kind, given):
    make, path, said = LEFT[kind]
    model = make()
    if kind != "nan":
        trained(model, 8, 4)
    x = torch.randn(3, 4)
    changes = remove(model, x if given else None)
    reasons = dict(changes.skipped)
    assert reasons[path].startswith(said)
    if kind not in ("shared", "nan"):
        assert torch.equal(changes.model(x), model.eval()(x))


def test_a_norm_that_is_fresh_goes_wherever_it_stands():
    for make in (Residual, Shared, SeenTwice, Tied, lambda: Shared(several=False)):
        model = make().eval()
        changes = remove(model, torch.randn(3, 4))
        assert changes.skipped == []
        assert changes.error < 1e-4
        assert not any(isinstance(m, nn.BatchNorm1d) for m in changes.model.modules())
    assert remove(Residual()).changed == [
        ("bn", "BatchNorm1d(4) out; no bias put back, since what feeds it is add, no Linear or convolution")
    ]  # fmt: skip
    assert remove(Shared()).model.layer.bias is None, "of two norms neither alone feeds on it"


def test_one_norm_after_two_layers_is_folded_into_both():
    model = trained(TwoLayersOneNorm(), 16, 4)
    x = torch.randn(5, 4)
    changes = remove(model, x)
    assert changes.changed == [
        ("bn", "BatchNorm1d(5) out, folded into the weight and bias of a, folded into the weight and bias of b")
    ]  # fmt: skip
    assert changes.error < 1e-5


def test_frozen_weights_stay_frozen_and_the_layer_keeps_a_bias_that_it_has():
    model = nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.BatchNorm1d(4))
    fresh = remove(model)
    assert fresh.changed == [
        ("1", "BatchNorm1d(4) out; 0 keeps its bias; its input assumed (N, C)")
    ]
    assert fresh.model[0].bias is model[0].bias
    folded = remove(trained(model, 8, 4)).model
    assert [p.requires_grad for p in folded.parameters()] == [False, False]


def test_what_it_does_not_take_is_refused():
    with pytest.raises(TypeError, match=r"remove takes a model, a torch.nn.Module; got list"):
        remove([])
    with pytest.raises(TypeError, match=r"Remove first, then wrap or compile the new model"):
        remove(nn.DataParallel(deep()))
    with pytest.raises(ValueError, match=r"example \(=a tensor of shape \(3,\)\) does not run"):
        remove(deep(), torch.randn(3))
