"""Under vmap an example needs no batch axis of its own: the examples are the batch."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

from batchnorm import BatchNorm1d, BatchNorm2d, BatchNormAct1d, BatchNormAct2d, LazyBatchNorm2d
from batchnorm.functional import batch_norm


def state(model):
    return dict(model.named_parameters()), dict(model.named_buffers())


def buffers(model):
    return {name: t.clone() for name, t in model.named_buffers()}


def convolutional():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), BatchNorm2d(3), nn.ReLU(), nn.Flatten(-3), nn.Linear(27, 4),
        BatchNormAct1d(4, "tanh"),
    ).double()  # fmt: skip


IMAGES = torch.randn(6, 2, 5, 5, dtype=torch.float64)


@pytest.mark.parametrize("training", [True, False])
def test_examples_without_a_batch_axis_are_the_batch(training):
    model = convolutional().train(training)
    twin = copy.deepcopy(model)
    torch.testing.assert_close(vmap(model)(IMAGES), twin(IMAGES))
    torch.testing.assert_close(buffers(model), buffers(twin))


def test_gradients_of_examples_without_a_batch_axis_sum_to_those_of_the_batch():
    model = convolutional()
    twin = copy.deepcopy(model)
    parameters, own = state(model)

    def loss(parameters, image):
        return functional_call(model, (parameters, own), (image,)).pow(3).sum()

    each = vmap(grad(loss), in_dims=(None, 0))(parameters, IMAGES)
    twin(IMAGES).pow(3).sum().backward()
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(each[name].sum(0), parameter.grad)
    torch.testing.assert_close(buffers(model), buffers(twin))


def test_an_example_without_a_batch_axis_for_each_member_of_an_ensemble():
    members = [BatchNorm2d(2).double() for _ in range(6)]
    alone = copy.deepcopy(members)
    parameters, stacked = stack_module_state(members)
    y = vmap(lambda p, b, x: functional_call(members[0], (p, b), (x,)))(parameters, stacked, IMAGES)
    for i, member in enumerate(alone):
        torch.testing.assert_close(y[i], member(IMAGES[i : i + 1])[0])
        torch.testing.assert_close(stacked["running_var"][i], member.running_var)


def test_mask_residual_and_axis_without_a_batch_axis():
    layer, twin = BatchNormAct2d(5, axis=-1).double(), BatchNormAct2d(5, axis=-1).double()
    residual, mask = torch.randn_like(IMAGES), torch.rand(6, 2, 5) > 0.3
    y = vmap(lambda x, r, m: layer(x, r, mask=m))(IMAGES, residual, mask)
    torch.testing.assert_close(y, twin(IMAGES, residual, mask=mask))
    rows, kept = torch.randn(6, 3), torch.arange(6) > 1
    y = vmap(lambda x, m: BatchNorm1d(3)(x, mask=m))(rows, kept)
    torch.testing.assert_close(y, BatchNorm1d(3)(rows, mask=kept))


def test_a_lazy_layer_takes_its_channels_from_an_example_without_a_batch_axis():
    layer, twin = LazyBatchNorm2d(dtype=torch.float64), BatchNorm2d(2).double()
    torch.testing.assert_close(vmap(layer)(IMAGES), twin(IMAGES))
    assert type(layer) is BatchNorm2d
    torch.testing.assert_close(buffers(layer), buffers(twin))


def test_another_rank_under_vmap_is_told_what_an_example_is():
    words = r"expected 4D input \(got 2D input of shape \(5, 5\)\); under torch.vmap also 3D"
    with pytest.raises(ValueError, match=words):
        vmap(BatchNorm2d(5))(IMAGES[0])
    with pytest.raises(ValueError, match=r"expected 4D input \(got 3D .*; BatchNorm1d takes 2D"):
        BatchNorm2d(2)(IMAGES[0])
    with pytest.raises(ValueError, match=r"expected 4D input \(got 3D .*; BatchNorm1d takes 2D"):
        grad(lambda x: BatchNorm2d(2)(x).sum())(IMAGES[0])


def test_a_function_of_examples_without_a_batch_axis_says_how_to_add_one():
    words = r"under torch\.vmap x has no axis .* x\.unsqueeze\(0\)"
    for axis, x in ((1, IMAGES), (-1, torch.randn(6, 5, 3))):
        with pytest.raises(ValueError, match=words):
            vmap(lambda x: batch_norm(x, torch.zeros(2), torch.ones(2), axis=axis))(x)  # noqa: B023


def test_two_axes_in_1d_are_a_batch_under_vmap_too():
    x = torch.randn(6, 3, 5)  # six examples (C, L), which are read as (N, C)
    words = (
        r"running_mean has shape \(3,\); expected \(5,\).* under torch\.vmap .* x\.unsqueeze\(0\)"
    )
    with pytest.raises(ValueError, match=words):
        vmap(BatchNorm1d(3))(x)
    layer, twin = BatchNorm1d(3), BatchNorm1d(3)
    torch.testing.assert_close(vmap(layer)(x[:, None])[:, 0], twin(x))
    torch.testing.assert_close(buffers(layer), buffers(twin))


@pytest.mark.parametrize("single", [True, False])
def test_each_chunk_of_a_map_is_a_batch(single):
    model = BatchNorm2d(2).double()
    twin = copy.deepcopy(model)
    x = IMAGES if single else IMAGES[:, None]
    y = vmap(model, chunk_size=4)(x)
    parts = [twin(part) for part in IMAGES.split(4)]
    torch.testing.assert_close(y.view_as(IMAGES), torch.cat(parts))
    torch.testing.assert_close(buffers(model), buffers(twin))
    assert model.num_batches_tracked == 2
    assert not torch.allclose(y.view_as(IMAGES), vmap(model)(x).view_as(IMAGES))
    model.statistics = "running"  # no statistics of a batch, so that chunks make no difference
    model.update = False
    torch.testing.assert_close(vmap(model, chunk_size=4)(x), vmap(model)(x))
