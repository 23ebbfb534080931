"""What is no model, and options that there are not: errors that say what was meant."""

import contextlib
import inspect
import pickle

import pytest
import torch
from torch import nn

import batchnorm

BLOCKS = {
    "pooled": batchnorm.pooled,
    "switches": lambda model: batchnorm.switches(model, update=False),
    "masked": lambda model: batchnorm.masked(model, torch.ones(2)),
    "in_domain": lambda model: batchnorm.in_domain(model, 0),
    "snapshot": lambda model: contextlib.nullcontext(batchnorm.snapshot(model)),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_what_is_no_model_is_told_how_to_be_one(name):
    for model, words in (
        (None, r"got NoneType \(None\)\. Make one: nn\.Sequential"),
        ([batchnorm.BatchNorm1d(2)], r"got list \(\[BatchNorm1d.*Make one: nn\.Sequential"),
        (nn.BatchNorm2d, r"Make one of the class: BatchNorm2d\(\.\.\.\)"),
        (batchnorm.adopt(nn.BatchNorm1d(2)), r"It holds one: give its \.model"),
    ):
        told = rf"(?s){name} takes a model, a torch\.nn\.Module; .*{words}"
        with pytest.raises(TypeError, match=told), BLOCKS[name](model):
            pass


@pytest.mark.parametrize("longest", ["4", 2.5, True])
def test_a_padded_length_is_an_integer(longest):
    with pytest.raises(TypeError, match=rf"longest={longest!r}; expected the padded length"):
        batchnorm.lengths_mask(torch.tensor([2]), longest=longest)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: batchnorm.BatchNorm2d(4, ghost=3),
            r"BatchNorm2d .*'ghost': did you mean ghost_size",
        ),
        (
            lambda: batchnorm.BatchNorm1d(4, eps=1e-3, moment=1),
            r"'moment': did you mean momentum\?",
        ),
        (
            lambda: batchnorm.BatchNorm2d(4, inplace=True),
            r"'inplace': BatchNormAct1d, 2d and 3d have",
        ),
        (
            lambda: batchnorm.BatchNormAct2d(4, update=False),
            r"BatchNormAct2d .*: it is an attribute",
        ),
        (lambda: batchnorm.BatchNormAct2d(4, acitvation="elu"), r"did you mean activation\?"),
        (
            lambda: batchnorm.BatchRenorm1d(4, inplace=True),
            r"BatchRenorm1d has no option 'inplace'",
        ),
        (lambda: batchnorm.LazyBatchNorm3d(ghost=2), r"LazyBatchNorm3d .*did you mean ghost_size"),
        (
            lambda: batchnorm.DomainBatchNorm1d(4, 2, mask=1),
            r"'mask': it is given to the layer's call",
        ),
        (
            lambda: batchnorm.BatchNorm3d(4, zzzzz=1),
            r"no option 'zzzzz'; expected num_features, eps,",
        ),
        (lambda: batchnorm.adopt(nn.BatchNorm1d(2), ghost=4), r"'ghost': did you mean ghost_size"),
    ],
)
def test_an_option_that_there_is_not_is_told_which_there_are(make, words):
    with pytest.raises(TypeError, match=words):
        make()


