"""Large outputs lie in memory that others have left, and never in any that is still to be seen."""

import copy
import gc
import io
import pickle
import random
import sys
import threading
import weakref

import numpy as np
import pytest
import torch

import batchnorm
from batchnorm import BatchNormAct2d
from batchnorm.kernels import _block, _recycled
from batchnorm.kernels._pages import pages
from batchnorm.kernels._pool import Pool
from batchnorm.kernels._takes import missing

pytestmark = pytest.mark.skipif(pages() is None, reason="the system takes no memory on offer")
LAYOUTS = [torch.contiguous_format, torch.channels_last]
SHAPE = (4, 6, 10, 10)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Outputs of any size are made so, in a pool of the test's own."""
    assert missing() is None
    monkeypatch.setattr(_recycled, "LEAST", 1)
    batchnorm.keep_freed_memory(False)
    batchnorm.keep_freed_memory(True)


@pytest.fixture(autouse=True, scope="module")
def _as_before():
    yield
    batchnorm.keep_freed_memory(False)  # the C library's thresholds
    _recycled.recycle(True)


def made(value=7.0, shape=SHAPE):
    return _recycled.like(torch.empty(shape)).fill_(value)


def overwrite():
    """Write to all that is free, and more."""
    gc.collect()
    return [made(-1.0) for _ in range(8)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "x",
    [
        torch.empty(3, 5),
        torch.empty(()),
        torch.empty(2, 3, 4, 5),
        torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.empty(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d),
        torch.empty(4, 3, 5).transpose(0, 2),
        torch.empty(8, 3, 5)[::2],
        torch.empty(1, 3, 5).expand(4, 3, 5),
        torch.empty(2, 1, 7, 1),
        torch.empty((1,) * 9),
    ],
)
def test_it_is_as_torch_makes_it(x, dtype):
    x = x.to(dtype, memory_format=torch.preserve_format)
    y, expected = _recycled.like(x), torch.empty_like(x)
    assert (y.shape, y.stride(), y.dtype) == (expected.shape, expected.stride(), dtype)
    assert y.untyped_storage().nbytes() == expected.untyped_storage().nbytes()
    assert type(y) is torch.Tensor
    assert y.device == expected.device
    assert (y.requires_grad, y._is_view(), y._version) == (False, False, 0)
    assert y.data_ptr() % 64 == 0
    with torch.inference_mode():
        assert _recycled.like(x).is_inference()


class Seen(torch.Tensor):
    pass


class Counting(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **kwargs or {})


@pytest.mark.parametrize(
    "x",
    [
        torch.empty(5, device="meta"),
        torch.empty(5, dtype=torch.int64),
        torch.empty(5).as_subclass(Seen),
        torch.empty(0),
    ],
)
def test_torch_makes_what_is_in_doubt(x):
    y = _recycled.like(x)
    assert y.untyped_storage().resizable()
    assert type(y) is type(x)
    assert y.device == x.device


def test_torch_makes_it_under_a_mode_and_below_the_size(monkeypatch):
    assert not made().untyped_storage().resizable()
    with Counting():
        assert made().untyped_storage().resizable()
    monkeypatch.setattr(_recycled, "LEAST", 2**22)
    assert made().untyped_storage().resizable()
    assert not made(shape=(2**20,)).untyped_storage().resizable()


def test_what_is_left_is_found_again():
    at = made().data_ptr()
    assert [made().data_ptr() for _ in range(5)] == [at] * 5
    first, second = made(), made()
    assert first.data_ptr() != second.data_ptr()
    last = second.data_ptr()
    del first, second
    assert made().data_ptr() == last


def _in_a_graph(y):
    x = torch.ones(SHAPE, requires_grad=True)
    return (x * y).sum(), x


def _gradient_of_graph(held):
    loss, x = held
    loss.backward(retain_graph=True)
    loss.backward()
    return x.grad / 2


def _assigned(y):
    other = torch.zeros(1)
    other.data = y
    return other


def _in_a_thread(y):
    box, told = [], threading.Event()

    def keep(y):
        told.wait()
        box.append(y.clone())

    thread = threading.Thread(target=keep, args=(y,))
    thread.start()
    return thread, told, box


def _from_thread(held):
    thread, told, box = held
    told.set()
    thread.join()
    return box[0]


def _cycle(y):
    cycle = [y]
    cycle.append(cycle)
    return cycle


