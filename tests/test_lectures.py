"""The notebook of the four lectures runs as a reader would run it, and says what it shows."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parent.parent / "examples" / "lectures.ipynb"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Each code cell as it is committed, and as a kernel of its own just ran it."""
    out = tmp_path_factory.mktemp("notebook") / "run.ipynb"
    command = [sys.executable, "-m", "jupyter", "execute", str(NOTEBOOK), f"--output={out}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    shown, now = (cells(path) for path in (NOTEBOOK, out))
    return list(zip(shown, now, strict=True))


def cells(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def printed(cell):
    texts = (output["text"] for output in cell["outputs"] if output["output_type"] == "stream")
    return "".join("".join(text) for text in texts)


def pictures(cell):
    return ["image/png" in output.get("data", {}) for output in cell["outputs"]].count(True)


def test_what_is_exact_comes_out_as_it_is_shown(run):
    exact = [(a, b) for a, b in run if "exact" in a["metadata"]["tags"]]
    assert len(exact) > 5
    for shown, now in exact:
        assert printed(now) == printed(shown) != ""


def test_each_cell_shows_what_it_shows_when_run(run):
    for shown, now in run[1:]:
        assert shown["execution_count"] == now["execution_count"]
        assert pictures(shown) == pictures(now)
        assert bool(printed(shown)) is bool(printed(now))
        assert pictures(shown) or printed(shown), "".join(shown["source"])


def test_far_from_zero_torch_is_wrong_and_this_package_is_not(run):
    for cell in run[4]:
        assert printed(cell).splitlines() == [
            "torch      largest error below 1e-5: False,  above 0.01: True",
            "batchnorm  largest error below 1e-5: True,  above 0.01: False",
        ]


def test_it_is_four_lectures_in_their_order():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    text = "".join("".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "markdown")
    places = [text.index(f"## {number}. ") for number in (1, 2, 3, 4)]
    assert places == sorted(places)


def test_batch_norm_trains_what_is_too_deep_without_it(run):
    for cell in next((a, b) for a, b in run if "def deep" in "".join(a["source"])):
        without, normed = (
            float(line.split()[-1].rstrip("%")) for line in printed(cell).splitlines()
        )
        assert without < 20 < 70 < normed


def test_it_is_installed_as_the_readme_says():
    words = "pip install '.[study]'"
    assert words in (NOTEBOOK.parent.parent / "README.md").read_text()
    text = "".join("".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"])
    assert re.findall(r"pip install \S+", text) == [words]
