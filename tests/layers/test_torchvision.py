"""torchvision's networks, which we did not write: what `tests/surgery/test_adopt.py` leaves out."""

import copy

import pytest
import torch
import torchvision.models as zoo
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import batchnorm

NETWORKS = {
    # how many batch norms, the shape of the input, options
    "googlenet": (59, (6, 3, 64, 64), {"init_weights": False}),  # auxiliary outputs
    "efficientnet_b0": (49, (6, 3, 64, 64), {}),  # drops whole examples
    "lraspp_mobilenet_v3_large": (47, (4, 3, 64, 64), {"weights_backbone": None}),  # an image out
    "r3d_18": (20, (4, 3, 4, 32, 32), {}),  # 3d
    "mobilenet_v3_small": (34, (6, 3, 64, 64), {}),
    "densenet121": (121, (6, 3, 64, 64), {}),
    "shufflenet_v2_x0_5": (56, (6, 3, 64, 64), {}),
}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning"),
]


def network(name, **more):
    """The network in float64, its batch norms as if they had been trained, and input for it."""
    count, shape, options = NETWORKS[name]
    model = zoo.get_model(name, weights=None, num_classes=5, **options, **more).double()
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == count
    for norm in norms:
        for t in (norm.weight, norm.running_var):
            nn.init.uniform_(t, 0.5, 1.5)
        for t in (norm.bias, norm.running_mean):
            nn.init.normal_(t, 0, 0.1)
        norm.num_batches_tracked.fill_(3)
    return model, torch.randn(shape, dtype=torch.float64)


def ours_of(model):
    """A copy with our layers in the place of torch's."""
    changes = batchnorm.adopt(copy.deepcopy(model))
    assert not changes.skipped
    return changes.model


def step(model, x):
    """A step of gradient descent: outputs, gradients, and the state that it leaves."""
    torch.manual_seed(1)  # of dropout
    model.train().zero_grad()
    outputs = tree_leaves(model(x))
    target = torch.arange(len(x)) % 5
    target = target if outputs[0].dim() == 2 else target.view(-1, 1, 1).expand(-1, *x.shape[2:])
    sum(F.cross_entropy(y, target) for y in outputs).backward()
    with torch.no_grad():
        for p in model.parameters():
            p.sub_(p.grad, alpha=0.01)
    return [*outputs, *(p.grad.clone() for p in model.parameters()), *model.state_dict().values()]


def evaluation(model, x):
    with torch.no_grad():
        return tree_leaves(model.eval()(x))


def normalizes(model, node):
    """Whether a node is a batch norm of ours, or one of torchvision's blocks with one inside."""
    inside = dict(model.named_modules()).get(node, nn.Module()).modules()
    return any(
        isinstance(module, batchnorm.BatchNorm2d | batchnorm.BatchNorm3d) for module in inside
    )


def assert_equal(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).double().norm() <= 1e-8 * b.double().norm() + 1e-10


@pytest.mark.parametrize("name", list(NETWORKS)[:4])
def test_two_steps_and_an_evaluation_equal_torchs(name):
    theirs, x = network(name)
    ours = ours_of(theirs)
    for _ in range(2):
        assert_equal(evaluation(ours, x), evaluation(theirs, x))
        assert_equal(step(ours, x), step(theirs, x))
    back, _ = network(name)
    back.load_state_dict(ours.state_dict())
    assert_equal(evaluation(back, x), evaluation(theirs, x))


@pytest.mark.parametrize("name", [name for name in NETWORKS if not name.startswith("lraspp")])
@pytest.mark.parametrize("training", [True, False])
def test_the_feature_extractor_sees_the_same_network(name, training):
    theirs, x = network(name)
    ours = ours_of(theirs)
    quiet = {"suppress_diff_warning": True}  # branches of training only are no surprise here
    names = get_graph_node_names(ours, **quiet)
    assert names == get_graph_node_names(theirs, **quiet)
    norms = [name for name in names[0] if name in names[1] and normalizes(ours, name)]
    nodes = [norms[0], norms[len(norms) // 2], norms[-1]]
    features = []
    for model in (ours, theirs):
        torch.manual_seed(1)
        extractor = create_feature_extractor(model, nodes, **quiet).train(training)
        features.append(extractor(x))
    assert list(features[0]) == nodes
    assert_equal(*(found.values() for found in features))
    assert_equal(ours.state_dict().values(), theirs.state_dict().values())


def test_a_network_that_saves_memory_counts_once():
    """densenet's own activation checkpointing, with which torch's layers count twice."""
    theirs, x = network("densenet121")
    frugal, _ = network("densenet121", memory_efficient=True)
    frugal.load_state_dict(theirs.state_dict())
    ours = ours_of(frugal)
    assert_equal(step(ours, x), step(theirs, x))
    step(frugal, x)
    counts = {t.item() for name, t in frugal.state_dict().items() if name.endswith("_tracked")}
    assert counts == {4, 5}
