"""batch_normalization and moments against what TensorFlow computed (tensorflow_values/make.py)."""

import inspect
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from batchnorm.interop import batch_normalization, moments

RECORDED = json.loads((Path(__file__).parent / "tensorflow_values" / "values.json").read_text())
NORMALIZATIONS = {case["name"]: case for case in RECORDED["batch_normalization"]}
MOMENTS = {case["name"]: case for case in RECORDED["moments"]}
ARGUMENTS = ("x", "mean", "variance", "offset", "scale")
X = torch.ones(2, 3, 4, 4)


def tensor(recorded):
    dtype = getattr(torch, recorded["dtype"])
    return torch.tensor(recorded["values"], dtype=dtype).reshape(recorded["shape"])


def arguments(case, grad=False):
    inputs = {k: v if v is None else tensor(v) for k, v in case["inputs"].items()}
    for value in inputs.values():
        if value is not None:
            value.requires_grad_(grad)
    return inputs


def rounding(tensor):
    return torch.finfo(tensor.dtype).eps


def in_float64(inputs, eps):
    """The formula, and the sizes of the terms that TensorFlow adds up: its rounding is theirs."""
    wide = {k: None if v is None else v.detach().double() for k, v in inputs.items()}
    scale = 1.0 if wide["scale"] is None else wide["scale"]
    offset = torch.zeros(()) if wide["offset"] is None else wide["offset"]
    inv = scale / torch.sqrt(wide["variance"] + eps)
    y = (wide["x"] - wide["mean"]) * inv + offset
    own = ((wide["x"] - wide["mean"]) * inv).abs() + offset.abs()
    return y, own, (wide["x"] * inv).abs() + (wide["mean"] * inv).abs() + offset.abs()


def test_the_values_say_which_tensorflow_computed_them():
    assert RECORDED["tensorflow"] == "2.21.0"
    assert len(NORMALIZATIONS) == len(RECORDED["batch_normalization"]) == 38
    assert len(MOMENTS) == len(RECORDED["moments"]) == 21


def test_arguments_and_their_order_are_tensorflows():
    wanted = ["x", "mean", "variance", "offset", "scale", "variance_epsilon", "name"]
    assert list(inspect.signature(batch_normalization).parameters) == wanted
    assert list(inspect.signature(moments).parameters) == ["x", "axes", "shift", "keepdims", "name"]


@pytest.mark.parametrize("case", NORMALIZATIONS.values(), ids=NORMALIZATIONS)
def test_values_equal_tensorflows_to_rounding(case):
    inputs, theirs = arguments(case), tensor(case["y"])
    y = batch_normalization(*inputs.values(), case["variance_epsilon"], "a name")
    exact, own_terms, their_terms = in_float64(inputs, case["variance_epsilon"])
    assert (y.dtype, y.shape) == (theirs.dtype, theirs.shape)
    assert (abs(y.double() - theirs.double()) <= 4 * rounding(y) * their_terms).all()
    # Ours is held to the formula's own terms, in which a large mean has no part.
    assert (abs(y.double() - exact) <= 4 * rounding(y) * own_terms).all()


@pytest.mark.parametrize("case", NORMALIZATIONS.values(), ids=NORMALIZATIONS)
def test_gradients_equal_tensorflows_to_rounding(case):
    inputs = arguments(case, grad=True)
    y = batch_normalization(**inputs, variance_epsilon=case["variance_epsilon"])
    y.backward(tensor(case["dy"]))
    assert set(case["gradients"]) == {key for key, value in inputs.items() if value is not None}
    far = 1e5 if "far from zero" in case["name"] else 1  # TensorFlow's scale and variance gradients
    for key, recorded in case["gradients"].items():
        theirs, ours = tensor(recorded), inputs[key].grad
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        size = theirs.double().abs().max().item() if theirs.numel() else 0.0
        bound = 16 * far * rounding(y) * max(size, 1.0)
        torch.testing.assert_close(
            ours, theirs, rtol=0, atol=bound, msg=lambda m, k=key: f"{k}: {m}"
        )


