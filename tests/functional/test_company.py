"""Who else is about: modes, threads, forks, autocast, anomaly mode, and the same tensor twice."""

import copy
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.overrides import TorchFunctionMode

from batchnorm.functional import batch_norm
from batchnorm.layers import BatchNorm1d, BatchNormAct1d
from modes import Operators

LARGE = (3000, 70)  # for several threads
WAYS = pytest.mark.parametrize("inplace", [False, True])


class Functions(TorchFunctionMode):
    """Notes the functions of torch that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.fixture
def threads():
    """Sets torch's number of threads, and gives it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def leaves(shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(5)
    x, dy = torch.randn(2, *shape, generator=generator, dtype=torch.float64).to(dtype)
    weight, bias = torch.rand(2, shape[1], generator=generator)
    weight, bias = weight + 0.5, bias / 4  # as in place takes them in bfloat16
    return [t.requires_grad_() for t in (x, weight, bias)], dy


def forward(parts, inplace=False, **options):
    """The output, over a copy of the input if in place, with a graph that is free of torch's math."""
    source = parts[0].clone() if inplace else parts[0]
    options = {"activation": "leaky_relu", **options}
    y = batch_norm(source, None, None, *parts[1:], training=True, inplace=inplace, **options)
    assert (y is source) == inplace
    return y


def same(ours, others):
    return all(torch.equal(a, b) for a, b in zip(ours, others, strict=True))


@pytest.mark.parametrize("mode", [Functions, Operators])
@WAYS
def test_a_mode_sees_the_operators_of_the_forward_pass(mode, inplace):
    with mode() as seen:
        batch_norm(torch.randn(6, 3), torch.zeros(3), torch.ones(3), training=True, inplace=inplace)
    assert any("batchnorm" in name and "train" in name for name in seen.names)
    assert any("update_running_" in name for name in seen.names)


def test_a_mode_around_the_backward_pass_alone_sees_its_operator():
    parts, dy = leaves((6, 3))
    expected = torch.autograd.grad(forward(parts), parts, dy)
    y = forward(parts)
    with Operators() as seen:
        got = torch.autograd.grad(y, parts, dy)
    assert "batchnorm::backward" in seen.names
    assert same(got, expected)


def test_a_mode_around_the_backward_pass_in_place_sees_what_computes():
    parts, dy = leaves((6, 3))
    expected = torch.autograd.grad(forward(parts, True), parts, dy)
    y = forward(parts, True)
    with Operators() as seen:
        got = torch.autograd.grad(y, parts, dy)
    assert "aten::sum.dim_IntList" in seen.names
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


@WAYS
def test_the_number_of_threads_may_change_between_the_passes(inplace, threads):
    parts, dy = leaves(LARGE)
    seen = []
    for before, after in ((1, 1), (1, 3), (3, 1), (2, 5)):
        threads(before)
        y = forward(parts, inplace)
        threads(after)
        seen.append([y.detach(), *torch.autograd.grad(y, parts, dy)])
    assert all(same(one, seen[0]) for one in seen)


@WAYS
def test_python_threads_train_layers_of_their_own_at_once(inplace, threads):
    threads(2)
    (x, *_), dy = leaves(LARGE)

    def train(k):
        layer = BatchNormAct1d(LARGE[1], "leaky_relu", inplace=inplace)
        leaf = (x.detach() + k).requires_grad_()
        for _ in range(3):
            layer(leaf.clone()).backward(dy)
        return [leaf.grad, *(p.grad for p in layer.parameters()), *layer.state_dict().values()]

    alone = [train(k) for k in range(6)]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(4):
            assert all(same(a, b) for a, b in zip(pool.map(train, range(6)), alone, strict=True))


def test_python_threads_that_share_a_layer_lose_no_count(threads):
    threads(2)
    layer, x = BatchNorm1d(8), torch.randn(4, 8)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: [layer(x) for _ in range(250)], range(4)))
    assert layer.num_batches_tracked == 1000


@WAYS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("around", ["forward", "backward", "both"])
def test_autocast_changes_nothing_whichever_pass_it_is_around(inplace, dtype, around):
    parts, dy = leaves((12, 3), dtype)
    y = forward(parts, inplace)
    expected = [y.detach().clone(), *torch.autograd.grad(y, parts, dy)]
    with torch.autocast("cpu", torch.bfloat16, enabled=around != "backward"):
        y = forward(parts, inplace)
    with torch.autocast("cpu", torch.bfloat16, enabled=around != "forward"):
        gradients = torch.autograd.grad(y, parts, dy)
    assert same([y.detach(), *gradients], expected)


