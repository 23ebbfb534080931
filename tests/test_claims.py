"""README's table and docs/claims.md are what the committed run found."""

import importlib.util
import json
import shutil
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


def test_rows_are_kept_and_small(claims):
    for run in ("full", "other"):
        rows = claims.KEPT / run / "trials.jsonl.gz"
        assert 0 < rows.stat().st_size < claims.MOST


@pytest.mark.slow
@pytest.mark.parametrize("run", ["full", "other"])
def test_the_rows_kept_give_the_verdicts_kept(claims, tmp_path, run):
    from batchnorm.studies import remeasure

    shutil.copytree(claims.KEPT / run, tmp_path / run)
    assert remeasure(tmp_path / run).failed == {}
    anew, kept = (
        json.loads((folder / run / "verdicts.json").read_text())
        for folder in (tmp_path, claims.KEPT)
    )
    numbers = ("value", "low", "high")
    for one, other in zip(anew, kept, strict=True):
        for name in numbers:
            assert (one[name] is None) is (other[name] is None)
            assert (one.pop(name) or 0) == pytest.approx(other.pop(name) or 0, rel=1e-9, abs=0)
        assert one == other
