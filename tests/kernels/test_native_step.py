"""Torch's own training step without Numba: taken where it is as good, and never half taken."""

import pytest
import torch

import oracle
from batchnorm import BatchNorm2d
from batchnorm.functional import batch_norm
from batchnorm.kernels import native, numba, plain
from batchnorm.kernels._activation import Activation
from batchnorm.kernels._call import Call
from batchnorm.kernels._native_step import FixedStep, TrainingStep

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
SHAPES = [
    *((7, 3), (40, 513), (3, 2, 5), (2, 3, 4, 5), (4, 3, 1, 1), (2, 1, 3, 4), (2, 2, 3, 4, 5)),
    (20, 3, 1, 1, 1),
]


@pytest.fixture(autouse=True)
def without_numba(monkeypatch):
    monkeypatch.setattr(numba, "refuses", lambda call: "it is gone")


@pytest.fixture
def answers(monkeypatch):
    """What steps gave: whether each was taken."""
    taken = []

    def watched(forward):
        def call(self, *args):
            y = forward(self, *args)
            taken.append(y is not None)
            return y

        return call

    for kind in (TrainingStep, FixedStep):
        monkeypatch.setattr(kind, "forward", watched(kind.forward))
    return taken


def leaf(*shape, dtype=torch.float32):
    return torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_()


def run(x, weight, bias, momentum=0.3, **options):
    """Output, gradients and running statistics."""
    wide = torch.float64 if x.dtype is torch.float64 else torch.float32
    running = [torch.zeros(x.shape[1], dtype=wide), torch.ones(x.shape[1], dtype=wide)]
    count = torch.tensor(3)
    x = x.detach().requires_grad_()
    y = batch_norm(x, *running, weight, bias, True, momentum, num_batches_tracked=count, **options)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    leaves = [t for t in (x, weight, bias) if t is not None]
    return y, *torch.autograd.grad(y, leaves, dy.to(y.dtype)), *running, count


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("weight", "bias", "momentum"),
    [(True, True, 0.3), (False, True, None), (True, False, 1.0)],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_as_the_definition(dtype, weight, bias, momentum, shape, last, answers):
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    x = torch.randn(shape, dtype=torch.float64).to(dtype)
    if last:
        x = x.to(memory_format=FORMATS.get(len(shape), torch.contiguous_format))
    w = leaf(shape[1], dtype=wide) if weight else None
    b = leaf(shape[1], dtype=wide) if bias else None
    got = run(x, w, b, momentum)
    expected = run(x, w, b, momentum, backend="plain")
    assert answers == [True]
    tolerance = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 4e-2}[dtype]
    for a, e in zip(got, expected, strict=True):
        assert oracle.relative_error(a.detach(), e.detach().double()) <= tolerance
        assert (a.dtype, a.stride()) == (e.dtype, e.stride())
    again = run(x, w, b, momentum)
    assert all(torch.equal(a, e) for a, e in zip(again, got, strict=True))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", [None, "relu", "silu", "sigmoid"])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("shape", [(4, 3, 1, 1), (1, 1, 3, 4), (20, 3, 1, 1, 1), (2, 1, 1, 3, 1)])
def test_what_is_contiguous_in_both_orders_keeps_its_strides(
    shape, added, activation, training, answers
):
    """Torch's kernel returns the default ones, and its activations too."""
    x, r = (torch.randn(shape).to(memory_format=FORMATS[len(shape)]) for _ in range(2))
    assert x.is_contiguous()
    assert x.stride() != torch.empty(shape).stride()
    w, b, running = leaf(shape[1]), leaf(shape[1]), (torch.zeros(shape[1]), torch.ones(shape[1]))
    leaves = x, w, b, *[r.requires_grad_()] * added

    def output(backend=None):
        options = {"activation": activation, "backend": backend, "residual": r if added else None}
        return batch_norm(x, *(t.clone() for t in running), w, b, training, **options)

    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert output().stride() == x.stride()
    x.requires_grad_()
    y, right = output(), output("plain")
    assert y.stride() == right.stride() == x.stride()
    for dy in (torch.randn(shape), torch.randn_like(x)):
        got, expected = (torch.autograd.grad(z, leaves, dy, retain_graph=True) for z in (y, right))
        torch.testing.assert_close((y, *got), (right, *expected), rtol=1e-5, atol=1e-5)
        assert got[0].stride() == x.stride()
    assert answers == [True] * 3


@pytest.mark.parametrize("shape", [(6, 3, 1, 1), (2, 1, 3, 4)])
def test_many_gradients_at_once_of_what_is_contiguous_in_both_orders(shape, answers):
    x = torch.randn(shape).to(memory_format=torch.channels_last).requires_grad_()
    y, dy = BatchNorm2d(shape[1])(x), torch.randn(5, *shape)
    (got,) = torch.autograd.grad(y, x, dy, retain_graph=True, is_grads_batched=True)
    for one, of in zip(got, dy, strict=True):
        torch.testing.assert_close(one, torch.autograd.grad(y, x, of, retain_graph=True)[0])
    expanded = torch.ones(()).expand(shape)
    (got,) = torch.autograd.grad(y, x, expanded, retain_graph=True)
    torch.testing.assert_close(got, torch.autograd.grad(y, x, torch.ones(shape))[0])
    assert answers == [True]


