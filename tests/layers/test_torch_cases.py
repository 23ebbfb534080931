"""Every case that torch tests its own batch norms with (ModuleInfo), on our layers.

The inputs are those that the torch wheel ships; its test bodies are not in it and are written here.
"""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing._internal import common_modules as cases

import batchnorm

NAMES = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d")
INPUTS = {name: getattr(cases, f"module_inputs_torch_nn_{name}") for name in NAMES}
ERRORS = cases.module_error_inputs_torch_nn_BatchNorm1d_2d_3d
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def made(name, dtype=torch.float64, device="cpu", requires_grad=True, training=True):
    theirs = SimpleNamespace(module_cls=getattr(nn, name))
    return INPUTS[name](theirs, device, dtype, requires_grad, training)


EACH = [
    pytest.param(name, i, id=f"{name}-{case.desc or 'plain'}")
    for name in NAMES
    for i, case in enumerate(made(name))
]
each = pytest.mark.parametrize(("name", "index"), EACH)
in_both_modes = pytest.mark.parametrize("training", [True, False])


def built(name, index, dtype=torch.float64, device="cpu", training=True):
    """Our layer, torch's with the same state, and the input."""
    case = made(name, dtype, device, training=training)[index]
    arguments, options = case.constructor_input.args, case.constructor_input.kwargs
    ours, theirs = (
        getattr(package, name)(*arguments, **options, device=device, dtype=dtype)
        for package in (batchnorm, nn)
    )
    for t in ours.parameters():
        nn.init.normal_(t)
    if device != "meta":
        theirs.load_state_dict(ours.state_dict())
    (x,) = case.forward_input.args
    return ours.train(training), theirs.train(training), x


def outcome(layer, x, dy):
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(leaf)
    gradients = torch.autograd.grad(y, (leaf, *layer.parameters()), dy.to(y.dtype))
    return y, gradients, list(layer.buffers())


def close(a, b, dtype):
    exact = dtype in (torch.float64, torch.float32)
    rtol, atol = (None, None) if exact else (2e-2, 2e-2)
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol, check_dtype=exact)


@each
@in_both_modes
@pytest.mark.parametrize("dtype", DTYPES)
def test_forward_gradients_and_statistics(name, index, training, dtype):
    ours, theirs, x = built(name, index, dtype, training=training)
    dy = torch.randn(x.shape)
    y, gradients, _ = outcome(ours, x, dy)
    y_theirs, gradients_theirs, _ = outcome(theirs, x, dy)
    assert y.dtype == dtype
    assert [g.dtype for g in gradients] == [g.dtype for g in gradients_theirs]
    close(y, y_theirs, dtype)
    for a, b in zip(gradients, gradients_theirs, strict=True):
        close(a, b, dtype)
    for key, value in theirs.state_dict().items():
        if not (key == "num_batches_tracked" and x.numel() == 0):  # torch counts an empty batch
            close(ours.state_dict()[key], value, dtype)


@each
@in_both_modes
def test_derivatives_twice(name, index, training):
    layer, _, x = built(name, index, training=training)
    layer.momentum = 0.0 if layer.momentum is not None else None

    def f(x, *parameters):
        held = dict(zip(dict(layer.named_parameters()), parameters, strict=True))
        twin = copy.deepcopy(layer)
        return torch.func.functional_call(twin, held, (x,))

    leaves = (x, *(p.detach().requires_grad_() for p in layer.parameters()))
    assert torch.autograd.gradcheck(f, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(f, leaves, fast_mode=True)


@each
@in_both_modes
def test_input_that_is_not_contiguous(name, index, training):
    ours, _, x = built(name, index, training=training)
    twin = copy.deepcopy(ours)
    apart = torch.repeat_interleave(x.detach(), 2, dim=-1)[..., ::2]
    dy = torch.randn_like(x)
    dy_apart = torch.repeat_interleave(dy, 2, dim=-1)[..., ::2]
    if x.numel():
        assert not apart.is_contiguous()
        assert not dy_apart.is_contiguous()
    y, gradients, _ = outcome(ours, x, dy)
    y_apart, gradients_apart, _ = outcome(twin, apart, dy_apart)
    for a, b in zip((y, *gradients), (y_apart, *gradients_apart), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("name", "index"), [p for p in EACH if p.values[0] != "BatchNorm1d"]
)  # fmt: skip
@in_both_modes
def test_memory_format_is_kept(name, index, training):
    last = {"BatchNorm2d": torch.channels_last, "BatchNorm3d": torch.channels_last_3d}[name]
    ours, theirs, x = built(name, index, training=training)
    x = x.detach().to(memory_format=last).requires_grad_()
    y, right = ours(x), theirs(x)
    assert y.stride() == right.stride()
    torch.testing.assert_close(y, right)
    y.sum().backward()
    assert x.grad.stride() == x.stride()


@each
def test_constructed_where_and_as_asked(name, index):
    for dtype in DTYPES:
        for device in ("cpu", "meta"):
            ours, theirs, x = built(name, index, dtype, device)
            assert {p.dtype for p in ours.parameters()} == {p.dtype for p in theirs.parameters()}
            assert all(t.device.type == device for t in (*ours.parameters(), *ours.buffers()))
            assert ours(x).device.type == device
    with torch.device("meta"):
        case = made(name, device="meta")[index].constructor_input
        layer = getattr(batchnorm, name)(*case.args, **case.kwargs)
    assert all(t.is_meta for t in (*layer.parameters(), *layer.buffers()))


@each
@in_both_modes
def test_moved_and_cast_and_back(name, index, training):
    ours, _, x = built(name, index, training=training)
    twin = copy.deepcopy(ours)
    state = {key: value.clone() for key, value in ours.state_dict().items()}
    ours.to("meta").to_empty(device="cpu").load_state_dict(state)
    torch.testing.assert_close(ours(x), twin(x))
    close(ours.float()(x.float()), twin(x).float(), torch.float32)
    assert ours.half()(x.half()).dtype == torch.float16


@each
@in_both_modes
def test_pickled_copied_and_shown(name, index, training):
    ours, theirs, x = built(name, index, training=training)
    assert repr(ours) == repr(theirs)
    for twin in (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours)):
        before = copy.deepcopy(ours)
        torch.testing.assert_close(twin(x), before(x))
        assert twin.state_dict().keys() == theirs.state_dict().keys()