HOLDERS = {
    "a view": (lambda y: y.view(-1)[5:], None),
    "a slice": (lambda y: y[1:, 2], None),
    "detached": (lambda y: y.detach(), None),
    "an array": (lambda y: y.numpy()[2:], torch.from_numpy),
    "a buffer": (lambda y: memoryview(y.numpy()), lambda m: torch.from_numpy(np.asarray(m))),
    "dlpack": (lambda y: torch.from_dlpack(y), None),
    "numpy's dlpack": (lambda y: np.from_dlpack(y), torch.from_numpy),
    "the storage": (lambda y: y.untyped_storage(), lambda s: torch.tensor([]).set_(s)),
    "set_": (lambda y: torch.zeros(1).set_(y), None),
    "data": (_assigned, None),
    "data of its own": (lambda y: (y.data, setattr(y, "data", torch.zeros(1)))[0], None),
    "autograd": (_in_a_graph, _gradient_of_graph),
    "another thread": (_in_a_thread, _from_thread),
    "a cycle": (_cycle, lambda cycle: cycle[0]),
    "shared memory": (lambda y: y.share_memory_(), None),
    "a parameter": (lambda y: torch.nn.Parameter(y), lambda p: p.detach()),
    "a copy": (copy.deepcopy, None),
    "a pickle": (pickle.dumps, pickle.loads),
    "in place": (lambda y: y.mul_(2).div_(2), None),
    "transposed in place": (lambda y: y.t_() if y.dim() == 2 else y.transpose_(1, 3), None),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_what_can_be_seen_is_not_given_out_again(name):
    hold, value = HOLDERS[name]
    at = made().data_ptr()
    y = made()
    assert y.data_ptr() == at  # which was used before
    held = hold(y)
    del y
    others = overwrite()
    found = held if value is None else value(held)
    assert found.numel() > 0
    assert (found == 7).all()
    assert all((other == -1).all() for other in others)


def test_saved_to_a_file():
    file = io.BytesIO()
    torch.save({"y": made()}, file)
    overwrite()
    file.seek(0)
    assert (torch.load(file)["y"] == 7).all()


def test_a_weak_reference_holds_nothing():
    y = made()
    at, seen = y.data_ptr(), weakref.ref(y)
    del y
    assert seen() is None
    assert made().data_ptr() == at


def test_no_storage_can_be_resized():
    y = made()
    with pytest.raises(RuntimeError, match="storage that is not resizable"):
        y.untyped_storage().resize_(0)
    assert (y == 7).all()
    assert y.resize_(2, 3).shape == (2, 3)
    with pytest.raises(RuntimeError, match="storage that is not resizable"):
        y.resize_(10_000)  # torch has changed its shape by then, as of an array's
    batchnorm.keep_freed_memory(False)
    y = made()
    y.untyped_storage().resize_(0)
    assert y.untyped_storage().nbytes() == 0


def test_giving_back_waits_for_nobody_and_takes_from_nobody():
    held, pool = [made(float(n)) for n in range(4)], _recycled._pool
    del held[::2]
    used, mapped = pool.sizes()
    assert mapped == 2 * used
    batchnorm.keep_freed_memory(False)
    assert pool.sizes() == (used, used)
    assert [float(t.mean()) for t in held] == [1.0, 3.0]
    assert pool.take(100) is None
    del held
    assert pool.sizes()[0] == 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("inplace", [False, True])
def test_training_is_the_same_wherever_outputs_lie(layout, inplace, monkeypatch):
    def run():
        torch.manual_seed(1)
        layers = [
            BatchNormAct2d(6, "leaky_relu", inplace=inplace),
            BatchNormAct2d(6, "leaky_relu"),
            BatchNormAct2d(6, None),
        ]
        x = torch.randn(SHAPE).to(memory_format=layout).requires_grad_()
        seen = []
        for _ in range(6):
            y = first = layers[0](x * 1)
            first.retain_grad()
            y = layers[1](y, residual=y)
            y = layers[2](y) * y
            y.pow(2).sum().backward(retain_graph=True)
            y.sum().backward()  # x.grad, which may be an output of ours, is added to
            seen += [y.detach().clone(), first.grad.clone(), x.grad.clone()]
            with torch.no_grad():
                x -= 0.01 * x.grad
        return seen

    recycled = run()
    assert _recycled._pool.sizes()[1] > 0
    monkeypatch.setattr(_recycled, "LEAST", sys.maxsize)
    batchnorm.functional._familiar.forget()
    for ours, expected in zip(recycled, run(), strict=True):
        assert torch.equal(ours, expected)


def test_many_threads_at_random():
    failures = []

    def work(seed):
        rng, held = random.Random(seed), {}
        for n in range(400):
            if held and rng.random() < 0.5:
                key = rng.choice(list(held))
                if not bool((held.pop(key) == key).all()):
                    failures.append(key)
            else:
                key = seed * 1000.0 + n
                held[key] = made(key, (rng.choice([1500, 3000, 3001, 9000, 70_000]),))
        failures.extend(k for k, t in held.items() if not bool((t == k).all()))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert _recycled._pool.sizes()[0] == 0


def test_in_all_it_is_hardly_more_than_was_in_use():
    rng, held, peak = random.Random(0), [], 0
    for n in range(3000):
        while held and (len(held) > 20 or rng.random() < 0.45):
            held.pop(rng.randrange(len(held)))
        held.append(made(float(n), (rng.randrange(10_000, 1_000_000),)))
        used, mapped = _recycled._pool.sizes()
        peak = max(peak, used)
        assert used <= mapped <= peak * 1.25
    own = sum(t.numel() * t.itemsize for t in held)
    assert own <= used <= 2 * own + 20 * 8192


def test_what_nobody_needs_any_more_is_given_back():
    held = [made(shape=(100_000,)) for _ in range(10)]
    del held
    pool = _recycled._pool
    assert pool.sizes()[1] > 4_000_000
    for _ in range(500):
        made(shape=(1000,))
    assert 0 < pool.sizes()[1] < 100_000


def test_who_finds_another_inside_does_not_wait():
    made()
    pool = _recycled._pool
    with pool._lock:
        assert made().untyped_storage().resizable()
    assert not made().untyped_storage().resizable()


def _at_once(*_):
    raise KeyboardInterrupt


def _afterwards(capsule, made=torch._C._from_dlpack):
    made(capsule)
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("name", "interrupted"),
    [("_capsule", _at_once), ("_tensor", _at_once), ("_tensor", _afterwards)],
)
def test_an_interrupt_loses_no_memory(name, interrupted, monkeypatch):
    at = made().data_ptr()
    pool = _recycled._pool
    monkeypatch.setattr(_block, name, interrupted)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            made()
        assert pool.sizes()[0] == 0
    monkeypatch.undo()
    monkeypatch.setattr(_recycled, "LEAST", 1)
    first, second = made(1.0), made(2.0)
    assert first.data_ptr() == at
    assert second.data_ptr() != at
    assert (first == 1).all()


