"""Statistics measured anew: exact on any split, and everything else as it was on every way out."""

import copy
import random
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import batchnorm
from batchnorm import recalibrate


def deep(norm=batchnorm.BatchNorm1d):
    torch.manual_seed(1)
    layers = []
    for inputs in (5, 7, 7):
        layers += [nn.Linear(inputs, 7), norm(7), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(7, 3))


def norms(model):
    kinds = (nn.modules.batchnorm._BatchNorm, batchnorm.BatchNormAct1d)
    return {path: m for path, m in model.named_modules() if isinstance(m, kinds)}


def state(model):
    """Everything a model holds, and its modes, hooks and gradients."""
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [module.training for module in model.modules()],
        [len(module._forward_pre_hooks) for module in model.modules()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        torch.get_rng_state(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
    )


def assert_same(before, after):
    assert before[0].keys() == after[0].keys()
    for name, value in before[0].items():
        torch.testing.assert_close(after[0][name], value, rtol=0, atol=0)
    assert before[1:3] == after[1:3]
    for mine, theirs in zip(before[3], after[3], strict=True):
        assert mine is theirs or torch.equal(mine, theirs)
    assert torch.equal(before[4], after[4])
    assert before[5:] == after[5:]


def taken_in(model, x):
    """What each batch norm takes in, in evaluation mode, in float64 per channel."""
    seen = {}
    hooks = [
        m.register_forward_pre_hook(lambda m, args, path=path: seen.update({path: args[0]}))
        for path, m in norms(model).items()
    ]
    modes = [(module, module.training) for module in model.modules()]
    with torch.no_grad():
        model.eval()(x)
    for module, training in modes:
        module.training = training
    for hook in hooks:
        hook.remove()
    return {path: z.double().movedim(1, 0).flatten(1) for path, z in seen.items()}


@pytest.mark.parametrize("norm", [batchnorm.BatchNorm1d, nn.BatchNorm1d, nn.SyncBatchNorm])
def test_one_batch_norm_has_exactly_the_moments_of_all_examples(norm):
    model = nn.Sequential(norm(5))
    x = 3 + 2 * torch.randn(41, 5)
    changes = recalibrate(model, x.split([7, 1, 3, 30]))
    assert changes.model is model
    torch.testing.assert_close(model[0].running_mean, x.double().mean(0).float())
    torch.testing.assert_close(model[0].running_var, x.double().var(0).float())
    assert [path for path, _ in changes.changed] == ["0"]


@pytest.mark.parametrize("norm", [batchnorm.BatchNorm1d, nn.BatchNorm1d])
@pytest.mark.parametrize("sizes", [[64], [1] * 64, [1, 60, 3]])
def test_layer_by_layer_is_exact_in_every_layer_whatever_the_split(norm, sizes):
    model, x = deep(norm), torch.randn(64, 5)
    recalibrate(model, x.split(sizes), layer_by_layer=True)
    for path, z in taken_in(model, x).items():
        norm = model.get_submodule(path)
        torch.testing.assert_close(norm.running_mean.double(), z.mean(1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var.double(), z.var(1), rtol=1e-4, atol=1e-6)


def test_one_pass_comes_near_to_it_in_deep_layers_and_is_exact_in_the_first():
    together, in_turn, x = deep(), deep(), torch.randn(4000, 5)
    recalibrate(together, x.split(50))
    recalibrate(in_turn, x.split(50), layer_by_layer=True)
    pairs = list(zip(norms(together).values(), norms(in_turn).values(), strict=True))
    torch.testing.assert_close(pairs[0][0].running_mean, pairs[0][1].running_mean)
    for one, other in pairs[1:]:
        distance = (one.running_mean - other.running_mean).abs() / other.running_var.sqrt()
        # A few times 1 / sqrt(4000), by which other examples would move the mean anyway.
        assert 0 < distance.max() < 0.05
        assert (one.running_var / other.running_var).log().abs().max() < 0.05


def test_one_pass_is_nearer_to_it_than_normalizing_with_each_batchs_own_statistics():
    # What is usual (PreciseBN): each batch normalized by itself while the next layer is measured.
    x = torch.randn(2000, 5)
    exact, together, usual = deep(), deep(), deep()
    recalibrate(exact, [x])
    recalibrate(together, x.split(8))
    for norm in norms(usual).values():
        norm.momentum = None
    with torch.no_grad():
        for batch in x.split(8):
            usual(batch)
    path = list(norms(exact))[-1]
    right, mine, theirs = (norms(m)[path].running_var for m in (exact, together, usual))
    assert 5 * (mine / right).log().abs().mean() < (theirs / right).log().abs().mean()


def test_images_sequences_and_channels_at_the_end():
    x = torch.randn(6, 3, 4, 5)
    two_d, last = batchnorm.BatchNorm2d(3), batchnorm.BatchNorm1d(3, axis=-1)
    recalibrate(nn.Sequential(two_d), x.split(4))
    recalibrate(nn.Sequential(last), x.flatten(2).transpose(1, 2).split(1))
    for norm in (two_d, last):
        torch.testing.assert_close(norm.running_mean, x.mean((0, 2, 3)))
        torch.testing.assert_close(norm.running_var, x.transpose(0, 1).flatten(1).var(1))


def test_positions_that_a_mask_leaves_out_do_not_count():
    x, mask = torch.randn(6, 3, 4), torch.rand(6, 4) < 0.5
    holed = x.masked_fill(~mask[:, None], torch.nan)
    norm = batchnorm.BatchNorm1d(3)
    masked = [{"input": a, "mask": b} for a, b in zip(holed.split(2), mask.split(2), strict=True)]
    recalibrate(norm, masked)
    kept = x.transpose(0, 1)[:, mask]
    torch.testing.assert_close(norm.running_mean, kept.mean(1))
    torch.testing.assert_close(norm.running_var, kept.var(1))


def test_a_mask_around_the_call_packed_and_nested_sequences():
    lengths, x = torch.tensor([4, 2, 1]), torch.randn(3, 4, 2)
    padded, last = batchnorm.BatchNorm1d(2), batchnorm.BatchNorm1d(2, axis=-1)
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
    parts = [part[:n] for part, n in zip(x, lengths, strict=True)]
    nested = torch.nested.nested_tensor(parts, layout=torch.jagged)
    kept = torch.cat(parts)
    with batchnorm.masked(padded, batchnorm.lengths_mask(lengths)):
        recalibrate(padded, [x.transpose(1, 2)])
    torch.testing.assert_close(padded.running_var, kept.var(0))
    for batch in (packed, nested):
        last.reset_running_stats()
        recalibrate(last, [batch])
        torch.testing.assert_close(last.running_mean, kept.mean(0))
        torch.testing.assert_close(last.running_var, kept.var(0))


def test_values_far_from_zero_keep_their_variance():
    x = 1e5 + torch.randn(100, 2)
    norm = nn.BatchNorm1d(2)
    recalibrate(norm, x.split(10))
    torch.testing.assert_close(norm.running_var, x.double().var(0).float())


@pytest.mark.parametrize("training", [True, False])
def test_nothing_but_the_statistics_changes(training):
    model = deep().train(training)
    model.insert(3, nn.Dropout(0.5))
    if training:
        model[3].eval()
    model(torch.randn(8, 5)).sum().backward()
    x = torch.randn(30, 5)
    before = state(model)
    buffers = {name: id(value) for name, value in model.named_buffers()}
    recalibrate(model, x.split(7))
    after = state(model)
    assert buffers == {name: id(value) for name, value in model.named_buffers()}
    moved = {name for name in before[0] if not torch.equal(before[0][name], after[0][name])}
    assert {name.rpartition(".")[2] for name in moved} == {"running_mean", "running_var"}
    assert_same(({}, *before[1:]), ({}, *after[1:]))


def test_nothing_is_dropped_out_meanwhile():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4))
    x = torch.randn(50, 4)
    recalibrate(model.train(), [x])
    torch.testing.assert_close(model[1].running_var, x.var(0))


