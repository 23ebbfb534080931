import pytest
import torch
from torch import nn

import oracle
from batchnorm.kernels._activation import KINDS, Activation


@pytest.mark.parametrize("kind", KINDS)
def test_value_slope_and_curvature_are_torchs(kind):
    f = Activation(kind, 0.3)
    z = torch.cat([torch.linspace(-8, 8, 101), torch.randn(50)]).double().requires_grad_()
    y = oracle.ACTIVATIONS[kind](z, 0.3)
    (slope,) = torch.autograd.grad(y.sum(), z, create_graph=True)
    curvature = torch.zeros_like(z)
    if slope.requires_grad:
        (curvature,) = torch.autograd.grad(slope.sum(), z)
    assert torch.equal(f.value(z), y)
    torch.testing.assert_close(f.slope(z), slope, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(f.curvature(z), curvature, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["relu", "leaky_relu", "elu", "relu6", "hardswish"])
def test_slope_at_the_kinks_is_torchs(kind):
    z = torch.tensor([0.0, 6.0, -3.0, 3.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(oracle.ACTIVATIONS[kind](z, 0.3).sum(), z)
    torch.testing.assert_close(Activation(kind, 0.3).slope(z), slope)


@pytest.mark.parametrize(
    ("module", "kind", "parameter"),
    [
        (nn.ReLU(), "relu", 0.0),
        (nn.LeakyReLU(0.2), "leaky_relu", 0.2),
        (nn.ELU(0.5), "elu", 0.5),
        (nn.GELU(), "gelu", 0.0),
        (nn.GELU(approximate="tanh"), "gelu_tanh", 0.0),
        (nn.SiLU(), "silu", 0.0),
        (nn.Hardswish(), "hardswish", 0.0),
        (nn.Identity(), "identity", 0.0),
    ],
)
def test_modules_are_read_with_their_parameter(module, kind, parameter):
    assert Activation.parse(module) == Activation(kind, parameter)


def test_names_defaults_and_codes():
    assert Activation.parse("leaky_relu") == Activation("leaky_relu", 0.01)
    assert Activation.parse(None) == Activation.parse("identity") == Activation()
    assert [Activation.from_code(Activation(k).code, 0.0).kind for k in KINDS] == list(KINDS)
    assert str(Activation.parse("elu")) == "elu(1)"
    assert str(Activation.parse("relu")) == "relu"


def test_what_is_not_known_is_named_with_what_is():
    with pytest.raises(
        ValueError, match=r"activation='swish' is not known; expected one of identity, relu"
    ):
        Activation.parse("swish")
    with pytest.raises(
        TypeError, match=r"activation=Softmax\(dim=1\) has no fused form; .*activation=None"
    ):
        Activation.parse(nn.Softmax(dim=1))
