"""Calls that were made before: the same bits without the questions, unless an answer changed."""

import threading

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils.checkpoint import checkpoint

from batchnorm import BatchNorm1d, BatchNorm2d, BatchNormAct2d
from batchnorm.functional import _direct, _familiar, _guards, batch_norm
from batchnorm.functional._running import Running
from batchnorm.kernels import numba
from batchnorm.kernels._activation import Activation
from long_way import long as long
from long_way import same


def images(dtype=torch.float32, shape=(5, 6, 3, 7), kind="contiguous", seed=0):
    g = torch.Generator().manual_seed(seed)
    if kind == "sliced":
        return torch.randn(shape[0], 9, *shape[2:], generator=g).to(dtype)[:, 2 : 2 + shape[1]]
    x = torch.randn(shape, generator=g).to(dtype)
    if kind == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    return x


def parameters(channels, weight, bias, dtype=torch.float32):
    g = torch.Generator().manual_seed(3)
    made = [torch.randn(channels, generator=g).to(dtype).requires_grad_() for _ in range(2)]
    return made[0] if weight else None, made[1] if bias else None


def step(x, weight, bias, training=True, mode=torch.enable_grad, **options):
    """Everything that a call gives."""
    channels = x.shape[1]
    running = [torch.full((channels,), 0.25), torch.full((channels,), 2.0), torch.tensor(3)]
    x = x.detach().requires_grad_()
    with mode():
        y = batch_norm(
            x, *running[:2], weight, bias, training, num_batches_tracked=running[2], **options
        )
    if not y.requires_grad:
        return [y, *running]
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(5)).to(y.dtype)
    dy = torch.empty_like(y).copy_(dy)
    leaves = [t for t in (x, weight, bias) if t is not None and t.requires_grad]
    return [y.detach(), *torch.autograd.grad(y, leaves, dy), *running]