def test_a_batch_norm_that_is_called_twice_measures_both_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = batchnorm.BatchNorm1d(2)

        def forward(self, x):
            return self.norm(x) + self.norm(x + 10)

    model, x = Twice(), torch.randn(20, 2)
    changes = recalibrate(model, x.split(5))
    torch.testing.assert_close(model.norm.running_var, torch.cat([x, x + 10]).var(0))
    assert "40 values a channel" in changes.changed[0][1]


def test_what_is_frozen_is_left_alone_and_told():
    model = nn.Sequential(*[batchnorm.BatchNorm1d(2) for _ in range(4)], nn.BatchNorm1d(2))
    model.train()
    model[0].eval()
    model[1].statistics = "running"
    model[2].update = False
    before = copy.deepcopy(model.state_dict())
    changes = recalibrate(model, [5 + torch.randn(9, 2)])
    assert dict(changes.skipped) == {
        "0": "frozen: in evaluation mode within a model in training mode",
        "1": 'frozen: its statistics are set to "running"',
        "2": "frozen: its update is switched off",
    }
    assert [path for path, _ in changes.changed] == ["3", "4"]
    for i in range(3):
        assert torch.equal(model[i].running_mean, before[f"{i}.running_mean"])
    # In evaluation mode as a whole, the modes do not tell what is frozen.
    model.eval()
    assert "0" in dict(recalibrate(model, [torch.randn(9, 2)]).changed)