SPOILED = {
    "a distant mean": lambda x: x.add_(1e4),
    "one distant channel": lambda x: x[:, 2].add_(1e2),
    "a constant channel": lambda x: x[:, 0].fill_(5.0),
    "inf": lambda x: x[1, 1].fill_(float("inf")),
    "NaN": lambda x: x[0, 2].fill_(float("nan")),
    "what overflows a variance": lambda x: x.mul_(1e25),
    "what overflows a mean": lambda x: x.fill_(3e38),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", SPOILED)
def test_a_batch_that_it_would_spoil_leaves_no_trace(name, answers):
    x, (w, b) = torch.randn(9, 3, 4, 4), (leaf(3), leaf(3))
    run(x, w, b)
    SPOILED[name](x)
    running = torch.full((3,), 0.1), torch.full((3,), 0.7)
    count = torch.tensor(5)
    call = Call(x, w, b, None, None, 1e-5, Activation())
    for f, added in ((Activation(), None), (Activation.parse("relu"), torch.randn(x.shape))):
        step = native.step_of(call._replace(activation=f, residual=added), False, *running)
        assert step.forward(x, w, b, added, *running, count, 0.3) is None
        assert added is None or added._version == 0
    assert [t._version for t in (*running, count)] == [0, 0, 0]
    assert all(
        torch.equal(t, torch.full((3,), value))
        for t, value in zip(running, (0.1, 0.7), strict=True)
    )
    assert count == 5
    for options in ({}, {"activation": "silu", "residual": torch.randn(x.shape)}):
        expected = run(x, w, b, backend="plain", **options)
        for a, e in zip(run(x, w, b, **options), expected, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert answers == [True, *[False] * 4]


def test_statistics_may_move_between_forward_and_backward():
    layer, twin = BatchNorm2d(3), torch.nn.BatchNorm2d(3)
    a, b = torch.randn(2, 5, 3, 4, 4)
    for one in (layer, twin):
        (one(a).square() + one(b)).square().sum().backward()
    for mine, theirs in zip(layer.state_dict().values(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs)
    before = layer.running_mean._version
    loss = layer(a).square().sum()
    layer.running_mean.zero_()  # torch's own would refuse
    layer(b)
    loss.backward()
    assert layer.running_mean._version > before + 1


@pytest.mark.parametrize("shape", [(4, 2, 3), (4, 2, 1, 1)])
def test_gradients_of_gradients(shape, answers):
    x, w, b = leaf(*shape, dtype=torch.float64), leaf(2, dtype=torch.float64), leaf(2, dtype=torch.float64)  # fmt: skip
    if len(shape) == 4:
        x = x.detach().to(memory_format=torch.channels_last).requires_grad_()

    def call(*given):
        return batch_norm(given[0], None, None, *given[1:], True)

    torch.autograd.gradcheck(call, (x, w, b))
    torch.autograd.gradgradcheck(call, (x, w, b))
    assert all(answers)


@pytest.mark.parametrize("which", ["running_mean", "running_var", "num_batches_tracked"])
def test_statistics_made_in_inference_mode(which, answers):
    """What torch refuses to write to is left alone by it, and written to by its bytes."""
    layer, twin, x = BatchNorm2d(3), BatchNorm2d(3), torch.randn(5, 3, 4, 4)
    with torch.inference_mode():
        setattr(layer, which, getattr(layer, which).clone())
    for one in (layer, twin):
        one(x).sum().backward()
    for name, buffer in twin.named_buffers():
        torch.testing.assert_close(getattr(layer, name), buffer)
    assert answers == [False, True]


@pytest.mark.parametrize("spoiled", [0, float("nan")])
def test_what_is_interrupted_has_changed_nothing(monkeypatch, spoiled):
    layer, x = BatchNorm2d(3), torch.randn(5, 3, 4, 4) + spoiled

    def interrupted(*_):
        assert torch.equal(layer.running_mean, torch.zeros(3))
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingStep, "_good", interrupted)
    with pytest.raises(KeyboardInterrupt):
        layer(x)
    assert torch.equal(layer.running_var, torch.ones(3))
    assert layer.num_batches_tracked == 0


def test_a_layer_made_in_inference_mode_learns_outside_of_it(answers):
    with torch.inference_mode():
        layer = BatchNorm2d(3, affine=False)
    layer(leaf(5, 3, 4, 4)).sum().backward()
    assert answers == [False]
    assert layer.running_mean.abs().min() > 0
    assert layer.num_batches_tracked == 1


def test_what_it_does_not_take():
    x, running = torch.randn(6, 3, 4, 4), (torch.zeros(3), torch.ones(3))
    call = Call(x, leaf(3), leaf(3), None, None, 1e-5, Activation())
    assert native.step_of(call, False, *running)
    assert native.step_of(call, True, *running)
    assert native.step_of(call, False, None, None)
    for other in (
        call._replace(x=x.half(), weight=call.weight.half()),
        call._replace(x=x.double()),
        call._replace(x=torch.randn(6, 5, 4, 4)[:, 1:4]),
        call._replace(x=x.to("meta")),
        call._replace(eps=1e-31),
        call._replace(activation=Activation("leaky_relu", 0.0)),
        call._replace(activation=Activation("elu", 0.0)),
    ):
        assert native.step_of(other, False, *running) is None
        assert native.step_of(other, True, *running) is None
    assert native.step_of(call, False, running[0], None) is None
    assert native.step_of(call, False, running[0].double(), running[1].double()) is None


def test_without_a_graph_nothing_is_kept(answers):
    layer, x = BatchNorm2d(3), torch.randn(5, 3, 4, 4)
    expected = plain.forward(Call(x, layer.weight, layer.bias, None, None, 1e-5, Activation()))[0]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(layer(x), expected)
    assert layer.num_batches_tracked == 2
    assert answers == [True, True]
