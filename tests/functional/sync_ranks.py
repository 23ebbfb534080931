"""One rank of the checks that `test_sync.py` starts by torchrun; what each found goes to a file."""

import contextlib
import copy
import datetime
import io
import json
import os
import pickle
import sys
import time
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import batchnorm
from batchnorm.functional import _exchange, batch_norm

LIMIT = 300  # a cold compiler may keep one rank
PARTS = {2: (5, 2), 3: (4, 0, 3)}
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def rank():
    return dist.get_rank()


def mine(x):
    """This rank's part of a batch of seven."""
    parts = PARTS[dist.get_world_size()]
    return x[sum(parts[: rank()]) : sum(parts[: rank() + 1])]


def buffers(channels=4):
    return torch.zeros(channels), torch.ones(channels), torch.tensor(0)


def inputs(*shape, dtype=torch.float64, offset=0.0):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(7, *shape, generator=generator, dtype=torch.float64) + offset).to(dtype)


def summed(t):
    t = t.clone()
    dist.all_reduce(t)
    return t


def same_on_all_ranks(*tensors):
    for t in tensors:
        everyone = [torch.empty_like(t) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, t)
        assert all(torch.equal(other, t) for other in everyone)


def raised(error, function, *arguments, **options):
    try:
        function(*arguments, **options)
    except error as caught:
        return str(caught)
    raise AssertionError(f"no {error.__name__}")


def both(x, residual=None, mask=None, weight=None, bias=None, axis=1, **options):
    """Outputs, gradients and running statistics of one process with all, and of this rank."""
    dy = inputs(*x.shape[1:], dtype=x.dtype).flip(0) * 2 + 1
    found = []
    for part, group in ((lambda t: t, None), (mine, "world")):
        leaves = [None if t is None else part(t).clone().requires_grad_() for t in (x, residual)]
        leaves += [None if t is None else t.clone().requires_grad_() for t in (weight, bias)]
        mean, var, count = buffers(x.shape[axis])
        y = batch_norm(
            leaves[0], mean, var, leaves[2], leaves[3], True, num_batches_tracked=count, axis=axis,
            residual=leaves[1], mask=None if mask is None else part(mask), process_group=group,
            **options,
        )  # fmt: skip
        kept = [t for t in leaves if t is not None]
        gradients = iter(torch.autograd.grad(y, kept, part(dy)))
        found.append([y.detach(), *(None if t is None else next(gradients) for t in leaves)])
        found[-1] += [mean, var, count]
    return found


def compare(whole, part, rtol, atol):
    names = ("y", "dx", "dresidual", "dweight", "dbias", "mean", "var", "count")
    for name, expected, got in zip(names, whole, part, strict=True):
        if expected is None:
            continue
        if name in ("y", "dx", "dresidual"):
            expected = mine(expected)
        elif name in ("dweight", "dbias"):
            got = summed(got)
        tight = (1e-6, 1e-7) if expected.dtype == torch.float32 else (rtol, atol)
        torch.testing.assert_close(
            got, expected, rtol=max(rtol, tight[0]), atol=max(atol, tight[1]),
            msg=lambda text, name=name: f"{name}: {text}",
        )  # fmt: skip
    same_on_all_ranks(*part[5:])


def equals_one_process(x, rtol=1e-11, atol=1e-11, **options):
    compare(*both(x, **options), rtol, atol)


PARAMETERS = {
    "weight": torch.tensor([1.5, -0.5, 2.0, 0.1], dtype=torch.float64),
    "bias": torch.tensor([0.5, 0.0, -1.0, 3.0], dtype=torch.float64),
}
WEIGHTS = inputs(3).abs() * (inputs(3) < 1.2)


@check
def equals_one_process_on_every_backend():
    for backend in ("numba", "plain", None):
        equals_one_process(inputs(4, 3), backend=backend, **PARAMETERS)
    if dist.get_world_size() == 2:  # torch's kernel takes no empty tensor
        equals_one_process(inputs(4, 3), backend="native", **PARAMETERS)


@check
def equals_one_process_with_masks_and_weights():
    for mask in (WEIGHTS > 0.5, WEIGHTS, torch.arange(7) > 5, torch.arange(7) < 2):
        for backend in ("numba", "plain"):
            equals_one_process(
                inputs(4, 3), mask=mask, residual=inputs(4, 3).sin(), activation="silu",
                backend=backend, **PARAMETERS,
            )  # fmt: skip


