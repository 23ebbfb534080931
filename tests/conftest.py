import os

# Read when MKL is loaded: without it the last digits of a matrix product depend on where its
# operands lie, on some processors, and tests that compare bits of a training compare that.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
# Beside other tests an OpenMP thread that waits, by default in a loop of some milliseconds, takes
# the processor from them. Where time is measured (`alone`) threads wait as they do for users.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch

from batchnorm.functional import _familiar
from batchnorm.kernels import _recycled

# Processes of their own, trainings, waits: files of few tests that take long. They begin first, as
# otherwise half of the workers would wait at the end for one of these.
LONG = {
    "test_bad_input.py",
    "test_cli.py",
    "test_cluster.py",
    "test_engine.py",
    "test_findings.py",
    "test_freed_memory.py",
    "test_from_scratch.py",
    "test_insert_models.py",
    "test_lectures.py",
    "test_numba_threads.py",
    "test_numba_vector_first.py",
    "test_opposites.py",
    "test_pick.py",
    "test_recycled_processes.py",
    "test_remeasure.py",
    "test_run.py",
    "test_sync.py",
}
MARGIN = 61  # elements on either side: odd, so that no output begins with a vector or a cache line


def _define_missing_operators():
    """torchvision's import names operators that its C extension defines, where that loads."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(name + signature)
    return library


_LIBRARY = _define_missing_operators()  # kept alive: what it defines goes with it


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _strangers():
    """No call is remembered from another test, nor a backend that was made for one."""
    _familiar.forget()


@pytest.fixture
def poisoned_memory(monkeypatch):
    """Fresh memory is full of NaN, so that an element which nobody writes is seen."""

    def poison(make):
        def made(*args, **kwargs):
            t = make(*args, **kwargs)
            return t.fill_(float("nan")) if t.is_floating_point() else t

        return made

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))
    monkeypatch.setattr(_recycled, "like", poison(_recycled.like))


@pytest.fixture
def guarded_memory(monkeypatch):
    """Fresh memory is NaN, between margins; a function that says whether nobody wrote to those.

    Outputs of any size lie in memory that others have left.
    """
    margins = []
    empty, empty_like, recycled_like = torch.empty, torch.empty_like, _recycled.like
    monkeypatch.setattr(_recycled, "LEAST", 1)

    def between(size, dtype, make=empty_like):
        around = make(empty(size + 2 * MARGIN, dtype=dtype)).fill_(77)
        margins.extend((around[:MARGIN], around[size + MARGIN :]))
        around[MARGIN : size + MARGIN] = float("nan") if dtype.is_floating_point else 0
        return around

    def guarded_like(x, **options):
        if options:
            return empty_like(x, **options)
        return between(x.numel(), x.dtype).as_strided(x.shape, empty_like(x).stride(), MARGIN)

    def guarded_recycled(x):
        found = between(x.numel(), x.dtype, recycled_like)
        return found.as_strided(x.shape, empty_like(x).stride(), MARGIN)

    def guarded(*shape, dtype=torch.float32, **options):
        if options:
            return empty(*shape, dtype=dtype, **options)
        size = torch.Size(shape[0] if isinstance(shape[0], tuple) else shape)
        return between(size.numel(), dtype)[MARGIN : size.numel() + MARGIN].view(size)

    def untouched():
        """Also forgets them."""
        found = [bool((margin == 77).all()) for margin in margins]
        margins.clear()
        assert found, "nothing was allocated"
        return all(found)

    monkeypatch.setattr(torch, "empty_like", guarded_like)
    monkeypatch.setattr(torch, "empty", guarded)
    monkeypatch.setattr(_recycled, "like", guarded_recycled)
    return untouched