@each
def test_training_and_evaluation_differ_where_torchs_do(name, index):
    ours, theirs, x = built(name, index)
    differ = [not torch.equal(m.train()(x), m.eval()(x)) for m in (ours, theirs)]
    assert differ[0] == differ[1]


@each
def test_no_argument_of_forward_is_changed(name, index):
    ours, _, x = built(name, index)
    before = x.detach().clone()
    ours(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", NAMES)
@in_both_modes
def test_errors(name, training):
    theirs = SimpleNamespace(module_cls=getattr(nn, name))
    found = ERRORS(theirs, "cpu", torch.float32, False, training)
    assert len(found) == 2
    for error in found:
        case = error.module_error_input
        arguments = case.constructor_input
        layer = getattr(batchnorm, name)(*arguments.args, **arguments.kwargs).train(training)
        assert error.error_on == cases.ModuleErrorEnum.FORWARD_ERROR
        with pytest.raises(error.error_type, match=error.error_regex):
            layer(*case.forward_input.args)


LAZY = [(f"Lazy{name}", p.values[1]) for name in NAMES for p in EACH if p.values[0] == name]


@pytest.mark.parametrize(("lazy", "index"), LAZY)
def test_lazy_forms_become_the_same_layer(lazy, index):
    ours, _, x = built(lazy[4:], index)
    case = made(lazy[4:])[index].constructor_input
    layers = [
        getattr(package, lazy)(*case.args[1:], **case.kwargs, dtype=torch.float64)
        for package in (batchnorm, nn)
    ]
    layer, theirs = layers
    assert isinstance(layer, getattr(nn, lazy))
    assert repr(layer).startswith(f"{lazy}(0, ")
    layer = copy.deepcopy(layer)
    torch.testing.assert_close(layer(x), theirs(x))
    assert type(layer) is type(ours)
    assert layer.num_features == ours.num_features
    assert layer.state_dict().keys() == ours.state_dict().keys()
    layer.load_state_dict(ours.state_dict())
    torch.testing.assert_close(layer.eval()(x), ours.eval()(x))


@pytest.mark.parametrize("name", NAMES)
def test_a_lazy_form_takes_its_channels_from_a_state_dict(name):
    layer = getattr(batchnorm, f"Lazy{name}")().half()
    ours, _, x = built(name, 0, torch.float32)
    layer.load_state_dict(ours.state_dict())
    assert layer.running_mean.dtype == torch.float32
    layer(x)
    assert layer.num_features == ours.num_features


def test_lazy_forms_take_every_argument_of_ours():
    layer = batchnorm.LazyBatchNorm1d(
        dtype=torch.bfloat16, weight=False, axis=-1, bias_correction=True
    )
    layer(torch.randn(4, 5, 3).bfloat16(), mask=torch.ones(4, 5, dtype=torch.bool))
    assert (layer.num_features, layer.weight, layer.bias.dtype) == (3, None, torch.bfloat16)
    assert layer.running_var.dtype == torch.float32
    assert (layer.axis, layer.bias_correction) == (-1, True)
    packed = nn.utils.rnn.pack_sequence([torch.randn(4, 3), torch.randn(2, 3)])
    other = batchnorm.LazyBatchNorm1d()
    other(packed)
    assert other.num_features == 3
