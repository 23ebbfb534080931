"""The textbook against finite differences, and against torch's batch norm in float64."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from batchnorm import equations
from batchnorm.equations import MiniBatch, RunningAverages, backward, forward, identity, predict

SHAPES = [(1, 2), (3, 2), (4, 5), (2, 7), (5, 64), (1, 1), (3, 1)]
SHAPES_ID = [f"n{n}-m{m}" for n, m in SHAPES]


def drawn(n, m, seed=0):
    """z, gamma, beta and dz~, units at very different places and scales."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, m)) * 10.0 ** rng.integers(-1, 3, (n, 1)) + 20 * rng.normal(size=(n, 1))
    return z, rng.normal(size=(n, 1)), rng.normal(size=(n, 1)), rng.normal(size=(n, m))


def test_the_four_equations_by_hand():
    z_tilde, batch = forward([[1, 3], [10, 50]], [[1], [2]], [[0], [7]], eps=3.0)
    np.testing.assert_array_equal(batch.mean, [[2], [30]])
    np.testing.assert_array_equal(batch.var, [[1], [400]])
    np.testing.assert_allclose(batch.z_norm, [[-0.5, 0.5], [-20 / 403**0.5, 20 / 403**0.5]])
    np.testing.assert_allclose(
        z_tilde, [[-0.5, 0.5], [7 - 40 / 403**0.5, 7 + 40 / 403**0.5]], rtol=1e-15
    )
    assert z_tilde.dtype == np.float64


@pytest.mark.parametrize(("n", "m"), SHAPES, ids=SHAPES_ID)
@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_gradients_equal_finite_differences(n, m, eps):
    z, gamma, beta, dz_tilde = drawn(n, m)
    gradients = backward(dz_tilde, forward(z, gamma, beta, eps)[1])
    for place, gradient in enumerate(gradients):
        given = [z, gamma, beta]
        for index in np.ndindex(given[place].shape):
            # A step that is small for this unit: its deviations are what bends the curve.
            step = 1e-5 * max(z[index[0]].std(), 0.01)
            slope = 0.0
            for sign in (1, -1):
                moved = [value.copy() for value in given]
                moved[place][index] += sign * step
                slope += sign * (forward(*moved, eps)[0] * dz_tilde).sum() / (2 * step)
            scale = abs(gamma[index[0], 0]) / np.sqrt(z[index[0]].var() + eps)
            assert abs(gradient[index] - slope) <= 1e-6 * max(1.0, scale)


@pytest.mark.parametrize(("n", "m"), [s for s in SHAPES if s[1] > 1])
def test_values_gradients_and_averages_equal_torchs(n, m):
    averages = RunningAverages.start(n)
    running_mean, running_var = torch.zeros(n).double(), torch.ones(n).double()
    for step in range(3):
        z, gamma, beta, dz_tilde = drawn(n, m, seed=step)
        z_tilde, batch = forward(z, gamma, beta)
        # torch stores the unbiased variance, the lecture averages the one that normalizes
        unbiased = MiniBatch(batch.mean, batch.var * m / (m - 1), batch.z_norm, gamma, batch.eps)
        averages = averages.update(unbiased, decay=0.9)

        x = torch.from_numpy(z.T).requires_grad_()
        weight = torch.from_numpy(gamma[:, 0]).requires_grad_()
        bias = torch.from_numpy(beta[:, 0]).requires_grad_()
        y = torch.nn.functional.batch_norm(x, running_mean, running_var, weight, bias, True, 0.1)
        y.backward(torch.from_numpy(dz_tilde.T))

        np.testing.assert_allclose(z_tilde.T, y.detach(), rtol=1e-11, atol=1e-11)
        for ours, theirs in zip(backward(dz_tilde, batch), (x, weight, bias), strict=True):
            wanted = theirs.grad.numpy().reshape(-1, n).T
            np.testing.assert_allclose(ours, wanted, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(averages.mean[:, 0], running_mean, rtol=1e-12)
        np.testing.assert_allclose(averages.var[:, 0], running_var, rtol=1e-12)

        tested = torch.nn.functional.batch_norm(x, running_mean, running_var, weight, bias)
        ours = predict(z, averages, gamma, beta)
        np.testing.assert_allclose(ours.T, tested.detach(), rtol=1e-11, atol=1e-11)


def test_averages_are_of_the_biased_variance():
    batch = forward([[0.0, 2.0]], [[1.0]], [[0.0]])[1]
    assert RunningAverages.start(1).update(batch, decay=0.0).var.item() == 1.0  # torch's would be 2
    averages = RunningAverages.start(1)
    for _ in range(200):
        averages = averages.update(batch, decay=0.9)
    assert averages.mean.item() == pytest.approx(1.0, abs=1e-8)


def test_an_update_leaves_the_old_averages_alone():
    averages = RunningAverages.start(2)
    averages.update(forward([[1.0, 2.0], [3.0, 9.0]], [[1.0]] * 2, [[0.0]] * 2)[1])
    np.testing.assert_array_equal(averages.mean, np.zeros((2, 1)))


def test_one_example_alone_comes_out_as_among_others():
    z, gamma, beta, _ = drawn(5, 64)
    averages = RunningAverages.start(5).update(forward(z, gamma, beta)[1])
    together = predict(z, averages, gamma, beta)
    for i in range(z.shape[1]):
        np.testing.assert_array_equal(
            predict(z[:, i : i + 1], averages, gamma, beta), together[:, i : i + 1]
        )


@pytest.mark.parametrize(("n", "m"), SHAPES, ids=SHAPES_ID)
def test_identity_parameters_give_z_back(n, m):
    z, gamma, beta, _ = drawn(n, m)
    batch = forward(z, gamma, beta, eps=1e-3)[1]
    np.testing.assert_allclose(forward(z, *identity(batch), eps=1e-3)[0], z, rtol=1e-12)


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e6 - 0.1, 1e12 + 0.3, 1e-300])
@pytest.mark.parametrize("m", [1, 3, 7, 1000])
def test_a_constant_unit_comes_out_as_beta(constant, m):
    z_tilde, batch = forward(np.full((1, m), constant), [[3.0]], [[0.25]])
    np.testing.assert_array_equal(z_tilde, np.full((1, m), 0.25))
    dz, dgamma, dbeta = backward(np.ones((1, m)), batch)
    assert batch.var.item() == 0.0
    assert (abs(dz).max(), dgamma.item(), dbeta.item()) == (0.0, 0.0, m)


