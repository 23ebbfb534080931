"""The page of a run from its rows alone, by studies that have changed since."""

import gzip
import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # as worker processes find the fakes too
from fake_studies import Tiny, fake_study, go

from batchnorm.cli import run
from batchnorm.studies import _remeasure, bias, remeasure

TRIALS = [Tiny(seed=seed, options={"sizes": [1, 2]}) for seed in range(3)]
KEPT = ("manifest.json", "timing.json", "trials.jsonl")


def tiny(**changed):
    return fake_study("tiny", TRIALS, timings=[Tiny(seed=1)], **changed)


@pytest.fixture
def left(tmp_path, monkeypatch):
    """What of a run is worth keeping, and the studies as they are now."""
    now = {"tiny": tiny()}
    monkeypatch.setattr(_remeasure, "STUDIES", now.keys())
    monkeypatch.setattr(_remeasure, "chosen", lambda name: [now[name]])
    with ThreadPoolExecutor(1) as pool:
        go([tiny()], tmp_path / "whole", executor=pool)
    (tmp_path / "kept").mkdir()
    for name in KEPT:
        shutil.copy(tmp_path / "whole" / name, tmp_path / "kept")
    return tmp_path / "whole", tmp_path / "kept", now


def test_rows_manifest_and_timing_are_enough(left, capsys):
    whole, kept, _ = left
    assert run(["report", "--measure", str(kept)]) == 0
    out = capsys.readouterr().out
    assert f"Measured anew from the rows of 3 trials. The page: {kept / 'report.html'}" in out
    assert "The title of tiny" in out
    assert (kept / "verdicts.json").read_bytes() == (whole / "verdicts.json").read_bytes()
    for made in ("charts/tiny-losses.json", "charts/tiny-losses.svg", "tables/verdicts.csv"):
        assert (kept / made).read_bytes() == (whole / made).read_bytes()
    assert (kept / "trials.jsonl").read_bytes() == (whole / "trials.jsonl").read_bytes()
    before, after = (json.loads((f / "manifest.json").read_text()) for f in (whole, kept))
    assert after.pop("measured")["batchnorm"] == before["batchnorm"]
    assert after == before
    page = (kept / "report.html").read_text()
    assert "verdicts, charts and words are not those that the run left" in page
    assert run(["report", str(kept)]) == 0, "and from now on the folder is whole"


def test_rows_may_be_packed(left):
    whole, kept, _ = left
    rows = (kept / "trials.jsonl").read_bytes()
    (kept / "trials.jsonl").unlink()
    (kept / "trials.jsonl.gz").write_bytes(gzip.compress(rows))
    assert remeasure(kept).failed == {}
    assert (kept / "verdicts.json").read_bytes() == (whole / "verdicts.json").read_bytes()
    (kept / "trials.jsonl.gz").write_bytes(gzip.compress(rows)[:-20])
    with pytest.raises(ValueError, match=r"trials.jsonl.gz is not whole \(.*\): copy it again"):
        remeasure(kept)


def test_the_study_of_today_judges_the_rows_as_the_run_gave_them(left):
    seen = []

    def measure(rows):
        seen.append(rows)
        return [replace(verdict, verdict="contradicted") for verdict in tiny().measure(rows)]

    whole, kept, now = left
    now["tiny"] = tiny(measure=measure)
    now["tiny"].CLAIM = "said otherwise"
    found = remeasure(kept)
    assert [verdict.verdict for verdict in found.verdicts] == ["contradicted"]
    (entry,) = json.loads((kept / "manifest.json").read_text())["studies"]
    assert entry["claim"] == "said otherwise"
    assert "said otherwise" in (kept / "report.html").read_text()
    rows = seen[0]
    assert [row["seed"] for row in rows if row.get("step") == 0] == [0, 1, 2]
    assert {row["sizes"] for row in rows if "sizes" in row} == {(1, 2)}
    (timed,) = (row for row in rows if "seconds" in row)
    took = json.loads((whole / "timing.json").read_text())["trials"][0]
    assert (timed["seconds"], timed["turns"], timed["seed"]) == (took["seconds"], took["each"], 1)


