"""Function transforms inside a compiled graph: what they give without one, statistics too."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jacrev, stack_module_state, vmap

from batchnorm import BatchNorm1d, BatchNorm2d, BatchNormAct1d, BatchNormAct2d, BatchRenorm1d
from batchnorm.functional import batch_norm

IMAGES = torch.randn(6, 3, 4, 4, dtype=torch.float64)
ROWS = torch.randn(6, 3, dtype=torch.float64)


@pytest.fixture(autouse=True)
def anew():
    torch._dynamo.reset()


def check(model, transformed, *arguments):
    """As without a graph, the running statistics of a copy included."""
    model = model.double()
    twin = copy.deepcopy(model)
    compiled = torch.compile(transformed(model), fullgraph=True, backend="aot_eager")
    plain = transformed(twin)
    for _ in range(2):
        torch.testing.assert_close(compiled(*arguments), plain(*arguments))
    torch.testing.assert_close(dict(model.named_buffers()), dict(twin.named_buffers()))


def summed(model):
    return lambda x: model(x).pow(3).sum()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (BatchNorm2d(3), IMAGES),
        (BatchNormAct2d(4, "silu", axis=-1), IMAGES),
        (BatchNorm1d(3), ROWS),
        (BatchNorm1d(3, one_value="beta"), ROWS),
        (BatchRenorm1d(3), ROWS),
        (BatchNorm2d(3, momentum=None), IMAGES[:, None]),
        (nn.Sequential(nn.Linear(4, 2), BatchNorm2d(3), nn.Flatten(-3), BatchNorm1d(24)), IMAGES),
    ],
)
def test_examples_and_batches_of_them(layer, x, training):
    check(layer.train(training), vmap, x)


def test_examples_with_a_mask_of_their_own():
    kept = torch.rand(6, 4, 4) > 0.3
    check(BatchNorm2d(3), lambda layer: vmap(lambda x, m: layer(x, mask=m)), IMAGES, kept)


def test_examples_of_the_function():
    def run(_):
        return vmap(lambda x: batch_norm(x[None], training=True)[0])

    check(nn.Identity(), run, ROWS)


@pytest.mark.parametrize(
    "transform",
    [
        lambda layer: grad(summed(layer)),
        lambda layer: vmap(grad(summed(layer))),
        lambda layer: grad(lambda x: vmap(layer)(x).pow(3).sum()),
        jacrev,
        lambda layer: hessian(summed(layer)),
    ],
    ids=["grad", "vmap of grad", "grad of vmap", "jacrev", "hessian"],
)
def test_derivatives(transform):
    check(BatchNormAct1d(3, "tanh"), transform, ROWS)


def test_gradients_of_each_example_alone():
    def each(model):
        state = dict(model.named_parameters()), dict(model.named_buffers())

        def loss(parameters, x):
            return functional_call(model, (parameters, state[1]), (x,)).pow(3).sum()

        return lambda x: vmap(grad(loss), in_dims=(None, 0))(state[0], x)

    model = nn.Sequential(nn.Linear(3, 4), BatchNormAct1d(4, "tanh"), nn.Linear(4, 2))
    check(model, each, ROWS)


def test_members_of_an_ensemble():
    def run(members):
        parameters, own = stack_module_state(list(members))
        alone = copy.deepcopy(members[0]).to("meta")

        def one(parameters, own, x):
            return functional_call(alone, (parameters, own), (x,))

        return lambda x: (vmap(one, in_dims=(0, 0, None))(parameters, own, x), own)

    check(nn.ModuleList(BatchNorm1d(3) for _ in range(2)), run, ROWS)


def test_what_no_example_is_raises_as_it_does_without_a_graph():
    with pytest.raises(Exception, match=r"got 2D input of shape .*under torch.vmap also 3D"):
        torch.compile(vmap(BatchNorm2d(3)), fullgraph=True, backend="eager")(ROWS[:, None])
    with pytest.raises(Exception, match="more than 1 value per channel"):
        torch.compile(vmap(BatchNorm1d(3).double()), fullgraph=True, backend="eager")(ROWS[:1])
    layer = BatchNorm2d(3)
    for transform in (vmap, jacrev):  # what is the same for each has no hidden axis
        inside = transform(lambda _: layer(torch.ones(3, 4, 4)))
        with pytest.raises(Exception, match=r"expected 4D input \(got 3D"):
            torch.compile(inside, fullgraph=True, backend="eager")(ROWS)


def test_what_torch_cannot_name_in_a_graph_is_mapped_by_a_function():
    """Torch's vmap asks what it maps for its name, and torch's Conv2d has none in a graph."""
    model = nn.Sequential(nn.Conv2d(3, 2, 3), BatchNorm2d(2))
    for module in (model, model[0]):
        with pytest.raises(torch._dynamo.exc.Unsupported, match="method call"):
            torch.compile(vmap(module), fullgraph=True, backend="eager")(IMAGES.float())
    check(model, lambda model: vmap(lambda x: model(x)), IMAGES)
