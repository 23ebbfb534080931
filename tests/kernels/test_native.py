"""Torch's own kernel against the definition, where no digits are at stake."""

import pytest
import torch

import oracle
from batchnorm.kernels import native, plain
from batchnorm.kernels._activation import KINDS, Activation
from batchnorm.kernels._call import Call

TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 4e-2, torch.float16: 5e-3}


def problem(shape, dtype=torch.float32, layout="contiguous", activation="relu"):
    x = oracle.laid_out(torch.randn(shape, dtype=torch.float64).to(dtype), layout)
    residual, dy = (torch.randn(shape).to(dtype) for _ in range(2))
    weight, bias = torch.randn(2, shape[1])
    return Call(x, weight, bias, residual, None, 1e-5, Activation.parse(activation)), dy


def compare(call, dy):
    tolerance = TOLERANCE[call.x.dtype]
    assert native.refuses(call) is None
    y, moments = native.forward(call)
    right_y, right = plain.forward(call)
    assert moments.dtype == right.dtype
    assert oracle.relative_error(moments, right) < (1e-12 if tolerance < 1e-9 else 1e-5)
    assert oracle.relative_error(y, right_y.double()) <= tolerance
    assert oracle.relative_error(native.normalize(call, right), right_y.double()) <= tolerance
    assert y.dtype == call.x.dtype
    assert y.stride() == torch.empty_like(call.x).stride()
    out = torch.empty_like(call.x)
    assert native.forward(call, out=out)[0] is out
    assert torch.equal(out, y)
    for fixed in (False, True):
        for wanted in ((True, True), (False, False)):
            got = native.backward(dy, call, right, fixed, wanted)
            expected = plain.backward(dy, call, right, fixed, wanted)
            for ours, theirs in zip(got, expected, strict=True):
                assert (ours is None) == (theirs is None)
                if ours is not None:
                    assert oracle.relative_error(ours, theirs.double()) <= tolerance
                    assert ours.stride() == theirs.stride()
                    assert ours.dtype == theirs.dtype


@pytest.mark.parametrize("layout", oracle.LAYOUTS[:4])
@pytest.mark.parametrize("shape", [(7, 3), (40, 513), (3, 2, 5), (2, 3, 4, 5), (2, 2, 3, 4, 5)])
def test_every_shape_in_every_layout(shape, layout):
    call, dy = problem(shape, layout=layout)
    compare(call, dy)
    compare(call._replace(residual=None, weight=None), dy)
    compare(call._replace(residual=None, bias=None, activation=Activation()), dy)


@pytest.mark.parametrize("kind", KINDS)
def test_every_activation(kind):
    compare(*problem((9, 5, 6), torch.float64, activation=kind))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16, torch.float64])
def test_halves_with_parameters_of_any_dtype(dtype, parameters):
    call, dy = problem((50, 5, 6), dtype, activation="identity")
    call = call._replace(weight=call.weight.to(parameters), bias=call.bias.to(parameters))
    compare(call._replace(residual=None), dy)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(17, 6), (5, 6, 7), (2, 6, 4, 5)])
def test_parameters_of_any_stride(shape, layout, dtype):
    """Torch's kernel reads beyond an expanded weight, and its gradients are wrong."""
    call, dy = problem(shape, dtype, layout)
    for lay in (lambda t: t[:1].expand(6), lambda t: t.repeat_interleave(2)[::2]):
        compare(call._replace(weight=lay(call.weight), bias=lay(call.bias), residual=None), dy)


@pytest.mark.parametrize("kind", ["relu", "hardswish"])
def test_a_gradient_that_is_not_finite_stops_where_the_activation_is_flat(kind):
    call, dy = problem((40, 6), activation=kind)
    call = call._replace(weight=call.weight * 8, residual=None)
    z = plain.forward(call._replace(activation=Activation()))[0]
    compare(call, dy.masked_fill(call.activation.slope(z.double()) == 0, float("inf")))


def far_away(offset, dtype=torch.float32, layout="contiguous", activation="relu"):
    """A call with a channel whose mean is far from zero, and the same in float64."""
    call, dy = problem((8, 3, 5, 6), dtype, layout, activation)
    far = call.x.clone()
    far[:, 1] += offset
    wide = call._replace(x=far.double(), residual=call.residual.double())
    return call._replace(x=far), wide, dy


def agree(got, expected, tolerance):
    for ours, theirs in zip(got, expected, strict=True):
        assert oracle.relative_error(ours, theirs.double()) <= tolerance


@pytest.fixture
def no_plain(monkeypatch):
    """Nothing is left to plain torch operations in float64, which take many times as long."""
    for name in ("forward", "normalize", "backward"):
        monkeypatch.setattr(plain, name, None)


FAR = [(torch.float32, offset) for offset in (1e2, 1e4, 1e6)] + [
    (torch.bfloat16, 1e2),
    (torch.float16, 1e3),
]


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("activation", ["identity", "relu", "silu"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("dtype", "offset"), FAR)
def test_a_distant_mean_on_the_cpu_loses_no_digits(
    layout, dtype, offset, activation, fixed, request
):
    call, wide, dy = far_away(offset, dtype, layout, activation)
    exact, right = plain.forward(wide)
    gradients = plain.backward(dy.double(), wide, right, fixed, (True, True))
    request.getfixturevalue("no_plain")
    tolerance = 1e-5 if dtype is torch.float32 else TOLERANCE[dtype]
    y, moments = native.forward(call)
    assert oracle.relative_error(moments, right) <= 1e-5
    assert oracle.relative_error(y, exact) <= tolerance
    assert oracle.relative_error(native.normalize(call, right), exact) <= tolerance
    assert y.dtype == dtype
    assert y.stride() == torch.empty_like(call.x).stride()
    got = native.backward(dy, call, right, fixed, (True, True))
    agree(got, gradients, tolerance)
    for t, of in zip(got, (call.x, call.weight, call.bias, call.residual), strict=True):
        assert (t.dtype, t.stride()) == (of.dtype, torch.empty_like(of).stride())


@pytest.mark.parametrize("offset", [1e9, 1e20, 1e35])
def test_what_lies_too_far_out_for_centring_is_left_to_the_definition(offset):
    call, wide, dy = far_away(offset)
    exact, right = plain.forward(wide)
    y, moments = native.forward(call)
    assert oracle.relative_error(y, exact) <= 1e-5
    got = native.backward(dy, call, moments, False, (True, True))
    agree(got, plain.backward(dy.double(), wide, right, False, (True, True)), 1e-5)


@pytest.mark.filterwarnings("error")
def test_variances_and_an_eps_below_float32_on_the_cpu():
    x = torch.tensor([[-1e-30, 0.0], [0.0, 0.0], [1e-30, 0.0]])
    dy = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    call = Call(x, None, None, None, None, 1e-80, Activation())
    y, moments = native.forward(call)
    assert y[:, 0].tolist() == pytest.approx([-(1.5**0.5), 0, 1.5**0.5])
    assert y[:, 1].tolist() == [0, 0, 0]
    got = native.backward(dy, call, moments, False, (True, False))
    wide = plain.backward(dy, call, moments, False, (True, False))
    agree(got[:1], wide[:1], 1e-5)


def test_a_variance_beyond_float32_on_the_cpu():
    x = torch.tensor([[-1e30], [1e30]])
    call = Call(x, None, None, None, None, 1e-5, Activation())
    assert native.forward(call)[0].tolist() == [[-1.0], [1.0]]
