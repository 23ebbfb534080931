"""The output over the input, and gradients from the output alone."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import oracle
from batchnorm.kernels import _in_place, _memory, numba, plain
from batchnorm.kernels._activation import Activation
from batchnorm.kernels._call import Call
from batchnorm.kernels._layout import layout
from batchnorm.kernels._numba_ahead import FAR
from undone import ACTIVATIONS, check, problem

BACKENDS = [numba, plain]
SHAPES = [(64, 5), (33, 64), (40, 513), (600, 2, 2), (2, 3, 17), (5, 7, 6, 7), (2, 2, 300, 301)]

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_and_activation(backend, activation, layout, shape):
    check(backend, *problem(shape, layout=layout, activation=activation))


@pytest.mark.parametrize("shape", [(9, 5, 117, 113), (2, 2, 400, 401), (30, 64, 24, 23)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_tensors_that_no_second_cache_holds(layout, shape):
    assert 4 * torch.Size(shape).numel() >= FAR
    for activation in ACTIVATIONS[:3]:  # of so many values some are too near ELU's limit
        check(numba, *problem(shape, layout=layout, activation=activation))


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", ACTIVATIONS[:3], ids=str)
@pytest.mark.parametrize("shape", [(300, 6), (3, 5, 70)])
def test_every_dtype(backend, dtype, activation, shape):
    check(backend, *problem(shape, dtype, activation=activation))


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
@pytest.mark.parametrize("shape", [(300, 6), (3, 5, 70)])
def test_without_parameters(backend, shape):
    call, dy = problem(shape)
    check(backend, call._replace(bias=None), dy)
    check(backend, call._replace(weight=None, bias=None), dy)
    check(backend, call._replace(weight=None, bias=torch.linspace(-15, 15, shape[1])), dy)


@pytest.mark.parametrize("offset", [0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("shape", [(64, 10), (8, 3, 6, 7), (2, 2, 190, 190)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_exact_however_far_the_mean_is_from_zero(offset, shape, layout, activation):
    call, dy = problem(shape, layout=layout, activation=activation)
    call = call._replace(x=oracle.laid_out((call.x.double() + offset).float(), layout))
    check(numba, call, dy)
    aligned = dy + 2 * torch.sign(call.x - call.x.mean())
    check(numba, call, aligned)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
def test_fixed_statistics(backend):
    call, dy = problem((4, 3, 5, 6), activation=ACTIVATIONS[3])
    given = torch.tensor([[0.0] * 3, [0.1, 0.2, -0.1], [1.0, 2.0, 0.5]], dtype=torch.float64)
    buffer = call.x.clone()
    moments = _in_place.forward(backend, call._replace(x=buffer), given)
    assert moments is given
    assert torch.equal(buffer, backend.normalize(call, given))
    undone = call._replace(x=buffer)
    for wanted in (True, False):
        right = plain.backward(dy, call, given, True, (wanted, False))
        got = backend.backward_from_output(dy, undone, given, True, (wanted, False))
        for ours, theirs in zip(got, right, strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                assert oracle.relative_error(ours, theirs.double()) < 1e-6


@pytest.mark.parametrize("shape", [(0, 3), (4, 3, 0), (4, 0), (0, 3, 70000)])
@pytest.mark.parametrize("activation", ACTIVATIONS[1::2], ids=str)
def test_nothing_in_place_of_nothing(shape, activation):
    call, dy = problem(shape, activation=activation)
    moments = _in_place.forward(numba, call)
    gradients = numba.backward_from_output(dy, call, moments, False, (True, False))
    assert gradients.x.shape == shape
    assert (gradients.weight == 0).all()


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
def test_autograd_learns_of_what_was_overwritten(backend):
    call, dy = problem((4, 3))
    buffer = call.x.clone()
    versions = buffer._version, dy._version
    moments = _in_place.forward(backend, call._replace(x=buffer))
    undone = call._replace(x=buffer)
    backend.backward_from_output(dy, undone, moments, False, (True, False), out=dy)
    assert buffer._version > versions[0]
    assert dy._version > versions[1]


def test_streamed_outputs(monkeypatch):
    monkeypatch.setattr(_memory, "_LARGE", 0)
    check(numba, *problem((3, 4, 37, 41)))


REFUSALS = [
    ({"activation": Activation("relu")}, "relu cannot be undone; in place takes identity, leaky"),
    ({"activation": Activation("leaky_relu", 0.0)}, "its parameter must be above zero"),
    ({"activation": Activation("elu", -1.0)}, "its parameter must be above zero"),
    ({"weight": torch.tensor([1.0, 0.0])}, "a weight of 0 cannot be undone in torch.float32"),
    ({"weight": torch.tensor([1.0, 1e-31])}, "must be at least 1.0e-30"),
    ({"weight": torch.tensor([1.0, float("nan")])}, "a weight of nan cannot be undone"),
    ({"weight": torch.tensor([1.0, 1e36])}, "must be at most 3.3e+35"),
    ({"activation": Activation("leaky_relu", 1e-32)}, "a weight of 1 cannot be undone"),
    ({"bias": torch.tensor([15.0, -17.0])}, "in channel 1 a bias of -17 is more than 16 times"),
    ({"weight": torch.tensor([0.01, 1.0]), "bias": torch.ones(2)}, "in channel 0 a bias of 1"),
    ({"bias": torch.tensor([float("nan"), 0.0])}, "in channel 0 a bias of nan"),
    ({"x": torch.randn(50, 2) * 1e-6, "bias": torch.ones(2)}, "more than 0.00"),
    ({"x": torch.full((50, 2), 3.0), "bias": torch.ones(2)}, "more than 0 times the weight"),
    ({"residual": torch.ones(50, 2)}, "with a residual"),
    ({"mask": torch.ones(50, 1)}, "with a mask"),
    ({"x": torch.randn(50, 4)[:, ::2]}, "strides (4, 2) has gaps"),
    ({"x": torch.randn(1, 2).expand(50, 2)}, "has gaps or overlaps itself"),
    ({"activation": Activation("elu", 1.0), "bias": torch.full((2,), -6.0)}, "in channel 0 elu(1)"),
    ({"activation": Activation("elu", 1.0), "x": torch.randn(50, 2).half()}, "saturates too soon"),
]


@pytest.mark.parametrize(("change", "words"), REFUSALS, ids=[words for _, words in REFUSALS])
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
def test_what_would_lose_digits_is_refused_and_left_alone(backend, change, words):
    x = torch.randn(50, 2)
    call = Call(x, torch.ones(2), None, None, None, 1e-5, Activation())._replace(**change)
    before = call.x.clone()
    reason = _in_place.forward(backend, call)
    assert isinstance(reason, str)
    assert words in reason
    assert torch.equal(call.x, before)


def test_parameters_alone_tell_before_anything_is_computed():
    f = Activation("leaky_relu", 0.1)
    ones = torch.ones(3)
    assert _in_place.recoverable(ones, ones, f, torch.float32) is None
    assert _in_place.recoverable(None, None, f, torch.bfloat16) is None
    assert "bias of 1.01" in _in_place.recoverable(ones, 1.01 * ones, f, torch.bfloat16)
    assert "cannot be undone in torch.float16" in _in_place.recoverable(
        1e-4 * ones, None, f, torch.float16
    )


@st.composite
def calls(draw):
    """Whatever the limits let through, up to their very edge."""
    dims = draw(st.integers(0, 2))
    shape = (
        draw(st.integers(2, 40)),
        draw(st.integers(1, 40)),
        *draw(st.lists(st.integers(1, 9), min_size=dims, max_size=dims)),
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*sizes):
        return torch.randn(sizes, generator=generator, dtype=torch.float64)

    x = normal(*shape)
    tail = draw(st.sampled_from(["normal", "heavy", "outlier", "sparse"]))
    x = {"normal": x, "heavy": x**5, "sparse": x.relu(), "outlier": x}[tail]
    if tail == "outlier":
        x[0] = 1e3
    x = x * draw(st.sampled_from([1e-3, 1.0, 1e4])) + draw(st.sampled_from([0.0, 10.0, 1e3]))
    weight = normal(shape[1]).exp() * normal(shape[1]).sign()
    weight = weight * draw(st.sampled_from([1.0, 1e-3, 1e-20, 1e10]))
    bias = weight * draw(st.sampled_from([0.0, 1.0, 15.0])) * normal(shape[1]).clamp(-1, 1)
    kind = draw(st.sampled_from(["identity", "leaky_relu", "elu"]))
    parameter = draw(st.sampled_from([0.01, 0.2, 1.0, 5.0, 1e-6]))
    dy = normal(*shape) + draw(st.sampled_from([0.0, 1.0, 3.0])) * (x - x.mean(0)).sign()
    layout = draw(st.sampled_from(["contiguous", "channels_last", "transposed"]))
    call = Call(
        oracle.laid_out(x.float(), layout),
        *(weight.float(), bias.float(), None, None, 1e-5),
        Activation(kind, parameter),
    )
    return call, dy.float()


def within(call, dy):
    """What is not refused is exact to 1e-5 of what it is a sum of."""
    buffer = torch.empty_like(call.x).copy_(call.x)
    moments = _in_place.forward(numba, call._replace(x=buffer))
    if isinstance(moments, str):
        assert torch.equal(buffer, call.x)
        return False
    # not plain's, whose z has another sign where it is zero but for rounding
    right = numba.backward(dy, call, moments, False, (True, False))
    got = numba.backward_from_output(dy, call._replace(x=buffer), moments, False, (True, False))
    scale = (moments[2] + call.eps).rsqrt() * call.weight.double()
    shape = (1, -1, *[1] * (call.x.dim() - 2))
    dims = [d for d in range(call.x.dim()) if d != 1]
    g = numba.backward_input(dy, call, moments, torch.zeros_like(moments[:2])).double()
    terms = g.abs().amax()
    g = g / scale.view(shape)
    xhat = (call.x.double() - moments[1].view(shape)) * (moments[2] + call.eps).rsqrt().view(shape)
    floors = (terms, (g * xhat).abs().sum(dims).amax(), g.abs().sum(dims).amax())
    for what, ours, theirs, floor in zip(got._fields, got, right, floors, strict=False):
        error = (ours.double() - theirs.double()).abs().amax()
        assert error <= 1e-5 * floor, (what, float(error / floor))
    return True


common = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def run(examples, untouched=lambda: True):
    taken = []

    def check(call):
        taken.append(within(*call))
        assert untouched(), "a kernel wrote outside its tensors"

    settings(common, max_examples=examples)(given(calls())(check))()
    assert sum(taken) > len(taken) / 3, "most were refused"


def test_a_sample_of_calls(guarded_memory):
    run(100, guarded_memory)


@pytest.mark.slow
def test_thousands_of_calls(guarded_memory):
    run(5000, guarded_memory)


@pytest.mark.parametrize(
    ("limit", "value"), [("_SHIFTED", dict.fromkeys((2, 4, 8), 1e4)), ("_SATURATED", 1e7)]
)
def test_the_limits_are_needed(limit, value, monkeypatch):
    monkeypatch.setattr(_in_place, limit, value)
    with pytest.raises(AssertionError, match=r"float|weight|bias|x"):
        run(2000)


def test_layouts_that_are_alike_are_taken():
    x = torch.randn(1, 3, 4, 5).to(memory_format=torch.channels_last)
    assert layout(x.shape, x.stride()).inner == 1
    check(numba, *problem((1, 3, 4, 5), layout="channels_last"))
