"""What an inserted batch norm computes, and what the model and its result share."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from batchnorm.layers import BatchNorm1d, BatchNorm2d
from batchnorm.surgery import insert


class Digits(nn.Module):
    """The usual first network: functional activations, pooling, dropout, a reshape."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3)
        self.conv2 = nn.Conv2d(4, 6, 3)
        self.fc1 = nn.Linear(24, 12)
        self.fc2 = nn.Linear(12, 5)

    def forward(self, x):
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = self.conv2(x).relu()
        x = F.max_pool2d(x, 2).flatten(1)
        x = F.dropout(torch.sigmoid(self.fc1(x)), 0.5, training=self.training)
        return F.log_softmax(self.fc2(x), dim=1)


def as_identity(model):
    """Evaluation at gamma = sqrt(var + eps) and beta = mean, the identity of the lecture."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.weight.copy_((module.running_var + module.eps).sqrt())
                module.bias.copy_(module.running_mean)
    return model.eval()


@pytest.fixture
def digits():
    return torch.randn(8, 1, 16, 16)


def test_before_puts_it_between_layer_and_activation(digits):
    model = Digits()
    changes = insert(model)
    assert [path for path, _ in changes.changed] == ["conv1", "conv2", "fc1"]
    assert changes.changed[0][1] == "BatchNorm2d(4) before relu; bias dropped"
    assert changes.changed[2][1] == "BatchNorm1d(12) before sigmoid; bias dropped"
    assert changes.skipped == [("fc2", "no activation follows: its output goes to log_softmax")]
    assert changes.error is None
    new = changes.model
    assert type(new) is Digits
    assert type(new.conv1[1]) is BatchNorm2d
    assert type(new.fc1[1]) is BatchNorm1d
    assert new.fc1[1].axis == 1  # flatten settles that a row is an example
    assert "conv1.0.bias" not in new.state_dict()
    new(digits).sum().backward()


def test_before_computes_what_the_lecture_says(digits):
    model = Digits()
    new = insert(model, example=digits).model.train()
    z = F.conv2d(digits, model.conv1.weight)  # z = W a, without b
    mean, var = z.mean((0, 2, 3), keepdim=True), z.var((0, 2, 3), unbiased=False, keepdim=True)
    torch.testing.assert_close(new.conv1(digits), (z - mean) / (var + 1e-5).sqrt())


def test_dropping_the_bias_changes_nothing_in_training(digits):
    model = Digits().double()
    x = digits.double()
    dropped = insert(model).model.train()
    for parameter in (model.conv1.bias, model.conv2.bias, model.fc1.bias):
        parameter.data.add_(3.0)
    kept = copy.deepcopy(dropped)
    for name in ("conv1", "conv2", "fc1"):
        getattr(kept, name)[0].bias = nn.Parameter(getattr(model, name).bias.detach().clone())
    torch.manual_seed(1)
    first = dropped(x)
    torch.manual_seed(1)
    second = kept(x)
    torch.testing.assert_close(first, second, rtol=0, atol=1e-12)
    second.square().sum().backward()
    for name in ("conv1", "conv2", "fc1"):
        assert getattr(kept, name)[0].bias.grad.abs().max() < 1e-12
        assert getattr(kept, name)[0].weight.grad.abs().max() > 1e-6


def test_as_the_identity_it_computes_what_the_model_computes_without_bias(digits):
    model = Digits()
    with torch.no_grad():
        for layer in (model.conv1, model.conv2, model.fc1):
            layer.bias.zero_()
    new = as_identity(insert(model).model)
    torch.testing.assert_close(new(digits), model.eval()(digits))


def test_with_beta_as_the_dropped_bias_it_computes_what_the_model_computes(digits):
    model = Digits()
    new = as_identity(insert(model).model)
    with torch.no_grad():
        for name in ("conv1", "conv2", "fc1"):
            getattr(new, name)[1].bias.add_(getattr(model, name).bias)
    torch.testing.assert_close(new(digits), model.eval()(digits))


def test_after_normalizes_the_activations_value(digits):
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(784, 2)
    )
    changes = insert(model, "after")
    assert changes.changed == [("1", "BatchNorm2d(4) after it, on 0")]
    new = changes.model.train()
    a = F.relu(model[0](digits))
    mean, var = a.mean((0, 2, 3), keepdim=True), a.var((0, 2, 3), unbiased=False, keepdim=True)
    torch.testing.assert_close(new[:2](digits), (a - mean) / (var + 1e-5).sqrt())
    assert new[0].bias is model[0].bias  # not redundant here: the activation comes between
    torch.testing.assert_close(as_identity(new)(digits), model.eval()(digits))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(6, 5)
        self.fc2 = nn.Linear(5, 4)
        self.fc3 = nn.Linear(4, 3)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.fc3(self.relu(self.fc2(self.relu(self.fc1(x)))))


def test_after_a_reused_or_functional_activation_it_goes_in_front_of_the_consumer():
    model = Mlp()
    changes = insert(model, "after", torch.randn(4, 6))
    assert changes.changed == [
        ("fc2", "BatchNorm1d(5) in front of it, after relu of fc1"),
        (
            "fc3",
            "BatchNorm1d(4) in front of it, after relu of fc2; otherwise left alone, "
            "no activation follows: its output is the model's output",
        ),
    ]
    assert changes.skipped == []
    x = torch.randn(7, 6)
    a = F.batch_norm(F.relu(model.fc1(x)), None, None, training=True)
    a = F.batch_norm(F.relu(model.fc2(a)), None, None, training=True)
    torch.testing.assert_close(changes.model.train()(x), model.fc3(a))


def test_after_is_refused_where_no_single_module_takes_the_value():
    changes = insert(Digits(), "after")
    assert changes.changed == [
        (
            "conv2",
            "BatchNorm2d(4) in front of it, after relu of conv1; otherwise left alone, "
            "relu is not a module of its own, and its value goes to max_pool2d, "
            "not straight into one module",
        )
    ]
    reasons = dict(changes.skipped)
    assert list(reasons) == ["fc1", "fc2"]
    assert "goes to dropout, not straight" in reasons["fc1"]


def test_after_an_activation_that_is_called_twice_says_so():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.one, self.two = nn.ReLU(), nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.act(self.two(self.act(self.one(x)).flatten(1)))

    changes = insert(Twice(), "after", example=torch.randn(2, 4))
    assert "relu is called 2 times, and its value goes to" in dict(changes.skipped)["one"]


class OpaqueConsumer(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter, self.inside = nn.Linear(4, 4), Opaque()

    def forward(self, x):
        return self.inside(F.relu(self.enter(x)))


class Opaque(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_a_consumer_that_cannot_be_followed_is_told_of_once():
    changes = insert(OpaqueConsumer(), "after")
    ((path, what),) = changes.changed
    assert path == "inside"
    assert "after relu of enter" in what
    assert "otherwise left alone, torch.fx cannot follow the forward of Opaque" in what
    assert changes.skipped == []


class OneActivationForTwo(nn.Module):
    """Two layers, one of which goes on in training and the other in evaluation."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.relu, self.out = nn.ReLU(), nn.Linear(4, 2)

    def forward(self, x):
        first, second = self.first(x), self.second(x)
        return self.out(self.relu(first if self.training else second))