@pytest.mark.parametrize("activation", [None, "relu", "gelu", torch.nn.LeakyReLU(0.3)])
@pytest.mark.parametrize("kind", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize(("weight", "bias"), [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("training", [True, False])
def test_the_same_bits_as_the_long_way(activation, kind, weight, bias, training, long):
    x = images(kind=kind)
    options = {"training": training, "activation": activation}
    expected = step(x, *parameters(6, weight, bias), **options)
    assert long == {"forward": 1, "backward": 0}
    for _ in range(3):
        assert same(step(x, *parameters(6, weight, bias), **options), expected)
    assert long == {"forward": 1, "backward": 0}


@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize("kind", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize(("weight", "bias"), [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("offset", [0, 1e4])
def test_without_numba_too(activation, kind, weight, bias, training, offset, long, monkeypatch):
    monkeypatch.setattr(numba, "refuses", lambda call: "it is gone")
    x = images(kind=kind).add_(offset)
    options = {"training": training, "activation": activation}
    expected = step(x, *parameters(6, weight, bias), **options)
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        got = step(x, *parameters(6, weight, bias), mode=mode, **options)
        assert same(got[:1], expected[:1])
        assert same(got[-3:], expected[-3:])
        assert mode is not torch.enable_grad or same(got, expected)
    assert long == {"forward": int(kind == "sliced"), "backward": 0}
    defined = step(x, *parameters(6, weight, bias), backend="plain", **options)
    for a, b in zip(expected, defined, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("training", [True, False])
def test_without_a_graph(mode, training, long):
    x, options = images(), {"training": training, "mode": mode}
    expected = step(x, *parameters(6, True, True), **options)
    assert same(step(x, *parameters(6, True, True), **options), expected)
    assert long["forward"] == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("of_parameters", [torch.float32, torch.bfloat16])
def test_other_dtypes(dtype, of_parameters, long):
    x = images(dtype)
    expected = step(x, *parameters(6, True, True, of_parameters), activation="relu")
    assert same(step(x, *parameters(6, True, True, of_parameters), activation="relu"), expected)
    assert long == {"forward": 1, "backward": 0}


@pytest.mark.parametrize("shape", [(4, 6), (0, 6, 2), (5, 0, 3), (3, 1, 4), (2, 3, 40, 40, 40)])
def test_other_shapes(shape, long):
    x = images(shape=shape)
    options = {"training": x.numel() > 0}
    expected = step(x, *parameters(shape[1], True, True), **options)
    assert same(step(x, *parameters(shape[1], True, True), **options), expected)
    assert long == {"forward": 1, "backward": 0}


def test_outputs_so_large_that_their_memory_is_asked_for(long):
    x = torch.randn(3, 2**22)
    expected = step(x.T, *parameters(3, True, True))
    assert same(step(x.T, *parameters(3, True, True)), expected)
    assert long["forward"] == 1


NEW = {
    "shape": lambda x: ((x[:4],), {}),
    "strides": lambda x: ((x.contiguous(memory_format=torch.channels_last),), {}),
    "dtype": lambda x: ((x.double(),), {}),
    "eps": lambda x: ((x,), {"eps": 1e-3}),
    "momentum": lambda x: ((x,), {"momentum": 0.5}),
    "average": lambda x: ((x,), {"momentum": None}),
    "activation": lambda x: ((x,), {"activation": "silu"}),
    "slope": lambda x: ((x,), {"activation": torch.nn.LeakyReLU(0.2)}),
    "evaluation": lambda x: ((x,), {"training": False}),
    "both": lambda x: ((x,), {"training": False, "update": True}),
    "frozen": lambda x: ((x,), {"update": False}),
    "mask": lambda x: ((x,), {"mask": torch.tensor([True, False, True, True, True])}),
    "residual": lambda x: ((x,), {"residual": x * 2}),
    "axis": lambda x: ((x[:, :, :, :6],), {"axis": 3}),
    "plain": lambda x: ((x,), {"backend": "plain"}),
    "corrected": lambda x: ((x,), {"bias_correction": True}),
    "ghosts": lambda x: ((x,), {"ghost_size": 2}),
}


@pytest.mark.parametrize("name", NEW)
def test_whatever_is_new_is_noticed(name):
    args, options = NEW[name](images())
    expected = step(*args, *parameters(6, True, True), **options)
    _familiar.forget()
    base = {"activation": torch.nn.LeakyReLU(0.1)} if name == "slope" else {}
    for _ in range(2):
        step(images(), *parameters(6, True, True), **base)
    assert same(step(*args, *parameters(6, True, True), **options), expected)


BAD = {
    "channels of weight": lambda: {"weight": torch.ones(5)},
    "dtype of weight": lambda: {"weight": torch.ones(6, dtype=torch.int32)},
    "device of weight": lambda: {"weight": torch.ones(6, device="meta")},
    "running_mean": lambda: {"running_mean": torch.zeros(6, requires_grad=True)},
    "momentum": lambda: {"momentum": 1.5},
    "type of momentum": lambda: {"momentum": "0.1"},
    "eps": lambda: {"eps": -1e-5},
    "num_batches_tracked": lambda: {"num_batches_tracked": None, "momentum": None},
}


class Sub(torch.Tensor):
    pass


def half_as_double(t):
    """Of the class, shape and strides of another dtype."""
    t.data = t.data.double()
    return t


CHANGES = {
    "nothing": lambda t: t,
    "no gradient": lambda t: t.detach(),
    "a gradient": lambda t: t.detach().requires_grad_(),
    "data": lambda t: half_as_double(t.detach().clone()),
    "half": lambda t: t.detach().half(),
    "a subclass": lambda t: t.detach().as_subclass(Sub),
    "a parameter": lambda t: torch.nn.Parameter(t.detach()),
    "a sign to come": lambda t: torch._neg_view(t.detach()),
    "on meta": lambda t: t.detach().to("meta"),
    "other strides": lambda t: t.detach().repeat_interleave(2, -1)[..., ::2],
    "expanded": lambda t: t.detach()[..., :1].expand_as(t),
    "one more": lambda t: torch.cat((t, t[:1])).detach(),
    "none": lambda t: None,
}


@pytest.mark.parametrize("which", range(5))
@pytest.mark.parametrize("name", CHANGES)
def test_one_question_to_all_tensors_answers_as_one_to_each(name, which):
    tensors = [images(shape=(5, 6)), *parameters(6, True, True), torch.zeros(6), torch.ones(6)]

    def look(x, weight, bias, mean, var):
        running = Running(mean, var, None, None, 0.1, False, mean is not None)
        return _familiar.look(x, weight, bias, running, True, 1e-5, Activation())

    for _ in range(2):
        known = look(*tensors)
    assert known is not None
    changed = CHANGES[name](tensors[which])
    if changed is None and which == 0:
        return
    other = [*tensors[:which], changed, *tensors[which + 1 :]]
    found = [look(*other) for _ in range(3)]
    _familiar._guards.cache_clear()
    asked = look(*other)
    assert all(one is asked for one in found)
    usual = name in ("nothing", "no gradient", "a gradient", "a parameter") and (
        which < 3 or name in ("nothing", "no gradient")
    )
    assert not usual or asked is known
    assert name != "a subclass" or asked is None


def test_many_kinds_of_the_same_shape_are_all_familiar_or_asked(long):
    """More kinds than are kept: the last ones are asked each time, and get the same."""
    x = images(shape=(5, 6))
    kinds = [
        (lay(x), *parameters(6, *given))
        for lay in (
            lambda t: t,
            lambda t: t.T.contiguous().T,
            lambda t: t.double(),
            torch.Tensor.half,
        )
        for given in ((True, True), (True, False), (False, False))
    ]
    kinds += [(x, *(t.detach() for t in parameters(6, True, True)))]
    expected = [step(*kind) for kind in kinds]
    for _ in range(2):
        assert all(same(step(*kind), one) for kind, one in zip(kinds, expected, strict=True))


def test_sizes_that_are_symbols():
    mode = FakeTensorMode(shape_env=ShapeEnv())
    x = mode.from_tensor(images(), static_shapes=False)
    with mode:
        layer = BatchNorm2d(6)
        assert layer(x).shape == x.shape


@pytest.mark.parametrize("name", BAD)
def test_bad_calls_are_refused_as_ever(name):
    good = {
        "running_mean": torch.zeros(6),
        "running_var": torch.ones(6),
        "weight": torch.ones(6),
        "training": True,
    }
    for _ in range(2):
        batch_norm(images(), **good)
    for _ in range(2):
        with pytest.raises((ValueError, TypeError), match=name.rpartition(" ")[2]):
            batch_norm(images(), **(good | BAD[name]()))


def test_one_value_per_channel_never_becomes_familiar():
    for _ in range(3):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            batch_norm(torch.randn(1, 4), training=True)


def test_a_gradient_that_lies_otherwise(long):
    weight, bias = parameters(6, True, True)
    x = images().requires_grad_()
    batch_norm(x, None, None, weight, bias, True)
    (expected,) = torch.autograd.grad(
        batch_norm(x, None, None, weight, bias, True), x, torch.ones_like(x)
    )
    for dy in (torch.ones(()).expand(x.shape), torch._neg_view(-torch.ones_like(x))):
        (dx,) = torch.autograd.grad(batch_norm(x, None, None, weight, bias, True), x, dy)
        assert torch.equal(dx, expected)
    assert long["backward"] == 2


def test_second_derivatives(long):
    x = images(torch.float64, (3, 2, 4)).requires_grad_()
    weight, bias = parameters(2, True, True, torch.float64)

    def f(x, weight, bias):
        return batch_norm(x, None, None, weight, bias, True, activation="silu")

    f(x, weight, bias)
    assert torch.autograd.gradcheck(f, (x, weight, bias))
    assert torch.autograd.gradgradcheck(f, (x, weight, bias))
    assert long["forward"] == 1
    assert long["backward"] > 0


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_counts_once_and_gives_the_same_gradients(reentrant):
    layer, x = BatchNorm2d(6), images().requires_grad_()
    for _ in range(3):
        y = layer(x)
    (expected,) = torch.autograd.grad(y.sin().sum(), x)
    checkpoint(lambda x: layer(x).sin(), x, use_reentrant=reentrant).sum().backward()
    assert torch.equal(x.grad, expected)
    assert layer.num_batches_tracked.item() == 4


def test_hooks_for_saved_tensors_are_called(long):
    x, kept = images().requires_grad_(), []
    weight, bias = parameters(6, True, True)
    expected = step(x, weight, bias)

    def pack(t):
        kept.append(t.double() if t.is_floating_point() else t)
        return len(kept) - 1

    with torch.autograd.graph.saved_tensors_hooks(pack, kept.__getitem__):
        assert same(step(x, weight, bias), expected)
    assert kept
    assert long["forward"] == 2


def test_a_profile_and_a_mode_see_the_operators(long):
    x, (weight, bias) = images(), parameters(6, True, True)
    for _ in range(2):
        step(x, weight, bias)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step(x, weight, bias)
    names = {event.key for event in profile.key_averages()}
    assert {"batchnorm::train", "batchnorm::backward"} <= names


@pytest.mark.parametrize("activation", [None, "relu"])
def test_a_parameter_whose_data_was_replaced_before_the_backward_pass(activation):
    weight, bias = parameters(6, True, True)
    x = images().requires_grad_()
    for _ in range(2):
        y = batch_norm(x, None, None, weight, bias, True, activation=activation)
    weight.data = torch.ones(2)
    with pytest.raises(RuntimeError, match=r"came back as weight of shape \(2,\)"):
        y.sum().backward()


def test_an_input_whose_data_was_replaced_before_the_backward_pass():
    weight, bias = parameters(6, True, True)
    x = images().requires_grad_()
    for _ in range(2):
        y = batch_norm(x, None, None, weight, bias, True)
    dy = torch.randn_like(x)
    x.data = x.detach().contiguous(memory_format=torch.channels_last)
    got = torch.autograd.grad(y, (x, weight, bias), dy)
    y = batch_norm(x, None, None, weight, bias, True)
    expected = torch.autograd.grad(y, (x, weight, bias), dy.contiguous())
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_an_input_that_came_back_with_its_sign_to_come():
    weight, bias = parameters(6, True, True)
    x, dy = images().requires_grad_(), torch.randn(5, 6, 3, 7)
    y = batch_norm(x, None, None, weight, bias, True)
    expected = torch.autograd.grad(y, (x, weight, bias), dy)
    y = batch_norm(x, None, None, weight, bias, True)
    x.data = torch._neg_view(-x.detach())
    got = torch.autograd.grad(y, (x, weight, bias), dy)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize(
    ("pack", "unpack"),
    [
        (lambda t: -t, torch._neg_view),
        (lambda t: t.float(), lambda t: t),
        (lambda t: t.double(), lambda t: t),
    ],
)
def test_hooks_put_on_what_was_saved(which, calls, pack, unpack):
    weight, bias = parameters(6, True, True)
    x, dy = images().requires_grad_(), torch.randn(5, 6, 3, 7)
    y = batch_norm(x, None, None, weight, bias, True)
    expected = torch.autograd.grad(y, (x, weight, bias), dy)
    _familiar.forget()
    for _ in range(calls):
        y = batch_norm(x, None, None, weight, bias, True)
    y.grad_fn._raw_saved_tensors[which].register_hooks(pack, unpack)
    got = torch.autograd.grad(y, (x, weight, bias), dy)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b.to(a.dtype), rtol=1e-5, atol=1e-5)


def test_a_weight_changed_before_the_backward_pass_is_noticed():
    (weight, bias), x = parameters(6, True, True), images()
    step(x, weight, bias)
    y = batch_norm(x, None, None, weight, bias, True)
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_frozen_parameters_and_data(long):
    x, (weight, bias) = images(), parameters(6, True, True)
    weight.requires_grad_(False)
    expected = step(x, weight, bias)
    assert same(step(x, weight, bias), expected)
    y = batch_norm(x, None, None, weight, bias, True)
    assert torch.equal(torch.autograd.grad(y.sum(), bias)[0], torch.full((6,), 105.0))


def test_an_inference_tensor_is_refused_before_the_statistics_move():
    with torch.inference_mode():
        x = images()
    (weight, bias), mean, var = parameters(6, True, True), torch.zeros(6), torch.ones(6)
    batch_norm(images(), mean.clone(), var.clone(), weight, bias, True)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):
            batch_norm(x, mean, var, weight, bias, True)
    assert mean.abs().max() == 0


def test_what_was_learned_in_inference_mode_serves_second_derivatives():
    _direct.like.cache_clear()
    x, (weight, bias) = images(torch.float64), parameters(6, True, True, torch.float64)
    with torch.inference_mode():
        batch_norm(x, None, None, weight, bias, True)
    x.requires_grad_()
    y = batch_norm(x, None, None, weight, bias, True)
    (dx,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
    assert torch.autograd.grad(dx.square().sum(), weight)[0].abs().sum() > 0


def test_what_was_interrupted_is_learned_later(long, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    made = numba.again
    monkeypatch.setattr(numba, "again", interrupted)
    with pytest.raises(KeyboardInterrupt):
        batch_norm(images(), training=True)
    monkeypatch.setattr(numba, "again", made)
    for _ in range(3):
        batch_norm(images(), training=True)
    assert long["forward"] <= 1


def test_calls_with_a_tensor_twice_crowd_out_no_others(monkeypatch):
    x, (weight, bias) = images().requires_grad_(), parameters(6, True, True)
    for _ in range(12):
        batch_norm(
            x, None, None, weight, bias, True, activation="relu", residual=x
        ).sum().backward()
    guards = []
    find = _guards.Guards.find
    monkeypatch.setattr(
        _guards.Guards, "find", lambda self, tensors: guards.append(self) or find(self, tensors)
    )
    batch_norm(x, None, None, weight, bias, True, activation="relu", residual=x).sum().backward()
    assert len(guards) == 2
    assert not any(one.full() for one in guards)


def test_what_cannot_be_familiar_is_learned_once(monkeypatch):
    asked, made = [], numba.again
    monkeypatch.setattr(numba, "again", lambda *args: asked.append(args) or made(*args))
    cropped = images()[:, :, 1:, 1:-1]
    for _ in range(3):
        batch_norm(cropped, training=True)
    assert len(asked) == 1


def test_switches_that_are_no_bool_are_refused_of_calls_that_were_made_before_too():
    x, mean, var = images(), torch.zeros(6), torch.ones(6)
    for _ in range(2):
        batch_norm(x, mean, var, training=True)
    with pytest.raises(ValueError, match="expected True or False"):
        batch_norm(x, mean, var, training=torch.tensor(True))


def test_a_spoiled_batch_is_kept_out():
    layer = BatchNorm2d(6)
    for _ in range(2):
        layer(images())
    before = layer.running_mean.clone()
    layer(images() * torch.inf)
    assert torch.equal(layer.running_mean, before)
    assert layer.skipped.item() == 1
    assert layer.num_batches_tracked.item() == 2


def test_layers_share_what_is_known(long):
    for _ in range(2):
        layer = BatchNormAct2d(6, "relu")
        layer(images()).sum().backward()
    assert long["forward"] == 1
    layer.eval()(images())
    layer.eval()(images())
    assert long["forward"] == 2


def test_any_number_of_threads_gives_the_same_bits(long):
    x = images(shape=(16, 64, 32, 32))
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            results.append(step(x, *parameters(64, True, True), activation="relu"))
    finally:
        torch.set_num_threads(before)
    assert all(same(one, results[0]) for one in results)
    assert long["forward"] == 1


def test_several_python_threads_at_once():
    xs = [images(shape=(16, 512), seed=k) for k in range(4)]
    expected = [step(x, *parameters(512, True, True)) for x in xs]
    wrong = []

    def work(k):
        for _ in range(60):
            if not same(step(xs[k], *parameters(512, True, True)), expected[k]):
                wrong.append(k)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_a_backend_that_refuses_is_never_remembered(monkeypatch):
    monkeypatch.setattr(numba, "refuses", lambda call: "it is told to")
    x, (weight, bias) = images(), parameters(6, True, True)
    flat = torch.nn.LeakyReLU(0.0)  # of which there is no step of torch's, with other last digits
    expected = step(x, weight, bias, backend="native", activation=flat)
    for _ in range(2):
        assert same(step(x, weight, bias, activation=flat), expected)


def test_what_was_kept_for_observers():
    layer = BatchNorm1d(6)
    for _ in range(2):
        y = layer(torch.randn(5, 6))
    assert y.grad_fn.name() == "BatchNormBackward"
    assert y.grad_fn.moments.shape == (3, 6)
    assert y.grad_fn.fixed is False
    assert layer.eval()(torch.randn(5, 6)).grad_fn.fixed is True
    assert layer(torch.randn(5, 6)).grad_fn.fixed is True
