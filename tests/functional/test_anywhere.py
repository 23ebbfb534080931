"""Tensors anywhere in memory, at any strides, against a float64 oracle, with canaries around."""

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import oracle
from batchnorm.functional import batch_norm
from batchnorm.kernels import _memory

TOLERANCE = {torch.float64: 1e-11, torch.float32: 3e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}
PARAMETERS = {"leaky_relu": 0.01, "elu": 1.0}

common = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@st.composite
def strides(draw, shape):
    """Of a permuted tensor with gaps, an expanded one, or one whose elements share memory."""
    kind = draw(st.sampled_from(["dense", "gaps", "expanded", "overlapping"]))
    if kind == "overlapping":
        return tuple(draw(st.integers(0, 3)) for _ in shape)
    steps, step = [0] * len(shape), 1
    for d in draw(st.permutations(range(len(shape)))):
        steps[d] = step * (1 if kind == "dense" else draw(st.integers(1, 3)))
        step = steps[d] * shape[d]
    if kind == "expanded":
        steps[draw(st.integers(0, len(shape) - 1))] = 0
    return tuple(steps)


@st.composite
def tensors(draw, shape, dtype, values):
    """A tensor at an address that is a multiple of its elements' size, and maybe of no more."""
    steps, start = draw(strides(shape)), draw(st.integers(0, 66))
    reach = sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
    room = torch.randn(start + reach + 67, generator=values, dtype=torch.float64).to(dtype)
    return room.as_strided(shape, steps, start)


def room_of(t):
    """All of the memory that a tensor lies in."""
    return t.as_strided((t.untyped_storage().nbytes() // t.itemsize,), (1,), 0)


@st.composite
def shapes(draw):
    dims = draw(st.integers(0, 3))
    most = (1, 60, 9, 4)[dims]
    wide = 300 if dims < 2 else 9
    rows = draw(st.sampled_from([1, 2, 3, 8, 40] if dims else [2, 3, 11, 200]))
    return (rows, draw(st.integers(1, wide)), *(draw(st.integers(1, most)) for _ in range(dims)))


@st.composite
def problems(draw):
    """The arguments of a call, a gradient for its output, and the parameter of its activation."""
    shape = draw(shapes())
    assume(shape[0] * torch.Size(shape[2:]).numel() > 1)
    dtype = draw(st.sampled_from(list(TOLERANCE)))
    parameters = draw(st.sampled_from([dtype, torch.float32, torch.float64]))
    values = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x, residual, dy = (draw(tensors(shape, dtype, values)) for _ in range(3))
    weight, bias = (draw(tensors(shape[1:2], parameters, values)) for _ in range(2))
    running = [draw(tensors(shape[1:2], torch.float32, values)) for _ in range(2)]
    room_of(running[1]).abs_()
    mask = None
    if draw(st.integers(0, 2)) == 0:
        mask = draw(tensors((shape[0], *shape[2:]), torch.float32, values))
        room_of(mask).relu_()
        mask = draw(st.sampled_from([mask, mask > 0.3]))
        assume((mask > 0).any())
    kind = draw(st.sampled_from(sorted(oracle.ACTIVATIONS)))
    options = {"training": draw(st.booleans()), "mask": mask, "activation": kind, "eps": 0.1}
    residual = draw(st.sampled_from([None, residual]))
    return (x, weight, bias, residual), running, options, dy


def exact(inputs, running, options, dy):
    """What the oracle gives: the output and the gradients of the inputs that there are."""
    leaves = [oracle.double(t) for t in inputs]
    mask, kind = options["mask"], options["activation"]
    mask = None if mask is None else mask.unsqueeze(1)
    fixed = None if options["training"] else running
    right, _, _ = oracle.batch_norm(*leaves, mask, 0.1, kind, PARAMETERS.get(kind, 0.0), fixed)
    there = [t for t in leaves if t is not None]
    return [right.detach(), *torch.autograd.grad(right, there, dy.double())]


def check(problem, streams, untouched, monkeypatch):
    inputs, running, options, dy = problem
    monkeypatch.setattr(_memory, "_LARGE", 0 if streams else 2**25)
    before = [room_of(t).clone() for t in (*inputs, dy) if t is not None]
    leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
    x, weight, bias, residual = leaves
    moving = [t.clone() if options["training"] else t for t in running]
    y = batch_norm(x, *moving, weight, bias, residual=residual, **options)
    there = [t for t in leaves if t is not None]
    ours = [y, *torch.autograd.grad(y, there, dy)]
    assert untouched(), "a kernel wrote outside its tensors"
    for t, kept in zip((t for t in (*inputs, dy) if t is not None), before, strict=True):
        assert torch.equal(room_of(t), kept), "an input was written to"
    cancels = 0.02 * TOLERANCE[x.dtype] * dy.double().abs().sum()
    for got, right in zip(ours, exact(inputs, running, options, dy), strict=True):
        tolerance = max(TOLERANCE[x.dtype], TOLERANCE[got.dtype])
        assert (got.double() - right).abs().max() <= tolerance * right.abs().max() + cancels


def run(examples, *fixtures):
    given_problems = given(problems(), st.booleans())
    each = given_problems(lambda problem, streams: check(problem, streams, *fixtures))
    settings(common, max_examples=examples)(each)()


def test_a_sample_of_calls(guarded_memory, monkeypatch):
    run(120, guarded_memory, monkeypatch)


@pytest.mark.slow
def test_thousands_of_calls(guarded_memory, monkeypatch):
    run(4000, guarded_memory, monkeypatch)


@settings(common, max_examples=120)
@given(problems(), st.booleans())
def test_in_place_writes_to_the_input_alone(problem, streams):
    (x, weight, bias, residual), running, options, dy = problem
    options["activation"] = "elu" if options["activation"] == "elu" else "leaky_relu"
    right = exact((x, weight, bias, residual), running, options, dy)[0]
    before, elements = room_of(x).clone(), torch.zeros_like(room_of(x), dtype=torch.bool)
    elements.as_strided(x.shape, x.stride(), x.storage_offset()).fill_(True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_memory, "_LARGE", 0 if streams else 2**25)
        moving = [t.clone() if options["training"] else t for t in running]
        y = batch_norm(x, *moving, weight, bias, residual=residual, inplace=True, **options)
    assert torch.equal(room_of(x)[~elements], before[~elements])
    assert y is x or torch.equal(room_of(x), before)
    assert (y is x) == (x.stride() == torch.empty_like(x).stride())
    assert (y.double() - right).abs().max() <= TOLERANCE[x.dtype] * right.abs().max()
