"""Function transforms over training layers: right values, right gradients, right statistics."""

import copy

import pytest
import torch
from torch import nn
from torch.func import (
    functional_call,
    grad,
    grad_and_value,
    hessian,
    jacrev,
    stack_module_state,
    vmap,
)
from torch.fx.experimental.proxy_tensor import make_fx

from batchnorm import BatchNorm1d, BatchNorm2d, BatchNormAct1d


def network():
    return nn.Sequential(
        nn.Linear(3, 4), BatchNormAct1d(4, "tanh"), nn.Linear(4, 2), BatchNorm1d(2)
    ).double()


def state(model):
    return dict(model.named_parameters()), dict(model.named_buffers())


def buffers(model):
    return {name: t.clone() for name, t in model.named_buffers()}


X = torch.randn(7, 3, dtype=torch.float64)


def test_functional_call_moves_the_buffers_that_it_was_given_and_no_others():
    model, plain = network(), network()
    plain.load_state_dict(model.state_dict())
    parameters, own = state(model)
    given = {name: t.clone() for name, t in own.items()}
    before = buffers(model)
    y = functional_call(model, (parameters, given), (X,))
    torch.testing.assert_close(y, plain(X))
    torch.testing.assert_close(buffers(model), before)
    torch.testing.assert_close(given, buffers(plain))
    assert given["1.num_batches_tracked"] == 1


def test_grad_over_a_training_model_equals_backward_and_keeps_its_statistics():
    model, plain = network(), network()
    plain.load_state_dict(model.state_dict())
    parameters, own = state(model)

    def loss(parameters):
        return functional_call(model, (parameters, own), (X,)).pow(3).sum()

    gradients, value = grad_and_value(loss)(parameters)
    expected = plain(X).pow(3).sum()
    expected.backward()
    torch.testing.assert_close(value, expected)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad)
    torch.testing.assert_close(buffers(model), buffers(plain))


@pytest.mark.parametrize("transform", [jacrev, hessian])
def test_jacobian_and_hessian_equal_autograd_and_count_one_batch(transform):
    layer = BatchNormAct1d(2, "silu").double()
    plain = copy.deepcopy(layer)
    x = torch.randn(3, 2, dtype=torch.float64)
    if transform is jacrev:
        got = jacrev(layer)(x)
        expected = torch.autograd.functional.jacobian(plain, x)
    else:
        got = hessian(lambda x: layer(x).pow(2).sum())(x)
        expected = torch.autograd.functional.hessian(lambda x: plain(x).pow(2).sum(), x)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(buffers(layer), buffers(plain))
    assert layer.num_batches_tracked == 1


def test_mapping_over_examples_is_one_batch():
    layer, plain = BatchNorm2d(3).double(), BatchNorm2d(3).double()
    x = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    y = vmap(lambda one: layer(one[None])[0])(x)
    torch.testing.assert_close(y, plain(x))
    torch.testing.assert_close(buffers(layer), buffers(plain))


def test_mapping_over_groups_pools_them():
    layer, plain = BatchNorm1d(3).double(), BatchNorm1d(3).double()
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(vmap(layer)(x).flatten(0, 1), plain(x.flatten(0, 1)))
    torch.testing.assert_close(buffers(layer), buffers(plain))


def test_gradients_an_example_of_a_training_model_sum_to_those_of_the_batch():
    model, plain = network(), network()
    plain.load_state_dict(model.state_dict())
    parameters, own = state(model)

    def loss(parameters, one):
        return functional_call(model, (parameters, own), (one[None],)).pow(3).sum()

    each = vmap(grad(loss), in_dims=(None, 0))(parameters, X)
    plain(X).pow(3).sum().backward()
    assert each["0.weight"].shape == (7, 4, 3)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(each[name].sum(0), parameter.grad)
    torch.testing.assert_close(buffers(model), buffers(plain))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_an_ensemble_in_training_keeps_the_statistics_of_each_member(momentum):
    members = [network() for _ in range(3)]
    for model in members:
        for layer in (model[1], model[3]):
            layer.momentum = momentum
    alone = copy.deepcopy(members)
    base = copy.deepcopy(members[0]).to("meta")
    parameters, stacked = stack_module_state(members)

    def loss(parameters, own, x):
        return functional_call(base, (parameters, own), (x,)).pow(2).sum()

    data = torch.randn(3, 6, 3, dtype=torch.float64)
    for step in range(2):
        gradients = vmap(grad(loss))(parameters, stacked, data + step)
        for model, x in zip(alone, data + step, strict=True):
            model.zero_grad()
            model(x).pow(2).sum().backward()
    for i, model in enumerate(alone):
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(gradients[name][i], parameter.grad)
        for name, buffer in model.named_buffers():
            torch.testing.assert_close(stacked[name][i], buffer)
    assert stacked["1.num_batches_tracked"].tolist() == [2, 2, 2]


def test_an_ensemble_in_evaluation_uses_the_statistics_of_each_member():
    members = [network() for _ in range(3)]
    for model in members:
        model(torch.randn(6, 3, dtype=torch.float64))
        model.eval()
    parameters, stacked = stack_module_state(members)
    base = copy.deepcopy(members[0]).to("meta")
    y = vmap(lambda p, b: functional_call(base, (p, b), (X,)))(parameters, stacked)
    torch.testing.assert_close(y, torch.stack([model(X) for model in members]))


def test_a_mask_under_vmap_leaves_the_same_out():
    layer, plain = BatchNorm1d(3).double(), BatchNorm1d(3).double()
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    mask = torch.rand(4, 5) > 0.4
    x[~mask] = torch.nan
    y = vmap(lambda x, mask: layer(x, mask=mask))(x, mask)
    torch.testing.assert_close(y.flatten(0, 1), plain(x.flatten(0, 1), mask=mask.flatten()))
    torch.testing.assert_close(buffers(layer), buffers(plain))


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("kind", [BatchNorm1d, BatchNormAct1d])
def test_functionalize_makes_a_graph_of_torchs_operations_in_place(kind, momentum):
    layer, twin = kind(3, momentum=momentum), kind(3, momentum=momentum)
    x = torch.randn(5, 3)
    state = {name: value.clone() for name, value in layer.state_dict().items()}

    def run(state, x):
        return torch.func.functional_call(layer, state, (x,))

    traced_on = {name: value.clone() for name, value in state.items()}
    graph = make_fx(torch.func.functionalize(run))(traced_on, x)
    targets = {str(n.target) for n in graph.graph.nodes if n.op == "call_function"}
    assert not any("batchnorm.update_running_" in name for name in targets)
    torch.testing.assert_close(graph(state, x), twin(x))
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(state[name], value)
