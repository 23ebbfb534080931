"""README's table and docs/claims.md are what the committed run found."""

import importlib.util
import json
import math
import re
import shutil
from pathlib import Path

import pytest

LOWERED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")
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


@pytest.mark.parametrize(
    ("words", "stands"),
    [
        (("supported", "supported"), "same"),
        (("supported", "contradicted"), "apart"),
        (("inconclusive", "contradicted"), "one"),
        (("supported", "inconclusive"), "one"),
        (("inconclusive", "inconclusive"), "both"),
    ],
)
def test_how_two_verdicts_compare(claims, words, stands):
    pair = [{"verdict": word} for word in words]
    assert claims.stands(*pair) == stands
    counts = claims.counted([pair] * 3, "measures")
    decided = 3 if stands in ("same", "apart") else 0
    assert counts.startswith(f"3 measures {decided} are decided in both, and of these ")


def test_what_other_seeds_decided_otherwise_is_inconclusive(claims):
    one = {"verdict": "supported"}
    told = [
        claims.over_seeds(one, other and {"verdict": other})
        for other in (None, "supported", "inconclusive")
    ]
    assert told == ["supported"] * 3
    assert (
        claims.over_seeds(one, {"verdict": "contradicted"})
        == "inconclusive (supported on these seeds)"
    )


def test_which_way_is_good_stands_beside_each_number(claims):
    """Supported is what keeps the rule in its row; what is decided otherwise breaks it."""
    head, _ = claims.read(claims.KEPT / "full")
    for study in head["studies"]:
        for one in study["verdicts"]:
            if one["verdict"] == "inconclusive":
                continue
            kept = keeps(one, claims.rule(one))
            assert kept is (one["verdict"] == "supported"), one
            assert f" | {claims.rule(one)} | " in claims.section(study, {})


def keeps(one, rule):
    low, high = (
        one[name] if one[name] is not None else sign * math.inf
        for name, sign in (("low", -1), ("high", 1))
    )
    plain = rule.replace("\N{MINUS SIGN}", "-").replace("10⁻", "1e-")
    first, *more = map(float, re.findall(r"-?\d+(?:\.\d+)?(?:e-\d+)?", plain.translate(LOWERED)))
    if more:
        first *= more[0] / 100 if " % " in plain else 1
        return more[0] - first <= low <= high <= more[0] + first
    return low >= first if plain.endswith("or above") else high <= first


def test_a_measure_of_two_other_runs_is_that_of_the_same_scale(claims):
    full, quick = (claims.read(claims.KEPT / name) for name in ("full", "other_quick"))
    both = claims.page(full[0], [full, quick])
    assert both == claims.page(full[0], [quick, full])
    assert "Decided otherwise" not in both
    assert "Decided otherwise at another scale, and so inconclusive:" in claims.page(
        full[0], [quick]
    )


def test_every_measure_was_looked_at_on_other_seeds_at_the_same_scale(claims):
    head, _ = claims.read(claims.KEPT / "full")
    runs = [claims.read(folder)[0] for folder in claims.KEPT.glob(claims.OTHERS)]
    there, here = (
        {
            (v["study"], v["metric"])
            for one in of
            for study in one["studies"]
            for v in study["verdicts"]
        }
        for of in ([run for run in runs if run["scale"] == "full"], [head])
    )
    assert here == there
    assert not {seed for run in runs for seed in run["seeds"]} & set(head["seeds"])


def test_what_the_readme_says_of_the_quick_look(claims):
    full, quick = (
        claims.read(claims.KEPT / name)[0]["studies"] for name in ("full", "other_quick")
    )
    counts = [sum(len(study["verdicts"]) for study in studies) for studies in (quick, full)]
    pairs = [[claims.word(study) for study in both] for both in zip(quick, full, strict=True)]
    apart = [one for one, other in pairs if one != other]
    assert set(apart) == {"inconclusive"}
    text = " ".join(claims.README.read_text().split())
    assert (
        "{} against {}: it leaves the sigmoid network out of four studies".format(*counts) in text
    )
    assert f"Of the {len(pairs)} verdicts above it leaves {len(apart)} inconclusive" in text
    left = {
        (one["name"], verdict["metric"].split(", ")[-1])
        for one, other in zip(full, quick, strict=True)
        for verdict in one["verdicts"]
        if verdict["metric"] not in [v["metric"] for v in other["verdicts"]]
    }
    assert len([name for name, network in left if network == "sigmoid"]) == 4
    assert {name for name, network in left if network != "sigmoid"} == {"dropout"}


def test_every_study_has_its_verdicts(claims):
    from batchnorm.studies._asked import STUDIES

    head, _ = claims.read(claims.KEPT / "full")
    assert head["scale"] == "full"
    assert [study["name"] for study in head["studies"]] == list(STUDIES)
    assert all(study["status"] == "done" and study["verdicts"] for study in head["studies"])


@pytest.mark.parametrize("run", ["full", "other_quick", "other_full", "other_full_2"])
def test_rows_are_kept_and_a_run_is_small(claims, run):
    files = list((claims.KEPT / run).iterdir())
    assert "trials.jsonl.gz" in [file.name for file in files]
    assert sum(file.stat().st_size for file in files) < claims.MOST


def test_what_is_kept_is_kept_again_the_same(claims, tmp_path):
    claims.keep(claims.KEPT / "other_quick", tmp_path / "other_quick")
    assert claims.rows_of(tmp_path / "other_quick") == claims.rows_of(claims.KEPT / "other_quick")
    for name in ("manifest.json", "timing.json", "verdicts.json"):
        assert (tmp_path / "other_quick" / name).read_text() == (
            claims.KEPT / "other_quick" / name
        ).read_text()


def test_rows_that_are_too_many_are_not_kept_and_it_is_said(claims, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(claims, "MOST", 300_000)
    claims.keep(claims.KEPT / "other_quick", tmp_path / "other_quick")
    assert re.search(
        r"other_quick: rows are not kept, [\d,]{7} bytes with them", capsys.readouterr().out
    )
    assert not (tmp_path / "other_quick/trials.jsonl.gz").exists()
    assert '"keys"' not in (tmp_path / "other_quick/manifest.json").read_text()


def test_keys_are_cut_only_where_they_stay_apart(claims):
    one, two = (mark + "0" * 63 for mark in "12")
    assert claims.short(json.dumps([one, two])) == json.dumps([one[:12], two[:12]])
    with pytest.raises(ValueError, match="12 digits do not tell the keys of these trials apart"):
        claims.short(json.dumps([one, one[:-1] + "1"]))


@pytest.mark.slow
@pytest.mark.parametrize("run", ["full", "other_quick", "other_full", "other_full_2"])
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