def test_a_block_that_was_half_described_is_described_anew():
    from batchnorm.kernels._numba_release import release

    pool = Pool(pages(), release().address)
    for strides, broken in (((5, 1), False), ((7, "interrupted"), True), ((5, 1), False)):
        block = pool.take(4096)
        shape = (9, 7) if broken else (4, 5)
        if broken:
            with pytest.raises(TypeError):
                block.tensor(shape, strides, torch.float32)
            continue
        y = block.tensor(shape, strides, torch.float32)
        assert (y.shape, y.stride()) == (shape, strides)
        del y
    assert pool.sizes()[0] == 0


def test_without_memory_torch_is_asked(monkeypatch):
    made()
    monkeypatch.setattr(_recycled._pool, "_pages", pages()._replace(map=lambda *a: None))
    assert made(shape=(10**6,)).untyped_storage().resizable()


@pytest.mark.parametrize(
    ("what", "value"), [("sys.platform", "darwin"), ("sys.platform", "win32"), ("sys.maxsize", 1)]
)
def test_other_systems_are_not_asked(what, value, monkeypatch):
    monkeypatch.setattr(what, value)
    assert pages.__wrapped__() is None


def test_a_failing_request_gives_back_what_is_free():
    from batchnorm.kernels._numba_release import release

    found = pages()
    pool = Pool(found, release().address)
    size = 2**23
    block = pool.take(size)
    tensor = block.tensor((size // 4,), (1,), torch.float32)
    del tensor
    kept = pool.sizes()[1]
    assert kept > 0
    asked = []
    pool._pages = found._replace(map=lambda *given: asked.append(given) or None)
    assert pool.take(64 * size) is None
    assert len(asked) == 2
    assert pool.sizes() == (0, 0)
