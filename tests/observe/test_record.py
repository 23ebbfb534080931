"""The recorder: what it sees is right, and the training goes on as if nobody looked."""

import copy
import io
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import batchnorm
from batchnorm import record
from batchnorm.moments import Moments


def network(norm=batchnorm.BatchNorm1d):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 5), norm(5), nn.ReLU(inplace=True), nn.Linear(5, 2))


def batches(count, size=16, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 6, generator=draw) for _ in range(count)]


def train(model, batches, optimizer=None):
    descent = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    for x in batches:
        loss = model(x).square().mean()
        descent.zero_grad()
        loss.backward()
        descent.step()
    return model


def hooks_of(model):
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return sum(len(getattr(m, name)) for m in model.modules() for name in names)


def of(seen, quantity, step=0, path="1"):
    found = [
        r["values"]
        for r in seen.rows
        if (r["step"], r["path"], r["quantity"]) == (step, path, quantity)
    ]
    assert len(found) <= 1
    return found[0] if found else None


@pytest.mark.parametrize("norm", [batchnorm.BatchNorm1d, nn.BatchNorm1d])
def test_what_is_seen_is_what_the_layer_computed(norm):
    model = network(norm)
    twin, data = copy.deepcopy(model), batches(3)
    with record(model, every=2) as seen:
        train(model, data)
    train(twin, data[:2])
    running = {name: b.clone() for name, b in twin[1].named_buffers()}
    z = twin[0](data[2])
    y = twin[1](z)
    y.retain_grad()
    twin[3](torch.relu(y)).square().mean().backward() if not twin.zero_grad() else None
    moments, out = Moments.of(z), Moments.of(y)
    assert seen.forwards == 3
    assert {r["step"] for r in seen.rows} == {0, 2}
    expected = {
        "batch_mean": moments.mean,
        "batch_var": moments.var,
        "running_mean": running["running_mean"],
        "running_var": running["running_var"],
        "mean_gap": (running["running_mean"] - moments.mean) / (moments.var + 1e-5).sqrt(),
        "std_gap": ((running["running_var"] + 1e-5) / (moments.var + 1e-5)).sqrt().log(),
        "gamma": twin[1].weight,
        "beta": twin[1].bias,
        "gamma_gradient": twin[1].weight.grad,
        "beta_gradient": twin[1].bias.grad,
        "gradient": y.grad.square().mean(0).sqrt(),
        "mean": out.mean,
        "std": out.var.sqrt(),
        "p15": y.quantile(0.15, dim=0),
        "p50": y.quantile(0.50, dim=0),
        "p85": y.quantile(0.85, dim=0),
    }
    for quantity, values in expected.items():
        assert of(seen, quantity, 2) == pytest.approx(
            values.double().tolist(), rel=1e-4, abs=1e-6
        ), quantity
    first, second = ([np.array(of(seen, q, step)) for q in ("mean", "std")] for step in (0, 2))
    # With beta and gamma of order 1, float32 leaves 1e-7 of a mean whose drift is 1e-3.
    assert of(seen, "drift_mean", 2) == pytest.approx(
        np.abs(second[0] - first[0]) / first[1], rel=1e-3, abs=1e-6
    )
    assert of(seen, "drift_std", 2) == pytest.approx(np.abs(np.log(second[1] / first[1])))
    assert of(seen, "drift_mean", 0) is None, "nothing to have moved from"
    low, high = of(seen, "histogram_ends", 2)
    counts = np.histogram(y.detach().numpy(), 64, (low, high))[0]
    assert (low, high) == pytest.approx((y.min().item(), y.max().item()))
    assert sum(of(seen, "histogram", 2)) == 80
    assert np.abs(np.array(of(seen, "histogram", 2)) - counts).sum() <= 4, "float32's bin edges"


def test_training_goes_on_as_if_nobody_looked():
    def trained(look):
        torch.manual_seed(3)
        model = network()
        model.insert(3, nn.Dropout(0.5))
        if look:
            with record(model, every=1, layers=(nn.Linear, "1", nn.Dropout)):
                train(model, batches(5))
        else:
            train(model, batches(5))
        return [*model.state_dict().values(), torch.rand(3)]

    for seen, unseen in zip(trained(True), trained(False), strict=True):
        assert torch.equal(seen, unseen)


