"""Which backend takes a call, and what users are told of it."""

import ctypes
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import batchnorm
from batchnorm.kernels import _numba_compile, _numba_kernels, _numba_prepare, native, numba, plain
from batchnorm.kernels._activation import Activation
from batchnorm.kernels._call import Call
from batchnorm.kernels._numba_variant import Variant
from batchnorm.kernels._pick import ORDER, pick
from processes import python


def call(x, **change):
    return Call(x, None, None, None, None, 1e-5, Activation())._replace(**change)


def on(device, *shape, **options):
    with FakeTensorMode():
        return torch.empty(shape or (4, 3), device=device, **options)


class OnMps:
    """What `refuses` asks of a tensor; a fake one is only to be had where torch knows the device."""

    device = torch.device("mps")

    def __init__(self, like):
        self.like = like

    def __getattr__(self, name):
        return getattr(self.like, name)


def test_the_first_that_takes_a_call_gets_it(monkeypatch):
    x = torch.randn(4, 3)
    assert pick(call(x)) is numba
    monkeypatch.setattr(numba, "refuses", lambda call: "it is gone")
    assert pick(call(x)) is native
    assert pick(call(x, mask=torch.ones(4, 1))) is plain
    assert pick(call(on("cuda"))) is native
    assert pick(call(on("cuda"), mask=torch.ones(4, 1))) is plain


def test_a_named_backend_takes_it_or_raises_with_all_reasons():
    x = torch.randn(4, 3)
    for backend in ORDER:
        assert pick(call(x), backend.name) is backend
    with pytest.raises(ValueError, match="backend='triton' is not known; expected None or one of"):
        pick(call(x), "triton")
    with pytest.raises(ValueError, match="cannot take") as raised:
        pick(call(x, mask=torch.ones(4, 1)), "native")
    assert str(raised.value) == (
        "backend='native' cannot take x of shape (4, 3), torch.float32 on cpu (numba: would take "
        "it; native: torch's kernel has no mask; plain: would take it); use backend=None to let "
        "the first that can take it"
    )
    with pytest.raises(ValueError, match=r"numba: it computes on the CPU, and x is on cuda:0"):
        pick(call(on("cuda:0")), "numba")


def test_native_says_what_it_cannot_serve():
    x = torch.randn(4, 3)
    assert native.refuses(call(on("cuda"))) is None
    assert native.refuses(call(x)) is None
    assert native.refuses(call(OnMps(x))) is None
    for other, words in (
        (call(on("xpu")), "serves the CPU, CUDA and MPS, and x is on xpu"),
        (call(on("cuda"), mask=torch.ones(4, 1)), "no mask"),
        (call(on("cuda"), residual=on("cuda").double()), "that is torch.float64"),
        (call(on("cuda", 1, 3)), "two values a channel, and x has shape (1, 3)"),
        (call(on("cuda", 4, 0)), "two values a channel"),
        (call(on("cuda", 2**16, 2**15)), "counts with 32 bits, and x has 2147483648 elements"),
        (
            call(OnMps(torch.randn(4, 3, 2).transpose(1, 2))),
            "wrong gradients unless x is contiguous",
        ),
        (call(OnMps(x[1:])), "wrong gradients unless x is contiguous"),
    ):
        assert words in native.refuses(other)


def test_backends_tells_what_runs_here(monkeypatch):
    _numba_compile.cache_folder.cache_clear()
    shown = batchnorm.backends()
    lines = repr(shown).splitlines()
    assert [row.name for row in shown.rows] == ["numba", "native", "plain"]
    assert lines[0].startswith("numba   yes  tensors on the CPU; compiled code is kept in ")
    assert lines[1] == "native  no   no CUDA and no MPS here; on the CPU Numba comes first"
    assert lines[2].startswith("plain   yes  whatever the others leave")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert batchnorm.backends().rows[1] == ("native", True, "tensors on CUDA without a mask")


def test_backends_tells_of_one_tensor():
    x = torch.randn(4, 3)
    assert repr(batchnorm.backends(x)) == (
        "numba   yes  takes it\nnative  no   comes later\nplain   no   comes later"
    )
    told = batchnorm.backends(on("cuda"), activation="relu")
    assert [row.runs for row in told.rows] == [False, True, False]
    assert told.rows[0].words == "it computes on the CPU, and x is on cuda:0"
    with pytest.raises(ValueError, match="activation='swish' is not known"):
        batchnorm.backends(x, activation="swish")


