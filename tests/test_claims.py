"""README's table and docs/claims.md are what the committed run found."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks/claims.py"


@pytest.fixture
def claims():
    spec = importlib.util.spec_from_file_location("claims", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_and_the_readme_say_what_the_rows_say(claims):
    page, readme = claims.draw()
    assert claims.PAGE.read_text() == page
    assert claims.README.read_text() == readme


def test_every_study_has_its_verdicts(claims):
    from batchnorm.studies._asked import STUDIES

    head, _ = claims.read(claims.KEPT / "full")
    assert head["scale"] == "full"
    assert [study["name"] for study in head["studies"]] == list(STUDIES)
    assert all(study["status"] == "done" and study["verdicts"] for study in head["studies"])
