"""A residual that wants no gradient: the input's is written alone, by the same quick kernels."""

import pytest
import torch

import oracle
from batchnorm.kernels import _memory, _numba_prepare, numba, plain
from batchnorm.kernels._activation import Activation
from batchnorm.kernels._numba_variant import FLAT, GENERAL, PLAIN, SLOPED, Variant
from compared import TOLERANCE, close, problem

SHAPES = [
    *((7, 3), (33, 64), (41, 513), (3, 2, 5), (4, 5, 16), (2, 1, 33), (600, 2, 2)),
    *((5, 40, 7, 7), (2, 3, 37, 41), (2, 2, 3, 4, 5), (1, 2, 300, 301)),
]
BENDS = ("identity", "relu", "leaky_relu")
ONLY_X = True, False


def wide(t):
    return None if t is None else t.double()


def compare_alone(call, dy):
    """The input's gradient to the definition in float64, and to the one beside the residual's."""
    moments = plain.statistics(call.x.double(), None)
    of_x, of_residual = call.x.double(), wide(call.residual)
    right = call._replace(x=of_x, residual=of_residual)
    for fixed in (False, True):
        alone = numba.backward(dy, call, moments, fixed, ONLY_X)
        both = numba.backward(dy, call, moments, fixed, (True, True))
        expected = plain.backward(dy.double(), right, moments, fixed, ONLY_X)
        assert alone.residual is None
        for ours, beside, theirs in zip(alone[:3], both[:3], expected[:3], strict=True):
            assert torch.equal(ours, beside)
            close(ours, theirs, TOLERANCE[call.x.dtype])


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("layout", oracle.LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", BENDS)
def test_every_shape_in_every_layout(shape, layout, activation):
    if layout == "expanded" and shape[0] == 1:
        layout = "contiguous"
    compare_alone(*problem(shape, layout=layout, activation=activation))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(33, 64), (41, 513), (5, 40, 7, 7), (2, 3, 37, 41)])
@pytest.mark.parametrize("activation", BENDS)
def test_every_dtype(dtype, shape, activation):
    compare_alone(*problem(shape, dtype, activation=activation))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_residual_that_lies_otherwise(layout):
    call, dy = problem((3, 8, 5, 6))
    compare_alone(call._replace(residual=oracle.laid_out(call.residual, layout)), dy)
    compare_alone(call._replace(x=oracle.laid_out(call.x, layout)), dy)
    spread = torch.randn(3, 8, 1, 1).expand(3, 8, 5, 6)
    compare_alone(call._replace(residual=spread), dy)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(64, 96), (3, 4, 16, 16), (3, 4, 5, 5), (1, 2, 300, 301)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_past_the_caches(dtype, shape, layout, monkeypatch, guarded_memory):
    """An output that begins with no line, too, as those between margins do."""
    monkeypatch.setattr(_memory, "_LARGE", 0)
    compare_alone(*problem(shape, dtype, layout))
    assert guarded_memory()


def test_what_other_kernels_wrote_to_is_left_alone(guarded_memory):
    call, dy = problem((5, 40, 7, 7))
    kept = call.residual.clone()
    numba.backward(dy, call, plain.statistics(call.x, None), False, ONLY_X)
    assert guarded_memory()
    assert torch.equal(call.residual, kept)


@pytest.fixture
def asked(monkeypatch):
    """The variants that are asked of `kernel`."""
    found, kernel = [], _numba_prepare.kernel

    def remember(variant, dtype):
        found.append(variant)
        return kernel(variant, dtype)

    monkeypatch.setattr(_numba_prepare, "kernel", remember)
    _numba_prepare.prepare.cache_clear()
    yield found
    _numba_prepare.prepare.cache_clear()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", BENDS)
def test_the_quick_kernel_is_chosen(layout, activation, asked):
    call, dy = problem((3, 4, 8, 8), layout=layout, activation=activation)
    moments = plain.statistics(call.x, None)
    numba.backward(dy, call, moments, False, ONLY_X)
    numba.backward_input(dy, call, moments, numba.backward_reduce(dy, call, moments))
    residual = activation != "identity"  # nothing of it is needed there
    bend = {"identity": PLAIN, "relu": FLAT, "leaky_relu": SLOPED}[activation]
    assert set(asked) == {Variant("backward", layout == "contiguous", bend, residual)}


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_general_kernel_is_chosen_for_the_rest(layout, asked):
    call, dy = problem((3, 4, 8, 8), layout=layout)
    moments = plain.statistics(call.x, None)
    numba.backward(dy, call, moments, False, (False, True))  # the residual's gradient alone
    curved = call._replace(activation=Activation("silu", 0.0))
    numba.backward(dy, curved, moments, False, ONLY_X)
    assert set(asked) == {Variant("backward", layout == "contiguous", GENERAL)}
