"""Running statistics that cannot be spoiled, and the state that travels to and from torch's."""

import copy
import io
import pickle

import pytest
import torch
import torch.distributed as dist
from torch import nn

import batchnorm
from batchnorm import BatchNorm1d, BatchNorm2d, BatchNormAct1d, BatchNormAct2d, snapshot

FAMILY = [BatchNorm1d, BatchNormAct1d]


def wide(layer):
    return {layer.running_mean.dtype, layer.running_var.dtype} == {torch.float32}


CASTS = {
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.bfloat16(),
    "to": lambda m: m.to(torch.float16),
    "twice": lambda m: m.double().half(),
}


@pytest.mark.parametrize("kind", FAMILY)
@pytest.mark.parametrize("cast", CASTS)
def test_float32_survives_casts_with_its_digits(kind, cast):
    layer = kind(3)
    value = torch.tensor([1.2345678, -2.3456789, 3.4567891])
    layer.running_mean.copy_(value)
    CASTS[cast](layer)
    assert layer.weight.dtype.itemsize == 2
    assert wide(layer)
    torch.testing.assert_close(layer.running_mean, value, rtol=1e-7, atol=0)


@pytest.mark.parametrize("kind", FAMILY)
def test_a_half_dtype_in_the_constructor_makes_half_parameters_alone(kind):
    layer = kind(3, dtype=torch.bfloat16)
    assert layer.weight.dtype == torch.bfloat16
    assert wide(layer)


@pytest.mark.parametrize("kind", FAMILY)
@pytest.mark.parametrize("assign", [True, False])
def test_half_statistics_of_a_checkpoint_become_float32(kind, assign):
    theirs = nn.BatchNorm1d(3).bfloat16()
    theirs(torch.randn(8, 3).bfloat16())
    saved = theirs.state_dict()
    layer = kind(3)
    layer.load_state_dict(saved, assign=assign)
    assert wide(layer)
    torch.testing.assert_close(layer.running_mean, theirs.running_mean.float())
    assert saved["running_mean"].dtype == torch.bfloat16, "the checkpoint itself is left alone"
    plain = nn.BatchNorm1d(3)
    plain.load_state_dict(saved, assign=True)
    assert plain.running_mean.dtype == torch.bfloat16, "torch's own become half"


@pytest.mark.parametrize("kind", FAMILY)
@pytest.mark.parametrize("how", ["to_empty", "assign"])
def test_from_meta_to_memory(kind, how):
    layer = kind(3, device="meta", dtype=torch.float16)
    if how == "to_empty":
        layer.to_empty(device="cpu")
        assert (layer.running_mean.tolist(), layer.running_var.tolist()) == ([0] * 3, [1] * 3)
        layer.load_state_dict(kind(3).state_dict())
    else:
        layer.load_state_dict(kind(3).half().state_dict(), assign=True)
    assert wide(layer)
    assert (layer.skipped.device.type, layer.skipped.item()) == ("cpu", 0)
    x = torch.randn(4, 3)
    x[0] = float("nan")
    layer(x)
    assert (layer.num_batches_tracked.item(), layer.skipped.item()) == (0, 1)
    layer(torch.randn(4, 3))
    assert layer.num_batches_tracked == 1


def test_emptied_where_it_is_the_count_is_not_garbage():
    layer = BatchNorm1d(3)
    layer(torch.full((4, 3), float("inf")))
    assert layer.skipped == 1
    assert layer.to_empty(device="cpu").skipped == 1


def test_under_transforms_of_the_parameters_alone():
    """`torch.func.functional_call` with half state moves float32 buffers all the same."""
    layer = BatchNorm1d(2)
    state = {name: t.to(torch.bfloat16) if t.is_floating_point() else t.clone()
             for name, t in layer.state_dict().items()}  # fmt: skip
    torch.func.functional_call(layer, state, (torch.randn(4, 2),))
    assert state["running_mean"].dtype == torch.float32
    assert layer.num_batches_tracked == 0


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1
    )  # fmt: skip
    yield
    dist.destroy_process_group()


def network(kind):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), kind(4), nn.Flatten(), nn.Linear(36, 2))


@pytest.mark.parametrize("kind", [BatchNorm2d, BatchNormAct2d])
@pytest.mark.usefixtures("one_process")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_mixed_precision_of_fully_sharded_data_parallel(kind):
    from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision, ShardingStrategy

    half = torch.bfloat16
    seen = {}
    for name, norm in (("ours", kind), ("theirs", nn.BatchNorm2d)):
        net = FullyShardedDataParallel(
            network(norm),
            sharding_strategy=ShardingStrategy.NO_SHARD,
            mixed_precision=MixedPrecision(
                param_dtype=half, buffer_dtype=half, _module_classes_to_ignore=[]
            ),
            device_id=torch.device("cpu"),
        )
        for _ in range(2):
            net(torch.randn(6, 3, 5, 5)).sum().backward()
        seen[name] = net.module[1].running_mean.dtype
    assert seen == {"ours": torch.float32, "theirs": half}