def test_two_layers_with_one_activation_are_left_alone():
    changes = insert(OneActivationForTwo(), "after")
    assert changes.changed == []
    assert (
        dict(changes.skipped)["first"]
        == dict(changes.skipped)["second"]
        == (
            "the place after relu is that of first and second, "
            "and one batch norm would mix their statistics"
        )
    )
    before = insert(OneActivationForTwo())
    assert [path for path, _ in before.changed] == ["first", "second"]


@pytest.mark.parametrize("placement", ["before", "after"])
def test_the_model_is_left_as_it_was(digits, placement):
    model = Digits()
    model.fc1.eval()
    hook = model.conv1.register_forward_hook(lambda *call: None)
    modules, modes = list(model.named_modules()), [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = {name: dict(vars(module)) for name, module in modules}
    torch.manual_seed(3)
    expected = model(digits)
    torch.manual_seed(3)
    insert(model, placement, digits)
    assert torch.equal(model(digits), expected)  # dropout too: the random numbers went on
    assert list(model.named_modules()) == modules
    assert [module.training for module in model.modules()] == modes
    assert {name: dict(vars(module)) for name, module in modules} == attributes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert list(model.conv1._forward_hooks) == [hook.id]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_optimizer_of_the_model_stays_valid_for_what_is_shared(digits):
    model = Digits()
    new = insert(model).model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    norms = torch.optim.SGD(
        [
            value
            for value in new.parameters()
            if all(value is not one for one in model.parameters())
        ],
        lr=0.1,
    )
    assert len(norms.param_groups[0]["params"]) == 6
    before = {name: value.clone() for name, value in new.named_parameters()}
    new(digits).square().sum().backward()
    optimizer.step()
    norms.step()
    for name, value in new.named_parameters():
        assert not torch.equal(value, before[name]), name
    assert new.conv1[0].weight is model.conv1.weight
    assert model.conv1.bias.grad is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_norms_take_dtype_device_and_mode_of_what_they_follow(dtype):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    model = model.to(dtype)
    model[2].eval()
    new = insert(model).model
    assert new[0][1].weight.dtype == new[2][1].weight.dtype == dtype
    assert (new[0].training, new[0][1].training) == (True, True)
    assert (new[2].training, new[2][1].training) == (False, False)
    meta = insert(model.to("meta")).model
    assert meta[0][1].weight.device.type == "meta"
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU().eval(), nn.Linear(4, 1))
    after = insert(model, "after").model
    assert not after[1][1].training
    assert after.training