def test_what_keeps_no_statistics_or_is_not_called_or_no_batch_norm_is_told():
    class Some(nn.Module):
        def __init__(self):
            super().__init__()
            self.own = nn.BatchNorm1d(2, track_running_stats=False)
            self.other = nn.InstanceNorm1d(2, track_running_stats=True)
            self.idle = nn.BatchNorm1d(2)
            self.used = nn.BatchNorm1d(2)

        def forward(self, x):
            return self.used(self.own(x))

    model = Some()
    changes = recalibrate(model, [torch.randn(9, 2)])
    assert dict(changes.skipped) == {
        "own": "it keeps no running statistics",
        "other": "InstanceNorm1d is no batch norm of torch's or ours",
        "idle": "saw nothing of these batches: it was not called",
    }
    assert [path for path, _ in changes.changed] == ["used"]
    assert torch.equal(model.idle.running_mean, torch.zeros(2))


def test_a_model_without_batch_norm_is_not_run():
    assert recalibrate(nn.Linear(2, 2), iter(())).changed == []


@pytest.mark.parametrize(
    "batch",
    [
        lambda x: x,
        lambda x: (x, torch.zeros(len(x))),
        lambda x: [x, "labels"],
        lambda x: {"input": x, "label": torch.zeros(len(x))},
        lambda x: {"input": x[:0] if len(x) == 1 else x},
    ],
)
def test_batches_of_every_usual_form(batch):
    norm, x = batchnorm.BatchNorm1d(3), torch.randn(20, 3)
    recalibrate(norm, [batch(part) for part in (*x.split(6), x[:1][:0])])
    torch.testing.assert_close(norm.running_mean, x.mean(0))


def test_a_loader_and_a_way_to_call_of_ones_own():
    data = torch.utils.data.TensorDataset(torch.randn(20, 3), torch.zeros(20, 3))
    loader = torch.utils.data.DataLoader(data, batch_size=6)
    norm, other = batchnorm.BatchNorm1d(3), batchnorm.BatchNorm1d(3)
    recalibrate(norm, loader)
    recalibrate(other, loader, forward=lambda model, batch: model(batch[0] + 1))
    torch.testing.assert_close(norm.running_mean + 1, other.running_mean)


def test_at_most_so_many_examples_and_no_batch_more_than_needed():
    x, norm = torch.randn(20, 3), batchnorm.BatchNorm1d(3)
    fetched = []
    batches = (fetched.append(i) or (part, part) for i, part in enumerate(x.split(6)))
    recalibrate(norm, batches, examples=12)
    torch.testing.assert_close(norm.running_mean, x[:12].mean(0))
    assert fetched == [0, 1]
    recalibrate(norm, x.split(6), examples=8)
    torch.testing.assert_close(norm.running_mean, x[:8].mean(0))
    torch.testing.assert_close(norm.running_var, x[:8].var(0))
    recalibrate(norm, x.split(6), examples=99)
    torch.testing.assert_close(norm.running_mean, x.mean(0))


