"""Tensors whose memory was freed are refused by name, as torch does, and not read.

In a process of their own, which a kernel that reads them would end.
"""

import json

import pytest
import torch

from batchnorm import BatchNorm1d
from batchnorm.kernels import numba
from batchnorm.kernels._address import values
from processes import python

CASES = """
import json

import torch

from batchnorm import BatchNorm2d, BatchNormAct2d
from batchnorm.kernels import numba

if {gone}:
    numba.refuses, numba._mover = lambda call: "it is gone", lambda: None


def free(t):
    t.untyped_storage().resize_(0)


def told(call):
    try:
        call()
    except RuntimeError as error:
        return str(error)
    return "nothing"


def made(kind):
    options = {{"activation": "elu", "inplace": True}} if kind == "in place" else {{}}
    layer = BatchNormAct2d(3, **options) if kind != "flat" else BatchNorm2d(3)
    x = torch.randn(4, 3, 5, 5)
    for _ in range(2 * {familiar}):
        for mode in (True, False):
            leaf = x.clone().requires_grad_()
            layer.train(mode)(leaf * 1).sum().backward()
            with torch.no_grad():
                layer(x.clone())
    return layer.train(), x


found = {{}}
for kind in ("flat", "act", "in place"):
    for training in (True, False):
        for name in ("weight", "bias", "running_mean", "running_var"):
            layer, x = made(kind)
            free(getattr(layer.train(training), name))
            found[f"{{kind}} {{training}} {{name}}"] = name, told(lambda: layer(x))
        layer, x = made(kind)
        free(x)
        found[f"{{kind}} {{training}} x"] = "x", told(lambda: layer.train(training)(x))
    if not {gone} or kind != "act":  # where dy comes to a node of torch's, which does not ask
        layer, x = made(kind)
        y = layer(x.requires_grad_() * 1)
        dy = torch.ones_like(y)
        free(dy)
        found[f"{{kind}} dy"] = "dy", told(lambda: y.backward(dy))
    for name in ("x", "weight"):
        layer, x = made(kind)
        z = x.requires_grad_() * 1
        y = layer(z)
        free(z if name == "x" else layer.weight)
        found[f"{{kind}} saved {{name}}"] = name, told(lambda: y.backward(torch.ones(4, 3, 5, 5)))
layer, x = made("act")
free(layer.num_batches_tracked)
found["num_batches_tracked"] = "num_batches_tracked", told(lambda: layer(x))
for training in (True, False):
    layer, x = made("act")
    residual, part = torch.randn_like(x), torch.randn(5, *x.shape[1:])
    for _ in range(2 * {familiar}):
        layer.train(training)(x, residual)
    view = part[1:]
    free(residual)
    free(part)
    layer.train(training)
    found[f"{{training}} residual"] = "residual", told(lambda: layer(x, residual))
    found[f"{{training}} view"] = "residual", told(lambda: layer(x, view))
large = torch.randn(2, 3, 900, 900)
y = layer(large.requires_grad_() * 1)
dy = torch.ones_like(y)
free(dy)
found["dy of what is large"] = "dy", told(lambda: y.backward(dy))
far, layer = torch.randn(4, 3, 5, 5) + 1e4, BatchNorm2d(3)  # which native centres first
y = layer(far.requires_grad_() * 1)
dy = torch.ones_like(y)
free(dy)
found["dy of what is far"] = "dy", told(lambda: y.backward(dy))
layer, x = made("flat")
other, part = torch.randn(5, 3, 5, 5), torch.ones(9)
view = other[1:]
free(other)
found["a view"] = "x", told(lambda: layer(view))
layer.weight = torch.nn.Parameter(part[3:6])
free(part)
found["a view of parameters"] = "weight", told(lambda: layer(x))
for training in (True, False):
    for name in ("running_mean", "running_var", "num_batches_tracked")[: 3 if training else 2]:
        layer, x = made("flat")
        whole = torch.zeros(5, dtype=getattr(layer, name).dtype)
        setattr(layer, name, whole[2] if name == "num_batches_tracked" else whole[2:])
        layer.train(training)
        if {familiar}:
            layer(x)
        free(whole)
        found[f"{{training}} view {{name}}"] = name, told(lambda: layer(x))
layer, x = made("flat")
assert layer(torch.randn(0, 3, 5, 5)).shape == (0, 3, 5, 5)
print(json.dumps(found))
"""


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("familiar", [False, True])
def test_what_was_freed_is_refused(familiar, gone):
    found = json.loads(python(CASES.format(familiar=familiar, gone=gone)))
    assert len(found) == 53 - gone
    for case, (name, words) in found.items():
        ours = words.startswith(f"{name} of shape") and "its storage was freed" in words
        torchs = any(part in words for part in ("storage of size 0", "data is not allocated yet"))
        assert ours or torchs, (case, words)  # which looks first


@pytest.mark.parametrize("gone", [False, True])
def test_running_statistics_can_be_freed_after_a_call(gone, monkeypatch):
    if gone:
        monkeypatch.setattr(numba, "refuses", lambda call: "it is gone")
        monkeypatch.setattr(numba, "_mover", lambda: None)
    layer = BatchNorm1d(3)
    for mode in (True, False):
        layer.train(mode)(torch.randn(8, 3))
    for buffer in layer.buffers():
        assert buffer.untyped_storage().resizable()


def test_a_copy_of_what_has_gaps_is_kept_as_long_as_it_is_read():
    spaced = torch.arange(64.0)[::2]
    read = values("running_mean", spaced)
    later = [torch.full((32,), float("nan")) for _ in range(50)]
    assert read.tolist() == list(range(0, 64, 2))
    assert len(later) == 50