def test_the_result_can_be_copied_pickled_saved_and_inserted_into_again(digits):
    model = Digits()
    new = insert(model, example=digits).model
    new(digits)
    new.eval()
    expected = new(digits)
    for twin in (copy.deepcopy(new), pickle.loads(pickle.dumps(new))):
        assert torch.equal(twin(digits), expected)
    fresh = insert(Digits()).model.eval()
    fresh.load_state_dict(new.state_dict())
    assert torch.equal(fresh(digits), expected)
    again = insert(new)
    assert again.changed == []
    assert "already followed by a norm, conv1.1 (BatchNorm2d)" in dict(again.skipped)["conv1.0"]


def test_dropout_still_drops_and_training_goes_down(digits):
    new = insert(Digits()).model
    assert not torch.equal(new(digits), new(digits))
    new.eval()
    assert torch.equal(new(digits), new(digits))
    new.train()
    target = torch.arange(8) % 5
    optimizer = torch.optim.SGD(new.parameters(), lr=0.2)
    for _ in range(60):
        optimizer.zero_grad()
        F.nll_loss(new(digits), target).backward()
        optimizer.step()
    assert F.nll_loss(new.eval()(digits), target) < 0.9  # log(5) = 1.6 by chance


def test_random_numbers_are_not_used():
    model = Digits()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    insert(model)
    assert torch.equal(torch.rand(3), expected)


def test_the_account_prints_as_a_table():
    model = nn.Sequential()
    model.add_module("hidden", nn.Linear(3, 4))
    model.add_module("g", nn.ReLU())
    model.add_module("out", nn.Linear(4, 2))
    assert str(insert(model, example=torch.randn(2, 3))) == "\n".join(
        [
            "Sequential: 1 changed, 1 left alone",
            "changed:",
            "  hidden  BatchNorm1d(4) before relu; bias dropped",
            "left alone:",
            "  out     no activation follows: its output is the model's output",
        ]
    )