@pytest.mark.parametrize("layer", [batchnorm.BatchNorm1d, batchnorm.BatchNorm2d])
def test_earlier_statistics_weigh_as_many_examples_as_prior_says(layer):
    shape = (3,) if layer is batchnorm.BatchNorm1d else (3, 2, 2)
    norm, old, new = layer(3), torch.randn(4000, *shape), 3 + torch.randn(1000, *shape)
    recalibrate(norm, [old])
    recalibrate(norm, new.split(300), prior=4000)
    both = torch.cat([old, new]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(norm.running_mean, both.mean(1))
    torch.testing.assert_close(norm.running_var, both.var(1), rtol=1e-3, atol=0)


def test_one_example_is_enough_beside_a_prior_and_not_alone():
    norm = batchnorm.BatchNorm1d(2)
    recalibrate(norm, [torch.tensor([[3.0, 0.0]])], prior=2)
    assert norm.running_mean.tolist() == [1, 0]
    model = nn.Sequential(batchnorm.BatchNorm1d(2))
    with pytest.raises(
        ValueError, match="BatchNorm1d '0' has seen 1 value a channel, too few for a variance"
    ):
        recalibrate(model, [torch.randn(1, 2)])


def failing(how):
    model = deep()
    if how == "nan in a weight":
        with torch.no_grad():
            model[3].weight[0, 0] = torch.inf
        return model, torch.randn(20, 5).split(7)
    if how == "model":

        def fail(*args):
            raise RuntimeError("not today")

        model[6].register_forward_hook(fail)
        return model, torch.randn(20, 5).split(7)
    if how == "loader":

        def batches():
            yield torch.randn(7, 5)
            raise OSError("disk gone")

        return model, batches()
    x = torch.randn(20, 5)
    x[16, 2] = torch.nan
    return model, [] if how == "empty" else x.split(7) if how == "nan" else None


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("empty", ValueError, "batches has no examples: nothing to measure"),
        (
            "nan",
            ValueError,
            r"batch 2 \(counted from 0\) holds NaN or infinity in 1 of 6 examples, first in "
            "example 2: fill or drop them first",
        ),
        ("nan in a weight", ValueError, "BatchNorm1d '7' takes in values that are not finite in"),
        ("model", RuntimeError, "not today"),
        ("loader", OSError, "disk gone"),
    ],
)
@pytest.mark.parametrize("layer_by_layer", [False, True])
def test_an_error_leaves_the_model_as_it_was(how, error, message, layer_by_layer):
    model, batches = failing(how)
    recalibrate(deep(), [torch.randn(9, 5)])
    model[1].running_mean.fill_(7)
    model[4].eval()
    before = state(model)
    if layer_by_layer and iter(batches) is batches:
        error, message = TypeError, "generator, which can be gone through once"
    with pytest.raises(error, match=message):
        recalibrate(model, batches, layer_by_layer=layer_by_layer)
    assert_same(before, state(model))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3, []), TypeError, "recalibrate takes a model, a torch.nn.Module; got int"),
        (
            (nn.DataParallel(nn.BatchNorm1d(2)), []),
            TypeError,
            "got it as DataParallel, .* give model.module",
        ),
        (
            (nn.BatchNorm1d(2), torch.zeros(4, 2)),
            TypeError,
            r"batches is a Tensor of shape \(4, 2\); expected several batches, such as a DataLoader",
        ),
        ((nn.BatchNorm1d(2), 5), TypeError, "batches is a int; expected"),
        ((nn.BatchNorm1d(2), ["a"]), TypeError, r"batch 0 has no tensor .* str \(a\)"),
        ((nn.BatchNorm1d(2), [()]), ValueError, r"batch 0 is empty: expected \(x, y\)"),
        (
            (nn.BatchNorm1d(2), [{"x": torch.zeros(2, 2)}]),
            ValueError,
            r"batch 0 is a dict of x, none of which the forward of BatchNorm1d takes \(input\)",
        ),
        ((nn.LazyBatchNorm1d(), []), ValueError, "has no size yet: run the model once"),
    ],
)
def test_what_cannot_be_done_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        recalibrate(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"examples": 0}, "examples is 0; expected at least 1, or None"),
        ({"prior": -1}, "prior is -1; expected a number of examples, 0 or more"),
        ({"prior": float("nan")}, "prior is nan"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        recalibrate(nn.BatchNorm1d(2), [], **options)


def test_a_compiled_model_is_refused():
    compiled = torch.compile(nn.BatchNorm1d(2), backend="eager")
    with pytest.raises(TypeError, match=r"give model._orig_mod, whose buffers it shares"):
        recalibrate(compiled, [torch.randn(4, 2)])


def test_the_account_is_printed_as_a_table():
    norm = batchnorm.BatchNorm1d(2)
    x = torch.tensor([[0.0, 0.0], [2.0, 4.0]])
    assert str(recalibrate(nn.Sequential(norm), [x])).splitlines()[1:] == [
        "changed:",
        "  0  2 values a channel: mean moved by up to 2 standard deviations, variance times 2 to 8",
    ]


def _rank(rank, port, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model = nn.Sequential(nn.SyncBatchNorm(2), nn.BatchNorm1d(2))
    recalibrate(model, _share(rank).split(4))
    torch.save(model.state_dict(), f"{results}/{rank}")
    dist.barrier()
    dist.destroy_process_group()


def _share(rank):
    """Other examples on each rank, and another number of them."""
    return rank + torch.randn(5 + 9 * rank, 2, generator=torch.Generator().manual_seed(rank))


def test_a_synchronized_batch_norm_has_the_moments_of_all_processes(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    mp.spawn(_rank, (port, str(tmp_path)), nprocs=2)
    x = torch.cat([_share(0), _share(1)])
    states = [torch.load(tmp_path / str(rank)) for rank in range(2)]
    for found in states:
        torch.testing.assert_close(found["0.running_mean"], x.mean(0))
        torch.testing.assert_close(found["0.running_var"], x.var(0))
    assert not torch.equal(states[0]["1.running_var"], states[1]["1.running_var"])
