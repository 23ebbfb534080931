"""Ghost batches, batch renormalization, and what one value a channel gets."""

import contextlib
import itertools
import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

import oracle
from batchnorm.functional import _running, batch_norm
from batchnorm.kernels import numba
from batchnorm.moments import Moments

SHAPES = [(8, 3), (10, 3), (8, 3, 5), (10, 3, 2, 4), (3, 3), (11, 2, 2, 1, 3)]


def buffers(channels=3, dtype=torch.float64):
    mean, var = torch.randn(channels, dtype=dtype), torch.rand(channels, dtype=dtype) + 0.5
    return mean, var, torch.tensor(0), torch.tensor(0)


def in_groups(x, size, mean, var, batches, skipped, *, mask=None, residual=None, **options):
    """A Python loop over groups: what `ghost_size` means."""
    parts = []
    for start in range(0, x.shape[0], size):
        some = slice(start, start + size)
        parts.append(
            batch_norm(
                x[some], mean, var, training=True, num_batches_tracked=batches, skipped=skipped,
                mask=None if mask is None else mask[some],
                residual=None if residual is None else residual[some], **options,
            )
        )  # fmt: skip
    return torch.cat(parts)


def as_ghosts(x, size, mean, var, batches, skipped, **options):
    return batch_norm(
        x, mean, var, training=True, num_batches_tracked=batches, skipped=skipped,
        ghost_size=size, **options,
    )  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_ghost_batches_equal_a_loop_over_the_groups(shape, layout, dtype):
    x, residual, dy = (
        oracle.laid_out(torch.randn(shape, dtype=dtype) + 3, layout) for _ in range(3)
    )
    weight, bias = torch.randn(2, shape[1], dtype=dtype)
    options = {"activation": "silu", "momentum": 0.3}
    results = []
    for function in (as_ghosts, in_groups):
        torch.manual_seed(1)
        state = buffers(shape[1], torch.float32)
        leaves = [t.detach().clone().requires_grad_() for t in (x, residual, weight, bias)]
        y = function(
            leaves[0], 4, *state, residual=leaves[1], weight=leaves[2], bias=leaves[3], **options
        )
        results.append((y, *torch.autograd.grad(y, leaves, dy), *state))
    for ours, loop in zip(*results, strict=True):
        tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype is torch.bfloat16 else {}
        torch.testing.assert_close(ours, loop, **tolerance)
    assert results[0][-2] == math.ceil(shape[0] / 4), "each group counts"


@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("bias_correction", [False, True])
def test_groups_move_the_running_statistics_in_turn(momentum, bias_correction, monkeypatch):
    x = torch.randn(12, 3) + torch.arange(12)[:, None]
    x[3, 1], x[4:6] = float("inf"), 0.5
    moments = torch.stack([Moments.of(x[i : i + 2]).pack() for i in range(0, 12, 2)], 1)
    moments[0, 4] = 0
    moments[0, 5, 1] = 1
    results = []
    for way in ("numba", "at once", "in turn"):
        torch.manual_seed(0)
        state = buffers(dtype=torch.float32)
        if way == "at once":
            monkeypatch.setattr(numba, "update_running", lambda *_: False)
        turns = [moments.flatten(1)] if way != "in turn" else moments.unbind(1)
        for some in turns:
            _running.update(*state, some, momentum, bias_correction)
        results.append(state)
    for ours in results[:2]:
        torch.testing.assert_close(ours, results[2])
    assert results[2][2:] == (torch.tensor(4), torch.tensor(1))


MASK = torch.tensor([1, 1, 0.5, 2, 1, 0, 3, 1, 1, 0, 1.2], dtype=torch.float64)


def points(shape):
    return [
        torch.randn(s, dtype=torch.float64, requires_grad=True)
        for s in (shape, shape[1:2], shape[1:2], shape)
    ]


SMALL = {
    "ghosts": {"ghost_size": 4},
    "renorm": {"renorm": (1.5, 0.5)},
    "ghosts and renorm": {"ghost_size": 3, "renorm": (1.5, 0.5)},
    "a last group of one, beta": {"ghost_size": 5, "one_value": "beta"},
    "a last group of one, running": {"ghost_size": 5, "one_value": "running"},
}