def test_everything_works_without_numba():
    out = python(
        """
        import sys
        sys.modules["numba"] = None
        import torch, batchnorm
        print(batchnorm.backends())
        print(batchnorm.warmup())
        layer = batchnorm.BatchNormAct2d(3)
        layer(torch.randn(2, 3, 4, 4)).sum().backward()
        layer.eval()(torch.randn(2, 3, 4, 4))
        try:
            batchnorm.functional.batch_norm(torch.randn(4, 3), training=True, backend="numba")
        except ValueError as error:
            print(error)
        """
    )
    lines = out.splitlines()
    assert lines[0].startswith("numba   no   Numba cannot be imported (")
    assert lines[0].endswith("; install it with: pip install numba")
    assert lines[3].startswith("nothing to compile: Numba cannot be imported (")
    assert "(numba: Numba cannot be imported" in lines[4]


def test_warmup_tells_what_it_made_ready(monkeypatch):
    ready = batchnorm.warmup([torch.float32])
    assert ready.reason is None
    assert [row.kernel for row in ready.rows] == [
        "forward, NCHW, ReLU",
        "forward, NCHW, no activation",
        "backward, NCHW, ReLU",
        "backward, NCHW, no activation",
        "forward, channels last, ReLU",
        "forward, channels last, no activation",
        "backward, channels last, ReLU",
        "backward, channels last, no activation",
        "update of running statistics",
        "release of an output's memory",
    ]
    assert all(row.seconds >= 0 for row in ready.rows)
    lines = repr(ready).splitlines()
    assert len(lines) == 11
    assert lines[-1].startswith("10 kernels in ")
    made = []
    monkeypatch.setattr(_numba_kernels, "kernel", lambda *given: made.append(given) or FAKE)
    rows = batchnorm.warmup([torch.float32, torch.float16], everything=True).rows
    assert len({row[:2] for row in rows}) == len(rows) == 72
    assert len(set(made)) == 68
    assert {given[-1] for given in made} == {torch.float32, torch.float16}


class FAKE:
    class owner:
        cache_hits = 0


def test_no_kernel_for_gradients_is_compiled_where_none_are_taken(monkeypatch):
    made, kernel = [], _numba_prepare.kernel
    monkeypatch.setattr(
        _numba_prepare, "kernel", lambda *given: made.append(given) or kernel(*given)
    )
    layer, x = batchnorm.BatchNormAct2d(5), torch.randn(3, 5, 11, 13)  # a shape of no other test
    with torch.no_grad():
        for mode in (True, False):
            for _ in range(3):
                layer.train(mode)(x)
    assert {given[0].direction for given in made} == {"forward"}
    layer(x).sum().backward()
    assert {given[0].direction for given in made} == {"forward", "backward"}


def test_a_kernel_is_compiled_for_the_activation_that_is_there(monkeypatch):
    made, kernel = [], _numba_prepare.kernel
    monkeypatch.setattr(
        _numba_prepare, "kernel", lambda *given: made.append(given) or kernel(*given)
    )
    x = torch.randn(3, 5, 17, 11, requires_grad=True)  # a shape of no other test
    batchnorm.BatchNorm2d(5)(x).sum().backward()
    assert {(given[0].bend, given[0].residual) for given in made} == {("plain", False)}
    made.clear()
    batchnorm.BatchNormAct2d(5)(x, x.detach()).sum().backward()
    assert {(given[0].bend, given[0].residual) for given in made} == {("flat", True)}


@pytest.mark.parametrize("loaded", [False, True])
def test_the_log_tells_what_was_compiled(loaded, monkeypatch, caplog):
    made = SimpleNamespace(cache_hits=int(loaded), address=0)
    given = []

    def cfunc(*_, **options):
        return lambda body: given.append(body) or made

    monkeypatch.setattr(_numba_compile, "numba", SimpleNamespace(cfunc=cfunc))
    variant = Variant("backward", False, "flat", residual=True)
    with caplog.at_level(logging.INFO, "batchnorm"):
        assert _numba_kernels.kernel.__wrapped__(variant, torch.float32).owner is made
    told = [re.sub(r"[0-9.]+ s", "N s", record.message) for record in caplog.records]
    words = "backward, channels last, ReLU after a residual, torch.float32"
    assert told == ([] if loaded else [f"compiled a kernel in N s ({words})"])
    name = "backward_channels_last_relu_after_a_residual_torch_float32_"
    assert given[0].__qualname__.startswith(name)


def test_warmup_names_what_it_can_compile():
    with pytest.raises(ValueError, match=r"no kernel for torch\.int8; expected some of torch\.fl"):
        batchnorm.warmup([torch.int8])


