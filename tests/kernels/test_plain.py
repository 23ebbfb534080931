import itertools

import pytest
import torch

import oracle
from batchnorm.kernels import plain
from batchnorm.kernels._activation import KINDS, Activation
from batchnorm.kernels._call import Call
from batchnorm.kernels._pick import pick

SHAPES = [(3, 1), (7, 3), (3, 2, 5), (2, 3, 3, 5), (2, 3, 2, 1, 3)]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def problem(shape, dtype, layout="contiguous", offset=0.0, masked=None):
    x = oracle.laid_out((torch.randn(shape, dtype=torch.float64) + offset).to(dtype), layout)
    mask = None
    if masked:
        mask = torch.rand(shape[0], 1, *shape[2:]) > 0.3
        mask[0] = True
        x = x.masked_fill(~mask, float("nan"))
        mask = mask if masked == "bool" else mask * (0.5 + torch.rand(mask.shape))
    weight, bias = torch.randn(2, shape[1], dtype=torch.float32).to(dtype)
    residual = torch.randn(shape).to(dtype)
    return x, weight, bias, residual, mask


def expected(call, dy, fixed=None):
    inputs = [oracle.double(t) for t in call[:4]]
    y, mean, var = oracle.batch_norm(
        *inputs, call.mask, call.eps, call.activation.kind, call.activation.parameter, fixed
    )
    return y, mean, var, torch.autograd.grad(y, inputs, dy.double())


def compare(call, fixed=None):
    dy = torch.randn(call.x.shape).to(call.x.dtype)
    y, mean, var, gradients = expected(call, dy, fixed)
    if fixed is None:
        ours, moments = plain.forward(call)
        assert oracle.relative_error(moments[1], mean) < 1e-12
        assert oracle.relative_error(moments[2], var) < 1e-10
    else:
        moments = torch.stack((torch.zeros_like(fixed[0]), *fixed))
        ours = plain.normalize(call, moments)
    tolerance = TOLERANCE[call.x.dtype]
    assert ours.dtype == call.x.dtype
    assert ours.stride() == torch.empty_like(call.x).stride()
    assert oracle.relative_error(ours, y) < tolerance
    got = plain.backward(dy, call, moments, fixed is not None, (True, True))
    for name, g, right in zip(got._fields, got, gradients, strict=True):
        assert oracle.relative_error(g, right) < tolerance, name
    if call.mask is not None:
        out = (call.mask <= 0).expand(call.x.shape)
        for t in (ours, got.x, got.residual):
            assert (t[out] == 0).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", [name for name in oracle.LAYOUTS if name != "expanded"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_values_and_gradients_on_every_layout_and_dtype(shape, layout, dtype, poisoned_memory):
    compare(Call(*problem(shape, dtype, layout), 1e-5, Activation()))


@pytest.mark.parametrize(
    ("kind", "masked"), list(itertools.product(KINDS, [None, "bool", "weights"]))
)
@pytest.mark.parametrize("fixed", [False, True])
def test_every_activation_with_residual_and_mask(kind, masked, fixed, poisoned_memory):
    x, *rest = problem((4, 3, 5), torch.float64, masked=masked)
    statistics = (torch.randn(3).double(), torch.rand(3).double() + 0.5) if fixed else None
    compare(Call(x, *rest, 1e-3, Activation(kind, 0.3)), statistics)


@pytest.mark.parametrize("offset", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_float32_far_from_zero(offset, layout):
    compare(Call(*problem((16, 3, 5, 5), torch.float32, layout, offset), 1e-5, Activation("silu")))


def test_an_expanded_input_that_overlaps_itself():
    compare(Call(*problem((4, 3, 5), torch.float32, "expanded"), 1e-5, Activation("relu")))


def test_halves_make_up_the_whole():
    call = Call(*problem((5, 3, 4), torch.float64, masked="weights"), 1e-5, Activation("gelu"))
    dy = torch.randn(5, 3, 4, dtype=torch.float64)
    y, moments = plain.forward(call)
    assert torch.equal(moments, plain.statistics(call.x, call.mask))
    assert torch.equal(y, plain.normalize(call, moments))
    whole = plain.backward(dy, call, moments, False, (True, True))
    sums = plain.backward_reduce(dy, call, moments)
    assert torch.equal(torch.stack((whole.bias, whole.weight)), sums)
    assert torch.equal(whole.x, plain.backward_input(dy, call, moments, sums))


def test_what_is_not_wanted_is_not_computed():
    call = Call(*problem((5, 3), torch.float64), 1e-5, Activation())
    moments = plain.statistics(call.x, None)
    gradients = plain.backward(torch.randn(5, 3), call, moments, False, (False, False))
    assert gradients.x is None
    assert gradients.residual is None
    assert gradients.weight is not None


def test_naming_a_backend_that_is_not_there_gives_the_reasons():
    call = Call(torch.randn(2, 3), None, None, None, None, 1e-5, Activation())
    with pytest.raises(
        ValueError, match=r"backend='cuda' is not known; expected None or one of \["
    ):
        pick(call, "cuda")
    assert pick(call, "plain") is plain


def test_of_two_values_the_gradient_cancels_to_eps_over_var():
    """With two values xhat is +-1 but for eps, and so is nothing left of the gradient but eps."""
    x = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    call = Call(x, None, None, None, None, 1e-5, Activation())
    _, moments = plain.forward(call)
    dx = plain.backward(
        torch.tensor([[1.0], [0.0]]).double(), call, moments, False, (True, False)
    ).x
    assert dx[0].item() == pytest.approx(0.5 * 1e-5 / (1 + 1e-5) ** 1.5, rel=1e-9)