@pytest.mark.parametrize("options", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("mask", [None, MASK > 0, MASK], ids=["all", "bool", "weights"])
def test_first_and_second_derivatives_both_ways(options, mask):
    mean, var = torch.tensor([[900.0, -900.0], [1e3, 1e3]], dtype=torch.float64)  # r, d are clipped
    if mask is not None and options.get("one_value") != "running":
        options = options | {"one_value": "beta"}

    def f(x, weight, bias, residual):
        return batch_norm(
            x, mean.clone(), var.clone(), weight, bias, True, eps=1e-3, activation="silu",
            residual=residual, mask=mask, **options,
        )  # fmt: skip

    shape = (11, 2)
    assert gradcheck(f, points(shape), check_forward_ad=True)
    assert gradgradcheck(f, points(shape), check_fwd_over_rev=True)


def renormalized(x, mean, var, weight, bias, r_max, d_max, eps=1e-5):
    """Ioffe 2017, algorithm 1, for x of shape (N, C)."""
    mu, sigma = x.mean(0), (x.var(0, correction=0) + eps).sqrt()
    std = (var + eps).sqrt()
    r = (sigma / std).clamp(1 / r_max, r_max).detach()
    d = ((mu - mean) / std).clamp(-d_max, d_max).detach()
    return weight * ((x - mu) / sigma * r + d) + bias


@pytest.mark.parametrize("limits", [(3.0, 5.0), (1.2, 0.3), (1.0, 0.0)])
def test_renormalization_is_the_papers_with_its_gradients_to_the_second(limits):
    mean, var, batches, _ = buffers()
    x, weight, bias, _ = points((7, 3))
    before = mean.clone(), var.clone()
    y = batch_norm(x, mean, var, weight, bias, True, renorm=limits, num_batches_tracked=batches)
    right = renormalized(x, *before, weight, bias, *limits)
    torch.testing.assert_close(y, right)
    v = torch.randn_like(x)
    ours, theirs = (
        torch.autograd.grad(t, (x, weight, bias), v, create_graph=True) for t in (y, right)
    )
    torch.testing.assert_close(ours, theirs)
    ours, theirs = (torch.autograd.grad(t[0].square().sum(), (x, weight)) for t in (ours, theirs))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(mean, 0.9 * before[0] + 0.1 * x.mean(0))
    torch.testing.assert_close(var, 0.9 * before[1] + 0.1 * x.var(0))
    assert batches == 1
    if limits == (1.0, 0.0):
        torch.testing.assert_close(y, batch_norm(x, None, None, weight, bias, True))


def test_renormalization_in_training_equals_evaluation_within_its_limits():
    mean, var, *_ = buffers(dtype=torch.float32)
    x = torch.randn(6, 3)
    expected = batch_norm(x, mean, var)
    y = batch_norm(x, mean, var, training=True, renorm=(1e9, 1e9))
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["numba", "native", "plain"])
def test_small_batches_on_every_backend(backend, dtype):
    x = torch.randn(9, 3, 4).to(dtype)
    for options in ({"ghost_size": 4}, {"renorm": (3.0, 5.0)}, {"one_value": "running"}):
        mean, var, *_ = buffers(dtype=torch.float32)
        copies = mean.clone(), var.clone()
        ours = batch_norm(x, mean, var, training=True, backend=backend, **options)
        right = batch_norm(x.double(), *copies, training=True, backend="plain", **options)
        tolerance = 1e-5 if dtype is torch.float32 else 2e-2
        torch.testing.assert_close(ours.double(), right, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(mean, copies[0])


def test_one_value_by_the_running_statistics():
    mean, var, batches, skipped = buffers()
    weight, bias = torch.randn(2, 3, dtype=torch.float64)
    x = torch.randn(1, 3, dtype=torch.float64, requires_grad=True)
    before = mean.clone(), var.clone()
    y = batch_norm(
        x, mean, var, weight, bias, True, one_value="running", activation="tanh",
        num_batches_tracked=batches, skipped=skipped,
    )  # fmt: skip
    right = torch.tanh(F.batch_norm(x, *before, weight, bias))
    torch.testing.assert_close(y, right)
    torch.testing.assert_close(*(torch.autograd.grad(t.sum(), x) for t in (y, right)))
    assert torch.equal(mean, before[0])
    assert torch.equal(var, before[1])
    assert batches == skipped == 0


@pytest.mark.parametrize("backend", [None, "plain"])
def test_one_value_as_beta(backend):
    mean, var, batches, skipped = buffers()
    before = mean.clone(), var.clone()
    x, weight, bias, residual = points((1, 3, 1))
    y = batch_norm(
        x, mean, var, weight, bias, True, one_value="beta", activation="tanh", residual=residual,
        num_batches_tracked=batches, skipped=skipped, backend=backend,
    )  # fmt: skip
    torch.testing.assert_close(y, torch.tanh(bias.view(1, 3, 1) + residual))
    dx, dweight, dbias, dresidual = torch.autograd.grad(y.sum(), (x, weight, bias, residual))
    assert dx.abs().max() < 1e-12
    assert dweight.count_nonzero() == 0
    torch.testing.assert_close(dbias, dresidual.flatten())
    assert (1 - y.square()).view(3).allclose(dbias)
    assert torch.equal(mean, before[0])
    assert torch.equal(var, before[1])
    assert batches == skipped == 0


@pytest.mark.parametrize("one_value", ["running", "beta"])
@pytest.mark.parametrize("traced", [False, True])
def test_a_mask_that_leaves_one_value(one_value, traced):
    x = torch.randn(4, 3, dtype=torch.float64)
    state = buffers()
    before = [t.clone() for t in state]
    mask = torch.arange(4) == 2
    x[~mask] = float("nan")

    def f(x):
        return batch_norm(
            x, *state[:2], training=True, one_value=one_value, mask=mask,
            num_batches_tracked=state[2], skipped=state[3],
        )  # fmt: skip

    with torch.autograd.forward_ad.dual_level() if traced else contextlib.nullcontext():
        y = f(x)  # through the operators, or past them
    right = batch_norm(x[2:3], *before[:2]) if one_value == "running" else torch.zeros(1, 3)
    torch.testing.assert_close(y[2:3], right.double())
    assert y[~mask].count_nonzero() == 0
    assert all(map(torch.equal, state, before))


def test_several_values_do_not_notice_one_value():
    x, mask = torch.randn(6, 3), torch.arange(6) < 4
    for given in (None, mask):
        results = []
        for one_value in ("raise", "running", "beta"):
            torch.manual_seed(3)
            state = buffers()
            y = batch_norm(
                x, *state[:2], training=True, one_value=one_value, mask=given,
                num_batches_tracked=state[2],
            )  # fmt: skip
            results.append((y, *state))
        for other in results[1:]:
            assert all(map(torch.equal, other, results[0]))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ghost_size": 2},
        {"renorm": (3.0, 5.0)},
        {"one_value": "running"},
        {"one_value": "beta"},
    ],
)
@pytest.mark.parametrize("correction", [False, True])
def test_an_empty_batch_changes_nothing(options, correction):
    state = buffers()
    before = [t.clone() for t in state]
    x = torch.empty(0, 3, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
    for mask in (None, torch.empty(0)):
        y = batch_norm(
            x, *state[:2], weight, training=True, num_batches_tracked=state[2], skipped=state[3],
            bias_correction=correction, mask=mask, **options,
        )  # fmt: skip
        dx, dweight = torch.autograd.grad(y.sum(), (x, weight))
        assert y.shape == dx.shape == (0, 3, 2)
        assert dweight.count_nonzero() == 0
        assert all(map(torch.equal, state, before))


OPTIONS = [
    {"ghost_size": 4}, {"renorm": (3.0, 5.0)}, {"ghost_size": 4, "renorm": (3.0, 5.0)},
    {"one_value": "running"}, {"one_value": "beta", "mask": MASK[:10] > 0},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS)
def test_compiles_as_one_graph(options):
    x = torch.randn(10, 3, requires_grad=True)
    results = []
    for way in (lambda f: f, torch.compile(fullgraph=True, backend="aot_eager")):
        torch.manual_seed(1)
        torch._dynamo.reset()
        state = buffers(dtype=torch.float32)
        weight = torch.randn(3, requires_grad=True)

        def f(x, weight, state=state):
            return batch_norm(
                x, *state[:2], weight, training=True, num_batches_tracked=state[2], **options
            )

        f = way(f)
        for _ in range(2):
            y = f(x, weight)
            results.append((y, *torch.autograd.grad(y.pow(3).sum(), (x, weight)), *state))
    for eager, compiled in zip(results[:2], results[2:], strict=True):
        torch.testing.assert_close(compiled, eager)


@pytest.mark.parametrize(("examples", "size"), [(256, 2), (254, 4), (7, 4)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_half_parameters_are_rounded_once_however_many_groups(dtype, examples, size):
    x = torch.randn(examples, 40).to(dtype)
    dy = (torch.randn(examples, 40) + 0.05).to(dtype)
    weight, bias = (torch.ones(40, dtype=dtype, requires_grad=True) for _ in range(2))
    y = batch_norm(x, None, None, weight, bias, training=True, ghost_size=size)
    got = torch.autograd.grad(y, (weight, bias), dy)
    exact = [t.detach().double().requires_grad_() for t in (weight, bias)]
    y = batch_norm(x.double(), None, None, *exact, training=True, ghost_size=size)
    right = torch.autograd.grad(y, exact, dy.double())
    for ours, theirs in zip(got, right, strict=True):
        torch.testing.assert_close(
            ours.double(), theirs, rtol=0.51 * torch.finfo(dtype).eps, atol=1e-6 * 256
        )


@pytest.mark.parametrize("options", OPTIONS[:3])
def test_a_graph_serves_batches_of_any_size(options):
    """Of the second size on, sizes are symbols to the compiler: the last batch is a smaller one."""
    torch._dynamo.reset()
    state = buffers(dtype=torch.float32)
    same = [t.clone() for t in state]

    def f(x, mean, var, batches):
        return batch_norm(x, mean, var, training=True, num_batches_tracked=batches, **options)

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    for examples in (12, 10, 7, 8, 3):
        x = torch.randn(examples, 3)
        torch.testing.assert_close(compiled(x, *state[:3]), f(x, *same[:3]))
        torch.testing.assert_close(list(state), same)


@pytest.mark.parametrize("options", OPTIONS)
def test_function_transforms(options):
    x = torch.randn(10, 3, dtype=torch.float64)
    before = buffers()

    def f(x):
        mean, var = before[0].clone(), before[1].clone()
        return batch_norm(x, mean, var, training=True, activation="silu", **options)

    jacobian = torch.autograd.functional.jacobian(f, x)
    torch.testing.assert_close(torch.func.jacrev(f)(x), jacobian)
    torch.testing.assert_close(torch.func.jacfwd(f)(x), jacobian)


def test_an_ensemble_keeps_its_members_apart():
    x, weight = torch.randn(10, 3), torch.randn(2, 3)
    for options in ({"ghost_size": 4}, {"renorm": (1.5, 1.0)}, {"ghost_size": 4, "renorm": (2, 1)}):
        torch.manual_seed(1)
        mean, var = torch.randn(2, 3), torch.rand(2, 3) + 0.5
        copies = mean.clone(), var.clone()

        def f(mean, var, weight, options=options):
            return batch_norm(x, mean, var, weight, training=True, **options)

        y = torch.vmap(f)(mean, var, weight)
        right = torch.stack([f(copies[0][i], copies[1][i], weight[i]) for i in range(2)])
        torch.testing.assert_close(y, right)
        torch.testing.assert_close(mean, copies[0])
        torch.testing.assert_close(var, copies[1])


BAD = [
    ({"one_value": "skip"}, r"one_value='skip'; expected one of raise, running, beta"),
    ({"ghost_size": 0}, r"ghost_size=0; expected None or how many examples.*such as 32"),
    ({"ghost_size": 2.0}, r"ghost_size=2.0; expected None or .* an integer such as 32"),
    ({"ghost_size": "2"}, r"ghost_size='2'; expected None or how many examples"),
    ({"renorm": 3.0}, r"renorm=3.0; .*expects two limits, \(r_max, d_max\), such as"),
    ({"renorm": (3.0,)}, r"renorm=\(3.0,\); .*expects two limits"),
    ({"renorm": ("3", 5)}, r"r_max='3', d_max=5; .*expects r_max >= 1"),
    ({"renorm": (0.5, 1)}, r"r_max=0.5, d_max=1; .*expects r_max >= 1 and d_max >= 0"),
    ({"renorm": (3, -1)}, r"r_max=3, d_max=-1; .*1 and 0 are plain batch norm"),
    ({"renorm": (3, 5), "running_var": None}, r"renormalization needs.*running_var is None: give"),
    (
        {"one_value": "running", "running_mean": None},
        r'one_value="running" needs running statistics, and running_mean is None: give both',
    ),
    ({"ghost_size": 4}, r"ghost_size=4 leaves a group with 1 value per channel of x, which has 5"),
    ({"ghost_size": 1}, r"ghost_size=1 leaves a group .*choose a size with more to each group"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_what_bad_options_get(options, message):
    options = dict(zip(("running_mean", "running_var"), buffers(3)[:2], strict=True)) | options
    with pytest.raises(ValueError, match=message):
        batch_norm(torch.randn(5, 3), training=True, **options)


def test_the_error_for_one_value_names_the_way_out():
    with pytest.raises(ValueError, match=r'one value gets: one_value="running" or "beta"'):
        batch_norm(torch.randn(1, 3), training=True)


def test_ghost_batches_without_running_statistics_and_in_evaluation():
    x = torch.randn(8, 3)
    y = batch_norm(x, training=True, ghost_size=4)
    torch.testing.assert_close(y, torch.cat([batch_norm(p, training=True) for p in x.split(4)]))
    mean, var, *_ = buffers(dtype=torch.float32)
    assert torch.equal(batch_norm(x, mean, var, ghost_size=4), batch_norm(x, mean, var))


def test_axes_and_groups_agree():
    x = torch.randn(8, 5, 3)
    for axis, size in itertools.product((-1, 2), (3, 8, 20)):
        y = batch_norm(x, training=True, ghost_size=size, axis=axis)
        right = batch_norm(x.movedim(2, 1), training=True, ghost_size=size).movedim(1, 2)
        torch.testing.assert_close(y, right)


@pytest.mark.parametrize("way", ["past the operators", "through them"])
@pytest.mark.parametrize("mask", [None, MASK > 0, MASK], ids=["all", "bool", "weights"])
def test_running_statistics_that_normalize_move_group_by_group(way, mask):
    x = torch.randn(11, 3, dtype=torch.float64) + torch.arange(11)[:, None]
    around = torch.autograd.profiler.profile if way == "through them" else contextlib.nullcontext
    state = buffers()
    loop = [b.clone() for b in state]
    y = batch_norm(x, *state[:2], mask=mask)
    with around():
        ours = batch_norm(
            x, *state[:2], training=False, update=True, mask=mask, ghost_size=4,
            num_batches_tracked=state[2], skipped=state[3],
        )  # fmt: skip
    in_groups(x, 4, *loop, mask=mask)
    torch.testing.assert_close(ours, y)
    torch.testing.assert_close(state, tuple(loop))
    assert state[2] == 3


@pytest.mark.parametrize("one_value", ["running", "beta"])
@pytest.mark.parametrize("mask", [None, torch.tensor([True])])
def test_one_value_does_not_move_what_normalizes_it(one_value, mask):
    x, state = torch.randn(1, 3, dtype=torch.float64), buffers()
    before = [b.clone() for b in state]
    y = batch_norm(
        x, *state[:2], training=False, update=True, mask=mask, one_value=one_value,
        num_batches_tracked=state[2], skipped=state[3],
    )  # fmt: skip
    torch.testing.assert_close(y, batch_norm(x, *before[:2]))
    assert all(map(torch.equal, state, before))


@pytest.mark.parametrize("options", [{"one_value": "mean"}, {"ghost_size": 0}, {"renorm": (0, 1)}])
def test_unknown_options_are_refused_in_evaluation_too(options):
    with pytest.raises(ValueError, match="expect"):
        batch_norm(torch.randn(4, 3), torch.zeros(3), torch.ones(3), **options)


@pytest.mark.parametrize("one_value", ["running", "beta"])
def test_a_batch_of_one_value_compiles_as_one_graph(one_value):
    def f(x, mean, var):
        return batch_norm(x, mean, var, training=True, one_value=one_value)

    x, (mean, var, *_) = torch.randn(1, 3, dtype=torch.float64), buffers()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, mean, var), f(x, mean, var))


def test_a_batch_of_one_value_that_does_not_compile_says_why():
    compiled = torch.compile(batch_norm, backend="aot_eager")
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        compiled(torch.randn(1, 3), training=True)


@pytest.mark.parametrize("size", [2, 3, 8, 20])
@pytest.mark.parametrize("shape", [(8, 0), (8, 0, 3), (0, 4), (0, 0)])
def test_ghost_batches_of_nothing_keep_their_shape(shape, size):
    x = torch.randn(shape, requires_grad=True)
    y = batch_norm(x, training=True, ghost_size=size)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape
