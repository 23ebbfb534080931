"""The compiled kernels against the definition in plain torch operations, itself tested by an oracle."""

import itertools
import mmap

import pytest
import torch

import oracle
from batchnorm.kernels import _memory, numba, plain
from batchnorm.kernels._activation import KINDS, Activation
from batchnorm.kernels._call import Call
from compared import TOLERANCE, close, compare, problem

SHAPES = [
    *((5, 1), (7, 3), (33, 64), (3, 700), (40, 513), (1100, 40)),
    *((3, 2, 5), (1, 3, 17), (4, 5, 16), (2, 1, 33), (600, 2, 2)),
    *((2, 3, 4, 5), (3, 7, 1, 19), (5, 40, 7, 7), (2, 2, 3, 4, 5), (1, 3, 2, 3, 11)),
    *((1, 2, 300, 301), (30000, 3), (2, 33, 40, 41)),
]


pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.mark.parametrize("layout", oracle.LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_in_every_layout(shape, layout):
    if layout == "expanded" and shape[0] == 1:
        layout = "contiguous"
    compare(*problem(shape, layout=layout))


@pytest.mark.parametrize("shape", [(9, 5), (3, 4, 31)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_activation(kind, shape):
    call, dy = problem(shape, torch.float64, activation=kind)
    compare(call, dy)
    compare(call._replace(residual=None, weight=None), dy)
    compare(call._replace(residual=None, bias=None, x=call.x * 30), dy)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(40, 6), (3, 5, 70)])
@pytest.mark.parametrize("activation", ["identity", "silu"])
def test_every_dtype(dtype, shape, activation):
    compare(*problem(shape, dtype, activation=activation))


@pytest.mark.parametrize("masked", ["bool", "weights"])
@pytest.mark.parametrize("shape", [(37, 3), (5, 3, 40), (70, 30, 3), (4, 3, 3, 3), (2, 2, 60, 600)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", ["leaky_relu", "gelu"])
def test_masks(masked, shape, layout, activation):
    call, dy = problem(shape, layout=layout, activation=activation, masked=masked)
    dy = dy.masked_fill(~(call.mask > 0), float("nan"))
    compare(call, dy)
    compare(call._replace(residual=None), dy)
    assert (numba.forward(call)[0] * ~(call.mask > 0)).abs().sum() == 0


def test_a_mask_that_leaves_nothing_out_changes_no_more_than_rounding():
    call, _ = problem((5, 3, 40))
    masked = call._replace(mask=torch.ones(5, 1, 40, dtype=torch.bool))
    assert oracle.relative_error(numba.forward(masked)[0], numba.forward(call)[0].double()) < 2e-7


@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=2)))
@pytest.mark.parametrize("shape", [(9, 5), (3, 4, 31)])
@pytest.mark.parametrize("activation", ["identity", "relu", "tanh"])
def test_only_the_gradients_that_are_wanted(wanted, shape, activation):
    call, dy = problem(shape, activation=activation)
    moments = plain.statistics(call.x, None)
    for each in (call, call._replace(residual=None), call._replace(weight=None, bias=None)):
        got = numba.backward(dy, each, moments, False, wanted)
        right = plain.backward(dy, each, moments, False, wanted)
        assert [g is None for g in got] == [g is None for g in right]
        for ours, theirs in zip(got, right, strict=True):
            if ours is not None:
                close(ours, theirs, 2e-7)