def test_fields_of_another_version_do_no_harm(left):
    _, kept, _ = left
    lines = [json.loads(line) for line in (kept / "trials.jsonl").read_text().splitlines()]
    for line in lines:
        line["trial"]["gone"] = line["trial"].pop("width")
    (kept / "trials.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert remeasure(kept).failed == {}


def test_what_cannot_be_measured_fails_alone_and_is_said(left, capsys):
    _, kept, now = left
    manifest = json.loads((kept / "manifest.json").read_text())
    (entry,) = manifest["studies"]
    idle = {"name": "idle", "status": "not applicable", "reason": "not deep", "keys": []}
    bad = {"name": "bad", "status": "failed", "reason": "no way", "keys": []}
    manifest["studies"] += [entry | {"name": "gone"}, entry | {"name": "lost"}]
    manifest["studies"] += [entry | idle, entry | bad]
    manifest["studies"][2]["keys"] = [*entry["keys"], "f" * 64]
    (kept / "manifest.json").write_text(json.dumps(manifest))
    for name in ("lost", "idle", "bad"):
        now[name] = fake_study(name, [])
    assert run(["report", "--measure", str(kept)]) == 1
    found = remeasure(kept)
    assert found.failed == {
        "gone": "this batchnorm has no study of that name",
        "lost": "1 of its 4 trials are not in the folder",
        "bad": "no way",
    }
    assert found.not_applicable == {"idle": "not deep"}
    assert [verdict.study for verdict in found.verdicts] == ["tiny"]
    assert "1 of its 4 trials are not in the folder" in (kept / "report.html").read_text()


def in_vain(rows):
    return next(row for row in rows if "new" in row)


def none_there(rows):
    return rows[10**6]


def at_odds(rows):
    raise ValueError("there are no rows to draw")


@pytest.mark.parametrize(
    ("measure", "said"),
    [
        (lambda rows: [row["new"] for row in rows], "'new' is looked for in vain in 12 rows; "),
        (
            in_vain,
            f"what test_remeasure.py, line {in_vain.__code__.co_firstlineno + 1} looks for is in "
            "none of 12 rows; ",
        ),
        (
            none_there,
            f"what test_remeasure.py, line {none_there.__code__.co_firstlineno + 1} looks for is "
            "in none of 12 rows; ",
        ),
        (at_odds, "12 rows gave ValueError: there are no rows to draw (test_remeasure.py, line "),
    ],
)
def test_rows_that_a_study_of_today_cannot_read_are_said_so(left, capsys, measure, said):
    whole, kept, now = left
    manifest = json.loads((kept / "manifest.json").read_text())
    (entry,) = manifest["studies"]
    manifest["studies"].append(entry | {"name": "sound"})
    (kept / "manifest.json").write_text(json.dumps(manifest))
    now["tiny"], now["sound"] = tiny(measure=measure), fake_study("sound", TRIALS)
    assert run(["report", "--measure", str(kept)]) == 1
    found = remeasure(kept)
    why = found.failed.pop("tiny")
    assert why.startswith(f"its rows are not those that tiny reads today: {said}")
    assert why.endswith(f"run it again: batchnorm study tiny --data digits8x8 --out {whole}-tiny")
    assert "trials that it has today" not in why, "they are all there"
    assert found.failed == {}
    assert [verdict.study for verdict in found.verdicts] == ["sound"], "others go on"
    out = capsys.readouterr().out
    assert "tiny reads today: " in out, "not a word a line"
    assert str(whole) in "".join(out.split()), "nor a command cut short"
    page = " ".join((kept / "report.html").read_text().split())
    assert "its rows are not those that tiny reads today" in page


def test_trials_that_a_study_has_only_since_are_counted(left):
    _, kept, now = left
    now["tiny"] = fake_study(
        "tiny",
        [*TRIALS, Tiny(learning_rate=0.5, batch_norm=True, seed=1, options={"order": "after"})],
        measure=lambda rows: {row["arm"]: row for row in rows},
    )
    assert (
        "'arm' is looked for in vain in 12 rows; 1 of the 4 trials that it has today are not in the "
        "run (the first with batch norm, sgd, learning rate 0.5, seed 1, order after); run it again"
    ) in remeasure(kept).failed["tiny"]


def test_rows_of_quite_another_study_and_another_version(left):
    _, kept, now = left
    manifest = json.loads((kept / "manifest.json").read_text())
    (entry,) = manifest["studies"]
    manifest |= {"batchnorm": "0.0.9", "studies": [entry, entry | {"name": "bias"}]}
    (kept / "manifest.json").write_text(json.dumps(manifest))
    now["bias"] = bias
    found = remeasure(kept)
    assert [verdict.study for verdict in found.verdicts] == ["tiny"]
    why = found.failed["bias"]
    assert why.startswith("its rows are not those that bias reads today: 'guessing' is looked for")
    assert "20 of the 20 trials that it has today are not in the run" in why
    assert "; measure it with batchnorm 0.0.9, which ran it, or run it again: batchnorm" in why


def test_manifest_and_timing_of_another_form_cost_no_more_than_their_studies(left):
    _, kept, now = left
    now["unknown"] = fake_study("unknown", TRIALS)
    manifest = json.loads((kept / "manifest.json").read_text())
    (entry,) = manifest["studies"]
    without = {name: value for name, value in entry.items() if name != "keys"}
    manifest["studies"] = [without | {"name": "unknown"}, entry]
    (kept / "manifest.json").write_text(json.dumps(manifest))
    (kept / "timing.json").write_text(json.dumps({"total_seconds": 1.0}))
    whole = (kept / "trials.jsonl").read_text().splitlines()
    kept.joinpath("trials.jsonl").write_text("\n".join([*whole, '{"key": "no trial"}', "[]"]))
    found = remeasure(kept)
    assert [verdict.study for verdict in found.verdicts] == ["tiny"]
    first, second = json.loads((kept / "manifest.json").read_text())["studies"]
    assert (
        first["reason"] == "its manifest has no 'keys' of trials: copy manifest.json from the run"
    )
    assert second["status"] == "done"


@pytest.mark.parametrize(
    ("without", "said"),
    [
        (
            "manifest.json",
            "no run in the folder '{}': give the folder of a run, such as runs/study",
        ),
        ("timing.json", "{}/timing.json is missing or is not whole: copy it from the run"),
        (
            "trials.jsonl",
            "{}/trials.jsonl is missing, and trials.jsonl.gz too: without rows nothing can be measured",
        ),
    ],
)
def test_what_is_missing_is_named_and_nothing_is_written(left, capsys, without, said):
    _, kept, _ = left
    (kept / without).unlink()
    assert run(["report", "--measure", str(kept)]) == 2
    err = capsys.readouterr().err
    assert said.format(kept) in err
    assert err.count("\n") == 1
    assert {p.name for p in kept.iterdir()} - {".lock"} == set(KEPT) - {without}


def test_a_folder_without_charts_says_how_to_get_them(left, capsys):
    _, kept, _ = left
    assert run(["report", str(kept)]) == 2
    err = capsys.readouterr().err
    assert "verdicts.json is missing: run `batchnorm study tiny" in err
    assert f"or `batchnorm report --measure {kept}` makes it from the rows" in err