def test_far_from_zero_keeps_the_digits_that_tensorflow_loses():
    case = NORMALIZATIONS["far from zero, float32"]
    inputs = arguments(case)
    exact, *_ = in_float64(inputs, case["variance_epsilon"])
    y = batch_normalization(*inputs.values(), case["variance_epsilon"])
    assert abs(y.double() - exact).max() < 1e-6
    assert abs(tensor(case["y"]).double() - exact).max() > 1e-4


def test_second_derivatives_with_respect_to_everything():
    inputs = arguments(NORMALIZATIONS["different shapes, float64"], grad=True)
    assert torch.autograd.gradcheck(lambda *a: batch_normalization(*a, 1e-3), (*inputs.values(),))
    assert torch.autograd.gradgradcheck(
        lambda *a: batch_normalization(*a, 1e-3), (*inputs.values(),)
    )


def test_numbers_stand_for_tensors():
    x = torch.tensor([1.0, 3.0])
    y = batch_normalization(x, 2, np.float32(4.0), 1.0, 10.0, 0)
    torch.testing.assert_close(y, torch.tensor([-4.0, 6.0]))
    assert batch_normalization(x.double(), 0.1, 1, None, None, 0)[0].item() == 1.0 - 0.1


def test_one_number_on_the_cpu_goes_with_any_device():
    y = batch_normalization(X.to("meta"), torch.tensor(0.0), 1.0, None, None, 1e-3)
    assert (y.device.type, y.shape) == ("meta", X.shape)
    with pytest.raises(ValueError, match=r"mean is on cpu, expected meta, .*mean.to\(x.device\)"):
        batch_normalization(X.to("meta"), torch.zeros(4), 1.0, None, None, 1e-3)


def test_it_compiles_whole_and_maps_over_examples():
    statistics = torch.rand(2, 4, generator=torch.Generator().manual_seed(3))
    x = torch.rand(5, 4, generator=torch.Generator().manual_seed(4))

    def line(x):
        return batch_normalization(x, *statistics, 1.0, None, 1e-3)

    compiled = torch.compile(line, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), line(x))
    torch.testing.assert_close(torch.vmap(line)(x), line(x))


def test_a_wide_mean_is_not_rounded_before_it_is_subtracted():
    mean, variance = torch.tensor([1 - 2**-30, 2**-60], dtype=torch.float64)
    y = batch_normalization(torch.ones(1), mean, variance, None, None, 0.0)
    assert (y.item(), y.dtype) == (1.0, torch.float32)


def test_a_negative_variance_is_nan_as_in_tensorflow():
    assert batch_normalization(torch.ones(2), 0.0, -1.0, None, None, 1e-3).isnan().all()


@pytest.mark.parametrize("case", MOMENTS.values(), ids=MOMENTS)
def test_moments_equal_tensorflows_to_rounding(case):
    x = tensor(case["x"]).requires_grad_()
    mean, variance = moments(x, case["axes"], keepdims=case["keepdims"])
    torch.autograd.backward((mean, variance), (tensor(case["dmean"]), tensor(case["dvariance"])))
    for key, ours in {"mean": mean, "variance": variance, "dx": x.grad}.items():
        theirs = tensor(case[key])
        bound = 4 * rounding(x) * max(1.0, theirs.abs().max().item())
        torch.testing.assert_close(
            ours, theirs, rtol=0, atol=bound, msg=lambda m, k=key: f"{k}: {m}"
        )


def test_moments_and_the_line_are_batch_norm_in_training():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, 4, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    dy = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    statistics = moments(x, [0, 2, 3], keepdims=True)
    y = batch_normalization(x, *statistics, bias.view(3, 1, 1), weight.view(3, 1, 1), 1e-5)
    wanted = torch.nn.functional.batch_norm(x, None, None, weight, bias, training=True)
    torch.testing.assert_close(y, wanted)
    ours, theirs = (torch.autograd.grad(out, x, dy)[0] for out in (y, wanted))
    torch.testing.assert_close(ours, theirs)


def test_moments_are_right_far_from_zero():
    x = torch.randn(1000, 4, generator=torch.Generator().manual_seed(1)) + 1e6
    mean, variance = moments(x, 0)
    torch.testing.assert_close(mean, x.double().mean(0).float(), rtol=1e-7, atol=0)
    torch.testing.assert_close(variance, x.double().var(0, correction=0).float(), rtol=2e-6, atol=0)
    naive = (x - x.mean(0)).square().mean(0)  # in float32 the mean is up to 0.03 off, and this too
    assert (naive / x.double().var(0, correction=0) - 1).abs().max() > 1e-5