@pytest.mark.parametrize("offset", [0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("scale", [1, 1e-30, 1e30])
@pytest.mark.parametrize("shape", [(64, 10), (8, 3, 6, 7), (2, 2, 190, 190)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_exact_however_far_the_mean_is_from_zero(offset, scale, shape, layout):
    x = ((torch.randn(shape, dtype=torch.float64) + offset) * scale).float()
    weight, bias = torch.randn(2, shape[1])
    eps = 1e-5 * min(scale, 1) ** 2
    call = Call(oracle.laid_out(x, layout), weight, bias, None, None, eps, Activation("relu"))
    compare(call, torch.randn(shape), 2e-7)


def test_an_outlier_does_not_cost_the_others_their_digits():
    x = torch.randn(4000, 3)
    x[0] = 1e4
    compare(Call(x, None, None, None, None, 1e-5, Activation()), torch.randn(4000, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(400_000, 2), (2, 3, 500, 500)])
def test_an_outlier_among_the_first_does_not_cost_half_precision_its_digits(dtype, shape):
    x = torch.randn(shape).to(dtype)
    x[0].view(shape[1], -1)[:, 0] = 6e4
    _, mean, var = numba.statistics(x, None)
    values = x.double().movedim(1, 0).flatten(1)
    torch.testing.assert_close(mean, values.mean(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(var, values.var(1, correction=0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("scale", [1e19, 1e30, 1e-30])
@pytest.mark.parametrize("shape", [(64, 10), (40, 513), (8, 3, 6, 7), (2, 2, 190, 190)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_bfloat16_whose_squares_float32_does_not_hold(scale, shape, layout):
    x = (torch.randn(shape, dtype=torch.float64) * scale).bfloat16()
    weight, bias = torch.randn(2, shape[1])
    eps = 1e-5 * min(scale, 1) ** 2
    call = Call(oracle.laid_out(x, layout), weight, bias, None, None, eps, Activation("relu"))
    compare(call, torch.randn(shape).bfloat16())


@pytest.mark.parametrize("backend", [numba, plain])
def test_an_infinite_value_in_evaluation_has_no_gradient(backend):
    call = Call(torch.randn(4, 2), None, None, None, None, 1e-5, Activation())
    call.x[0, 0] = torch.inf
    moments = torch.tensor([[4.0, 4], [0, 0], [1, 1]], dtype=torch.float64)
    dx = backend.backward(torch.ones(4, 2), call, moments, True, (True, False))[0]
    assert dx[0, 0].isnan()
    dx[0, 0] = dx[0, 1]
    torch.testing.assert_close(dx, torch.full((4, 2), (1 + 1e-5) ** -0.5))


@pytest.mark.parametrize("shape", [(7, 3), (7, 3, 40)])
@pytest.mark.parametrize("value", [0.1, 1e-42, -3e38, 16777216.0])
def test_a_constant_channel_comes_out_as_its_bias(shape, value):
    call = Call(torch.full(shape, value), None, None, None, None, 1e-5, Activation())
    y, moments = numba.forward(call)
    assert (y == 0).all()
    assert (moments[1] == call.x.flatten()[0].double()).all()
    assert (moments[2] == 0).all()


@pytest.mark.parametrize(
    "shape", [(0, 3), (0, 3, 5), (4, 3, 0), (4, 0), (4, 0, 20), (0, 3, 70000), (0, 3, 300, 300)]
)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_nothing_in_gives_nothing_out(shape, activation):
    call, dy = problem(shape, activation=activation)
    if shape[0] == 0:
        call = call._replace(x=torch.ones(1, *shape[1:])[:0])  # whose address is that of values
    y, moments = numba.forward(call)
    assert y.shape == shape
    assert (moments == 0).all()
    gradients = numba.backward(dy, call, moments, False, (True, True))
    assert gradients.x.shape == shape
    assert (gradients.weight == 0).all()
    assert (gradients.bias == 0).all()


@pytest.mark.parametrize("shape", [(40, 6), (3, 6, 70)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_stays_in_its_channel(shape, dtype, value):
    call, _ = problem(shape, dtype)
    call.x[1, 2] = value
    y, moments = numba.forward(call)
    assert not torch.isfinite(moments[1:, 2]).any()
    assert torch.isnan(y[:, 2]).any()
    others = [0, 1, 3, 4, 5]
    assert torch.isfinite(y[:, others]).all()
    assert torch.isfinite(moments[:, others]).all()


def test_infinities_and_signs_pass_through_fixed_statistics():
    x = torch.tensor([[float("inf"), float("-inf"), -2.0, float("nan")]]).t().contiguous().t()
    moments = torch.tensor([[1.0], [0.0], [1.0]], dtype=torch.float64).expand(3, 4).contiguous()
    for kind in ("identity", "relu", "leaky_relu"):
        call = Call(x, None, None, None, None, 1e-300, Activation.parse(kind))
        torch.testing.assert_close(
            numba.normalize(call, moments), plain.normalize(call, moments), equal_nan=True
        )


@pytest.mark.parametrize(
    "parameters", [torch.float64, torch.float32, torch.bfloat16, torch.float16]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_of_another_dtype_and_stride(parameters, dtype):
    call, dy = problem((6, 5, 20), dtype)
    weight, bias = torch.randn(2, 5, 3).to(parameters)[..., 1]
    compare(call._replace(weight=weight, bias=bias), dy)


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 20), (6, 8, 5, 6)])
def test_slices_of_batch_and_channels_and_expanded_gradients(shape):
    call, _ = problem((*shape[:1], 3 * shape[1], *shape[2:]))
    x = call.x[::2, 8:16]
    half = (3, *shape[1:])
    residual = torch.randn(6, *shape[1:])[:3]
    weight, bias = torch.randn(2, 8)
    call = Call(x, weight, bias, residual, None, 1e-5, Activation("relu"))
    for dy in (
        torch.randn(half),
        torch.tensor(2.0).expand(half),
        torch.randn(half[1:]).expand(half),
        oracle.laid_out(torch.randn(half), "transposed"),
        oracle.laid_out(torch.randn(half), "sliced"),
    ):
        compare(call, dy)


def test_a_residual_in_another_layout_gets_its_gradient_in_its_own():
    call, dy = problem((3, 4, 5, 6))
    compare(call._replace(residual=oracle.laid_out(call.residual, "channels_last")), dy)
    compare(call._replace(x=oracle.laid_out(call.x, "channels_last")), dy)


def test_no_kernel_writes_outside_its_tensors(monkeypatch):
    """Every output lies in the middle of a larger tensor, whose rest must keep its value."""
    canaries = []

    def empty_like(x, **options):
        if options:
            return x.new_empty_strided(x.shape, torch_empty_like(x).stride(), **options)
        strides = torch_empty_like(x).stride()
        around = torch.full((x.numel() + 128,), 77.0, dtype=x.dtype)
        canaries.append((around, x.numel()))
        return around.as_strided(x.shape, strides, 64)

    torch_empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", empty_like)
    for shape in [(33, 7), (3, 7, 5, 5), (1, 2, 300, 301), (1100, 40)]:
        for activation, masked in (("relu", None), ("silu", None), ("relu", "bool")):
            call, dy = problem(shape, activation=activation, masked=masked)
            _, moments = numba.forward(call)
            numba.backward(dy, call, moments, False, (True, True))
    assert len(canaries) > 20
    for around, size in canaries:
        assert (around[:64] == 77).all()
        assert (around[64 + size :] == 77).all()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(3, 4, 5, 5), (2, 3, 37, 41), (1, 2, 300, 301)])
def test_outputs_written_past_the_caches(dtype, shape, monkeypatch):
    monkeypatch.setattr(_memory, "_LARGE", 0)
    assert _memory.prepare(torch.zeros(4096))
    call, dy = problem(shape, dtype)
    compare(call, dy)
    compare(call._replace(residual=None), dy)


def test_fresh_memory_is_not_written_past_the_caches():
    fresh = mmap.mmap(-1, 2**26)  # the allocator may have kept as much from another test
    assert not _memory.prepare(torch.frombuffer(fresh, dtype=torch.float32))
    assert _memory.prepare(torch.zeros(2**24).add_(1))


def test_halves_round_to_nearest_even_and_keep_nan():
    x = torch.cat((torch.randn(5000) * 10.0 ** torch.randint(-6, 6, (5000,)), torch.tensor([3e38])))
    moments = torch.tensor([[1.0], [0.0], [1.0]], dtype=torch.float64)
    for dtype in (torch.bfloat16, torch.float16):
        half = x.to(dtype).view(-1, 1)
        call = Call(half, torch.tensor([1.1]), None, None, None, 1e-300, Activation())
        right = (half.double() * torch.tensor(1.1).double()).to(dtype)
        assert torch.equal(numba.normalize(call, moments), right)


def test_refusals_say_why_and_what_to_do():
    call, _ = problem((4, 3))
    assert numba.refuses(call) is None
    for other, words in (
        (call._replace(x=call.x.to("meta")), "on meta"),
        (call._replace(x=call.x.to(torch.int32)), "torch.int32"),
        (call._replace(residual=call.residual.double()), "residual of x's dtype torch.float32"),
        (call._replace(weight=call.weight.to(torch.complex64)), "torch.complex64"),
        (call._replace(x=call.x.to_sparse()), "torch.sparse_coo"),
        (call._replace(x=call.x.as_subclass(type("Mine", (torch.Tensor,), {}))), "a Mine"),
    ):
        assert words in numba.refuses(other)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(40, 6), (21, 6), (3, 6, 70), (2, 6, 5, 5)])
@pytest.mark.parametrize("kind", ["relu", "relu6", "hardswish", "elu", "leaky_relu"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_that_is_not_finite_stops_where_the_activation_is_flat(
    kind, shape, layout, value, dtype
):
    call, dy = problem(shape, dtype, layout)
    activation = Activation(kind, 0.0)  # leaky ReLU and ELU that are flat below zero
    call = call._replace(activation=activation, x=call.x * 1e3, weight=call.weight * 8)
    for each in (call, call._replace(residual=None)):
        moments = plain.statistics(each.x, None)
        wide = None if each.residual is None else each.residual.double()
        unbent = each._replace(x=each.x.double(), residual=wide, activation=Activation())
        flat = activation.slope(plain.normalize(unbent, moments)) == 0
        assert flat.any()
        compare(each, dy.masked_fill(flat, value))