def test_hooks_and_modes_are_given_back_on_every_way_out():
    model = network()
    model[1].eval()
    modes = [m.training for m in model.modules()]

    def failing():
        with record(model, every=1):
            train(model, batches(1))
            assert hooks_of(model) > 2
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        failing()
    assert hooks_of(model) == 0
    assert [m.training for m in model.modules()] == modes
    assert not model[1].weight._backward_hooks


def test_a_forward_that_raises_is_no_step_and_leaves_no_rows():
    model = network()
    with record(model, every=1) as seen:
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            model[3].__class__.forward(model[3], model[:3](torch.randn(4, 6))[:, :2])
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            model(torch.randn(4, 7))
        broken = model[3]
        model[3] = nn.Linear(4, 2)
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            model(torch.randn(4, 6))
        model[3] = broken
        train(model, batches(1))
    assert seen.forwards == 1
    assert len([r for r in seen.rows if r["quantity"] == "batch_mean"]) == 1
    (x,) = batches(1)
    assert sum(of(seen, "histogram")) == x.shape[0] * 5
    assert hooks_of(model) == 0


def test_evaluation_and_no_grad_are_no_steps():
    model = network()
    with record(model, every=1) as seen:
        train(model, batches(1))
        model.eval()
        model(torch.randn(4, 6))
        model.train()
        with torch.no_grad():
            model(torch.randn(4, 6))
        train(model, batches(1))
    assert seen.forwards == 2
    assert {r["step"] for r in seen.rows} == {0, 1}
    assert sum(of(seen, "histogram")) == 80, "an evaluation between is not taken for the step's"


def test_a_block_without_a_step_warns():
    model = network()
    with (
        pytest.warns(RuntimeWarning, match="Sequential was not called in training mode"),
        record(model) as seen,
    ):
        model.eval()(torch.randn(4, 6))
    assert seen.rows == []
    with pytest.raises(ValueError, match="no quantity 'mean' was recorded: nothing yet"):
        seen.table("mean")


def test_the_steps_can_be_those_of_an_optimizer():
    model = network()
    descent = torch.optim.SGD(model.parameters(), lr=0.1)
    parts = batches(4, size=8)
    with record(model, every=1, optimizer=descent) as seen:
        for x in parts:
            model(x).square().mean().backward()
            if x is parts[1]:
                descent.step()
                descent.zero_grad()
    assert {r["step"] for r in seen.rows} == {0, 1}
    assert sum(of(seen, "histogram", 0)) == 80
    z = nn.Sequential(*list(network())[:1])(torch.cat(parts[:2]))
    assert of(seen, "batch_mean") == pytest.approx(z.mean(0).tolist(), abs=1e-6)
    assert of(seen, "batch_var") == pytest.approx(z.var(0, correction=0).tolist(), rel=1e-5)


def test_several_calls_in_a_step_are_seen_together():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = batchnorm.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(x[:2]).sum() + self.norm(x[2:]).sum()

    model, x = Twice(), torch.randn(5, 3, 30, 30) * 2 + 1
    with record(model) as seen:
        model(x).backward()
    moments = Moments.of(x)
    assert of(seen, "batch_mean", path="norm") == pytest.approx(moments.mean.tolist())
    assert of(seen, "batch_var", path="norm") == pytest.approx(moments.var.tolist())
    assert of(seen, "gradient", path="norm") == pytest.approx([1.0] * 3)


