"""In place, calls that were made before: the same bits, and all that may change is looked at."""

import copy
import logging
import threading

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from batchnorm import BatchNormAct1d, BatchNormAct2d
from batchnorm.functional import _familiar, batch_norm
from batchnorm.kernels import _in_place, numba
from long_way import counted, same
from oracle import laid_out

LEAKY = torch.nn.LeakyReLU(0.3)
KINDS = [None, LEAKY, "elu"]


@pytest.fixture
def long(monkeypatch):
    """Counts what went the long way: the writing over the input, and gradients from the output."""
    return counted(
        monkeypatch,
        forward=(_in_place, "forward"),
        backward=(numba, "backward_from_output"),
    )


def images(dtype=torch.float32, shape=(5, 6, 3, 7), layout="contiguous", seed=0):
    g = torch.Generator().manual_seed(seed)
    return laid_out(torch.randn(shape, generator=g).to(dtype), layout)


def parameters(channels, weight=True, bias=True, dtype=torch.float32):
    g = torch.Generator().manual_seed(3)
    made = torch.rand(channels, generator=g) + 0.5, torch.rand(channels, generator=g) * 0.8 - 0.4
    made = [t.to(dtype).requires_grad_() for t in made]
    return made[0] if weight else None, made[1] if bias else None


def step(x, weight, bias, training=True, mode=torch.enable_grad, graph=True, **options):
    """Everything that a call gives, and whether the input was overwritten."""
    channels = x.shape[1]
    running = [torch.full((channels,), 0.25), torch.full((channels,), 2.0), torch.tensor(3)]
    leaf = x.detach().requires_grad_(graph)
    over = torch.empty_like(leaf).copy_(leaf) if graph else x.clone()
    with mode():
        y = batch_norm(
            over, *running[:2], weight, bias, training, num_batches_tracked=running[2],
            **{"inplace": True, **options},
        )  # fmt: skip
    if not (graph and mode is torch.enable_grad):
        return [y.detach(), *running], y is over
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(5)).to(y.dtype)
    dy = torch.empty_like(y).copy_(dy)
    leaves = [t for t in (leaf, weight, bias) if t is not None and t.requires_grad]
    return [y.detach(), *torch.autograd.grad(y, leaves, dy), *running], y is over


def warm(x, weight, bias, long, **options):
    """The call is familiar from here on."""
    for _ in range(2):
        result = step(x, weight, bias, **options)
    assert long["forward"] <= 1, "the second went the long way too"
    return result


