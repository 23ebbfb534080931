"""Options for small batches, and no examples at all, under vmap."""

import copy

import pytest
import torch
from torch.func import functional_call, grad, stack_module_state, vmap

from batchnorm import BatchNorm1d, BatchNorm2d, DomainBatchNorm2d, in_domain, masked

IMAGES = torch.randn(6, 3, 4, 4, dtype=torch.float64)


def close(layer, twin):
    torch.testing.assert_close(dict(layer.named_buffers()), dict(twin.named_buffers()))


@pytest.mark.parametrize("x", [IMAGES, IMAGES.view(3, 2, 3, 4, 4)])
@pytest.mark.parametrize("compiled", [False, True])
def test_ghost_batches_of_pooled_examples_are_refused(x, compiled):
    run = vmap(BatchNorm2d(3, ghost_size=2).double())
    if compiled:
        torch._dynamo.reset()
        run = torch.compile(run, fullgraph=True, backend="eager")
    words = r"ghost_size=2 under torch\.vmap, .* expected ghost_size=None, or a call without vmap"
    with pytest.raises(Exception, match=words):
        run(x)


def test_members_of_an_ensemble_have_ghost_batches_of_their_own():
    members = [BatchNorm1d(3, ghost_size=4).double() for _ in range(2)]
    alone, x = copy.deepcopy(members), torch.randn(2, 7, 3, dtype=torch.float64)
    parameters, stacked = stack_module_state(members)
    y = vmap(lambda p, b, x: functional_call(members[0], (p, b), (x,)))(parameters, stacked, x)
    for i, member in enumerate(alone):
        torch.testing.assert_close(y[i], member(x[i]))
        torch.testing.assert_close(stacked["running_var"][i], member.running_var)


def test_a_block_inside_masks_the_example_that_it_is_in():
    layer, kept = BatchNorm2d(3).double(), torch.rand(6, 4, 4) > 0.3
    twin = copy.deepcopy(layer)

    def run(x, kept):
        with masked(layer, kept):
            return layer(x)

    torch.testing.assert_close(vmap(run)(IMAGES, kept), twin(IMAGES, mask=kept))
    torch.testing.assert_close(vmap(run)(IMAGES, kept[:, 0, 0]), twin(IMAGES, mask=kept[:, 0, 0]))
    close(layer, twin)


@pytest.mark.parametrize("x", [IMAGES, IMAGES.view(3, 2, 3, 4, 4)])
def test_each_example_is_of_its_domain(x):
    layer = DomainBatchNorm2d(3, 2).double()
    twin, domain = copy.deepcopy(layer), torch.tensor([0, 1, 1, 0, 0, 1])

    def run(x, domain):
        with in_domain(layer, domain):
            return layer(x)

    right = [twin(IMAGES, domain).view(x.shape) for _ in range(2)]
    for way in (layer, run):
        torch.testing.assert_close(vmap(way)(x, domain.view(x.shape[:-3])), right.pop(0))
    close(layer, twin)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (0, 2, 3, 4, 4), (2, 0, 3, 4, 4)])
def test_no_examples_change_nothing(shape):
    layer, x = BatchNorm2d(3).double(), torch.empty(shape, dtype=torch.float64)
    twin = copy.deepcopy(layer)
    assert vmap(layer)(x).shape == shape
    assert vmap(grad(lambda x: layer(x).sum()))(x).shape == shape
    gradients = vmap(grad(lambda p, x: functional_call(layer, p, (x,)).sum()), in_dims=(None, 0))
    each = gradients(dict(layer.named_parameters()), x)
    assert each["weight"].shape == (shape[0], 3)
    assert vmap(layer.eval())(x).shape == shape
    close(layer, twin)


@pytest.mark.parametrize("ghost_size", [None, 4])
def test_one_value_a_channel_for_each_member_of_an_ensemble(ghost_size):
    layer, x = BatchNorm1d(3, ghost_size=ghost_size), torch.randn(2, 1 if not ghost_size else 5, 3)
    parameters, stacked = stack_module_state([layer, layer])

    def run(p, b, x):
        return functional_call(layer, (p, b), (x,))

    with pytest.raises(ValueError, match=r"1 value per channel"):
        vmap(run)(parameters, stacked, x)
    layer.one_value = "beta"
    y = vmap(run)(parameters, stacked, x)
    torch.testing.assert_close(y, torch.stack([copy.deepcopy(layer)(one) for one in x]))
