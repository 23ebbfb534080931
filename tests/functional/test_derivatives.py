import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from batchnorm.functional import _ops, batch_norm
from batchnorm.kernels._activation import KINDS, Activation

MASKS = {
    None: None,
    "bool": torch.tensor([[1, 1], [1, 0], [0, 1], [1, 1]]).bool(),
    "weights": torch.tensor([[1, 0.5], [1, 0], [0, 1], [2, 1.3]], dtype=torch.float64),
}


def inputs(shape=(4, 3, 2)):
    x, residual = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight, bias = (
        torch.randn(shape[1], dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    return x, weight, bias, residual


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("training", [True, False])
def test_first_and_second_derivatives_both_ways(kind, mask, training):
    running = torch.randn(3).double(), torch.rand(3).double() + 0.5

    def function(x, weight, bias, residual):
        return batch_norm(
            x,
            *(None, None) if training else running,
            weight,
            bias,
            training,
            eps=1e-3,
            activation=Activation(kind, 0.3),
            residual=residual,
            mask=MASKS[mask],
        )

    assert gradcheck(function, inputs(), check_forward_ad=True)
    assert gradgradcheck(function, inputs(), check_fwd_over_rev=True)


def test_second_derivatives_where_some_inputs_are_absent_or_constant():
    x, weight, _, _ = inputs()
    assert gradgradcheck(lambda x: batch_norm(x, training=True), (x,))
    assert gradgradcheck(
        lambda w: batch_norm(x.detach(), None, None, w, training=True, activation="silu"), (weight,)
    )


def test_third_derivative():
    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)

    def third(function):
        g = x
        for power in (3, 2, 2):
            value = function(x) if g is x else g
            (g,) = torch.autograd.grad((value**power).sum(), x, create_graph=True)
        return g

    ours = third(lambda x: batch_norm(x, training=True, activation="tanh"))
    torchs = third(lambda x: torch.tanh((x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()))
    torch.testing.assert_close(ours, torchs, rtol=1e-8, atol=1e-10)


def squared(function):
    return lambda x: (function(x) ** 3).sum()


@pytest.mark.parametrize("outer", [torch.func.jacrev, torch.func.jacfwd])
def test_function_transforms_in_training(outer):
    x = torch.randn(4, 2, dtype=torch.float64)

    def ours(x):
        return batch_norm(x, training=True, activation="silu")

    def torchs(x):
        return F.silu(F.batch_norm(x, None, None, training=True))

    jacobian = torch.autograd.functional.jacobian(torchs, x)
    hessian = torch.autograd.functional.hessian(squared(torchs), x)
    torch.testing.assert_close(outer(ours)(x), jacobian)
    torch.testing.assert_close(outer(torch.func.jacrev(squared(ours)))(x), hessian)
    torch.testing.assert_close(torch.func.hessian(squared(ours))(x), hessian)
    torch.testing.assert_close(
        torch.func.grad(squared(ours))(x),
        torch.func.grad(
            squared(lambda x: F.silu((x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()))
        )(x),
    )


def test_forward_over_forward_is_refused_and_not_silently_wrong():
    x = torch.randn(4, 2, dtype=torch.float64)
    twice = torch.func.jacfwd(torch.func.jacfwd(squared(lambda x: batch_norm(x, training=True))))
    with pytest.raises(NotImplementedError, match=r"jacfwd of jacfwd.*use torch.func.hessian"):
        twice(x)


def call(x, weight=None, bias=None, residual=None, mask=None, kind="silu"):
    return (weight, bias, residual, mask, 1e-5, Activation(kind).code, 0.0, "")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_torchs_own_checks_of_the_operators(layout):
    x, weight, bias, residual = inputs((4, 3, 2, 5))
    if layout == "channels_last":
        x = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    moments = torch.rand(3, 3, dtype=torch.float64)
    rest = call(x, weight, bias, residual)
    dy = torch.randn_like(x).requires_grad_()
    torch.library.opcheck(_ops.train, (x, *rest))
    torch.library.opcheck(_ops.normalize, (x, moments, *rest))
    for wanted in ((True, True), (False, False)):
        torch.library.opcheck(_ops.backward, (dy, x, moments, False, *wanted, *rest))
    counts = torch.tensor(0), torch.tensor(0)
    for momentum, correction in ((0.1, False), (0.1, True), (None, False)):
        torch.library.opcheck(
            _ops.update_running_,
            (torch.zeros(3), torch.ones(3), *counts, moments, momentum, correction),
        )
    torch.library.opcheck(_ops.statistics, (x, None, None, ""))


def test_without_gradients_nothing_is_recorded():
    x, *_ = inputs()
    with torch.no_grad():
        assert not batch_norm(x, training=True).requires_grad