@check
def equals_one_process_with_residual_activation_axis_and_parameters_left_out():
    residual = inputs(4, 3).cos()
    equals_one_process(inputs(4, 3), activation="relu", residual=residual, **PARAMETERS)
    equals_one_process(inputs(4, 3), residual=residual, weight=PARAMETERS["weight"])
    equals_one_process(inputs(3, 4), axis=-1, activation="gelu", bias=PARAMETERS["bias"])
    equals_one_process(inputs(4), activation="leaky_relu", inplace=False)
    equals_one_process(inputs(4, 2, 2).contiguous(memory_format=torch.channels_last))


@check
def a_distant_mean_loses_no_digits():
    x = inputs(4, 3, dtype=torch.float32, offset=1e6)
    equals_one_process(x, rtol=1e-5, atol=1e-5)
    ours, exact = both(x)[1][0], both(x.double())[0][0]
    torch.testing.assert_close(ours, mine(exact).float(), rtol=1e-5, atol=1e-5)


@check
def half_precision_and_many_channels():
    equals_one_process(inputs(4, 3, dtype=torch.bfloat16), rtol=1e-2, atol=1e-2)
    equals_one_process(inputs(1500))  # more than a first message has room for
    equals_one_process(inputs(4))
    equals_one_process(inputs(0, 3))


@check
def one_exchange_forward_and_one_backward():
    gathered, seen = _exchange._gathered, []

    def counted(*arguments):
        seen.append(1)
        return gathered(*arguments)

    x, (mean, var, _) = mine(inputs(4)).requires_grad_(), buffers()
    batch_norm(x, training=True, process_group="world")
    try:
        _exchange._gathered = counted
        y = batch_norm(x, mean, var, training=True, process_group="world")
        assert len(seen) == 1
        y.sum().backward()
        assert len(seen) == 2
        batch_norm(x, mean, var, process_group="world")
        assert len(seen) == 2
        batch_norm(x, mean, var, update=True, process_group="world")
        assert len(seen) == 3
    finally:
        _exchange._gathered = gathered
    same_on_all_ranks(mean, var)


@check
def normalized_with_the_running_statistics_they_move_by_all_ranks():
    whole, part = buffers(), buffers()
    x = inputs(4)
    y = batch_norm(x, *whole[:2], update=True, num_batches_tracked=whole[2])
    ours = batch_norm(
        mine(x), *part[:2], update=True, num_batches_tracked=part[2], process_group="world"
    )
    torch.testing.assert_close(ours, mine(y))
    torch.testing.assert_close(part, whole)


@check
def a_batch_that_one_rank_spoils_is_kept_out_on_all():
    for spoiled in (torch.inf, torch.nan):
        x, (mean, var, count), skipped = inputs(4), buffers(), torch.tensor(0)
        x[0, 1] = spoiled
        y = batch_norm(
            mine(x), mean, var, training=True, num_batches_tracked=count, skipped=skipped,
            process_group="world",
        )  # fmt: skip
        assert (mean == 0).all()
        assert (var == 1).all()
        assert (count, skipped) == (0, 1)
        assert y[:, 1].isnan().all()
        assert y[:, [0, 2, 3]].isfinite().all()


