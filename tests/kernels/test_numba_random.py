"""Random calls against the definition: shapes, strides, dtypes, activations, masks, far means."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchnorm.kernels import numba, plain
from batchnorm.kernels._activation import KINDS, Activation
from batchnorm.kernels._call import Call

TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-6, torch.bfloat16: 5e-3, torch.float16: 1e-3}

ROUNDING = {torch.float64: 1e-14, torch.float32: 2e-7, torch.bfloat16: 3e-6, torch.float16: 3e-6}


@st.composite
def tensors(draw, shape):
    """How a tensor of `shape` lies: an order of its dimensions, gaps, and expanded ones."""
    order = draw(st.permutations(range(len(shape))))
    gaps = draw(st.lists(st.sampled_from([1, 1, 1, 2]), min_size=len(shape), max_size=len(shape)))
    expanded = draw(st.sampled_from([None, None, None, *range(len(shape))]))

    def lay(values):
        if expanded is not None:
            values = values.narrow(expanded, 0, min(1, shape[expanded]))
        sizes = [values.shape[d] * gaps[d] for d in order]
        room = values.new_full(sizes, float("nan")).permute(
            [order.index(d) for d in range(len(shape))]
        )
        room = room[tuple(slice(None, None, gap) for gap in gaps)]
        return room.copy_(values).expand(shape)

    return lay


@st.composite
def shapes(draw):
    if draw(st.integers(0, 19)) == 0:  # where channels are divided
        lengths = st.sampled_from([65535, 65536, 65537, 131073])
        return draw(st.integers(0, 2)), draw(st.integers(0, 3)), draw(lengths)
    dims = draw(st.integers(0, 3))
    most = (40, 20, 9, 5)[dims]
    return (
        draw(st.integers(0, 12)),
        draw(st.integers(0, 70) if dims < 2 else st.integers(1, 9)),
        *draw(st.lists(st.integers(0, most), min_size=dims, max_size=dims)),
    )


@st.composite
def calls(draw):
    shape = draw(shapes())
    dtype = draw(st.sampled_from(list(TOLERANCE)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*sizes):
        return torch.randn(sizes, generator=generator, dtype=torch.float64)

    offset = draw(st.sampled_from([0.0, 0.0, 1.0, 100.0, 1e4, 1e6]))
    offset = min(offset, 100.0) if dtype.itemsize == 2 else offset
    x, residual, dy = (
        draw(tensors(shape))((normal(*shape) + shift).to(dtype)) for shift in (offset, 0, 0)
    )
    mask = None
    if draw(st.integers(0, 2)) == 0:
        mask = torch.rand(shape[0], 1, *shape[2:], generator=generator) - 0.3
        mask = draw(st.sampled_from([mask, mask > 0, mask.double(), mask.half()]))
        x = torch.where(mask > 0, x, float("nan"))
    parameters = draw(st.sampled_from([dtype, torch.float32]))
    weight, bias = (
        draw(st.sampled_from([None, v.to(parameters)]))
        for v in (normal(shape[1]), normal(shape[1]))
    )
    residual = draw(st.sampled_from([None, residual]))
    kind = draw(st.sampled_from(KINDS))
    call = Call(x, weight, bias, residual, mask, 1e-5, Activation(kind, draw(st.floats(-1, 1))))
    wanted = draw(st.tuples(st.booleans(), st.booleans()))
    return call, dy, draw(st.booleans()), wanted


def close(ours, right, floor, dtype, what):
    assert ours.stride() == right.stride(), what
    assert ours.dtype == right.dtype, what
    error = (ours.double() - right.double()).abs()
    largest = right.double().abs().amax() if right.numel() else 0.0
    assert (error <= TOLERANCE[dtype] * largest + floor).all(), (what, error.max(), largest)


def check(call, dy, fixed, wanted, untouched):
    compare(call, dy, fixed, wanted)
    assert untouched(), "a kernel wrote outside its tensors"


def compare(call, dy, fixed, wanted):
    dtype = call.x.dtype
    right = plain.statistics(call.x, call.mask)
    y, moments = numba.forward(call)
    spread = right[1].abs() + right[2].sqrt()
    rounding = 1e-6 if dtype.itemsize == 2 else 1e-11
    assert torch.equal(moments[0], right[0]) or torch.allclose(moments[0], right[0], rtol=1e-12)
    assert ((moments[1] - right[1]).abs() <= rounding * spread).all()
    assert ((moments[2] - right[2]).abs() <= rounding * spread * right[2].sqrt() + 1e-20).all()
    close(y, plain.normalize(call, moments), 1e-30, dtype, "y")
    # where dx is a difference that cancels, what it is a difference of says what rounding is
    scale = (right[2] + call.eps).rsqrt() * (1 if call.weight is None else call.weight.double())
    inside = dy.double().abs() * (1 if call.mask is None else call.mask > 0)
    terms = (scale.abs().max() if scale.numel() else 0) * (inside.max() if dy.numel() else 0)
    floors = (terms, inside.sum(), inside.sum(), 0.0)
    ours = numba.backward(dy, call, moments, fixed, wanted)
    theirs = plain.backward(dy, call, moments, fixed, wanted)
    for what, a, b, floor in zip(ours._fields, ours, theirs, floors, strict=True):
        assert (a is None) == (b is None), what
        if a is not None:
            close(a, b, floor * ROUNDING[dtype] + 1e-30, dtype, what)


common = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def run(examples, untouched):
    settings(common, max_examples=examples)(given(calls())(lambda c: check(*c, untouched)))()


def test_a_sample_of_calls(guarded_memory):
    run(150, guarded_memory)


@pytest.mark.slow
def test_thousands_of_calls(guarded_memory):
    run(6000, guarded_memory)


@pytest.mark.parametrize("where", [-1, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_write_outside_is_seen(where, dtype, guarded_memory):
    out = torch.empty_like(torch.zeros(3, 4, dtype=dtype))
    assert out.isnan().all()
    out.fill_(1)
    assert guarded_memory()
    out = torch.empty((3, 4), dtype=dtype)
    out.as_strided((1,), (1,), out.storage_offset() + where).fill_(1)
    assert not guarded_memory()


@settings(common, max_examples=150)
@given(calls(), st.sampled_from([None, 0.0, 0.1, 1.0]), st.sampled_from([*TOLERANCE]), st.data())
def test_running_statistics(drawn, momentum, dtype, data):
    call = drawn[0]
    channels = call.x.shape[1]
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    mean, var = torch.randn(2, channels, generator=generator).abs().to(dtype).unbind(0)
    mean, var = mean.clone(), var.clone()
    batches = torch.tensor(data.draw(st.integers(0, 9)))
    moments = numba.statistics(call.x, call.mask)
    right = plain.statistics(call.x, call.mask)
    count = right[0]
    taken = channels == 0 or (bool((count > 0).all()) and bool((right[1:].abs() < 6e4).all()))
    share = 1 / (float(batches) + 1) if momentum is None else momentum
    unbiased = right[2] * count / (count - 1)
    wanted_mean = mean.double() + (right[1] - mean.double()) * share
    wanted_var = torch.where(count > 1, var.double() + (unbiased - var.double()) * share, var)
    before = mean.clone(), var.clone(), batches.clone()
    numba.update_running((mean, var, batches, None), moments, momentum)
    if not taken:
        if not torch.equal(batches, before[2]):  # what a wider type than float16 can hold
            assert dtype is not torch.float16
            return
        assert torch.equal(mean, before[0])
        assert torch.equal(var, before[1])
        return
    assert batches == before[2] + 1
    for ours, wanted in ((mean, wanted_mean), (var, wanted_var)):
        spread = right[1].abs() + right[2].sqrt() + before[0].double()
        rounding = torch.finfo(dtype).eps + (1e-5 if call.x.dtype.itemsize == 2 else 1e-9)
        error = (ours.double() - wanted).abs()
        assert (error <= rounding * (wanted.abs() + spread + spread.square())).all()
