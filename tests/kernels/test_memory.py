"""Large outputs: asked for in large pages where they are fresh, streamed where they are not."""

import mmap
from pathlib import Path

import pytest
import torch

from batchnorm.kernels import _memory, numba
from batchnorm.kernels._activation import Activation
from batchnorm.kernels._call import Call

ELEMENTS = 2**23 + 1001  # 34 MB in float32
GIVEN = Path("/sys/kernel/mm/transparent_hugepage/enabled")
pytestmark = pytest.mark.skipif(not GIVEN.exists(), reason="Linux gives large pages")


def fresh():
    """A tensor in memory that the system has just given, whatever malloc keeps."""
    return torch.frombuffer(mmap.mmap(-1, 4 * ELEMENTS), dtype=torch.float32)


def flags(tensor):
    """What Linux was told of the memory in the middle of a tensor."""
    middle = tensor.data_ptr() + tensor.numel() * tensor.itemsize // 2
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()[0]
        if "-" in head and not head.endswith(":"):
            low, high = (int(end, 16) for end in head.split("-"))
            inside = low <= middle < high
        elif inside and head == "VmFlags:":
            return line.split()[1:]
    raise AssertionError(f"{middle:#x} lies in no mapping")


def test_fresh_memory_is_asked_for_in_large_pages():
    out = fresh()
    assert "hg" not in flags(out)
    assert not _memory.prepare(out)
    assert "hg" in flags(out)


def test_memory_in_use_is_left_alone():
    out = fresh().zero_()
    assert _memory.prepare(out)
    assert "hg" not in flags(out)


def test_whole_pages_of_the_tensor_and_no_others(monkeypatch):
    advised = []
    ask, _ = _memory._system_calls()
    monkeypatch.setattr(_memory, "_system_calls", lambda: (ask, lambda *a: advised.append(a)))
    out = fresh()[3:-5]
    assert not _memory.prepare(out)
    ((first, size, _),) = advised
    assert first % mmap.PAGESIZE == 0
    assert size % mmap.PAGESIZE == 0
    assert out.data_ptr() <= first
    assert first + size <= out.data_ptr() + 4 * out.numel()
    assert size > 4 * out.numel() - 2 * mmap.PAGESIZE


def test_small_outputs_are_left_alone(monkeypatch):
    monkeypatch.setattr(_memory, "_system_calls", lambda: pytest.fail("asked"))
    assert not _memory.prepare(torch.empty(1000))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_every_output_is_prepared(layout, monkeypatch):
    prepared = []
    monkeypatch.setattr(_memory, "prepare", lambda out: prepared.append(out.data_ptr()) or False)
    x, residual, dy = (torch.randn(5, 4, 9, 7).to(memory_format=layout) for _ in range(3))
    call = Call(x, None, None, residual, None, 1e-5, Activation("relu"))
    y, moments = numba.forward(call)
    gradients = numba.backward(dy, call, moments, False, (True, True))
    assert prepared == [t.data_ptr() for t in (y, gradients.x, gradients.residual)]