def test_a_bias_in_front_changes_nothing_and_gets_no_gradient():
    z, gamma, beta, dz_tilde = drawn(4, 32)
    bias = np.array([[3.0], [-100.0], [0.5], [1e4]])
    with_bias, batch = forward(z + bias, gamma, beta)
    np.testing.assert_allclose(with_bias, forward(z, gamma, beta)[0], atol=1e-10)
    dz, *_ = backward(dz_tilde, batch)
    assert (abs(dz.sum(axis=1)) <= 1e-14 * abs(dz).sum(axis=1)).all()


Z, ONE = np.ones((4, 32)), np.ones((4, 1))
BATCH = forward(Z, ONE, ONE)[1]
AVERAGES = RunningAverages.start(4)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: forward(np.ones(4), ONE, ONE), ValueError, "z has shape (4,), expected (n, m)"),
        (lambda: forward(np.ones(4), ONE, ONE), ValueError, "z.reshape(-1, 1)"),
        (lambda: forward(np.ones((4, 0)), ONE, ONE), ValueError, "z has shape (4, 0), expected"),
        (lambda: forward([["a"]], [[1]], [[0]]), TypeError, "z has dtype <U1, expected real"),
        (lambda: forward(Z + 1j, ONE, ONE), TypeError, "z has dtype complex128, expected real"),
        (
            lambda: forward(Z, np.ones(4), ONE),
            ValueError,
            "gamma has shape (4,), expected (4, 1): a number for each of the 4 rows of z, whose "
            "shape is (4, 32); gamma.reshape(-1, 1) makes a vector a column",
        ),
        (lambda: forward(Z, ONE, ONE.T), ValueError, "beta has shape (1, 4), expected (4, 1)"),
        (lambda: forward(Z.T, ONE, ONE), ValueError, "in rows, as in torch, pass z.T"),
        (lambda: forward(Z, ONE, ONE, 0), ValueError, "eps is 0, expected a small positive number"),
        (lambda: predict(Z, AVERAGES, ONE, ONE, -1.0), ValueError, "eps is -1.0, expected a small"),
        (lambda: forward(Z, ONE, ONE, float("nan")), ValueError, "eps is nan, expected a small"),
        (lambda: forward(Z, ONE, ONE, float("inf")), ValueError, "eps is inf, expected a small"),
        (
            lambda: backward(Z.T, BATCH),
            ValueError,
            "dz_tilde has shape (32, 4), expected (4, 32), the shape of the z that forward got; "
            "pass the MiniBatch that forward returned",
        ),
        (lambda: backward(Z[0], BATCH), ValueError, "dz_tilde has shape (32,), expected (n, m)"),
        (
            lambda: RunningAverages.start(3).update(BATCH),
            ValueError,
            "the mini-batch has 4 units, these averages have 3; keep one RunningAverages for each",
        ),
        (lambda: AVERAGES.update(BATCH, 1.5), ValueError, "decay is 1.5, expected a number from 0"),
        (lambda: AVERAGES.update(BATCH, -0.1), ValueError, "decay is -0.1, expected a number from"),
        (
            lambda: predict(Z, RunningAverages.start(5), ONE, ONE),
            ValueError,
            "averages.mean has shape (5, 1), expected (4, 1)",
        ),
    ],
)
def test_errors_name_the_thing_its_value_and_the_way_out(call, error, says):
    with pytest.raises(error, match=re.escape(says)):
        call()


def test_equations_import_numpy_alone_and_work_where_torch_cannot_be_imported():
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(Path(equations.__file__).read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
    }
    assert imported - set(sys.stdlib_module_names) == {"numpy"}
    # Read from its file: `import batchnorm.equations` goes through the package, which loads torch.
    code = (
        "import runpy, sys; sys.modules['torch'] = None; "
        f"e = runpy.run_path({equations.__file__!r}, run_name='equations'); "
        "print(e['forward']([[1.0, 3.0]], [[1.0]], [[2.0]], 3.0)[0].tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "[[1.5, 2.5]]\n", done.stderr


def test_the_bounds_of_decay_keep_or_replace_everything():
    kept, replaced = AVERAGES.update(BATCH, 1), AVERAGES.update(BATCH, 0)
    assert np.array_equal(kept.mean, AVERAGES.mean)
    assert np.array_equal(kept.var, AVERAGES.var)
    assert np.array_equal(replaced.mean, BATCH.mean)
    assert np.array_equal(replaced.var, BATCH.var)