def test_calls_with_other_channels_are_left_out_and_told():
    shared, narrow, wide = nn.ReLU(), nn.Linear(8, 3), nn.Linear(4, 8)
    model = nn.Sequential(wide, shared, narrow, shared)
    x = torch.randn(5, 4)
    alone = torch.autograd.grad(model(x).sum(), list(model.parameters()))

    def recorded():
        with record(model, layers=nn.ReLU, every=1) as seen:
            for _ in range(3):
                model.zero_grad()
                model(x).sum().backward()
        return seen

    with pytest.warns(RuntimeWarning, match="'1' was called with 3 and 8 channels") as told:
        seen = recorded()
    assert len(told) == 1
    steps, means = seen.series("mean", "1")
    assert steps == [0, 1, 2]
    assert means[0] == pytest.approx(shared(wide(x)).mean(0).tolist(), rel=1e-5, abs=1e-7)
    assert seen.series("gradient", "1")[1].shape == (3, 8)
    for parameter, gradient in zip(model.parameters(), alone, strict=True):
        assert torch.equal(parameter.grad, gradient)
    assert repr(seen).startswith("Record(1 layer, steps 0 to 2: series(quantity, path)")


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_checkpointing_runs_again_is_not_recorded_again(reentrant):
    class Saving(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = network()

        def forward(self, x):
            return checkpoint(self.inside, x, use_reentrant=reentrant)

    model, plain, (x,) = Saving(), network(), batches(1)
    with record(model, every=1) as seen:
        model(x.requires_grad_()).square().mean().backward()
    with record(plain, every=1) as expected:
        plain(x.detach()).square().mean().backward()
    for quantity in ("histogram", "gradient", "batch_mean", "gamma_gradient", "mean"):
        assert of(seen, quantity, path="inside.1") == pytest.approx(of(expected, quantity))
    assert hooks_of(model) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype):
    model, (x,) = network(nn.BatchNorm1d).to(dtype), batches(1)
    with record(model) as seen:
        model(x.to(dtype)).float().square().mean().backward()
    z = model[0](x.to(dtype)).double()
    assert of(seen, "batch_mean") == pytest.approx(z.mean(0).tolist(), rel=1e-4, abs=1e-6)
    assert len(of(seen, "gradient")) == 5


def test_a_mean_far_from_zero_costs_no_digits():
    layer = batchnorm.BatchNorm1d(3)
    x = torch.randn(64, 3) + 1e5
    with record(layer) as seen:
        layer(x)
    moments = Moments.of(x)
    assert of(seen, "batch_mean", path="") == pytest.approx(moments.mean.tolist(), rel=1e-12)
    assert of(seen, "batch_var", path="") == pytest.approx(moments.var.tolist(), rel=1e-5)


def test_many_values_are_sampled_for_their_shape_and_measured_whole():
    layer, x = batchnorm.BatchNorm2d(4), torch.randn(8, 4, 33, 32) * 3
    for inputs in (x, x.to(memory_format=torch.channels_last)):
        with record(layer, percentiles=(50,)) as seen:
            y = layer(inputs)
        assert of(seen, "batch_var", path="") == pytest.approx(Moments.of(x).var.tolist())
        assert sum(of(seen, "histogram", path="")) == 4 * 1024
        median = y.transpose(0, 1).flatten(1).quantile(0.5, dim=1)
        assert of(seen, "p50", path="") == pytest.approx(median.tolist(), abs=0.1)


def test_what_a_mask_leaves_out_does_not_enter():
    layer = batchnorm.BatchNorm1d(2)
    x, mask = torch.randn(4, 2, 6), torch.rand(4, 6) > 0.4
    x[1, :, 2], mask[1, 2] = float("nan"), False
    with record(layer) as seen:
        layer(x, mask=mask).sum().backward()
    kept = x.transpose(1, 2)[mask]
    assert of(seen, "batch_mean", path="") == pytest.approx(kept.mean(0).tolist(), abs=1e-6)
    assert sum(of(seen, "histogram", path="")) == kept.numel()
    with record(layer) as seen:
        layer(x, mask=torch.tensor([True, False, True, True])).sum().backward()
    whole = x[[0, 2, 3]].transpose(1, 2).reshape(-1, 2)
    assert of(seen, "batch_mean", path="") == pytest.approx(whole.mean(0).tolist(), abs=1e-6)