def test_moments_of_infinite_and_constant_values():
    mean, variance = moments(torch.tensor([1.0, math.inf]), 0)
    assert mean.item() == math.inf
    assert variance.isnan()
    assert moments(torch.full((7,), 1e6 + 0.1), 0)[1].item() < 1e-12


def test_moments_gradgrad_and_axes_of_every_kind():
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda t: moments(t, [0]), (x.clone().requires_grad_(),))
    for axes in (0, -2, [0], (0,), {0}, np.array([0]), torch.tensor([0])):
        assert torch.equal(moments(x, axes)[0], moments(x, [0])[0])


NORMALIZATION_ERRORS = [
    ({"x": [1.0]}, TypeError, "x is a list, expected a tensor; torch.as_tensor makes one"),
    ({"x": X.long()}, TypeError, "x has dtype torch.int64, expected a floating one; x.float()"),
    ({"mean": torch.ones(4).int()}, TypeError, "mean has dtype torch.int32, expected a floating"),
    ({"mean": [0.0]}, TypeError, "mean is a list, expected a tensor or a number; torch.as_tensor"),
    ({"mean": None}, TypeError, "mean is None, expected a tensor or a number"),
    ({"offset": "1"}, TypeError, "offset is a str, expected a tensor or a number"),
    ({"scale": torch.ones(4) * 1j}, TypeError, "scale has dtype torch.complex64, expected a float"),
    (
        {"mean": torch.ones(3), "scale": torch.ones(3)},
        ValueError,
        "the shapes do not broadcast: x (2, 3, 4, 4), mean (3,), variance (4,), offset (4,), "
        "scale (3,); expected shapes whose last axes match x's or are 1: for channels in axis 1",
    ),
    ({"scale": torch.ones((), device="meta")}, ValueError, "scale is on meta, expected cpu"),
    (
        {"offset": torch.ones(4, device="meta")},
        ValueError,
        "offset is on meta, expected cpu, where x is; move it with offset.to(x.device)",
    ),
    ({"variance_epsilon": -1.0}, ValueError, "variance_epsilon is -1.0, expected a number from 0"),
    ({"variance_epsilon": math.inf}, ValueError, "variance_epsilon is inf, expected a number"),
    ({"variance_epsilon": math.nan}, ValueError, "variance_epsilon is nan, expected a number"),
    ({"variance_epsilon": None}, TypeError, "variance_epsilon is a NoneType, expected a number"),
    (
        {"variance_epsilon": torch.ones(4)},
        TypeError,
        "variance_epsilon is a Tensor, expected a number from 0 up such as 1e-3; the order is (x, "
        "mean, variance, offset, scale, variance_epsilon)",
    ),
]


@pytest.mark.parametrize(("wrong", "error", "says"), NORMALIZATION_ERRORS)
def test_errors_name_the_argument_its_value_and_the_way_out(wrong, error, says):
    right = {key: torch.ones(4) for key in ARGUMENTS} | {"x": X, "variance_epsilon": 1e-3}
    assert batch_normalization(**right).shape == X.shape
    with pytest.raises(error, match=re.escape(says)):
        batch_normalization(**right | wrong)


@pytest.mark.parametrize(
    ("x", "axes", "error", "says"),
    [
        (1.0, 0, TypeError, "x is a float, expected a tensor"),
        (X.bool(), 0, TypeError, "x has dtype torch.bool, expected a floating one"),
        (X, 4, ValueError, "axes holds 4, expected -4 to 3, since x has shape (2, 3, 4, 4); count"),
        (X, [0, -5], ValueError, "axes holds -5, expected -4 to 3"),
        (
            X,
            [0, -4],
            ValueError,
            "axes is [0, -4], expected each axis of x once; drop the repeated",
        ),
        (X, 1.5, TypeError, "axes is 1.5, expected integers such as [0, 2, 3]"),
        (X, "02", TypeError, "axes is '02', expected integers"),
    ],
)
def test_errors_of_moments(x, axes, error, says):
    with pytest.raises(error, match=re.escape(says)):
        moments(x, axes)
