"""The loop: every example once an epoch, bits that repeat, and nothing borrowed that is kept."""

import random
from itertools import chain

import numpy as np
import pytest
import torch
from torch import nn

from batchnorm.data import Data, Examples, load, split
from batchnorm.layers import BatchNorm1d
from batchnorm.train import OPTIMIZERS, _evaluate, _train, evaluate, seeded, train
from batchnorm.train._repeatable import batches as batches_of


@pytest.fixture(scope="module")
def digits():
    return load("digits8x8")


def model(batch_norm=False, dropout=0.0):
    torch.manual_seed(1)
    norm = [BatchNorm1d(20)] if batch_norm else []
    layers = [nn.Flatten(), nn.Linear(64, 20), *norm, nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(20, 10))


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("n", "size"), [(10, 3), (12, 4), (11, 5), (3, 60), (7, 1), (9, 2)])
def test_every_epoch_is_a_new_permutation_of_all(n, size):
    per_epoch = sum(1 for _ in range(0, n, size)) - (size > 1 and n > size and n % size == 1)
    batches = [b.tolist() for b in batches_of(n, size, 2 * per_epoch, seed=0)]
    epochs = [[*chain(*part)] for part in (batches[:per_epoch], batches[per_epoch:])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(n))
    if n > 3:
        assert epochs[0] != epochs[1]


def test_an_example_left_alone_joins_the_batch_before():
    sizes = [len(b) for b in batches_of(13, 4, 3, seed=0)]
    assert sizes == [4, 4, 5]
    assert [len(b) for b in batches_of(14, 4, 4, seed=0)] == [4, 4, 4, 2]
    assert {len(b) for b in batches_of(5, 1, 5, seed=0)} == {1}, "asked for"


def test_batch_norm_trains_where_the_last_batch_would_hold_one(digits):
    few = Examples(digits.train.x[:61], digits.train.y[:61])
    data = Data("61", few, digits.validation, digits.test, 10, digits.shape)
    assert len(train(model(batch_norm=True), data, steps=3, every=1)) == 4


def test_rows_come_at_zero_every_k_and_last(digits):
    seen = []
    rows = train(model(), digits, steps=25, every=10, on_row=seen.append)
    assert [row["step"] for row in rows] == [0, 10, 20, 25]
    assert seen == rows
    assert rows[0]["loss"] is None
    assert rows[0]["peak_loss"] is None
    assert all(row["loss"] <= row["peak_loss"] for row in rows[1:])
    assert rows[-1]["test_loss"] < rows[0]["test_loss"]


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, "own"])
def test_every_optimizer_learns(digits, optimizer):
    rate = 0.01 if optimizer in ("adam", "rmsprop") else 0.1
    if optimizer == "own":
        optimizer = lambda p: torch.optim.AdamW(p, lr=0.01)  # noqa: E731
    rows = train(model(True), digits, optimizer=optimizer, learning_rate=rate, steps=60, every=60)
    assert rows[-1]["validation_accuracy"] > 0.6


def test_plain_descent_is_the_lectures_update():
    x, y = torch.rand(8, 3), torch.arange(8) % 2
    examples = Examples(x, y)
    data = Data("tiny", examples, examples, examples, 2, (3,))
    net = nn.Linear(3, 2)
    w = net.weight.detach().clone()
    loss = nn.functional.cross_entropy(net(x), y)
    (dw,) = torch.autograd.grad(loss, net.weight)
    rows = train(net, data, learning_rate=0.5, steps=1, batch_size=8, every=1)
    torch.testing.assert_close(net.weight.detach(), w - 0.5 * dw)
    assert rows[-1]["loss"] == pytest.approx(loss.item())


def test_the_same_seed_gives_the_same_bits(digits, one_thread):
    def rows(seed):
        return train(model(True, dropout=0.5), digits, steps=40, seed=seed)

    first = rows(3)
    _ = torch.rand(17), np.random.rand(3), random.random()
    assert rows(3) == first
    assert rows(4) != first