# With a mask: its kernels are the quickest to compile, and here that is done again and again.
CALL = """
import torch, batchnorm
x, mask = torch.tensor([[1.0], [3.0]]), torch.ones(2)
print(batchnorm.functional.batch_norm(x, training=True, eps=1e-30, mask=mask))
"""
WARM = (
    """
import batchnorm
from batchnorm.kernels import _numba_variant as variants
variants.USUAL = [
    variants.Variant(way, False, variants.GENERAL) for way in ("forward", "backward")
]
print(batchnorm.backends().rows[0].words)
print(*(row.loaded for row in batchnorm.warmup().rows))
"""
    + CALL
)
RIGHT = "tensor([[-1.],\n        [ 1.]])\n"


def _obey_permissions():
    """Root passes over permissions by a capability that the next program can be denied."""
    if os.getuid() == 0:
        pr_capbset_drop, cap_dac_override = 24, 1
        assert ctypes.CDLL(None).prctl(pr_capbset_drop, cap_dac_override, 0, 0, 0) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="root is made to obey permissions as on Linux")
def test_a_folder_that_cannot_be_written_is_no_error(read_only_package):
    """For real: neither the package nor the home may be written to."""
    source, environment = read_only_package
    done = subprocess.run(
        [sys.executable, "-c", WARM],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(source), **environment},
        preexec_fn=_obey_permissions,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "tensors on the CPU; compiled code is kept nowhere, for want of a folder to write to\n"
        "False False False False\n" + RIGHT
    )


@pytest.fixture
def read_only_package():
    """A copy of the package and the environment of a home, both read-only."""
    root = Path(tempfile.mkdtemp())
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(batchnorm.__file__).parent, root / "batchnorm", ignore=ignore)
    (root / "home").mkdir()
    everything = [root, *root.rglob("*")]
    for path in everything:
        path.chmod(0o555 if path.is_dir() else 0o444)
    home = str(root / "home")
    environment = {
        "HOME": home,
        "XDG_CACHE_HOME": home,
        "TMPDIR": tempfile.gettempdir(),
        "NUMBA_CACHE_DIR": "",
    }
    yield root, environment
    for path in everything:
        path.chmod(0o755)
    shutil.rmtree(root)


def test_a_file_in_place_of_the_folder_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    out = python(WARM, NUMBA_CACHE_DIR=str(tmp_path / "file"))
    assert out.endswith(RIGHT)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A folder with the kernels that `WARM` compiled, and what it printed."""
    folder = tmp_path_factory.mktemp("cache")
    return folder, python(WARM, NUMBA_CACHE_DIR=str(folder))


def test_a_second_process_loads_what_the_first_compiled(compiled):
    folder, first = compiled
    second = python(WARM, NUMBA_CACHE_DIR=str(folder))
    assert f"compiled code is kept in {folder}" in first
    assert "\nFalse False False False\n" in first
    assert "\nTrue True True True\n" in second


@pytest.mark.parametrize(("kind", "left"), [("nbi", b""), ("nbi", b"no index"), ("nbc", b"")])
def test_a_damaged_file_in_the_cache_is_no_error(kind, left, compiled, tmp_path):
    """Of a disk that was full, or a copy that was cut off."""
    folder = shutil.copytree(compiled[0], tmp_path / "cache")
    damaged = list(folder.rglob(f"*.{kind}"))
    assert damaged
    for path in damaged:
        path.write_bytes(left)
    assert python(CALL, NUMBA_CACHE_DIR=str(folder)) == RIGHT


@pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="elsewhere there is no F16C"
)
def test_a_processor_without_half_precision_is_served_by_torch():
    """There LLVM's compiler would end the process, whatever the dtype."""
    said = python(
        """
        import torch, batchnorm
        layer = batchnorm.BatchNorm2d(3)
        layer(torch.randn(4, 3, 5, 5, requires_grad=True)).sum().backward()
        print(batchnorm.backends())
        """,
        NUMBA_CPU_NAME="generic",
        NUMBA_CPU_FEATURES="",
    )
    assert "F16C" in said


@pytest.mark.parametrize(
    "name",
    ["_numba_math.py", "_numba_compile.py", "_activation.py", "_layout.py", "_processor.py"],
)
def test_what_is_compiled_in_has_its_part_in_the_key_of_the_cache(name, tmp_path, monkeypatch):
    sources = Path(_numba_compile.__file__).parent
    for path in sources.glob("*.py"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(_numba_compile, "__file__", str(tmp_path / "_numba_compile.py"))
    before = _numba_compile.stamp.__wrapped__()
    assert before == _numba_compile.stamp()
    (tmp_path / "plain.py").write_text("")
    assert _numba_compile.stamp.__wrapped__() == before
    (tmp_path / name).write_text((tmp_path / name).read_text() + "\n")
    assert _numba_compile.stamp.__wrapped__() != before
