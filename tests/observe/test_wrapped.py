"""The recorder around wrappers and compilers, and with a writer."""

import threading

import pytest
import torch
import torch.distributed as dist
from torch import nn

from batchnorm import record

from .test_record import batches, hooks_of, network, of, train


def rows_of(model, data):
    with record(model, every=2) as seen:
        train(model, data)
    return seen.rows


def assert_same(found, expected):
    assert [(r["step"], r["path"], r["quantity"]) for r in found] == [
        (r["step"], r["path"], r["quantity"]) for r in expected
    ]
    for one, other in zip(found, expected, strict=True):
        if one["quantity"] not in ("histogram", "drift_mean"):  # of rounding where beta stays
            assert one["values"] == pytest.approx(other["values"], rel=1e-3, abs=1e-5), one


def compiled(model):
    return torch.compile(model, backend="eager")


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


def compiled_inside(model):
    model[1] = torch.compile(model[1], backend="eager")
    return model


# Dynamo's own, where what it compiles begins in the middle of a model.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(
    "wrap", [compiled, compiled_in_place, compiled_inside, nn.DataParallel, "before the block"]
)
def test_a_wrapped_model_is_seen_as_the_model_inside(wrap):
    data = batches(4)
    if wrap == "before the block":
        model = compiled(network())
        model(data[0])
        plain = network()
        plain(data[0])
    else:
        model, plain = wrap(network()), network()
    expected = rows_of(plain, data)
    torch.compiler.reset()
    assert_same(rows_of(model, data), expected)
    assert hooks_of(model) == 0
    assert torch._dynamo.eval_frame._stance.stance == "default"


def test_the_compiler_is_given_back_where_a_recorded_step_raises():
    model = compiled(network())
    with pytest.raises(RuntimeError), record(model):
        model(torch.randn(3, 7))
    assert torch._dynamo.eval_frame._stance.stance == "default"
    model = compiled_in_place(network())
    call = model._compiled_call_impl
    with pytest.raises(RuntimeError), record(model):
        model(torch.randn(3, 7))
    assert model._compiled_call_impl is call
    assert torch._dynamo.eval_frame._stance.stance == "default"


def test_the_model_inside_of_what_is_called_is_told_apart():
    model = network()
    fast = torch.compile(model, backend="eager", fullgraph=True)
    with pytest.warns(RuntimeWarning, match="record what the loop calls"), record(model):
        train(fast, batches(2))


def test_distributed(tmp_path):
    dist.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(network())
        assert_same(rows_of(model, batches(4)), rows_of(network(), batches(4)))
    finally:
        dist.destroy_process_group()


def test_replicas_in_threads_are_seen_together():
    class InTwo(nn.DataParallel):
        """As on two devices: shallow replicas of all modules, each with a half, in threads."""

        def forward(self, x):
            def replica(module):
                twin = module._replicate_for_data_parallel()
                twin._parameters, twin._buffers = module._parameters.copy(), module._buffers.copy()
                twin._modules = {name: replica(one) for name, one in module._modules.items()}
                return twin

            out = [None, None]

            def run(i, model, half):
                out[i] = model(half)

            threads = [
                threading.Thread(target=run, args=(i, replica(self.module), half))
                for i, half in enumerate(x.chunk(2))
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return torch.cat(out)

    (x,) = batches(1)
    model = InTwo(network(nn.BatchNorm1d))
    with record(model) as seen:
        model(x).square().mean().backward()
    z = model.module[0](x)
    assert of(seen, "batch_mean") == pytest.approx(z.mean(0).tolist(), abs=1e-6)
    assert sum(of(seen, "histogram")) == 80
    assert seen.forwards == 1


class Tape:
    def __init__(self):
        self.scalars, self.histograms = [], []

    def add_scalar(self, tag, value, step):
        self.scalars.append((tag, value, step))

    def add_histogram(self, tag, values, step):
        self.histograms.append((tag, values.shape, step))


def test_a_writer_is_given_each_step_as_it_ends():
    tape, model = Tape(), network()
    with record(model, every=2, writer=tape) as seen:
        train(model, batches(1))
        assert tape.scalars == []
        train(model, batches(2))
        assert {step for _, _, step in tape.scalars} == {0}
    assert tape.histograms == [("1/output", (16, 5), 0), ("1/output", (16, 5), 2)]
    told = {(tag, step): value for tag, value, step in tape.scalars}
    _, gamma = seen.series("gamma", "1")
    assert told["1/gamma", 2] == pytest.approx(gamma[1].mean())
    assert not any("histogram" in tag for tag, _ in told)


def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    model = network()
    with SummaryWriter(str(tmp_path)) as writer, record(model, every=1, writer=writer) as seen:
        train(model, batches(3))
    events = EventAccumulator(str(tmp_path), {"histograms": 0}).Reload()
    found = [(e.step, e.value) for e in events.Scalars("1/running_var")]
    steps, values = seen.series("running_var", "1")
    assert found == [(s, pytest.approx(v.mean())) for s, v in zip(steps, values, strict=True)]
    assert [e.step for e in events.Histograms("1/output")] == [0, 1, 2]