@pytest.mark.parametrize("norm", [batchnorm.BatchNorm1d, batchnorm.BatchNormAct1d])
def test_a_mask_around_the_model_leaves_out_the_same(norm):
    model = nn.Sequential(nn.Identity(), norm(2))
    x, mask = torch.randn(4, 2, 6), torch.rand(4, 6) > 0.4
    with record(model) as seen, batchnorm.masked(model, mask):
        model(x).sum().backward()
    kept = x.transpose(1, 2)[mask]
    assert of(seen, "batch_mean") == pytest.approx(kept.mean(0).tolist(), abs=1e-6)
    assert sum(of(seen, "histogram")) == kept.numel()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_every_position_of_a_nested_tensor_enters(layout):
    layer = batchnorm.BatchNorm1d(3, axis=-1)
    parts = [torch.randn(n, 3) for n in (5, 2, 9)]
    x = torch.nested.nested_tensor(parts, layout=layout)
    with record(layer) as seen:
        layer(x)
    rows = torch.cat(parts)
    assert of(seen, "batch_mean", path="") == pytest.approx(rows.mean(0).tolist(), abs=1e-6)
    assert sum(of(seen, "histogram", path="")) == rows.numel()


def test_channels_on_another_axis():
    layer, x = batchnorm.BatchNorm1d(3, axis=-1), torch.randn(4, 7, 3)
    model = nn.Sequential(layer, nn.Linear(3, 2))
    with record(model, layers=("0", "1")) as seen:
        y = model(x)
    assert of(seen, "batch_mean", path="0") == pytest.approx(x.mean((0, 1)).tolist(), abs=1e-6)
    assert of(seen, "mean", path="1") == pytest.approx(y.mean((0, 1)).tolist(), abs=1e-6)


def test_values_that_are_not_finite_are_told_as_they_are():
    layer = nn.Identity()
    x = torch.tensor([[1.0, 2.0], [float("nan"), 4.0], [3.0, float("inf")]])
    with record(layer, layers="") as seen:
        layer(x)
    assert np.isnan(of(seen, "mean", path="")[0])
    assert sum(of(seen, "histogram", path="")) == 4
    assert of(seen, "histogram_ends", path="") == [1.0, 4.0]


def test_tables_and_series():
    model = network()
    with record(model, every=2) as seen:
        train(model, batches(5))
        assert {r["step"] for r in seen.rows} == {0, 2}, "step 4 may still have its backward pass"
    steps, gamma = seen.series("gamma", "1")
    assert (steps, gamma.shape) == ([0, 2, 4], (3, 5))
    assert seen.table("gamma")[5] == {
        "step": 2,
        "path": "1",
        "channel": 0,
        "value": pytest.approx(gamma[1, 0]),
    }
    with pytest.raises(ValueError, match="no quantity 'gama' was recorded: recorded were mean, "):
        seen.table("gama")
    with pytest.raises(ValueError, match=r"no gamma was recorded of '7'; of \['1'\]"):
        seen.series("gamma", "7")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every is 0: expected a whole number of at least 1"),
        ({"bins": 2.5}, "bins is 2.5: expected a whole number"),
        (
            {"layers": "bn1"},
            r"Sequential has no layer 'bn1': its layers are \['0', '1', '2', '3'\]",
        ),
        ({"layers": nn.Conv2d}, r"no layer of type Conv2d: it has \['BatchNorm1d', 'Linear'"),
        ({"layers": ()}, r"layers is \(\): expected at least one path or type"),
        ({"percentiles": (101,)}, "percentiles holds 101: expected numbers from 0 to 100"),
    ],
)
def test_what_cannot_be_asked_for(options, message):
    with pytest.raises(ValueError, match=message), record(network(), **options):
        pass


def test_what_is_no_model_and_what_has_no_batch_norm():
    with pytest.raises(TypeError, match=r"model is list: expected a torch\.nn\.Module"), record([]):
        pass
    with (
        pytest.raises(ValueError, match="Linear has no batch norm to record: say which"),
        record(nn.Linear(2, 2)),
    ):
        pass
    with (
        pytest.raises(TypeError, match="layers holds 3: expected the path of a layer"),
        record(network(), layers=[3]),
    ):
        pass
    with (
        pytest.raises(TypeError, match="writer is list, without add_scalar"),
        record(network(), writer=[]),
    ):
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="runs outside of Python"), record(scripted):
        pass


