"""The compiled kernels among threads, after forks, and where nothing can be cached."""

import multiprocessing
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import oracle
from batchnorm.kernels import _team, numba, plain
from batchnorm.kernels._activation import Activation
from batchnorm.kernels._call import Call
from compared import everything, same
from processes import python

SHAPES = [(3000, 70), (9, 12, 90, 91), (2, 1, 400, 401), (2, 3, 300, 301)]


@pytest.fixture
def threads():
    """Sets torch's number of threads, and gives it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def problem(shape, layout="contiguous", activation="relu", masked=False, residual=True):
    x = oracle.laid_out(torch.randn(shape), layout)
    mask = torch.rand(shape[0], 1, *shape[2:]) if masked else None
    weight, bias = torch.randn(2, shape[1])
    r = torch.randn(shape) if residual else None
    return Call(x, weight, bias, r, mask, 1e-5, Activation.parse(activation)), torch.randn(shape)


@pytest.mark.parametrize("kind", ["a table's columns", "an image's channels"])
@pytest.mark.parametrize("count", [2, 3])
def test_blocks_of_few_columns_do_not_touch_each_other(kind, count, threads):
    """Rows that cannot be joined: loops add whole vectors of sums, wider than a row is."""
    if kind == "a table's columns":
        wide = torch.randn(100_000, 5)
    else:
        wide = torch.randn(16, 5, 80, 80).contiguous(memory_format=torch.channels_last)
    x, dy = wide[:, :count], wide.flip(0)[:, :count]
    call = Call(x, *torch.randn(2, count), None, None, 1e-5, Activation.parse("relu"))
    threads(1)
    right = everything(call, dy)
    for number in (2, 3, 7):
        threads(number)
        for _ in range(20):
            assert same(everything(call, dy), right)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("activation", "masked", "residual"),
    [("relu", False, True), ("relu", False, False), ("tanh", True, True)],
)
def test_bits_do_not_depend_on_the_number_of_threads(
    shape, layout, activation, masked, residual, threads
):
    call, dy = problem(shape, layout, activation, masked, residual)
    threads(1)
    alone = everything(call, dy)
    for count in (2, 3, 5, 7):
        threads(count)
        assert same(everything(call, dy), alone), f"{count} threads"


def test_work_is_really_shared(threads, monkeypatch):
    counts = []
    run = _team.run
    monkeypatch.setattr(_team, "run", lambda *given: counts.append(given[-1]) or run(*given))
    threads(3)
    numba.forward(problem((9, 12, 90, 91))[0])
    assert counts == [3]
    numba.forward(problem((9, 12))[0])
    assert counts == [3]


@pytest.mark.parametrize("shape", SHAPES)
def test_pythons_threads_serve_where_torch_has_no_openmp(shape, threads, monkeypatch):
    call, dy = problem(shape)
    threads(1)
    alone = everything(call, dy)
    monkeypatch.setattr(_team, "_openmp", lambda: None)
    threads(4)
    assert same(everything(call, dy), alone)


@pytest.mark.parametrize("count", [2, 7])
def test_several_python_threads_at_once(count, threads):
    threads(count)
    problems = [problem(SHAPES[k % 4]) for k in range(8)]
    alone = [everything(*each) for each in problems]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            together = list(pool.map(lambda each: everything(*each), problems))
            assert all(same(a, b) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("limit", [1, 2])
def test_fewer_threads_come_than_were_asked_for(limit):
    code = """
        import sys, torch
        sys.path[:0] = sys.argv[1:]
        from test_numba_threads import everything, problem, same
        torch.manual_seed(0)
        for shape in ((3000, 70), (2, 1, 400, 401)):
            for residual in (False, True):
                each = problem(shape, residual=residual)
                torch.set_num_threads(1)
                alone = everything(*each)
                torch.set_num_threads(7)
                assert same(everything(*each), alone)
        print("same")
    """
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), here, here.parent],
        env=os.environ | {"OMP_THREAD_LIMIT": str(limit)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.split() == ["same"], done.stderr


def _in_child(queue, call, dy):
    queue.put([t.numpy() for t in everything(call, dy)])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_forked_child_computes_what_its_parent_did(threads):
    threads(2)
    call, dy = problem((9, 12, 90, 91))
    ours = everything(call, dy)  # so that the parent's threads exist
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(queue, call, dy))
    child.start()
    theirs = [torch.from_numpy(a) for a in queue.get()]
    child.join(60)
    assert child.exitcode == 0
    assert same(theirs, ours)


class _Normalized(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        x = torch.full((9, 12, 90, 91), float(index))
        x[0] += 1
        return numba.forward(Call(x, None, None, None, None, 1e-5, Activation()))[0]


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_workers_of_a_data_loader():
    here = [_Normalized()[i] for i in range(4)]
    loader = torch.utils.data.DataLoader(_Normalized(), batch_size=None, num_workers=2)
    assert same(list(loader), here)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_before_our_import_computes_with_threads_of_its_own():
    """Its parent's OpenMP threads are gone, and waiting for them would never end."""
    assert (
        python(
            """
            import os, signal, warnings, numpy as np, torch
            warnings.simplefilter("ignore")
            torch.set_num_threads(2)
            torch.randn(10**6).exp_()
            child = os.fork()
            if child:
                print(os.waitpid(child, 0)[1])
                raise SystemExit
            signal.alarm(120)
            from batchnorm.kernels import _team, numba
            from batchnorm.kernels._activation import Activation
            from batchnorm.kernels._call import Call
            counts = []
            run = _team.run
            _team.run = lambda *given: counts.append(given[-1]) or run(*given)
            x = torch.from_numpy(np.ones((9, 12, 90, 91), np.float32))
            y, _ = numba.forward(Call(x, None, None, None, None, 1e-5, Activation()))
            assert not y.numpy().any()
            print(counts, flush=True)
            os._exit(0)
            """
        )
        == "[2]\n0\n"
    )


def test_a_cache_that_cannot_be_written_is_no_error():
    assert (
        python(
            """
        import torch
        from numba.core import caching
        def refuse(self, *args, **options):
            raise RuntimeError("cannot cache function: no locator available")
        caching.FunctionCache.__init__ = refuse
        from batchnorm.kernels import numba
        from batchnorm.kernels._activation import Activation
        from batchnorm.kernels._call import Call
        x, mask = torch.tensor([[1.0], [3.0]]), torch.ones(2, 1)  # kernels that compile quickly
        call = Call(x, None, None, None, mask, 1e-30, Activation())
        print(numba.forward(call)[0].tolist())
        """
        )
        == "[[-1.0], [1.0]]\n"
    )


def test_numba_is_imported_when_first_used_and_may_be_missing():
    assert python(
        """
        import sys, torch, batchnorm
        assert "numba" not in sys.modules
        sys.modules["numba"] = None
        from batchnorm.kernels import numba
        from batchnorm.kernels._activation import Activation
        from batchnorm.kernels._call import Call
        call = Call(torch.ones(2, 1), None, None, None, None, 1e-5, Activation())
        print(numba.refuses(call))
        """
    ).endswith("install it with: pip install numba\n")


def test_the_definition_agrees_on_what_threads_share(threads):
    threads(2)
    for shape in SHAPES:
        call, _ = problem(shape)
        assert oracle.relative_error(numba.forward(call)[0], plain.forward(call)[0].double()) < 2e-7