def test_second_derivatives_under_autocast_keep_their_digits():
    parts, dy = leaves((12, 3))
    wide = [t.detach().double().requires_grad_() for t in parts]

    def penalty(parts, dy):
        (dx,) = torch.autograd.grad(
            forward(parts, activation="silu"), parts[0], dy, create_graph=True
        )
        return torch.autograd.grad((dx**2).sum(), parts)

    right = penalty(wide, dy.double())
    with torch.autocast("cpu", torch.bfloat16):
        got = penalty(parts, dy)
    for a, b in zip(got, right, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4 * b.abs().max().item())


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize(("inplace", "name"), [(False, "BatchNorm"), (True, "BatchNormInPlace")])
def test_anomaly_mode_finds_the_gradient_that_became_nan(inplace, name):
    parts, dy = leaves((6, 3))
    expected = torch.autograd.grad(forward(parts, inplace), parts, dy)
    with torch.autograd.detect_anomaly():
        assert same(torch.autograd.grad(forward(parts, inplace), parts, dy), expected)
        with pytest.raises(RuntimeError, match=f"'{name}Backward' returned nan values in its 0th"):
            forward(parts, inplace).backward(dy * torch.nan)


@WAYS
def test_a_copy_of_a_layer_takes_no_graph_with_it(inplace):
    layer, (x, *_) = BatchNormAct1d(3, "leaky_relu", inplace=inplace), leaves((6, 3))[0]
    y = layer(x.clone())
    twin = copy.deepcopy(layer)
    y.square().sum().backward()
    assert layer.weight.grad is not None
    assert twin.weight.grad is None
    before = layer.running_mean.clone()
    twin(x.clone())
    assert torch.equal(layer.running_mean, before)
    assert not torch.equal(twin.running_mean, before)


@WAYS
@pytest.mark.parametrize("kind", ["identity", "leaky_relu", "elu"])
def test_a_graph_that_is_kept_gives_the_same_gradients_again_and_one_that_is_not_says_so(
    inplace, kind
):
    parts, dy = leaves((64, 3))
    y = forward(parts, inplace, activation=kind)
    first = torch.autograd.grad(y, parts, dy, retain_graph=True)
    assert same(torch.autograd.grad(y, parts, dy, retain_graph=True), first)
    y.backward(dy)
    assert same([t.grad for t in parts], first)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.backward(dy)


@WAYS
def test_a_weight_that_is_the_bias_too_gets_both_gradients(inplace):
    (x, weight, _), dy = leaves((64, 3))
    (both,) = torch.autograd.grad(forward((x, weight, weight), inplace), weight, dy)
    apart = weight.detach().clone().requires_grad_()
    one, other = torch.autograd.grad(forward((x, weight, apart), inplace), (weight, apart), dy)
    torch.testing.assert_close(both, one + other)


@WAYS
@pytest.mark.parametrize("name", ["running_mean", "running_var"])
def test_a_weight_that_a_running_statistic_overwrites_gives_no_wrong_gradient(inplace, name):
    """Torch's own returns one: it saves the weight, and moves it behind autograd's back."""
    (x, weight, bias), dy = leaves((64, 3))
    running = {"running_mean": torch.zeros(3), "running_var": torch.ones(3), name: weight.detach()}
    kept = {k: t.clone() for k, t in running.items()}
    apart = batch_norm(x.clone(), **kept, weight=weight.detach().clone(), bias=bias, training=True)
    y = batch_norm(x.clone(), **running, weight=weight, bias=bias, training=True, inplace=inplace)
    assert torch.equal(y, apart)
    assert torch.equal(weight, kept[name])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward(dy)


def test_running_statistics_in_one_tensor_are_moved_one_after_the_other():
    (x, *_), _ = leaves((64, 3))
    both, apart = torch.zeros(3), (torch.zeros(3), torch.zeros(3))
    batch_norm(x, both, both, training=True)
    batch_norm(x, *apart, training=True)
    torch.testing.assert_close(both, apart[0] * 0.9 + apart[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
@WAYS
def test_a_child_forked_between_the_passes_has_the_parents_gradients(inplace, threads):
    threads(2)
    parts, dy = leaves(LARGE)
    y = forward(parts, inplace)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(60)
        gradients = torch.autograd.grad(y, parts, dy)
        os.write(writing, b"".join(t.flatten()[-1000:].numpy().tobytes() for t in gradients))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as theirs:
        got = theirs.read()
    assert os.waitpid(child, 0)[1] == 0
    gradients = torch.autograd.grad(y, parts, dy)
    assert got == b"".join(t.flatten()[-1000:].numpy().tobytes() for t in gradients)
