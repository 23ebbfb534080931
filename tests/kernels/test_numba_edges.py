"""Kernels at the edges of memory, and lanes that no element fills."""

import ctypes
import math
import mmap
import sys
from types import SimpleNamespace

import pytest
import torch

from batchnorm.kernels import (
    _in_place,
    _memory,
    _numba_launch,
    _numba_prepare,
    _recycled,
    numba,
    plain,
)
from batchnorm.kernels._activation import Activation
from batchnorm.kernels._call import Call

PAGE = mmap.PAGESIZE
SHAPES = [
    (2, 3, 7, 7),
    (5, 3, 8, 16),
    (1, 1, 300, 301),
    (9, 64, 5, 7),
    (37, 3),
    (41, 513),
    (3, 2, 5, 5),
]


@pytest.fixture
def between_pages(monkeypatch):
    """Makes tensors that end, or begin, at a page that there is not.

    Outputs are such, too, and memory that kernels work in.
    """
    library = ctypes.CDLL(None)
    library.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    kept, open_, empty_like = [], [], torch.empty_like

    def make(like, at_end):
        size = like.numel() * like.itemsize
        pages = -(-size // PAGE)
        memory = mmap.mmap(-1, (pages + 2) * PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        offset = PAGE + (pages * PAGE - size if at_end else 0)
        t = torch.frombuffer(memory, dtype=like.dtype, count=like.numel(), offset=offset)
        for edge in (start, start + (pages + 1) * PAGE):
            assert library.mprotect(edge, PAGE, 0) == 0
            open_.append(edge)
        kept.append(memory)
        return t.as_strided(like.shape, empty_like(like).stride(), 0).copy_(like)

    def outputs(at_end):
        def fresh(x, **options):
            return empty_like(x, **options) if options else make(torch.zeros_like(x), at_end)

        def scratch(size, dtype):
            found = torch.zeros(size, dtype=dtype)
            return make(found, at_end) if size else found

        monkeypatch.setattr(torch, "empty_like", fresh)
        monkeypatch.setattr(
            _numba_launch, "torch", SimpleNamespace(**{**vars(torch), "empty": scratch})
        )

    monkeypatch.setattr(_recycled, "LEAST", math.inf)
    monkeypatch.setattr(_numba_prepare, "_SMALL", -1)
    _numba_prepare.prepare.cache_clear()
    yield make, outputs
    _numba_prepare.prepare.cache_clear()
    for edge in open_:
        library.mprotect(edge, PAGE, mmap.PROT_READ | mmap.PROT_WRITE)


@pytest.mark.skipif(sys.platform == "win32", reason="has no mprotect")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("large", [0, 2**23])
def test_nothing_beside_the_tensors_is_touched(
    dtype, shape, layout, large, between_pages, monkeypatch
):
    monkeypatch.setattr(_memory, "_LARGE", large)
    like = torch.randn(shape, dtype=torch.float64).to(dtype)
    if layout == "channels_last" and like.dim() == 4:
        like = like.contiguous(memory_format=torch.channels_last)
    make, outputs = between_pages
    weight = torch.randn(shape[1])
    for at_end in (False, True):
        x, r, dy = (make(torch.randn_like(like), at_end) for _ in range(3))
        outputs(at_end)
        for residual in (None, r):
            call = Call(x, weight, weight, residual, None, 1e-5, Activation("leaky_relu", 0.1))
            y, moments = numba.forward(call)
            gradients = numba.backward(dy, call, moments, False, (True, residual is not None))
            assert bool(y.isfinite().all())
            assert bool(gradients.x.isfinite().all())
        call = Call(make(like, at_end), weight, 0.5 * weight, None, None, *call[5:])
        moments = _in_place.forward(numba, call)
        gradients = numba.backward_from_output(dy, call, moments, False, (True, False))
        assert bool(call.x.isfinite().all())
        assert bool(gradients.x.isfinite().all())


@pytest.mark.parametrize("shape", [(2, 3, 7, 7), (37, 3), (9, 3, 5, 1)])
@pytest.mark.parametrize("slope", [math.inf, 1e39])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lanes_left_out_enter_no_sum(shape, slope, dtype):
    """No element lies below zero, where a slope that is not finite would make infinities."""
    x, dy = (torch.rand(shape) + 3).to(dtype), torch.ones(shape).to(dtype)
    moments = torch.tensor([[1.0] * 3, [0.0] * 3, [1.0] * 3], dtype=torch.float64)
    activation = Activation("leaky_relu", slope)
    call = Call(x, torch.ones(3), torch.full((3,), -1.0), None, None, 0.0, activation)
    got = numba.backward(dy, call, moments, True, (True, False))
    right = plain.backward(dy, call, moments, True, (True, False))
    torch.testing.assert_close(got.bias, right.bias)
    torch.testing.assert_close(got.weight, right.weight)


@pytest.mark.parametrize("shape", [(2, 3, 7, 7), (37, 3), (9, 3, 5, 1)])
@pytest.mark.parametrize("slope", [1e-310, 1e-39, 1e39])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lanes_left_out_of_the_output_enter_no_sum(shape, slope, dtype):
    """No element lies below zero, where a slope's inverse may not be finite."""
    y, dy = (torch.rand(shape) + 3).to(dtype), torch.ones(shape).to(dtype)
    moments = torch.tensor([[1.0] * 3, [0.0] * 3, [1.0] * 3], dtype=torch.float64)
    activation = Activation("leaky_relu", slope)
    call = Call(y, torch.ones(3), torch.full((3,), 0.5), None, None, 0.0, activation)
    got = numba.backward_from_output(dy, call, moments, False, (True, False))
    right = plain.backward_from_output(dy, call, moments, False, (True, False))
    torch.testing.assert_close(got.x, right.x)
    torch.testing.assert_close(got.bias, right.bias)
    torch.testing.assert_close(got.weight, right.weight)
