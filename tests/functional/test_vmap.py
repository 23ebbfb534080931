import pytest
import torch
from torch import nn

from batchnorm.functional import batch_norm
from batchnorm.layers import BatchNorm1d


def test_mapping_over_examples_pools_their_statistics():
    x = torch.randn(5, 4, 3)
    mean, var = torch.zeros(3), torch.ones(3)
    y = torch.vmap(lambda x: batch_norm(x, mean, var, training=True, activation="relu"))(x)
    right_mean, right_var = torch.zeros(3), torch.ones(3)
    right = batch_norm(x.flatten(0, 1), right_mean, right_var, training=True, activation="relu")
    torch.testing.assert_close(y, right.view(5, 4, 3))
    torch.testing.assert_close((mean, var), (right_mean, right_var))


def test_mapping_over_another_axis_with_residual_and_mask():
    x, residual = torch.randn(2, 4, 5, 3)
    mask = torch.rand(4, 5) > 0.4
    mapped = torch.vmap(
        lambda x, r, m: batch_norm(x, training=True, residual=r, mask=m), in_dims=1, out_dims=1
    )
    y = mapped(x, residual, mask)
    flat = [t.transpose(0, 1).flatten(0, 1) for t in (x, residual, mask)]
    right = batch_norm(flat[0], training=True, residual=flat[1], mask=flat[2])
    torch.testing.assert_close(y, right.view(5, 4, 3).transpose(0, 1))


def test_gradients_for_each_example_sum_to_those_of_the_batch():
    x = torch.randn(6, 1, 3, dtype=torch.float64)
    weight, bias = torch.randn(2, 3, dtype=torch.float64)

    def loss(weight, bias, x):
        return (batch_norm(x, None, None, weight, bias, training=True) ** 3).sum()

    each = torch.vmap(torch.func.grad(loss, (0, 1, 2)), in_dims=(None, None, 0))(weight, bias, x)
    whole = torch.func.grad(loss, (0, 1, 2))(weight, bias, x.flatten(0, 1))
    torch.testing.assert_close(each[0].sum(0), whole[0])
    torch.testing.assert_close(each[1].sum(0), whole[1])
    torch.testing.assert_close(each[2].flatten(0, 1), whole[2])


@pytest.mark.parametrize("training", [True, False])
def test_members_of_an_ensemble_keep_their_own_statistics(training):
    members = [nn.Sequential(nn.Linear(4, 3), BatchNorm1d(3)) for _ in range(3)]
    for member in members:
        nn.init.normal_(member[1].weight)
        member.train(training)
    x = torch.randn(5, 4)
    parameters, buffers = torch.func.stack_module_state(members)
    skeleton = members[0]

    def run(parameters, buffers, x):
        return torch.func.functional_call(skeleton, (parameters, buffers), (x,))

    y = torch.vmap(run, in_dims=(0, 0, None))(parameters, buffers, x)
    for i, member in enumerate(members):
        torch.testing.assert_close(y[i], member(x))
        torch.testing.assert_close(buffers["1.running_mean"][i], member[1].running_mean)
        torch.testing.assert_close(buffers["1.running_var"][i], member[1].running_var)
        assert buffers["1.num_batches_tracked"][i] == member[1].num_batches_tracked


def test_members_that_were_given_a_mask_each():
    x, weight = torch.randn(3, 5, 2), torch.randn(3, 2)
    mask = torch.rand(3, 5) > 0.3
    y = torch.vmap(lambda x, w, m: batch_norm(x, None, None, w, training=True, mask=m))(
        x, weight, mask
    )
    for i in range(3):
        torch.testing.assert_close(
            y[i], batch_norm(x[i], None, None, weight[i], training=True, mask=mask[i])
        )
