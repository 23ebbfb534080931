"""The run's folder: what survives, what is refused, and what is left alone."""

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from batchnorm.studies import _folder
from batchnorm.studies._folder import MANIFEST, TRIALS, Folder, check, opened
from batchnorm.studies._kept import rounded

ROWS = [{"step": 0, "loss": 0.1 + 0.2}, {"step": 1, "loss": None}]
OURS = {"format": 1, "batchnorm": "0.1.0", "studies": [{"charts": [{"name": "speed-curves"}]}]}


def filled(path):
    with opened(path) as folder:
        folder.write(MANIFEST, OURS)
        folder.add("a", {"seed": 0}, ROWS)
        folder.add("b", {"seed": 1}, ROWS)
    return path


def contents(path):
    return {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_finished_trials_come_back_as_they_were_kept(tmp_path):
    path = filled(tmp_path / "deep" / "run")
    kept = rounded(ROWS)
    assert kept[0]["loss"] == pytest.approx(ROWS[0]["loss"], rel=1e-9)
    with opened(path) as folder:
        assert folder.finished == {"a": kept, "b": kept}
        folder.add("c", {"seed": 2}, ROWS)
        assert folder.finished["c"] == kept, "no other than a resumed run sees"
    lines = (path / TRIALS).read_text().splitlines()
    assert json.loads(lines[1]) == {"key": "b", "trial": {"seed": 1}, "rows": kept}


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_a_torn_last_line_is_dropped_and_the_next_starts_on_its_own(tmp_path, cut):
    path = filled(tmp_path / "run")
    whole = (path / TRIALS).read_bytes()
    (path / TRIALS).write_bytes(whole[:-cut])
    with opened(path) as folder:
        assert list(folder.finished) == ["a"]
        folder.add("b", {"seed": 1}, ROWS)
    assert (path / TRIALS).read_bytes() == whole


def test_a_spoiled_line_costs_only_itself(tmp_path):
    path = filled(tmp_path / "run")
    first, second = (path / TRIALS).read_bytes().splitlines(keepends=True)
    (path / TRIALS).write_bytes(b"\0\0\0\n" + first[:9] + b"\n[1]\n" + second)
    with opened(path) as folder:
        assert list(folder.finished) == ["b"]


def test_a_full_disk_is_an_error_that_names_the_file_and_costs_one_trial(tmp_path):
    path = filled(tmp_path / "run")
    before = (path / TRIALS).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(path) as folder:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large") as caught:
                folder.add("c", {"seed": 2}, ROWS)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(path / TRIALS)
    assert len((path / TRIALS).read_bytes()) == len(before) + 10, "the line was torn"
    with opened(path) as folder:
        assert list(folder.finished) == ["a", "b"]
    assert (path / TRIALS).read_bytes() == before


def test_files_are_written_whole_or_not_at_all(tmp_path):
    path = filled(tmp_path / "run")
    before = contents(path)
    folder = Folder(path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.write(MANIFEST, {"value": float("nan")})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            folder.write(MANIFEST, OURS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(path) == before


def test_other_peoples_folders_are_refused_and_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "manifest.json").write_text('{"name": "a web app"}')
    before = contents(tmp_path)
    for fresh in (False, True):
        said = (
            f"the output folder '{tmp_path}' is not empty and is not the folder of a run (it holds "
            "manifest.json, thesis.tex); nothing was touched: choose another folder (--out, or "
            "out=...)"
        )
        with pytest.raises(ValueError, match=re.escape(said)), opened(tmp_path, fresh=fresh):
            pass
    assert contents(tmp_path) == before


def test_a_file_and_a_later_format_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file' is a file: choose another folder"):
        check(tmp_path / "file")
    path = filled(tmp_path / "run")
    (path / MANIFEST).write_text(json.dumps({**OURS, "format": 2, "batchnorm": "9.0"}))
    with pytest.raises(ValueError, match=r"of format 2, this batchnorm writes format 1: .*9\.0"):
        check(path)


def test_a_folder_left_by_a_kill_before_its_first_manifest_is_ours(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / "manifest.json.part").write_text('{"for')
    check(tmp_path)


def with_findings(path):
    (path / "charts").mkdir()
    for name in ("charts/speed-curves.json", "report.html", "verdicts.json", "timing.json"):
        (path / name).write_text("{}")
    return path


def test_fresh_forgets_the_trials_and_nothing_else(tmp_path):
    path = with_findings(filled(tmp_path / "run"))
    (path / _folder.UNFINISHED).write_text("{}")
    before = set(contents(path))
    with opened(path, fresh=True) as folder:
        assert folder.finished == {}
    assert before - set(contents(path)) == {Path(TRIALS), Path(_folder.UNFINISHED)}


def test_findings_are_removed_and_what_is_not_ours_stays(tmp_path):
    path = with_findings(filled(tmp_path / "run"))
    for name in ("notes.txt", "charts/mine.json"):
        (path / name).write_text("{}")
    Folder(path).remove_findings()
    left = {str(name) for name in contents(path)}
    assert left == {".lock", MANIFEST, TRIALS, "timing.json", "notes.txt", "charts/mine.json"}
    (path / "charts/mine.json").unlink()
    Folder(path).remove_findings()
    assert not (path / "charts").exists()


HOLD = """
import sys
from pathlib import Path
from batchnorm.studies._folder import opened
with opened(Path(sys.argv[1])):
    print("open", flush=True)
    sys.stdin.read()
"""


def test_a_folder_in_use_is_locked_until_its_process_is_gone(tmp_path):
    path = tmp_path / "run"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(BlockingIOError) as caught, opened(path):
            pass
        other.kill()
    assert str(caught.value) == (
        f"the output folder '{path}' is in use by another run: wait until it ends, stop it, or "
        "choose another folder (--out, or out=...)"
    )
    assert (path / _folder.LOCK).exists()
    with opened(path):
        pass


def test_two_runs_of_one_process_exclude_each_other_too(tmp_path):
    with opened(tmp_path / "run"):
        with pytest.raises(BlockingIOError, match="in use"), opened(tmp_path / "run"):
            pass
        with opened(tmp_path / "other"):
            pass
