"""Every option on every backend, and differentiated twice."""

import contextlib
import inspect
import re

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import batchnorm
from batchnorm.functional import batch_norm
from batchnorm.kernels import _pick
from modes import Operators

BACKENDS = [row.name for row in batchnorm.backends().rows]
MASK = torch.tensor([True, False, True, True, True])
ONE = torch.arange(5) == 2
WEIGHTS = torch.tensor([[1, 0.5, 0], [1, 1, 2], [0, 0, 0], [1, 0.3, 1], [3, 1, 1]])
SHAPE = (5, 2, 3)

OPTIONS = {
    "no option": {},
    "evaluation": {"training": False},
    "mask": {"mask": MASK},
    "weights": {"mask": WEIGHTS},
    "axis": {"axis": -1},
    "momentum": {"momentum": None},
    "bias correction": {"bias_correction": True},
    "no update": {"update": False},
    "running ones that move": {"training": False, "update": True},
    "running ones that move under a mask": {"training": False, "update": True, "mask": MASK},
    "eps": {"eps": 0.3},
    "activation": {"activation": "gelu"},
    "residual": {"residual": True},
    "residual and activation": {"residual": True, "activation": "silu"},
    "residual and activation under a mask": {"residual": True, "activation": "silu", "mask": MASK},
    "inplace": {"inplace": True, "activation": "leaky_relu"},
    "inplace in evaluation": {"inplace": True, "activation": "elu", "training": False},
    "one value, running": {"shape": (1, 2), "one_value": "running"},
    "one value, beta": {"shape": (1, 2), "one_value": "beta"},
    "one value left by a mask, running": {"shape": (5, 2), "mask": ONE, "one_value": "running"},
    "one value left by a mask, beta": {"shape": (5, 2), "mask": ONE, "one_value": "beta"},
    "ghosts": {"ghost_size": 2},
    "ghosts under a mask": {"ghost_size": 2, "mask": WEIGHTS, "one_value": "beta"},
    "ghosts and a residual": {"ghost_size": 2, "residual": True, "activation": "silu"},
    "renorm": {"renorm": (1.2, 0.3)},
    "renorm under weights": {"renorm": (1.2, 0.3), "mask": WEIGHTS},
    # Limits that every ghost is at: between them r and d move, and no gradient follows them.
    "renorm and ghosts": {"renorm": (1.001, 0.001), "ghost_size": 2},
    "pool": {"pool": True},
    "process group": {"process_group": "world"},
    "a batch kept out": {"poisoned": True},
}  # fmt: skip

NO_MASK = "native: torch's kernel has no mask"
TWO_VALUES = "native: torch's kernel needs two values a channel, and x has shape (1, 2)"
ONE_MASK = "numba: it takes masks that are the same for all channels"
REFUSED = {
    ("numba", "ghosts under a mask"): ONE_MASK,
    **{("native", name): NO_MASK for name, options in OPTIONS.items() if "mask" in options},
    **{("native", f"one value, {kind}"): TWO_VALUES for kind in ("running", "beta")},
}


class Setting:
    """The tensors of a call with one of the options."""

    def __init__(self, option, dtype):
        options = {"training": True, "momentum": 0.3} | OPTIONS[option]
        generator = torch.Generator().manual_seed(1)
        shape = options.pop("shape", SHAPE)
        channels = shape[options.get("axis", 1)]
        numbers = [torch.randn(shape, generator=generator) for _ in range(3)]
        weight, bias, mean = (torch.randn(channels, generator=generator) for _ in range(3))
        if options.pop("poisoned", False):
            numbers[0][0, 0] = float("inf")
        residual = numbers[1] if options.pop("residual", False) else None
        leaves = [numbers[0], weight, bias, residual]
        self.leaves = [None if t is None else t.to(dtype).requires_grad_() for t in leaves]
        self.dy = numbers[2].to(dtype)
        mean = mean.to(dtype)
        self.state = [mean, mean.square() + 0.5, torch.tensor(2), torch.tensor(0)]
        if options.pop("pool", False):
            options["pool"] = torch.rand(3, channels, dtype=torch.float64, generator=generator)
        self.options = options

    def call(self, leaves, state, **options):
        """One call that moves `state`."""
        x, weight, bias, residual = leaves
        mean, var, batches, skipped = state
        x = x * 1 if self.options.get("inplace") else x
        return batch_norm(
            x, mean, var, weight, bias, num_batches_tracked=batches, skipped=skipped,
            residual=residual, **self.options | options,
        )  # fmt: skip


