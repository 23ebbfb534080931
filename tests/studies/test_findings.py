"""A page stands until the next one is whole, and dates and seconds are those of the whole run."""

import errno
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # as worker processes find the fakes too
from fake_studies import Tiny, fake_study, go

import batchnorm.report
from batchnorm.studies import _findings, _sitting
from batchnorm.studies._folder import Folder, files_of

FIRST = [fake_study("tiny", [Tiny(seed=seed) for seed in range(3)], timings=[Tiny(seed=77)])]
OTHER = [fake_study("tiny", [Tiny(seed=seed) for seed in range(10, 16)], timings=[Tiny(seed=77)])]


@pytest.fixture
def pool():
    with ThreadPoolExecutor(2) as executor:
        yield executor


def page(folder):
    """All that a page is made of, and the page."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (".lock", "trials.jsonl", "unfinished.json")
    }


def stopping(at, stage="trials"):
    def stop(progress):
        if progress.stage == stage and progress.done == at:
            raise KeyboardInterrupt

    return stop


def drawn(folder):
    (folder / "report.html").write_text("the page of " + (folder / "verdicts.json").read_text())
    return folder


@pytest.fixture
def with_page(tmp_path, pool, monkeypatch):
    go(FIRST, tmp_path, executor=pool, draw=drawn)
    assert "report.html" in page(tmp_path)
    return tmp_path


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(
    ("at", "stage"), [(0, "trials"), (4, "trials"), (1, "timing"), (0, "page")]
)
def test_another_run_that_is_interrupted_leaves_the_old_page(with_page, pool, at, stage, fresh):
    before = page(with_page)
    other = [fake_study("tiny", OTHER[0].trials(None), timings=[Tiny(seed=78)])]
    with pytest.raises(KeyboardInterrupt):
        go(other, with_page, executor=pool, fresh=fresh, on_progress=stopping(at, stage))
    assert page(with_page) == before
    go(other, with_page, executor=pool, draw=drawn)
    after = page(with_page)
    assert after.keys() == before.keys()
    assert all(after[name] != before[name] for name in after if name.count("/") == 0)
    assert not (with_page / "unfinished.json").exists()


def test_a_page_that_cannot_be_drawn_leaves_the_old_one(with_page, pool):
    before = page(with_page)

    def full(folder):
        (folder / "report.html.part").write_text("hal")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as caught:
        go(OTHER, with_page, executor=pool, draw=full)
    assert caught.value.filename == str(with_page / "report.html")
    assert page(with_page) == before


def test_a_kill_while_findings_change_places_leaves_no_mixture(with_page, pool, monkeypatch):
    real, calls = _findings.os.replace, []

    def killed(source, target):
        if "findings.part" in str(source) and Path(source).parent.name == "findings.part":
            calls.append(Path(target).name)
            if len(calls) == 3:
                raise SystemExit
        real(source, target)

    # Drafts are renamed too, inside the draft's own folder.
    monkeypatch.setattr(_findings, "os", type("os", (), {"replace": staticmethod(killed)}))
    with pytest.raises(SystemExit):
        go(OTHER, with_page, executor=pool, draw=drawn)
    assert calls == ["manifest.json", "timing.json", "verdicts.json"]
    assert page(with_page).keys() == {"manifest.json", "timing.json", *files_of(["tiny-losses"])}
    with pytest.raises(ValueError, match=r"verdicts.json is missing: run `batchnorm study"):
        batchnorm.report.render(with_page)
    monkeypatch.undo()
    go(OTHER, with_page, executor=pool, draw=drawn)
    assert "report.html" in page(with_page)


@pytest.fixture
def clock(monkeypatch):
    hours = iter(range(100))
    monkeypatch.setattr(_sitting, "now", lambda: f"{next(hours):02} o'clock")


def dates(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    return manifest["started"], manifest["finished"]


def test_a_run_that_was_stopped_keeps_its_start_and_its_seconds(tmp_path, pool, clock):
    slow = [fake_study("tiny", [Tiny(seed=seed, pause=0.05) for seed in range(4)])]
    for at in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            go(slow, tmp_path, executor=pool, on_progress=stopping(at))
    go(slow, tmp_path, executor=pool)
    assert dates(tmp_path) == ("00 o'clock", "01 o'clock")
    assert json.loads((tmp_path / "timing.json").read_text())["total_seconds"] > 0.15
    go(slow, tmp_path, executor=pool)
    assert dates(tmp_path) == ("00 o'clock", "01 o'clock"), "nothing was run"


def test_a_run_of_other_trials_has_its_own_start_and_seconds_and_equal_timings(
    tmp_path, pool, clock
):
    slow = fake_study("tiny", [Tiny(pause=0.3)], timings=[Tiny(seed=77)])
    go([slow], tmp_path, executor=pool)
    first = json.loads((tmp_path / "timing.json").read_text())
    go(OTHER, tmp_path, executor=pool)
    assert dates(tmp_path) == ("02 o'clock", "03 o'clock")
    second = json.loads((tmp_path / "timing.json").read_text())
    assert second["trials"] == first["trials"]
    assert second["total_seconds"] < first["total_seconds"]
    go(OTHER, tmp_path, executor=pool, fresh=True)
    assert json.loads((tmp_path / "timing.json").read_text())["trials"] != first["trials"]


def test_a_fresh_run_that_was_stopped_does_not_go_back_to_old_timings(with_page, pool):
    before = json.loads((with_page / "timing.json").read_text())["trials"]
    with pytest.raises(KeyboardInterrupt):
        go(FIRST, with_page, executor=pool, fresh=True, on_progress=stopping(2))
    go(FIRST, with_page, executor=pool)
    assert json.loads((with_page / "timing.json").read_text())["trials"] != before


def test_a_killed_sitting_has_noted_its_seconds(tmp_path, pool, monkeypatch):
    monkeypatch.setattr(_sitting, "SAVE_EVERY", 0.0)
    seen = []

    def look(progress):
        seen.append(Folder(tmp_path).read("unfinished.json")["total_seconds"])

    go([fake_study("tiny", [Tiny(seed=s, pause=0.05) for s in range(4)])], tmp_path,
       executor=pool, on_progress=look)  # fmt: skip
    assert seen[-2] > seen[0]