@pytest.mark.usefixtures("one_process")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_mixed_precision_of_fully_shard():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    net = network(BatchNormAct2d)
    fully_shard(
        net,
        mesh=init_device_mesh("cpu", (1,)),
        mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16),
    )
    net(torch.randn(6, 3, 5, 5)).sum().backward()
    assert wide(net[1])
    assert net[1].num_batches_tracked == 1


@pytest.mark.parametrize("kind", FAMILY)
@pytest.mark.parametrize("train", [True, False])
def test_state_dicts_load_both_ways_strictly(kind, train):
    ours, theirs = kind(3), nn.BatchNorm1d(3)
    x = torch.randn(7, 3)
    ours(x)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    back = kind(3)
    back.load_state_dict(theirs.state_dict())
    for a, b in zip(ours.state_dict().values(), back.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    y = theirs.train(train)(x)
    torch.testing.assert_close(
        back.train(train)(x), y if kind is BatchNorm1d else y.relu(), rtol=1e-5, atol=1e-6
    )


def test_checkpoints_from_before_the_batches_were_counted():
    """Torch wrote no `num_batches_tracked` before version 2 of its layers."""
    saved = nn.BatchNorm1d(3).state_dict()
    del saved["num_batches_tracked"]
    saved._metadata[""]["version"] = 1
    layer = BatchNorm1d(3)
    layer.load_state_dict(saved)
    layer.load_state_dict(dict(saved))
    assert layer.num_batches_tracked == 0


def test_missing_and_unexpected_keys():
    saved = nn.BatchNorm1d(3).state_dict()
    del saved["num_batches_tracked"], saved["bias"]
    saved["gamma"] = torch.ones(3)
    layer = BatchNorm1d(3)
    found = layer.load_state_dict(saved, strict=False)
    assert found.missing_keys == ["bias", "num_batches_tracked"]
    assert found.unexpected_keys == ["gamma"]
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "bias"'):
        layer.load_state_dict(saved)
    with pytest.raises(RuntimeError, match="size mismatch for running_mean"):
        BatchNorm1d(4).load_state_dict(nn.BatchNorm1d(3).state_dict())


@pytest.mark.parametrize("kind", FAMILY)
def test_saved_whole_and_by_weights_only(kind):
    layer = kind(3)
    layer(torch.randn(5, 3))
    whole, state = io.BytesIO(), io.BytesIO()
    torch.save(layer, whole)
    torch.save(layer.state_dict(), state)
    whole.seek(0), state.seek(0)
    x = torch.randn(5, 3)
    again = torch.load(whole, weights_only=False)
    fresh = kind(3)
    fresh.load_state_dict(torch.load(state, weights_only=True))
    for twin in (again, fresh, pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert torch.equal(twin.eval()(x), layer.eval()(x))


def test_a_layer_that_was_pickled_before_it_had_switches():
    layer = BatchNorm1d(3)
    for name in ("bias_correction",):
        del layer.__dict__[name]
    del layer._buffers["skipped"]
    layer._non_persistent_buffers_set.clear()
    layer(torch.randn(4, 3))
    assert (layer.statistics, layer.update, layer.num_batches_tracked.item()) == ("auto", True, 1)


def test_an_empty_batch_counts_nowhere():
    layer = BatchNorm2d(3)
    assert layer(torch.empty(0, 3, 4, 4)).shape == (0, 3, 4, 4)
    assert (layer.num_batches_tracked.item(), layer.skipped.item()) == (0, 0)
    theirs = nn.BatchNorm2d(3)
    theirs(torch.empty(0, 3, 4, 4))
    assert theirs.num_batches_tracked == 1, "torch counts it: the test can fail"


def test_the_count_of_batches_kept_out_is_no_part_of_the_state_dict():
    layer = BatchNorm1d(2)
    layer(torch.full((3, 2), float("nan")))
    layer(torch.full((3, 2), float("inf")))
    assert layer.skipped == 2
    assert "skipped" not in layer.state_dict()
    layer.reset_running_stats()
    assert layer.skipped == 0
    assert BatchNorm1d(2, track_running_stats=False).skipped is None


@pytest.mark.parametrize("kind", FAMILY)
def test_bias_correction_is_right_from_the_first_step(kind):
    layer = kind(3, bias_correction=True, dtype=torch.float64)
    x = torch.randn(6, 3, dtype=torch.float64) + 5
    layer(x)
    torch.testing.assert_close(layer.running_mean, x.mean(0))
    torch.testing.assert_close(layer.running_var, x.var(0))
    z = torch.randn(6, 3, dtype=torch.float64)
    layer(z)
    torch.testing.assert_close(layer.running_mean, (0.9 * x.mean(0) + z.mean(0)) / 1.9)
    assert "bias_correction=True" in repr(layer)
    theirs = nn.BatchNorm1d(3).double()
    theirs(x)
    assert not torch.allclose(theirs.running_mean, x.mean(0)), "torch's are not: it can fail"


def test_rolled_back():
    net = nn.Sequential(BatchNorm1d(2), nn.Linear(2, 3), nn.BatchNorm1d(3))
    net(torch.randn(4, 2))
    before = copy.deepcopy(list(net.buffers()))
    taken = snapshot(net)
    net(torch.full((4, 2), float("inf")))
    net(torch.randn(4, 2))
    assert not torch.isfinite(net[2].running_mean).all()
    held = [id(b) for b in net.buffers()]
    for _ in range(2):
        taken.restore()
        for a, b in zip(net.buffers(), before, strict=True):
            assert torch.equal(a, b)
        net(torch.randn(4, 2))
    assert held == [id(b) for b in net.buffers()]
    assert repr(taken) == "Snapshot of 2 batch norms: 0, 2"
    assert repr(snapshot(net[2])) == "Snapshot of 1 batch norm: the model"


def test_a_snapshot_between_forward_and_backward():
    layer = BatchNorm1d(2).eval()
    x = torch.randn(4, 2, requires_grad=True)
    y = layer(x)
    taken = snapshot(layer)
    taken.restore()
    y.sum().backward()
    assert torch.isfinite(x.grad).all()


def test_what_cannot_be_rolled_back_is_named():
    net = nn.Sequential(BatchNorm1d(2))
    taken = snapshot(net)
    net[0].running_mean = torch.zeros(3)
    with pytest.raises(
        ValueError, match=r"running_mean of 0 has shape \(3,\); expected shape \(2,\)"
    ):
        taken.restore()
    net[0].running_mean = None
    with pytest.raises(
        ValueError, match=r"running_mean of 0 is gone; expected shape \(2,\), as when"
    ):
        taken.restore()
    with pytest.raises(ValueError, match=r"LazyBatchNorm1d is lazy and has no statistics yet"):
        snapshot(batchnorm.LazyBatchNorm1d())
    with pytest.raises(ValueError, match="Linear has no batch norm to take statistics of; expect"):
        snapshot(nn.Linear(2, 2))


def test_a_layer_shows_how_many_batches_were_kept_out():
    layer = BatchNorm1d(2)
    before = repr(layer)
    assert "skipped" not in before
    for _ in range(2):
        layer(torch.full((4, 2), float("nan")))
    assert repr(layer) == before[:-1] + ", skipped=2)"
    act = batchnorm.BatchNormAct1d(2)
    act(torch.full((4, 2), float("nan")))
    assert repr(act).endswith("activation=relu, skipped=1)")
    renorm = batchnorm.BatchRenorm1d(2)
    renorm(torch.full((4, 2), float("nan")))
    assert repr(renorm).endswith("d_max=5.0, skipped=1)")
    assert "skipped" not in repr(layer.to("meta"))


@pytest.mark.parametrize("assign", [False, True])
def test_a_count_that_is_no_count_is_refused(assign):
    x = torch.randn(6, 3)
    for count, shown in (
        (torch.tensor(3.5), "torch.float32, 3.5"),
        (torch.tensor(-1.0), "torch.float32, -1.0"),
        (torch.tensor(torch.nan), "torch.float32, nan"),
        (torch.tensor(True), "torch.bool, True"),
        (torch.tensor(3 + 0j), r"torch.complex64, \(3\+0j\)"),
    ):
        model = nn.Sequential(BatchNorm1d(3, momentum=None))
        model(x)
        state = model.state_dict() | {"0.num_batches_tracked": count}
        with pytest.raises(
            RuntimeError,
            match=rf"0.num_batches_tracked is {shown}; expected how many batches were seen, an "
            r"integer: state_dict\['0.num_batches_tracked'\] = torch.tensor\(0\)",
        ):
            model.load_state_dict(state, assign=assign)
        assert model[0].num_batches_tracked == 1


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32, torch.uint8])
def test_a_whole_count_of_any_dtype_goes_on(assign, dtype):
    """State dicts that were averaged hold floats."""
    x, layer = torch.randn(6, 3), BatchNorm1d(3, momentum=None)
    state = layer.state_dict() | {"num_batches_tracked": torch.tensor(3, dtype=dtype)}
    given = dict(state)
    layer.load_state_dict(state, assign=assign)
    assert all(given[name] is value for name, value in state.items())
    layer(x)
    assert layer.num_batches_tracked == 4
    assert not layer.num_batches_tracked.is_floating_point()
    torch.testing.assert_close(layer.running_mean, x.mean(0) / 4)