def results(option, dtype, **options):
    """Output, gradients, running statistics with their counts, and the pool."""
    setting = Setting(option, dtype)
    y = setting.call(setting.leaves, setting.state, **options)
    leaves = [t for t in setting.leaves if t is not None]
    gradients = torch.autograd.grad(y, leaves, setting.dy)
    pool = [setting.options[name] for name in ("pool",) if name in setting.options]
    return [y.detach(), *gradients, *setting.state, *pool]


def assert_equal(ours, right, dtype):
    tolerance = {torch.float64: 1e-11, torch.float32: 1e-5}[dtype]
    for a, b in zip(ours, right, strict=True):
        torch.testing.assert_close(
            a.double(), b.double(), rtol=tolerance, atol=tolerance, equal_nan=True
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("way", [contextlib.nullcontext, Operators])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("option", OPTIONS)
def test_it_equals_the_plain_one_or_says_why_not(option, backend, way, dtype):
    """Past the operators and through them; what it refuses goes to another if that may choose."""
    right = results(option, torch.float64, backend="plain")
    reason = REFUSED.get((backend, option))
    with way():
        if reason is None:
            assert_equal(results(option, dtype, backend=backend), right, dtype)
        else:
            with pytest.raises(ValueError, match=re.escape(reason)) as told:
                results(option, dtype, backend=backend)
            assert "plain: would take it); use backend=None" in str(told.value)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("option", OPTIONS)
def test_what_the_first_refuses_the_next_takes(option, backend, monkeypatch):
    right = results(option, torch.float32, backend="plain")
    known = {b.name: b for b in _pick.ORDER}
    asked = []
    first = known.pop(backend)
    monkeypatch.setattr(_pick, "ORDER", (Told(first, asked), *known.values()))
    assert_equal(results(option, torch.float32), right, torch.float32)
    refused = REFUSED.get((backend, option))
    assert asked
    reasons = {answer for answer in asked if answer is not None}
    assert reasons == (set() if refused is None else {refused.split(": ", 1)[1]})


class Told:
    """A backend, and what it answered."""

    def __init__(self, backend, asked):
        self.backend, self.asked = backend, asked

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def refuses(self, call):
        self.asked.append(self.backend.refuses(call))
        return self.asked[-1]


@pytest.mark.parametrize("option", [name for name in OPTIONS if name != "a batch kept out"])
def test_first_and_second_derivatives_both_ways(option):
    setting = Setting(option, torch.float64)
    there = [i for i, t in enumerate(setting.leaves) if t is not None]

    def function(*given):
        leaves = list(setting.leaves)
        for i, t in zip(there, given, strict=True):
            leaves[i] = t
        pool = setting.options.get("pool")
        options = {} if pool is None else {"pool": pool.clone()}
        return setting.call(leaves, [t.clone() for t in setting.state], **options)

    leaves = [setting.leaves[i] for i in there]
    assert gradcheck(function, leaves, check_forward_ad=True)
    if setting.options.get("inplace"):
        with pytest.raises(RuntimeError, match="inplace=True has no second derivatives"):
            gradgradcheck(function, leaves)
    else:
        assert gradgradcheck(function, leaves, check_fwd_over_rev=True)


def test_no_option_is_left_out():
    always = {"x", "running_mean", "running_var", "weight", "bias", "backend"}
    always |= {"num_batches_tracked", "skipped"}
    named = {name for options in OPTIONS.values() for name in options} | {"momentum", "training"}
    assert set(inspect.signature(batch_norm).parameters) - always <= named
