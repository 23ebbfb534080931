"""docs/performance.md and README's figures are what the committed run of the benchmark measured."""

import importlib
import shutil
import statistics
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def page(monkeypatch):
    names = "page", "cases", "measure"  # scripts, which import each other by these names
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module("page")
    for name in names:
        sys.modules.pop(name, None)


def rows(page):
    return page.json.loads((ROOT / "docs/performance.json").read_text())["rows"]


def test_the_page_is_drawn_from_the_rows(page, tmp_path):
    copy = Path(shutil.copy(ROOT / "docs/performance.json", tmp_path))
    page.draw(copy)
    drawn = copy.with_suffix(".md").read_text()
    assert drawn == (ROOT / "docs/performance.md").read_text()
    assert "<svg" in copy.with_suffix(".svg").read_text()


def test_the_readme_says_what_the_rows_say(page):
    readme = (ROOT / "README.md").read_text()
    chosen = [r for r in rows(page) if "group" in r and page.has_target(**r)]
    words = {
        "contiguous": "{:.2f} times the speed of torch eager with its ReLU in place "
        "(geometric mean; {:.2f} to {:.2f})",
        "channels_last": "{:.2f} times ({:.2f} to {:.2f})",
    }
    for layout, sentence in words.items():
        times = [page.figures(r, layout)["eager"][0] for r in chosen]
        assert sentence.format(page.geometric_mean(times), min(times), max(times)) in readme
    for row in (r for r in rows(page) if r.get("group") == "small"):
        shape = ", ".join(map(str, row["shape"]))
        seconds = row["seconds"]
        value, low, high = page.ratio(
            seconds["ours, contiguous"], seconds["torch eager, contiguous"]
        )
        line = next(line for line in readme.splitlines() if f"({shape})" in line and "|" in line)
        assert f"{value:.2f} times as long" in line
        assert f"({low:.2f} to {high:.2f}" in line
        assert ("not resolved" in line) == (not page.resolved((value, low, high)))
    steps = {r["step"].rpartition(", ")[2]: r["seconds"] for r in rows(page) if "step" in r}
    line = next(line for line in readme.splitlines() if "whole training step" in line)
    for seconds in steps.values():
        for name in ("ours", "torch"):
            value = statistics.median(
                a / b for a, b in zip(seconds[name], seconds["without"], strict=True)
            )
            assert f"{value:.2f}" in line
