"""Large outputs: asked for in large pages where they are fresh, streamed where they are not."""

import mmap
from pathlib import Path

import pytest
import torch

from batchnorm.kernels import _memory, numba
from batchnorm.kernels._activation import Activation
from batchnorm.kernels._call import Call

LARGE = (5, 41, 251, 257)  # 53 MB in float32, which no heap of malloc's holds


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


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="Linux gives large pages")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_fresh_outputs_lie_in_large_pages(layout):
    x = torch.randn(LARGE).to(memory_format=layout)
    call = Call(x, None, None, None, None, 1e-5, Activation("relu"))
    y, moments = numba.forward(call)
    gradients = numba.backward(x, call, moments, False, (True, False))
    assert "hg" not in flags(x)
    assert "hg" in flags(y)
    assert "hg" in flags(gradients.x)


def test_memory_in_use_is_streamed_and_fresh_memory_is_not(monkeypatch):
    advised = []
    ask, _ = _memory._system_calls()
    monkeypatch.setattr(_memory, "_system_calls", lambda: (ask, lambda *a: advised.append(a)))
    fresh = torch.empty(LARGE)
    assert not _memory.prepare(fresh)
    ((first, size, _),) = advised
    assert first % mmap.PAGESIZE == 0
    assert size % mmap.PAGESIZE == 0
    assert fresh.data_ptr() <= first
    assert first + size <= fresh.data_ptr() + 4 * fresh.numel()
    assert _memory.prepare(fresh.zero_())
    assert len(advised) == 1


def test_small_outputs_are_left_alone(monkeypatch):
    monkeypatch.setattr(_memory, "_system_calls", lambda: pytest.fail("asked"))
    assert not _memory.prepare(torch.empty(1000))