@pytest.mark.parametrize("activation", KINDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
@pytest.mark.parametrize(
    ("weight", "bias"), [(True, True), (True, False), (False, True), (False, False)]
)
@pytest.mark.parametrize("shape", [(64, 6), (5, 6, 3, 7), (9, 6, 2, 2)])
def test_the_same_bits_as_the_long_way(activation, layout, weight, bias, shape, long):
    x, options = images(shape=shape, layout=layout), {"activation": activation}
    expected, overwritten = step(x, *parameters(6, weight, bias), **options)
    assert overwritten
    taken = dict(long)
    for _ in range(3):
        got, overwritten = step(x, *parameters(6, weight, bias), **options)
        assert overwritten
        assert same(got, expected)
    assert long == taken == {"forward": 1, "backward": 1}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("of_parameters", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("activation", KINDS)
def test_other_dtypes(dtype, of_parameters, activation, long):
    x, options = images(dtype), {"activation": activation}
    expected = step(x, *parameters(6, dtype=of_parameters), **options)
    taken = dict(long)
    assert expected[1] == (dtype is torch.float64 or activation != "elu")
    got = step(x, *parameters(6, dtype=of_parameters), **options)
    assert same(got[0], expected[0])
    assert got[1] == expected[1]
    assert long == taken or not got[1]


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", KINDS)
@pytest.mark.parametrize("graph", [True, False])
def test_other_modes(mode, training, activation, graph, long):
    x, options = images(), {"training": training, "activation": activation, "mode": mode}
    (weight, bias), options["graph"] = parameters(6), graph
    if not graph:
        weight, bias = weight.detach(), bias.detach()
    expected = step(x, weight, bias, **options)
    for _ in range(2):
        got = step(x, weight, bias, **options)
        assert same(got[0], expected[0])
        assert got[1] == expected[1]
    step(x, weight, bias, activation=activation)  # learns in a mode, serves in another
    got = step(x, weight, bias, **options)
    assert same(got[0], expected[0])


@pytest.mark.parametrize(
    "shape", [(0, 6, 2), (5, 0, 3), (3, 1, 4), (4, 6, 1, 1), (2, 3, 40, 40, 9)]
)
def test_other_shapes(shape, long):
    x, options = images(shape=shape), {"training": True}
    options["training"] = x.numel() > 0
    expected = step(x, *parameters(shape[1]), **options)
    got = step(x, *parameters(shape[1]), **options)
    assert same(got[0], expected[0])
    assert got[1] == expected[1]


def reason(caplog, call):
    """What the log tells of a call that falls back."""
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="batchnorm"):
        call()
    (record,) = caplog.records
    return record.getMessage()


CHANGES = {
    "a weight of 0 cannot": {"weight": lambda w: w.index_fill(0, torch.tensor([2]), 0.0)},
    "a weight of 1e-31 cannot": {"weight": lambda w: w.index_fill(0, torch.tensor([5]), 1e-31)},
    "must be at most": {"weight": lambda w: w.index_fill(0, torch.tensor([0]), 1e36)},
    "a weight of nan cannot": {"weight": lambda w: w.index_fill(0, torch.tensor([4]), torch.nan)},
    "a bias of 99 is more than": {"bias": lambda b: b.index_fill(0, torch.tensor([5]), 99.0)},
    "a bias of nan": {"bias": lambda b: b.index_fill(0, torch.tensor([0]), torch.nan)},
    "more than 0 times": {"x": torch.ones_like},
    "more than nan times": {"x": lambda x: x.index_fill(0, torch.tensor([0]), torch.nan)},
}


@pytest.mark.parametrize("words", CHANGES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", KINDS)
def test_values_that_lose_digits_after_some_that_did_not(words, layout, activation, caplog, long):
    parts = dict(zip(("x", "weight", "bias"), (images(layout=layout), *parameters(6)), strict=True))
    warm(*parts.values(), long, activation=activation)
    for name, change in CHANGES[words].items():
        with torch.no_grad():
            parts[name] = change(parts[name].detach()).requires_grad_()
    got = []
    assert words in reason(caplog, lambda: got.append(step(*parts.values(), activation=activation)))
    assert not got[0][1]
    expected, _ = step(*parts.values(), activation=activation, inplace=False)
    for a, b in zip(got[0][0], expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_elu_that_saturates_after_one_that_did_not(layout, sign, dtype, caplog, long):
    x, (weight, bias) = images(dtype, (40, 6, 5, 5), layout), parameters(6)
    weight = (weight.detach() * sign).requires_grad_()
    before = step(x, weight, bias, activation="elu")
    assert before[1]
    far = x.clone()
    far[7, 3, 2, 1] = -30 * sign
    got = []
    assert "in channel 3 elu(1)" in reason(
        caplog, lambda: got.append(step(far, weight, bias, activation="elu"))
    )
    expected, _ = step(far, weight, bias, activation="elu", inplace=False)
    assert same(got[0][0], expected)
    assert same(step(x, weight, bias, activation="elu")[0], before[0])
    assert long["forward"] == 2


def layer_and_leaf(long, activation="leaky_relu", **options):
    """A layer whose calls on such input are familiar."""
    layer = BatchNormAct1d(3, activation, inplace=True, **options)
    leaf = torch.randn(8, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    for _ in range(2):
        layer(leaf * 1).sum().backward()
    assert long["forward"] == 1
    leaf.grad = None
    layer.zero_grad()
    return layer, leaf


def test_what_autograd_saved_is_not_overwritten(caplog, long):
    layer, leaf = layer_and_leaf(long, "identity")
    assert reason(caplog, lambda: layer(leaf)).endswith("is a leaf that requires a gradient")
    assert "is a view" in reason(caplog, lambda: layer((leaf.expand(2, 8, 3) * 1)[1]))
    saved = leaf.sigmoid()
    assert "SigmoidBackward0 saved its output" in reason(caplog, lambda: layer(saved))
    layer(saved).square()[:4].sum().backward()
    (expected,) = torch.autograd.grad(
        batch_norm(leaf.sigmoid(), training=True).square()[:4].sum(), leaf
    )
    torch.testing.assert_close(leaf.grad, expected)


def test_what_a_branch_saved_is_told_by_autograd(long):
    layer, leaf = layer_and_leaf(long)
    x = leaf * 1
    branch = x.square()
    y = layer(x)
    assert y is x
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (y + branch).sum().backward()
    part = leaf * 1
    branch = part[:3].exp() * part[:3]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (layer(part)[:3] + branch).sum().backward()


def test_what_is_overwritten_later_is_told_by_autograd(long):
    layer, leaf = layer_and_leaf(long)
    y = layer(leaf * 1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.relu_(y).sum().backward()
    for parameter in (layer.weight, layer.bias):
        y = layer(leaf * 1)
        with torch.no_grad():
            parameter.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


@pytest.mark.parametrize(
    ("pack", "unpack"),
    [(lambda t: t, lambda t: t), (lambda t: t.detach().numpy(), torch.from_numpy)],
)
@pytest.mark.parametrize("during", [True, False])
def test_what_hooks_keep_in_the_same_memory_is_not_overwritten(pack, unpack, during, long):
    layer, leaf = layer_and_leaf(long, "identity")
    with saved_tensors_hooks(pack, unpack):
        x = leaf.sigmoid()
        y = layer(x) if during else None
    y = y if during else layer(x)
    (got,) = torch.autograd.grad(y.square()[:4].sum(), leaf)
    exact = batch_norm(leaf.sigmoid(), training=True)
    (expected,) = torch.autograd.grad(exact.square()[:4].sum(), leaf)
    torch.testing.assert_close(got, expected)


SHARED = ["weight", "bias", "running_mean", "running_var"]


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("graph", [True, False])
def test_what_shares_memory_is_not_overwritten(name, graph, caplog, long):
    def call():
        x = torch.rand(42, generator=torch.Generator().manual_seed(1))[6:].view(6, 6)
        x.requires_grad_(graph)
        parts = {"running_mean": torch.zeros(6), "running_var": torch.ones(6)}
        parts |= {"weight": torch.ones(6), "bias": torch.zeros(6)}
        return (x * 1 if graph else x), parts

    for _ in range(2):
        x, parts = call()
        assert batch_norm(x, training=True, inplace=True, **parts) is x
    x, parts = call()
    alone = {**parts, name: x.detach()[1].clone()}
    expected = batch_norm(x.clone(), training=True, **alone)
    parts[name] = x.detach()[1]
    made = []
    said = reason(caplog, lambda: made.append(batch_norm(x, training=True, inplace=True, **parts)))
    assert said.startswith(f"batch norm not in place: {name} shares memory")
    assert torch.equal(made[0], expected)


def test_tensors_made_in_inference_mode(caplog, long):
    layer, leaf = layer_and_leaf(long)
    with torch.inference_mode():
        x = leaf * 1
        assert layer(x) is x
    before = layer.running_mean.clone(), x.clone()
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):
        layer(x)
    assert torch.equal(layer.running_mean, before[0])
    assert torch.equal(x, before[1])


def test_grad_mode_switched_between_calls(long):
    layer, leaf = layer_and_leaf(long)
    twin = copy.deepcopy(layer)
    x = leaf.detach() * 1
    with torch.no_grad():
        y = layer(x)
        assert y is x
        assert not y.requires_grad
        kept = leaf * 1
    with torch.no_grad():
        z = layer(leaf.clone())
    assert torch.equal(y, z)
    y = layer(kept)
    y.sum().backward()
    expected = twin(leaf * 1)
    assert torch.equal(y, expected)
    assert leaf.grad is None


def test_evaluation_after_training_and_back(long):
    layer, leaf = layer_and_leaf(long)
    fresh = copy.deepcopy(layer)
    fresh.inplace = False
    for training in (False, False, True, False, True):
        grads = []
        for one in (layer, fresh):
            one.train(training)
            y = one(leaf * 1)
            grads.append(torch.autograd.grad(y.square().sum(), (leaf, one.weight, one.bias)))
            grads[-1] += (y.detach(),)
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert torch.equal(layer.running_mean, fresh.running_mean)
    assert torch.equal(layer.running_var, fresh.running_var)
    assert layer.num_batches_tracked == fresh.num_batches_tracked == 4


def test_a_layers_options_changed_between_calls(long):
    layer, leaf = layer_and_leaf(long)
    changes = [("eps", 1e-2), ("momentum", 0.5), ("momentum", None), ("inplace", False)]
    changes += [("inplace", True), ("bias_correction", True), ("statistics", "running")]
    for name, value in changes:
        setattr(layer, name, value)
        twin = copy.deepcopy(layer)
        _familiar.forget()
        expected = twin(leaf * 1)
        _familiar.forget()
        layer_and_leaf({"forward": 1})
        y = layer(leaf * 1)
        assert torch.equal(y, expected), name
        assert torch.equal(layer.running_mean, twin.running_mean), name
        assert torch.equal(layer.running_var, twin.running_var), name
    y = layer(leaf * 1)
    layer.weight = torch.nn.Parameter(torch.full((3,), 2.0).double())
    assert torch.equal(layer(leaf * 1).dtype is torch.float32 and y, y)


def test_frozen_parameters_and_data(long):
    x = images()
    weight, bias = parameters(6)
    expected, _ = warm(x, weight, bias, long)
    taken = long["backward"]
    y = batch_norm(x.clone(), None, None, weight, bias, True, inplace=True)
    got = torch.autograd.grad(y, (weight, bias), images(seed=9))
    z = batch_norm(x.clone(), None, None, weight, bias, True)
    for a, b in zip(got, torch.autograd.grad(z, (weight, bias), images(seed=9)), strict=True):
        torch.testing.assert_close(a, b)
    weight.requires_grad_(False)
    got, overwritten = step(x, weight, bias)
    assert overwritten
    assert same(got, [expected[0], expected[1], *expected[3:]])
    assert long["backward"] > taken


def test_data_replaced_before_the_backward_pass(long):
    (weight, bias), x = parameters(6), images().requires_grad_()
    warm(x, weight, bias, long)
    dy = images(seed=9)
    y = batch_norm(x * 1, None, None, weight, bias, True, inplace=True)
    expected = torch.autograd.grad(y, (x, weight, bias), dy)
    y = batch_norm(x * 1, None, None, weight, bias, True, inplace=True)
    y.data = y.detach().contiguous(memory_format=torch.channels_last)
    got = torch.autograd.grad(y, (x, weight, bias), dy)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)
    y = batch_norm(x * 1, None, None, weight, bias, True, inplace=True)
    weight.data = torch.ones(2)
    with pytest.raises(RuntimeError, match=r"came back as weight of shape \(2,\)"):
        y.sum().backward()


def test_gradients_that_lie_otherwise(long):
    (weight, bias), x = parameters(6), images().requires_grad_()
    warm(x, weight, bias, long)

    def dx(dy):
        y = batch_norm(x * 1, None, None, weight, bias, True, inplace=True)
        return torch.autograd.grad(y, (x, weight, bias), dy)[0]

    dx(torch.ones_like(x))
    taken = long["backward"]
    expected = dx(torch.ones_like(x))
    assert long["backward"] == taken
    assert torch.equal(dx(torch.ones(()).expand(x.shape)), expected)
    torch.testing.assert_close(dx(torch._neg_view(-torch.ones_like(x))), expected)


@pytest.mark.parametrize("which", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("pack", "unpack"),
    [
        (lambda t: -t, torch._neg_view),
        (lambda t: t.double(), lambda t: t),
        (lambda t: t.float(), lambda t: t),
    ],
)
def test_hooks_put_on_what_was_saved(which, pack, unpack, long):
    (weight, bias), x = parameters(6), images().requires_grad_()
    warm(x, weight, bias, long, activation=LEAKY)
    dy = images(seed=9)

    def call():
        return batch_norm(x * 1, None, None, weight, bias, True, activation=LEAKY, inplace=True)

    expected = torch.autograd.grad(call(), (x, weight, bias), dy)
    y = call()
    y.grad_fn._raw_saved_tensors[which].register_hooks(pack, unpack)
    got = torch.autograd.grad(y, (x, weight, bias), dy)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b.to(a.dtype), rtol=1e-5, atol=1e-5)


def test_gradients_twice_and_twice_differentiated(long):
    layer, leaf = layer_and_leaf(long)
    dy = torch.randn(8, 3)
    y = layer(leaf * 1)
    first = torch.autograd.grad(y, (leaf, layer.weight, layer.bias), dy, retain_graph=True)
    again = torch.autograd.grad(y, (leaf, layer.weight, layer.bias), dy)
    assert same(again, first)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.backward(dy)
    y = layer(leaf * 1)
    (dx,) = torch.autograd.grad(y.square().sum(), leaf, create_graph=True)
    with pytest.raises(
        RuntimeError, match=r"inplace=True has no second derivatives.*inplace=False"
    ):
        dx.sum().backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_under_checkpointing(reentrant, long):
    layer, leaf = layer_and_leaf(long, "elu")
    counted = layer.num_batches_tracked.item()
    (expected,) = torch.autograd.grad(layer(leaf * 2).square().sum(), leaf)
    before = copy.deepcopy(layer.state_dict())
    checkpoint(lambda t: layer(t * 2).square(), leaf, use_reentrant=reentrant).sum().backward()
    assert torch.equal(leaf.grad, expected)
    assert layer.num_batches_tracked == counted + 2
    assert not torch.equal(before["running_mean"], layer.running_mean)


def test_a_profile_sees_what_computes(long):
    x, (weight, bias) = images(), parameters(6)
    expected, _ = warm(x, weight, bias, long)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        got, overwritten = step(x, weight, bias)
    assert not overwritten
    assert "batchnorm::train" in {event.key for event in profile.key_averages()}
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_spoiled_batch_is_kept_out(long):
    layer = BatchNormAct2d(6, bias=False, activation="identity", inplace=True)
    for _ in range(2):
        x = images()
        assert layer(x * 1) is not x
    before = layer.running_mean.clone()
    layer(images() * torch.inf)
    assert torch.equal(layer.running_mean, before)
    assert layer.skipped.item() == 1
    assert layer.num_batches_tracked.item() == 2


def test_layers_share_what_is_known_and_a_copy_takes_no_graph_with_it(long):
    _, leaf = layer_and_leaf(long)
    twin = BatchNormAct1d(3, "leaky_relu", inplace=True)
    y = twin(leaf * 1)
    other = copy.deepcopy(twin)
    y.sum().backward()
    assert long["forward"] == 1
    assert other.weight.grad is None
    assert twin.weight.grad is not None


def test_any_number_of_threads_gives_the_same_bits(long):
    x = images(shape=(16, 64, 32, 32))
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            results.append(step(x, *parameters(64), activation=LEAKY)[0])
    finally:
        torch.set_num_threads(before)
    assert all(same(one, results[0]) for one in results)
    assert long["forward"] == 1


@pytest.mark.parametrize("activation", [LEAKY, "elu"])
def test_several_python_threads_at_once(activation, long):
    xs = [images(shape=(16, 512), seed=k) for k in range(4)]
    xs[3][2, 5] = 1e4  # saturates
    expected = [step(x, *parameters(512), activation=activation) for x in xs]
    wrong = []

    def work(k):
        for _ in range(60):
            got = step(xs[k], *parameters(512), activation=activation)
            if not same(got[0], expected[k][0]) or got[1] != expected[k][1]:
                wrong.append(k)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_without_numba_every_call_goes_the_long_way(monkeypatch, long):
    monkeypatch.setattr(numba, "refuses", lambda call: "it is gone")
    x, (weight, bias) = images(), parameters(6)
    expected = step(x, weight, bias)
    for _ in range(2):
        got = step(x, weight, bias)
        assert same(got[0], expected[0])
        assert got[1]
    assert long["forward"] == 3


@pytest.mark.parametrize("activation", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_nothing_is_written_that_the_long_way_would_not_write(activation, dtype, long):
    """Random calls about the limits."""
    g = torch.Generator().manual_seed(7)
    verdicts = []
    for _ in range(300):
        x = images(dtype, (24, 6, 2, 2), seed=len(verdicts))
        x = x * 10 ** torch.empty(6, 1, 1).uniform_(-4, 0, generator=g)
        weight = torch.empty(6).uniform_(-4, 0.5, generator=g).exp()
        weight *= torch.randn(6, generator=g).sign()
        far = 1.0 if dtype is torch.bfloat16 else 16.0
        bias = weight * far * torch.empty(6).uniform_(-1.02, 1.02, generator=g)
        bias = bias if activation != "elu" else bias.clamp(-2, 2)
        parts = x.to(dtype), weight.requires_grad_(), bias.requires_grad_()
        got = step(*parts, activation=activation)
        _familiar.forget()
        expected = step(*parts, activation=activation)
        assert got[1] == expected[1]
        assert same(got[0], expected[0])
        step(images(dtype, (24, 6, 2, 2)), *parameters(6), activation=activation)
        verdicts.append(got[1])
    if activation != "elu" or dtype is not torch.bfloat16:
        assert 30 < sum(verdicts) < 290, sum(verdicts)