def test_global_random_states_are_given_back(digits):
    class Draws(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model(dropout=0.5)

        def forward(self, x):
            return self.inner(x + np.random.rand() * random.random())

    def states():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()

    net = Draws()
    before = states()
    train(net, digits, steps=5)
    assert states() == before
    with pytest.raises(ZeroDivisionError), seeded(1):
        _ = torch.rand(1), np.random.rand(), random.random(), 1 / 0
    assert states() == before


def test_the_first_row_says_on_how_many_examples_accuracies_are_measured(digits):
    first, last = train(model(), digits, steps=1, every=1)
    assert (first["validation_examples"], first["test_examples"]) == (
        len(digits.validation),
        len(digits.test),
    )
    assert "test_examples" not in last


def test_divergence_is_a_result(digits):
    seen = []
    rows = train(model(), digits, learning_rate=1e30, steps=50, every=1, on_row=seen.append)
    last = rows[-1]
    assert last["diverged"] is True
    assert 0 < last["step"] < 50
    assert {last[k] for k in last if k not in ("step", "diverged")} == {None}
    assert seen == rows


def test_what_is_not_finite_is_none(digits):
    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model()

        def forward(self, x):
            return self.inner(x) if self.training else self.inner(x) * float("nan")

    row = train(Breaks(), digits, steps=1, every=1)[-1]
    assert row["loss"] > 0
    assert row["test_loss"] is row["test_accuracy"] is row["validation_accuracy"] is None


def test_modes_are_given_back_and_frozen_parts_stay_frozen(digits):
    net = model(batch_norm=True, dropout=0.5)
    norm = net[2]
    norm.eval()
    modes = [m.training for m in net.modules()]
    mean = norm.running_mean.clone()
    train(net, digits, steps=3)
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(norm.running_mean, mean)
    net.eval()
    train(net, digits, steps=3)
    assert not any(m.training for m in net.modules())
    assert not torch.equal(norm.running_mean, mean), "a model in evaluation mode is trained"


def test_evaluate_uses_running_averages_one_example_at_a_time(digits):
    net = model(batch_norm=True)
    train(net, digits, steps=50)
    one_by_one = [
        evaluate(net, Examples(digits.test.x[i : i + 1], digits.test.y[i : i + 1]))
        for i in range(20)
    ]
    together = evaluate(net, Examples(digits.test.x[:20], digits.test.y[:20]))
    assert np.mean(one_by_one, axis=0) == pytest.approx(together, rel=1e-5)
    assert net.training


def test_evaluate_in_chunks_equals_all_at_once(monkeypatch, digits):
    net = model()
    whole = evaluate(net, digits.test)
    monkeypatch.setattr(_evaluate, "CHUNK", 7)
    assert evaluate(net, digits.test) == pytest.approx(whole, rel=1e-5)


def test_evaluate_gives_modes_back_when_the_model_raises(digits):
    net = model()
    with pytest.raises(RuntimeError):
        evaluate(net, Examples(torch.rand(4, 3), torch.zeros(4, dtype=torch.long)))
    assert all(m.training for m in net.modules())


def test_any_input_shape_and_double_precision():
    x, y = torch.rand(40, 2, 5, 5), torch.arange(40) % 2
    x[y == 1] += 1
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)).double()
    assert train(net, split("images", x, y), steps=60)[-1]["test_accuracy"] == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"optimizer": "sdg"}, "no optimizer 'sdg': expected one of sgd, momentum, rmsprop, adam"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; expected a finite number above 0"),
        ({"learning_rate": float("inf")}, "learning_rate is inf"),
        ({"steps": 0}, "steps is 0; expected a whole number of at least 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"every": 0}, "every is 0"),
    ],
)
def test_wrong_numbers_are_named(digits, arguments, says):
    with pytest.raises(ValueError, match=says):
        train(model(), digits, **arguments)


@pytest.mark.parametrize(
    ("net", "says"),
    [
        (nn.Flatten(), "Flatten has no parameters that require a gradient"),
        (
            nn.Linear(3, 10),
            r"Linear cannot take inputs of shape \(60, 1, 8, 8\), 60 examples of data 'digits8x8', in evaluation mode: RuntimeError",
        ),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(64, 7)),
            r"gives \(60, 7\) for inputs .* expected logits of shape \(60, 10\): one for each of",
        ),
        (nn.LSTM(8, 10), "LSTM"),
    ],
)
def test_models_that_do_not_fit(digits, net, says):
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=says):
        train(net, digits)
    assert torch.equal(torch.get_rng_state(), before)


class Auxiliary(nn.Module):
    """A second output in training, as Inception and many a segmentation network have."""

    def __init__(self):
        super().__init__()
        self.inner, self.calls = model(batch_norm=True, dropout=0.5), []
        self.register_forward_hook(lambda *_: self.calls.append(1))

    def forward(self, x):
        y = self.inner(x)
        return (y, y) if self.training else y


def test_outputs_that_only_training_gives_are_refused_before_anything_has_changed(digits):
    net, rows = Auxiliary(), []
    net.eval()
    before, state = torch.get_rng_state(), {k: v.clone() for k, v in net.state_dict().items()}
    says = r"Auxiliary gives tuple for .* in training mode; expected logits of .*, one tensor: one"
    with pytest.raises(ValueError, match=says):
        train(net, digits, on_row=rows.append)
    assert rows == net.calls == []
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before)
    assert not net.training


def test_the_trial_call_leaves_no_trace_in_the_rows(digits, monkeypatch, one_thread):
    rows = train(model(batch_norm=True, dropout=0.5), digits, steps=20)
    monkeypatch.setattr(_train, "check_output", lambda *_: False)
    assert train(model(batch_norm=True, dropout=0.5), digits, steps=20) == rows


def test_lazy_layers_take_their_sizes_from_the_data_and_their_weights_from_the_seed(digits):
    def rows(seed):
        net = nn.Sequential(nn.Flatten(), nn.LazyLinear(20), nn.ReLU(), nn.LazyLinear(10))
        out = train(net, digits, steps=60, seed=seed)
        assert net[1].weight.shape == (20, 64)
        return out

    first = rows(0)
    assert first[-1]["test_accuracy"] > 0.5
    assert rows(0)[0] == first[0]
    assert rows(1)[0] != first[0]


def test_a_model_that_overwrites_its_input_does_not_reach_the_data(one_thread):
    class Centres(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.inner = model()

        def forward(self, x):
            x -= 0.5
            return self.inner(x)

    data = load("digits8x8")
    before = data.fingerprint
    rows = train(Centres(), data, steps=20)
    assert train(Centres(), data, steps=20) == rows
    evaluate(Centres(), data.test)
    assert (
        Data("digits8x8", data.train, data.validation, data.test, 10, data.shape).fingerprint
        == before
    )


def test_evaluate_on_nothing():
    nothing = Examples(torch.rand(0, 64), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match="examples is empty"):
        evaluate(model(), nothing)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_device(digits):
    net = model(True, dropout=0.5).cuda()
    before = torch.cuda.get_rng_state()
    rows = train(net, digits, steps=60)
    assert rows[-1]["test_accuracy"] > 0.5
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert evaluate(net, digits.test)[1] == rows[-1]["test_accuracy"]
