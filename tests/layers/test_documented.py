"""docs/layers.md: every property has its row, and every test that it names exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/layers.md").read_text()


def missing(page):
    named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", page)
    assert named
    return [
        f"{file}::{test}"
        for file, test in named
        if not (ROOT / "tests" / file).is_file()
        or (test and f"\ndef {test}(" not in (ROOT / "tests" / file).read_text())
    ]


def test_every_test_that_is_named_exists():
    assert missing(PAGE) == []


def test_a_name_without_a_test_is_found():
    assert missing("`layers/test_state.py::test_that_nobody_wrote`, `layers/test_layers.py`") == [
        "layers/test_state.py::test_that_nobody_wrote"
    ]


def test_each_of_the_32_properties_has_a_row():
    rows = re.findall(r"^\| (\d+) \| ", PAGE, flags=re.M)
    assert [int(row) for row in rows] == list(range(1, 33))