@pytest.mark.parametrize("kind", [batchnorm.BatchNorm2d, batchnorm.BatchNormAct2d])
def test_the_signature_is_as_it_was_written(kind):
    parameters = inspect.signature(kind).parameters
    assert "ghost_size" in parameters
    assert all(p.kind is not p.VAR_KEYWORD for p in parameters.values())
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'num_features'"):
        kind()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: batchnorm.BatchRenorm2d(4, rmax=3),
            r"^BatchRenorm2d has no option 'rmax': did you mean r_max\?; .*r_max, d_max, .*ghost_size$",
        ),
        (lambda: batchnorm.BatchRenorm1d(4, d_mx=3), r"^BatchRenorm1d .*did you mean d_max\?"),
        (lambda: batchnorm.BatchRenorm1d(4, ghost=3), r"^BatchRenorm1d .*mean ghost_size\?"),
        (
            lambda: batchnorm.DomainBatchNorm2d(4, 2, ownaffine=True),
            r"^DomainBatchNorm2d has no option 'ownaffine': did you mean own_affine\?; .*own_affine",
        ),
        (lambda: batchnorm.DomainBatchNorm3d(4, 2, ghost=3), r"^DomainBatchNorm3d .*ghost_size\?"),
        (
            lambda: batchnorm.DomainBatchNorm2d(4, domain=2),
            r"^DomainBatchNorm2d has no option 'domain': did you mean domains\?; .*, domains, ",
        ),
        (
            lambda: batchnorm.LazyBatchNorm2d(num_features=4),
            r"^LazyBatchNorm2d has no option 'num_features': .*first input; expected eps, ",
        ),
    ],
)
def test_an_option_is_looked_for_among_those_of_its_own_class(make, words):
    with pytest.raises(TypeError, match=words):
        make()


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_arguments_that_do_not_fit_are_told_of_the_class_that_was_made(rank):
    for kind in ("BatchNorm", "BatchNormAct", "BatchRenorm"):
        name = f"{kind}{rank}d"
        missing = rf"^{name}.__init__\(\) missing 1 .*'num_features'; expected num_features, "
        with pytest.raises(TypeError, match=missing):
            getattr(batchnorm, name)()
        with pytest.raises(TypeError, match=rf"^{name}.__init__\(\) takes from 2 .* were given"):
            getattr(batchnorm, name)(*range(1, 20))
    name = f"DomainBatchNorm{rank}d"
    with pytest.raises(
        TypeError, match=rf"^{name}.__init__\(\) missing 1 .*'domains'; expected num_features, "
    ):
        getattr(batchnorm, name)(4)


def test_an_error_from_inside_a_constructor_is_as_it_was_raised():
    with pytest.raises(TypeError, match="Softmax") as raised:
        batchnorm.BatchNormAct1d(2, nn.Softmax(1))
    assert "__init__" not in str(raised.value)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("kind", ["BatchNorm", "BatchNormAct", "BatchRenorm", "DomainBatchNorm"])
def test_a_call_that_does_not_fit_is_told_of_the_layer_that_was_called(kind, rank):
    name = f"{kind}{rank}d"
    layer = getattr(batchnorm, name)(*((2, 2) if kind == "DomainBatchNorm" else (2,)))
    with pytest.raises(TypeError, match=rf"^{name}.forward\(\) missing 1 .*'input'"):
        layer()
    with pytest.raises(TypeError, match=rf"^{name}.forward\(\) got an unexpected .*'maks'"):
        layer(torch.randn(4, 2, *[3] * rank), maks=None)
    assert inspect.signature(layer.forward) == inspect.signature(
        getattr(batchnorm, f"{kind}1d").forward.__get__(layer)
    )


def test_a_lazy_layer_called_without_input_expects_one():
    with pytest.raises(TypeError, match=r"^input is .*expected a tensor"):
        batchnorm.LazyBatchNorm2d()()


def test_a_forward_of_a_users_class_is_inherited_as_ever():
    class Mine(batchnorm.BatchNorm2d):
        pass

    assert Mine.forward is batchnorm.BatchNorm2d.forward
    assert pickle.loads(pickle.dumps(batchnorm.BatchNormAct3d.forward)) is (
        batchnorm.BatchNormAct3d.forward
    )


def test_weights_have_no_gradient_and_say_so():
    layer, x, mask = batchnorm.BatchNorm1d(2), torch.randn(4, 2), torch.rand(4, requires_grad=True)
    with pytest.raises(
        ValueError, match=r"mask of shape \(4,\) requires .* expected mask.detach\(\)"
    ):
        layer(x, mask=mask)
    assert layer.num_batches_tracked == 0
    y = layer(x, mask=mask.detach())
    with torch.no_grad():
        torch.testing.assert_close(layer(x, mask=mask), y)
