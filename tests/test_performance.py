"""docs/performance.md and README's figures are what the committed run of the benchmark measured."""

import importlib
import shutil
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


def spread(page, times):
    return f"{page.geometric_mean(times):.2f} ({min(times):.2f} to {max(times):.2f})"


def told(page, interval):
    value, low, high = interval
    rest = "" if page.resolved(interval) else ": not resolved"
    return f"{value:.2f} ({low:.2f} to {high:.2f}{rest})"


def test_the_readme_says_what_the_rows_say(page):
    lines = (ROOT / "README.md").read_text().splitlines()

    def line(words):
        return next(line for line in lines if line.startswith(f"| {words}"))

    chosen = [r for r in rows(page) if "group" in r and page.has_target(**r)]
    for words, layout in (("`BatchNormAct*`", "contiguous"), ("the same in", "channels_last")):
        times = [page.figures(r, layout)["eager"][0] for r in chosen]
        assert spread(page, times) in line(words).replace("geometric mean; ", "")
    for row in (r for r in rows(page) if "kept" in r):
        pairs = [r["seconds"] for r in row["cases"]]
        times = [page.ratio(each["torch"], each["ours"])[0] for each in pairs]
        assert spread(page, times) in line("the same where torch")
    small = {tuple(r["shape"]): r for r in rows(page) if r.get("group") == "small"}
    for words, shape in (("`BatchNorm1d` on (32, 64)", (32, 64)), ("on (256, 512)", (256, 512))):
        interval = page.figures(small[shape], "contiguous")["eager"]
        assert line(words).endswith(f"| {told(page, interval)} |")


def test_the_readme_says_what_a_network_gets(page):
    readme = (ROOT / "README.md").read_text()
    steps = [r["seconds"] for r in rows(page) if "step" in r]
    names = {"with `BatchNormAct2d`": "ours", "with torch's layers made ours by `adopt`": "adopted"}
    for words, name in {**names, "with torch's": "torch"}.items():
        cells = (told(page, page.ratio(each[name], each["without"])) for each in steps)
        line = f"| {words} | {' | '.join(cells)} |".replace(": not resolved", "")
        assert line in readme
