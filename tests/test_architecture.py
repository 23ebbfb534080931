"""The house's arrows: imports flow one way, and `import batchnorm` stays cheap."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import batchnorm

SOURCE = Path(batchnorm.__file__).parent

# What each part may import of ours, beside itself.
ARROWS = {
    "_extras": set(),
    "_version": set(),
    "equations": set(),
    "moments": set(),
    "kernels": {"moments"},
    "functional": {"kernels", "moments"},
    "layers": {"functional", "kernels", "moments"},
    "interop": set(),
    "observe": {"moments"},
    "copies": set(),
    "graph": {"copies"},
    "surgery": {"copies", "functional", "graph", "layers", "moments"},
    "named": set(),
    "data": {"_extras", "named"},
    "train": {"copies", "data"},
    "charts": set(),
    "report": set(),
    "studies": {
        "_extras",
        "charts",
        "copies",
        "data",
        "layers",
        "moments",
        "named",
        "observe",
        "report",
        "surgery",
        "train",
    },
    "screen": {"report", "studies"},
    "cli": {"report", "screen", "studies"},
    "__main__": {"_extras", "cli"},
    "__init__": {
        "_version",
        "functional",
        "interop",
        "kernels",
        "layers",
        "observe",
        "studies",
        "surgery",
    },
}


def part_of(path):
    """The name of a file's part: its folder, or its own for a file at the top."""
    relative = path.relative_to(SOURCE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported(source):
    """The parts of ours that a file's source imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [node.module or ""]
            if node.module == "batchnorm":
                names = [f"batchnorm.{alias.name}" for alias in node.names]
        for name in names:
            first, _, rest = name.partition(".")
            if first == "batchnorm":
                yield rest.partition(".")[0] or "__init__"


def violations(sources):
    """`sources` maps (part, file) to text; each import against the arrows is named."""
    return [
        f"{file}: {part} imports {target}"
        for (part, file), text in sources.items()
        for target in imported(text)
        if target != part and target not in ARROWS.get(part, set())
    ]


def sources():
    return {
        (part_of(path), str(path.relative_to(SOURCE))): path.read_text()
        for path in SOURCE.rglob("*.py")
    }


def test_imports_follow_the_arrows():
    found = sources()
    assert {part for part, _ in found} <= ARROWS.keys(), "a new part needs its arrows"
    assert violations(found) == []


@pytest.mark.parametrize(
    ("part", "line"),
    [
        ("kernels", "from batchnorm.functional import batch_norm"),
        ("moments", "import batchnorm.kernels.plain"),
        ("report", "def late():\n    from batchnorm import studies"),
        ("equations", "from batchnorm.moments import Moments"),
    ],
)
def test_an_import_against_the_arrows_is_found(part, line):
    assert len(violations({(part, "made_up.py"): line})) == 1


def test_equations_import_numpy_alone():
    tree = ast.parse((SOURCE / "equations.py").read_text())
    names = {
        (node.names[0].name if isinstance(node, ast.Import) else node.module or "").split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert names <= {"__future__", "numpy", "dataclasses", "math", "typing"}


HEAVY = ("numba", "triton", "altair", "vl_convert", "jinja2", "typer", "rich", "loky", "mlxtend",
         "sklearn", "pandas", "torchvision", "filelock", "dask")  # fmt: skip

PROBE = """
import sys, time
{before}
import torch
before = set(sys.modules)
start = time.process_time()
import batchnorm
seconds = time.process_time() - start
print(seconds, *sorted({{name.partition(".")[0] for name in set(sys.modules) - before}}))
"""


def probe(before=""):
    # An installed package has its bytecode on disk; the first of several probes writes it.
    cached = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    out = subprocess.run(
        [sys.executable, "-c", PROBE.format(before=before)],
        env=cached,
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, *modules = out.stdout.split()
    return float(seconds), modules


@pytest.mark.alone
def test_import_is_cheap_on_top_of_torch():
    runs = [probe() for _ in range(5)]
    assert not set(runs[0][1]) & set(HEAVY)
    assert min(seconds for seconds, _ in runs) < 0.05


@pytest.mark.alone
def test_the_probe_sees_a_heavy_or_slow_import():
    """The same probe over an `import batchnorm` that was made heavy."""
    slow = (
        "import sys, types, importlib.abc, importlib.util, time\n"
        "class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        return importlib.util.spec_from_loader(name, self) if name == 'batchnorm' else None\n"
        "    def create_module(self, spec): return None\n"
        "    def exec_module(self, module):\n"
        "        import rich; start = time.process_time()\n"
        "        while time.process_time() < start + 0.06: pass\n"
        "sys.meta_path.insert(0, Finder())"
    )
    seconds, modules = probe(slow)
    assert seconds > 0.05
    assert "rich" in modules


def test_init_is_a_table_of_contents():
    for path in SOURCE.rglob("__init__.py"):
        for node in ast.parse(path.read_text()).body:
            is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            assert is_docstring or isinstance(node, ast.Import | ast.ImportFrom), (
                path,
                node.lineno,
            )


def test_the_map_of_the_kernels_has_every_file():
    folder = SOURCE / "kernels"
    files = {path.name for path in folder.glob("*.py")} - {"__init__.py"}
    named = set(re.findall(r"`(\w+\.py)`", (folder / "README.md").read_text()))
    assert named == files