class Copied(torch.autograd.Function):
    """The same on every rank, so that what comes back is the sum over ranks."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, dy):
        return Reduced.apply(dy)


class Reduced(torch.autograd.Function):
    """The sum over ranks, the same on every one."""

    @staticmethod
    def forward(ctx, x):
        return summed(x)

    @staticmethod
    def backward(ctx, dy):
        return Copied.apply(dy)


def differentiable(mask, activation, axis=1):
    """All ranks' output as one function of all ranks' input."""

    def function(x, weight, bias, residual):
        x, weight, bias, residual = map(Copied.apply, (x, weight, bias, residual))
        parts = {2: (2, 1), 3: (2, 1, 0)}[dist.get_world_size()]
        here = slice(sum(parts[: rank()]), sum(parts[: rank() + 1]))
        y = batch_norm(
            x[here], weight=weight, bias=bias, training=True, residual=residual[here], axis=axis,
            mask=None if mask is None else mask[here], activation=activation,
            process_group="world",
        )  # fmt: skip
        before, after = y.new_zeros(here.start, 2, 2), y.new_zeros(3 - here.stop, 2, 2)
        return Reduced.apply(torch.cat((before, y, after)))

    return function


@check
def gradcheck_and_gradgradcheck_over_the_ranks():
    tensors = [inputs(2, 2)[:3], inputs()[:2] + 2, inputs()[2:4], inputs(2, 2)[4:]]
    tensors = [t.clone().requires_grad_() for t in tensors]
    weights = inputs(2)[:3].abs() + 0.5
    weights[0, 0] = 0
    for mask, activation, axis in ((None, "silu", 1), (weights, "gelu", 1), (None, None, 2)):
        function = differentiable(mask, activation, axis)
        torch.manual_seed(0)  # the ranks must move the same value at the same time
        assert torch.autograd.gradcheck(function, tensors, fast_mode=True)
        torch.manual_seed(0)
        assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


@check
def second_derivatives_equal_one_process():
    found = []
    x, v = inputs(4, 3), inputs(4, 3).flip(0)
    for part, group in ((lambda t: t, None), (mine, "world")):
        leaf = part(x).clone().requires_grad_()
        y = batch_norm(leaf, training=True, activation="silu", process_group=group)
        (dx,) = torch.autograd.grad(y.square().sum(), leaf, create_graph=True)
        (ddx,) = torch.autograd.grad((dx * part(v)).sum(), leaf, create_graph=True)
        (third,) = torch.autograd.grad((ddx * part(v)).sum(), leaf)
        found.append((dx.detach(), ddx.detach(), third))
    for whole, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, mine(whole))


@check
def forward_mode_and_torch_func_equal_one_process():
    found = []
    x, v = inputs(4), inputs(4).flip(0)
    for part, group in ((lambda t: t, None), (mine, "world")):

        def function(x, group=group):
            return batch_norm(x, training=True, activation="silu", process_group=group)

        tangent = torch.func.jvp(function, (part(x),), (part(v),))[1]
        gradient = torch.func.grad(lambda x, f=function: f(x).square().sum())(part(x))
        found.append((tangent, gradient))
    for whole, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, mine(whole))
    text = raised(NotImplementedError, torch.vmap(function), inputs(3, 4))
    assert "torch.vmap is not supported" in text


def network(group=None):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 4, bias=False), batchnorm.BatchNorm1d(4, process_group=group), nn.Tanh(),
        nn.Linear(4, 5, bias=False), batchnorm.BatchNormAct1d(5, "silu", process_group=group),
    ).double()  # fmt: skip


def trained(model, data, share):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        first, second = model(data + step), model(data.flip(1) * 2)  # two forwards in a step
        ((first - second).square().sum() * share + 0 * second.sum()).backward()
        optimizer.step()
    return model


@check
def ddp_with_two_forwards_in_a_step_trains_as_one_process_does():
    x = inputs(6)
    whole = trained(network(), x, 1.0).state_dict()
    share = float(dist.get_world_size())  # DistributedDataParallel takes the mean over ranks
    for options in ({}, {"broadcast_buffers": False}):
        ours = trained(DistributedDataParallel(network("world"), **options), mine(x), share)
        for name, value in ours.module.state_dict().items():
            torch.testing.assert_close(value, whole[name], rtol=1e-6, atol=1e-8)
        same_on_all_ranks(*ours.module.state_dict().values())


@check
def a_rank_out_of_data_goes_on_with_empty_batches():
    """Rank 0 has two batches more than the others."""
    model, alone = network("world"), network()
    for step in range(4):
        for each, batch in ((model, mine(inputs(6))), (alone, inputs(6))):
            if step >= 2:
                batch = inputs(6)[: PARTS[dist.get_world_size()][0]]
                if each is model and rank() > 0:
                    batch = batch[:0]
            each.zero_grad()
            each(batch).sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(summed(p.grad), alone.get_parameter(name).grad)
    same_on_all_ranks(*model.state_dict().values())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, alone.state_dict()[name], rtol=1e-6, atol=1e-8)


@check
def an_output_in_no_loss_joins_by_a_sum_times_zero():
    x = mine(inputs(4)).requires_grad_()
    y = batch_norm(x, training=True, process_group="world")
    loss = 0 * y.sum() if rank() else y.square().sum()
    loss.backward()
    assert x.grad.isfinite().all()
    y = batch_norm(x, training=True, process_group="world")
    text = "not on the rank that calls"
    if rank():  # forgets it, and goes on to its next batch
        text = raised(RuntimeError, batch_norm, x, training=True, process_group="world")
    else:
        text = raised(RuntimeError, y.square().sum().backward)
    assert "rank 0 is in the backward pass with 4 channels; rank 1 is in the forward pass" in text
    assert "adding 0 * y.sum()" in text


@check
def what_one_rank_refuses_is_an_error_on_all():
    layer = batchnorm.BatchNorm1d(4, process_group="world")
    for wrong in (torch.randn(3, 5), torch.randn(3, 4, 2, 2), torch.ones(3, 4, dtype=torch.long)):
        if rank() == 1:
            raised((ValueError, TypeError), layer, wrong)
        else:
            text = raised(RuntimeError, layer, torch.randn(3, 4))
            assert "rank 1 refuses its input, and its own error says why" in text
    mask = torch.ones(3 if rank() else 2, dtype=torch.bool)
    error = RuntimeError if rank() else ValueError
    raised(error, layer, torch.randn(3, 4), mask=mask)
    raised(error, batch_norm, torch.randn(3, 4), training=True, process_group="world",
           backend=None if rank() else "nobody")  # fmt: skip
    layer(torch.randn(3, 4))  # and all go on


@check
def what_one_rank_refuses_before_it_is_batch_norms_turn_is_an_error_on_all():
    norm, act = (
        kind(4, process_group="world") for kind in (batchnorm.BatchNorm1d, batchnorm.BatchNormAct1d)
    )
    lazy = batchnorm.LazyBatchNorm1d(axis=2, process_group="world")
    domains = batchnorm.DomainBatchNorm1d(4, domains=2, process_group="world")
    x, three = torch.randn(3, 4), torch.ones(3, dtype=torch.bool)
    packed = nn.utils.rnn.pack_sequence([torch.randn(2, 4), torch.randn(1, 4)])
    nested = torch.nested.nested_tensor([torch.randn(2, 4)], layout=torch.jagged)

    def by(layer, *arguments, around=None, **options):
        with contextlib.nullcontext() if around is None else batchnorm.masked(layer, around):
            return layer(*arguments, **options)

    def nothing(layer):
        with batchnorm.masked(layer, torch.ones(2, dtype=torch.bool)):
            return layer(packed)

    wrong = {
        "does not fit": (norm, lambda: by(norm, x, around=three[:2])),
        "with a PackedSequence; expected mask": (norm, lambda: norm(packed, mask=three)),
        "with a PackedSequence": (norm, lambda: nothing(norm)),
        "packed as the input is": (act, lambda: act(packed, x)),
        "with a nested x; expected mask=None": (norm, lambda: by(norm, nested, mask=three)),
        "is the ragged axis": (norm, lambda: norm(nested)),
        "input is of type list": (norm, lambda: norm([1.0])),
        "mask is of type list": (norm, lambda: norm(x, mask=[True] * 3)),
        "axis=2 is no channel axis": (lambda x: lazy(x[:, None]), lambda: lazy(x)),
        "domain=7": (lambda x: domains(x, 0), lambda: domains(x, 7)),
        "no domain was given": (lambda x: domains(x, 0), lambda: domains(x)),
        "an integer, or a padded tensor": (lambda x: domains(x, 0), lambda: domains(packed, three.int())),
    }  # fmt: skip
    for message, (right, call) in wrong.items():
        if rank() == 1:
            assert message in raised((ValueError, TypeError), call), message
        else:
            text = raised(RuntimeError, right, x)
            assert "rank 1 refuses its input, and its own error says why" in text, message
    norm(x)  # and all go on
    assert norm.eval()(x).shape == x.shape
    if rank() == 1:  # and in evaluation nobody waits
        raised(ValueError, by, norm, x, around=three[:2])
    norm.train()(x)


@check
def other_channels_on_one_rank_are_an_error_on_all():
    for channels in (5, 3000):
        x = torch.randn(3, channels if rank() == 1 else 4)
        text = raised(RuntimeError, batch_norm, x, training=True, process_group="world")
        assert "rank 0 is in the forward pass with 4 channels" in text
        assert f"rank 1 is in the forward pass with {channels} channels" in text
        assert f"the process group '{dist.group.WORLD.group_name}' of" in text
    batch_norm(torch.randn(3, 4), training=True, process_group="world")


@check
def one_value_is_judged_on_all_ranks():
    x = inputs(4)[rank() : rank() + 1]
    size = dist.get_world_size()
    whole = batch_norm(inputs(4)[:size], training=True)
    y = batch_norm(x, training=True, process_group="world")
    torch.testing.assert_close(y, whole[rank() : rank() + 1])
    mean, var, _ = buffers()
    x = inputs(4)[: int(rank() == 1)]
    text = raised(ValueError, batch_norm, x, mean, var, training=True, process_group="world")
    assert "got one on all ranks of the process group together" in text
    assert (mean == 0).all()
    mask = torch.zeros(2, dtype=torch.bool)
    y = batch_norm(inputs(4)[:0], mean, var, training=True, process_group="world")
    assert y.shape == (0, 4)
    assert (var == 1).all()
    y = batch_norm(inputs(4)[:2], mean, var, training=True, mask=mask, process_group="world")
    assert (y == 0).all()
    assert (var == 1).all()


@check
def options_for_small_batches_are_judged_on_all_ranks():
    x = inputs(4)[: int(rank() == 1)]
    for one_value in ("beta", "running"):
        mean, var, _ = buffers()
        y = batch_norm(x, mean + 1, var, training=True, one_value=one_value, process_group="world")
        expected = torch.zeros_like(x) if one_value == "beta" else x - 1
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
        assert (var == 1).all()
        equals_one_process(inputs(4), one_value=one_value, **PARAMETERS)
    equals_one_process(inputs(4), renorm=(1.1, 0.1), **PARAMETERS)
    error = raised(
        ValueError, batch_norm, inputs(4), training=True, ghost_size=2, process_group="world"
    )
    assert "expected one of the two to be None" in error


@check
def ranks_with_other_domains_merge_each_with_its_own():
    x, dy = inputs(4, 3), inputs(4, 3).flip(0) + 1
    which = torch.tensor([0, 0, 0, 0, 0, 2, 2] if dist.get_world_size() == 2 else [0] * 4 + [2] * 3)
    results = []
    for part, group in ((lambda t: t, None), (mine, "world")):
        for each in (False, True):  # one domain for the rank, or one for each example
            layer = batchnorm.DomainBatchNorm1d(4, domains=3, process_group=group).double()
            leaf = part(x).clone().requires_grad_()
            alone = group and not each
            domain = ([0, 2] if dist.get_world_size() == 2 else [0, 1, 2])[rank()]
            y = layer(leaf, domain if alone else part(which))
            y.backward(part(dy))
            results.append([y.detach(), leaf.grad, layer.weight.grad, *layer.buffers()])
    whole, _, *ranks = results
    for ours in ranks:
        for i, (expected, got) in enumerate(zip(whole, ours, strict=True)):
            expected = mine(expected) if i < 2 else expected
            torch.testing.assert_close(summed(got) if i == 2 else got, expected)


def steps(layer, part, share, pooled=False):
    """Two batches, each with a backward pass: outputs, gradients, running statistics."""
    found = []
    weights = (WEIGHTS > 0.5, None)
    with batchnorm.pooled(layer) if pooled else contextlib.nullcontext():
        for x, mask in zip((inputs(4, 3), inputs(4, 3).flip(0) * 3 + 1), weights, strict=True):
            leaf = part(x).clone().requires_grad_()
            y = layer(leaf, mask=None if mask is None else part(mask))
            y.backward(part(inputs(4, 3).sin()))
            found += [share(y.detach()), share(leaf.grad)]
    return [*found, layer.weight.grad, *layer.buffers()]


@check
def layers_that_pool_or_renormalize_equal_one_process():
    kinds = {
        batchnorm.BatchNorm1d: {"momentum": 0.3},
        batchnorm.BatchRenorm1d: {"r_max": 1.2, "d_max": 0.2},
        batchnorm.BatchNormAct1d: {"bias_correction": True, "one_value": "running"},
    }
    for kind, options in kinds.items():
        for pooled in (False, True):
            whole = kind(4, dtype=torch.float64, **options)
            ours = kind(4, dtype=torch.float64, process_group="world", **options)
            expected = steps(whole, lambda t: t, mine, pooled)
            got = steps(ours, mine, lambda t: t, pooled)
            got[4] = summed(got[4])
            for a, b in zip(got, expected, strict=True):
                torch.testing.assert_close(a, b)
            same_on_all_ranks(*ours.buffers())
            assert ours.num_batches_tracked == (1 if pooled else 2)


@check
def groups_of_some_ranks_and_of_none_that_is_here():
    first = dist.new_group([0, 1])
    last = dist.new_group([dist.get_world_size() - 1])
    x = inputs(4)
    if rank() < 2:
        y = batch_norm(x[3 * rank() :][:3], training=True, process_group=first)
        torch.testing.assert_close(y, batch_norm(x[:6], training=True)[3 * rank() :][:3])
    else:
        text = raised(ValueError, batch_norm, x, training=True, process_group=first)
        assert "does not belong to" in text
        raised(ValueError, batchnorm.BatchNorm1d, 4, process_group=first)
    if rank() == dist.get_world_size() - 1:  # alone in its group: an ordinary call
        assert torch.equal(batch_norm(x, training=True, process_group=last),
                           batch_norm(x, training=True))  # fmt: skip
        raised(ValueError, batch_norm, x[:1], training=True, process_group=last)


@check
def copies_pickles_and_state_dicts_of_a_layer_with_a_group():
    group = dist.new_group()
    for given in (group, "world"):
        layer = batchnorm.BatchNormAct1d(4, process_group=given)
        whole = io.BytesIO()
        torch.save(layer, whole)
        whole.seek(0)
        others = (
            copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)),
            torch.load(whole, weights_only=False),
        )  # fmt: skip
        x = mine(inputs(4, dtype=torch.float32))
        y = layer(x)
        for other in others:
            assert other.process_group == given
            assert torch.equal(other(x), y)
        assert layer.state_dict().keys() == nn.BatchNorm1d(4).state_dict().keys()
    folder = Path(sys.argv[1]) / f"layer-{dist.get_world_size()}-{rank()}.pickle"
    folder.write_bytes(pickle.dumps(batchnorm.BatchNorm1d(4, process_group=group)))
    dist.destroy_process_group(group)
    layer.process_group = group
    assert "was destroyed" in raised(ValueError, layer, x)


@check
def under_checkpoint_the_ranks_recompute_together():
    found = []
    for reentrant in (None, True, False):
        model, x = network("world"), mine(inputs(6)).requires_grad_()
        y = model(x) if reentrant is None else checkpoint(model, x, use_reentrant=reentrant)
        y.square().sum().backward()
        found.append([x.grad, *(p.grad for p in model.parameters())])
    for gradients in found[1:]:
        torch.testing.assert_close(gradients, found[0])


@check
def compiled_without_a_break_in_the_graph():
    group = dist.new_group()
    for given in ("world", group):
        eager, compiled = (network(given) for _ in range(2))
        run = torch.compile(compiled, fullgraph=True, backend="aot_eager")
        x = mine(inputs(6))
        for model, call in ((eager, eager), (compiled, run)):
            model.output = call(x)
            model.output.square().sum().backward()
        torch.testing.assert_close(compiled.output, eager.output)
        for p, q in zip(compiled.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)
        same_on_all_ranks(*compiled.state_dict().values())


@check
def export_in_training_is_refused():
    x = inputs(6)
    model = network("world")
    text = raised(Exception, torch.export.export, model, (x,))
    assert "under torch.export" in text
    torch.export.export(model.eval(), (x,))


@check
def torchs_layer_has_no_cpu_to_compare_with():
    layer = nn.SyncBatchNorm(4)
    assert "expected input tensor to be on" in raised(ValueError, layer, mine(inputs(4)))


@check
def a_rank_that_makes_no_call_lets_the_others_fail_within_the_limit():
    group = dist.new_group(timeout=datetime.timedelta(seconds=1))
    started = time.monotonic()
    if rank():
        text = raised(RuntimeError, batch_norm, inputs(4), training=True, process_group=group)
        assert time.monotonic() - started < 10
        assert "could not merge its statistics in the forward pass" in text
        assert "has a time limit of 1 s" in text
    dist.barrier()


@check
def a_rank_that_dies_lets_the_others_fail_with_a_message():
    last = dist.get_world_size() - 1
    if rank() == last:
        save()
        os._exit(0)
    started = time.monotonic()
    model = network("world")
    text = raised(RuntimeError, model, inputs(6))
    assert time.monotonic() - started < LIMIT
    assert "batch_norm(process_group=...) could not merge its statistics" in text
    assert f"of {last + 1} ranks (this is its rank {rank()})" in text
    assert f"time limit of {LIMIT} s" in text


RESULTS = {}


def save():
    path = Path(sys.argv[1]) / f"{dist.get_world_size()}-{rank()}.json"
    path.write_text(json.dumps(RESULTS))


def main():
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=LIMIT))
    for function in CHECKS:
        started = time.monotonic()
        try:
            RESULTS[function.__name__] = ""
            function()
        except Exception:
            RESULTS[function.__name__] = traceback.format_exc()
        if os.environ.get("SYNC_SECONDS"):
            print(rank(), function.__name__, f"{time.monotonic() - started:.1f} s", flush=True)
    save()


if __name__ == "__main__":
    main()
    os._exit(0)  # the group has a dead rank, and taking it down would wait for it