def test_instance_norm_is_not_taken_for_batch_norm():
    model = nn.Sequential(nn.InstanceNorm1d(3, affine=True), nn.BatchNorm1d(3))
    with record(model) as seen:
        model(torch.randn(4, 3, 5))
    assert {r["path"] for r in seen.rows} == {"1"}


def test_the_fused_layer_in_place_is_seen_before_it_overwrites():
    layer, x = batchnorm.BatchNormAct1d(3, "leaky_relu", inplace=True), torch.randn(9, 3)
    with record(layer) as seen:
        layer(x.clone() * 1)
    assert of(seen, "batch_mean", path="") == pytest.approx(x.mean(0).tolist(), abs=1e-6)


def test_copies_made_and_files_written_inside_are_free_of_it():
    model = network()
    with record(model, every=1) as seen:
        train(model, batches(1))
        train(copy.deepcopy(model), batches(3))
        file = io.BytesIO()
        torch.save(model, file)
    assert seen.forwards == 1
    file.seek(0)
    train(torch.load(file, weights_only=False), batches(1))


def test_functional_transforms_are_left_alone():
    model = network()

    def loss(parameters, x):
        return torch.func.functional_call(model, parameters, (x,)).square().mean()

    with record(model, every=1) as seen:
        torch.func.grad(loss)(dict(model.named_parameters()), batches(1)[0])
        train(model, batches(1))
    assert seen.forwards == 1
    assert np.isfinite(of(seen, "mean")).all()


def test_gradients_of_many_losses_at_once_are_left_alone():
    model, seeds = network(), torch.eye(8).reshape(8, 4, 2)
    with record(model, every=1) as seen:
        z = model(batches(1, size=4)[0])
        torch.autograd.grad(z, list(model.parameters()), seeds, is_grads_batched=True)
        train(model, batches(1))
    assert of(seen, "gradient", 0) is None
    assert np.isfinite(of(seen, "gradient", 1)).all()


def test_a_gradient_whose_sign_is_a_flag_of_the_tensor():
    layer = nn.Linear(3, 2)
    with record(layer, layers=nn.Linear) as seen:
        y = layer(torch.randn(4, 3))
        y.retain_grad()
        torch.complex(torch.zeros_like(y), y).conj().imag.square().sum().backward()
    assert of(seen, "gradient", path="") == pytest.approx(y.grad.square().mean(0).sqrt().tolist())


def test_the_smallest_gradients_are_told():
    layer = batchnorm.BatchNorm1d(3)
    with record(layer) as seen:
        (layer(torch.randn(8, 3)) * 1e-30).sum().backward()
    assert of(seen, "gradient", path="") == pytest.approx([1e-30] * 3, rel=1e-6)


def test_two_records_at_once():
    model = network()
    with record(model, every=1) as one, record(model, every=2, layers=nn.Linear) as two:
        train(model, batches(3))
    assert {r["step"] for r in one.rows} == {0, 1, 2}
    assert {(r["step"], r["path"]) for r in two.rows} == {(s, p) for s in (0, 2) for p in "03"}
    assert hooks_of(model) == 0


def test_without_its_block_there_is_nothing_to_look_at_and_that_is_said():
    seen = record(network())
    said = (
        r"no 'series' before the block: with batchnorm\.record\(model\) as seen: train\(model\); "
        r"then seen\.series"
    )
    with pytest.raises(AttributeError, match=said):
        seen.series("gamma", "1")
    assert not hasattr(seen, "rows")
    assert copy.copy(seen) is not seen, "what Python looks for by itself is as it always is"


def test_nothing_is_hooked_before_the_block_and_a_block_begins_once():
    model = network()
    block = record(model, every=1)
    assert hooks_of(model) == 0
    with block as seen:
        train(model, batches(1))
    assert seen.forwards == 1
    with (
        pytest.raises(RuntimeError, match="this record has had its block: call record again"),
        block,
    ):
        pass
    assert hooks_of(model) == 0


def test_what_was_not_called_is_told_where_the_block_stands():
    nothing = "nothing was recorded: Sequential"
    with pytest.warns(RuntimeWarning, match=nothing) as told, record(network()):
        pass
    assert told[0].filename == __file__
