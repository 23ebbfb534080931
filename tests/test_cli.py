"""The command line: what it asks for, what it prints, and how it ends."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from io import StringIO
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console

import batchnorm.studies
from batchnorm.cli import run
from batchnorm.screen import Watched, findings
from batchnorm.studies import Plan, Progress, Run, Share
from batchnorm.studies._trial import Trial
from batchnorm.studies._verdict import Verdict

VERDICTS = [
    Verdict("speed", "c", "steps, sigmoid, best rates", 3.2, 2.8, 3.9, "supported", "times", ""),
    Verdict("speed", "c", "seconds", None, None, None, "inconclusive", "times", ""),
    Verdict("learning_rate", "c", "width", 1.5, 1.0, None, "contradicted", "decades", ""),
]
HELD, FEW = "the range over 5 seeds", "Judged on only 4 examples."
TITLES = {"speed": "Batch norm speeds up learning", "learning_rate": "A wider range works"}
BEST = (0.934, Trial(batch_norm=True, learning_rate=1.0))


@pytest.fixture
def called(monkeypatch):
    """What the command line asks of :func:`batchnorm.study`, which runs nothing here."""
    calls = []

    def study(names, *, on_progress, **options):
        calls.append({"names": names, **options})
        for done in range(4):
            best = BEST if done else None
            on_progress(Progress("trials", done, 3, 0, best, 90.0 - 30 * done))
        on_progress(Progress("page", 0, 1, 0, BEST))
        return Run(Path("runs/study"), VERDICTS, titles=TITLES, trials=3)

    monkeypatch.setattr(batchnorm.studies, "study", study)
    return calls


def test_defaults_and_options_reach_the_function(called, capsys):
    assert run(["study"]) == 0
    words = ["study", "speed", "--model", "m:f", "--data", "CIFAR10", "--scale", "full"]
    assert run([*words, "--jobs", "3", "--out", "there", "--fresh", "--seed", "100"]) == 0
    assert called == [
        {"names": None, "model": None, "data": None, "scale": "quick", "seed": 0, "jobs": None,
         "out": Path("runs/study"), "fresh": False, "executor": None},
        {"names": ["speed"], "model": "m:f", "data": "CIFAR10", "scale": "full", "seed": 100, "jobs": 3,
         "out": Path("there"), "fresh": True, "executor": None},
    ]  # fmt: skip


def test_without_a_terminal_there_are_plain_lines(called, capsys):
    assert run(["study"]) == 0
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err
    assert shown.err.splitlines() == [
        "3 trials, estimated at 2 minutes",
        "training 1/3, 1 min 0 s left, best validation accuracy 93.4 %",
        "training 3/3, 1 s left, best validation accuracy 93.4 %",
        "drawing the page",
    ]
    out = shown.out.splitlines()
    assert out[-1] == "The page: runs/study/report.html"
    for words in (
        "supported",
        "3.20 times [2.80 to 3.90]",
        "not measured",
        "1.50 decades [1.00 or more]",
    ):
        assert words in shown.out


def said(*told):
    """What a run that goes so writes into a log."""
    file = StringIO()
    watched = Watched(Console(file=file, width=60))
    for progress in told:
        watched(progress)
    return file.getvalue().splitlines()


PAGE = Progress("page", 0, 1, 0)


@pytest.mark.parametrize(
    ("begun", "line"),
    [
        (Progress("trials", 0, 1, 0, None, 3.0), "1 trial, estimated at a few seconds"),
        (
            Progress("trials", 2, 5, 2, None, 4000.0),
            "5 trials, 2 finished earlier, estimated at 1 hour",
        ),
        (Progress("trials", 5, 5, 5, None, 4000.0), "5 trials, 5 finished earlier"),
        (Progress("trials", 0, 5, 0), "5 trials"),
    ],
)
def test_what_there_is_to_do_is_said_first(begun, line):
    assert said(begun, PAGE) == [line, "drawing the page"]


def test_where_nothing_is_trained_nothing_is_counted():
    assert said(Progress("trials", 0, 0, 0, None, 0.0), PAGE) == ["drawing the page"]


def test_a_page_that_will_be_replaced_is_said_beforehand_in_one_line():
    begun = Progress("trials", 0, 3, 0, replaces="batchnorm study --scale full")
    assert said(begun, replace(begun, done=3), PAGE) == [
        "This run's page will take the place of the one that is there, made by: batchnorm study "
        "--scale full; another folder (--out) keeps both",
        "3 trials",
        "training 3/3",
        "drawing the page",
    ]


def shown(verdicts, width=100):
    file = StringIO()
    Console(file=file, width=width).print(findings(Run(Path("r"), verdicts, titles=TITLES), width))
    return file.getvalue()


def test_a_quick_look_is_said_to_be_one(called, capsys):
    told = "A quick look, of few seeds, short training and fewer measures: for numbers to rely on,"
    for words, quick in ((["study"], True), (["study", "--scale", "full"], False)):
        assert run(words) == 0
        lines = " ".join(capsys.readouterr().out.split())
        assert (f"{told} --scale full The page: " in lines) is quick


def test_what_weakens_a_verdict_stands_below_its_table_once():
    weak = [replace(verdict, caution=FEW) for verdict in VERDICTS[:2]]
    text = shown([*weak, VERDICTS[2]])
    assert re.search(r"3.20 times \[2.80 to 3.90\] \(1\)\s", text)
    assert "not measured (1)" in text
    assert text.count(FEW) == 1
    assert f"(1) {FEW}" in text
    assert "decades [1.00 or more] (" not in text


def test_a_value_that_is_only_known_to_be_less_or_more_is_not_shown_as_one():
    bounds = [
        replace(VERDICTS[0], value=None, low=None, high=0.84),
        replace(VERDICTS[0], value=None, low=2.0, high=None),
        replace(VERDICTS[0], value=None, low=None, high=0.0),
    ]
    text = shown(bounds)
    for words in ("at most 0.840 times", "at least 2.00 times", "at most 0 times"):
        assert words in text


def test_a_number_without_a_unit_has_one_space_before_its_interval():
    bare = [replace(VERDICTS[0], unit=""), replace(VERDICTS[0], unit="", value=None, low=None)]
    text = shown(bare)
    assert "3.20 [2.80 to 3.90]" in text
    assert re.search("at most 3.90 *$", text, re.MULTILINE)


def test_what_stands_in_brackets_is_said_as_the_run_says_it():
    assert "In brackets" not in shown(VERDICTS)
    held = [replace(verdict, interval=HELD) for verdict in VERDICTS[:2]]
    other = replace(VERDICTS[2], interval="one seed")
    assert f"In brackets: {HELD}; or one seed." in shown([*held, other])


def test_the_best_so_far_is_said_of_training_alone(capsys):
    file = StringIO()
    watched = Watched(Console(file=file))
    for stage in ("trials", "timing"):
        for done in range(2):
            watched(Progress(stage, done, 1, 0, BEST))
    assert file.getvalue().splitlines()[1:] == [
        "training 1/1, best validation accuracy 93.4 %",
        "timing 1/1",
    ]
    drawn = StringIO()
    Console(file=drawn, width=80).print(watched._drawn())
    assert "93.4 %" not in drawn.getvalue()


@pytest.mark.parametrize(
    ("now", "starting"),
    [
        (Progress("trials", 0, 3, 0), True),
        (Progress("trials", 3, 3, 3), False),
        (Progress("page", 0, 1, 3), False),
    ],
)
def test_processes_start_only_where_trials_are_left(now, starting):
    console = Console(file=StringIO(), width=80, force_terminal=True)
    watched = Watched(console)
    watched.now = now
    console.print(watched._drawn())
    assert ("Starting the processes" in console.file.getvalue()) is starting


def test_numbers_are_those_of_the_page():
    ends = replace(VERDICTS[0], value=1.58, low=None, high=2.54, unit="×")
    text = shown([replace(ends, value=9.5, low=9.0, high=10.0), *VERDICTS[1:]])
    assert "9.5× [9.0 to 10.0]" in text
    assert "1.58× [2.54 or less]" in shown([ends, *VERDICTS[1:]])


def test_a_failed_study_is_in_the_table_and_in_the_exit_code(monkeypatch, capsys):
    found = Run(
        Path("runs/study"),
        VERDICTS[:1],
        failed={"learning_rate": "ValueError: no"},
        titles={**TITLES, "depth": "Deep ones"},
        not_applicable={"depth": "your model is not deep"},
    )
    monkeypatch.setattr(batchnorm.studies, "study", lambda names, **options: found)
    assert run(["study"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert re.search("A wider range works.*failed ValueError: no", out)
    assert re.search("Deep ones.*does not apply your model is not deep", out)


@pytest.mark.parametrize("width", [40, 60, 100, 160])
def test_everything_fits_the_terminal(width):
    file = StringIO()
    console = Console(file=file, width=width, force_terminal=True, color_system=None)
    found = Run(
        Path("r"), VERDICTS, titles={**TITLES, "depth": "Deep"}, failed={"depth": "x " * 99}
    )
    console.print(findings(found, width))
    watched = Watched(console)
    watched.now = Progress("trials", 37, 120, 0, BEST)
    console.print(watched._drawn())
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue())
    assert max(map(len, text.splitlines())) <= width
    assert "37/120" in text
    assert "3.20 times [2.80 to 3.90]" in " ".join(text.split())
    assert "x x x" in text
    assert "93.4 %" in text


def test_the_time_left_is_the_estimate_less_what_has_gone_by(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    watched = Watched(Console(file=StringIO()))
    watched(Progress("trials", 20, 120, 20))
    assert watched._left() == ""
    watched(Progress("trials", 21, 121, 20, BEST, 120.0))
    assert watched._left() == "2 min 0 s left"
    clock[0] = 130.0
    watched(Progress("trials", 31, 121, 20, BEST, 120.0))  # not estimated anew
    assert watched._left() == "1 min 30 s left"
    watched(Progress("trials", 32, 121, 20, BEST, 450000.0))
    assert watched._left() == "125 h 0 min left"
    watched(Progress("trials", 120, 121, 20, BEST, 0.2))
    clock[0] = 200.0
    assert watched._left() == "1 s left"


MANY = tuple(
    Share(name, done, 60, state)
    for name, done, state in [
        *((f"done{i}", 60, "") for i in range(6)),
        *((f"work{i}", 20 + i, "") for i in range(3)),
        *((f"wait{i}", 0, "") for i in range(6)),
        ("broken", 7, "failed"),
    ]
)


@pytest.mark.parametrize("height", [12, 24])
@pytest.mark.parametrize("width", [50, 100])
def test_many_studies_keep_to_the_screen(height, width):
    console = Console(file=StringIO(), width=width, height=height, force_terminal=True)
    watched = Watched(console)
    watched.now = Progress("trials", 300, 900, 0, BEST, 90.0, MANY)
    console.print(watched._drawn())
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())
    lines = text.splitlines()
    assert len(lines) < height
    assert max(map(len, lines)) <= width
    for i in range(3):
        assert re.search(rf"work{i} .* {20 + i}/60", text), "those at work are always shown"
    assert ("broken" in text) == (height == 24)
    assert ("more" in text) == (height == 12)
    assert "300/900" in lines[0]


def test_of_many_studies_the_headlines_are_shown():
    names = [f"study{i}" for i in range(14)]
    weak = replace(VERDICTS[0], caution=FEW)
    verdicts = [replace(v, study=n) for n in names for v in (weak, VERDICTS[1])]
    found = Run(
        Path("r"),
        verdicts,
        failed={"bad": "ValueError: no way"},
        not_applicable={"idle": "your model is not deep"},
        titles={**{n: f"The title of {n}" for n in names}, "bad": "Broken", "idle": "Not for you"},
    )
    for width, most in ((60, 50), (120, 20)):
        file = StringIO()
        Console(file=file, width=width).print(findings(found, width))
        text = file.getvalue()
        assert len(text.splitlines()) <= most
        assert max(map(len, text.splitlines())) <= width
        shown = " ".join(text.split())
        assert shown.count("steps, sigmoid, best rates: 3.20 times [2.80 to 3.90] and 1 more") == 14
        assert re.search(r"failed +Broken\s+ValueError: no way", text)
        assert re.search(r"does not apply +Not for you\s+your model is not deep", text)
        assert "28 measures are on the page, with what weakens 14 of them." in text


def test_the_list_says_what_there_is_and_how_long_it_takes(monkeypatch, capsys):
    plans = [
        Plan("speed", "L11", "Batch norm speeds up learning", 270, 75.2),
        Plan("depth", "L13", "Deep ones", reason="your model is not deep"),
    ]
    monkeypatch.setattr(batchnorm.studies, "overview", lambda names, **asked: (plans, 75.2))
    assert run(["study", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    words = " ".join(lines[0].split())
    assert words == "speed L11 Batch norm speeds up learning 270 trials 1 minute"
    assert lines[1].split()[:3] == ["depth", "L13", "Deep"]
    assert "your model is not deep" in lines[2]
    assert lines[-1] == "All of them: batchnorm study: 1 minute (studies share trials)"
    monkeypatch.undo()
    assert run(["study", "speed", "--list", "--data", "digits8x8"]) == 0
    (line, *_) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"speed +L11 +Batch norm speeds up learning +\d+ trials +(\d+ \w+|a few seconds) *", line
    )
    assert run(["study", "sped", "--list"]) == 2
    assert "no study 'sped'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["study", "sped"], "no study 'sped': did you mean 'speed'? possible: speed, lea"),
        (["study", "--scale", "huge"], "no scale 'huge'; possible: quick, full"),
        (["study", "--jobs", "0"], "jobs is 0: expected a whole number of processes, 1 or more"),
        (["study", "--jobs", "-2"], "jobs is -2: expected a whole number"),
        (["study", "--jobs", "many"], "jobs is 'many': expected a whole number"),
        (["study", "--seed", "-1"], "seed is -1: expected a whole number from 0 to 1000000000, the first"),
        (["study", "--seed", "1.5"], "seed is '1.5': expected a whole number"),
        (["study", "--seed", "x"], "seed is 'x': expected a whole number"),
        (["study", "--seed", ""], "seed is '': expected a whole number"),
        (["study", "--data", "digit"], "no data set 'digit'"),
        (["study", "--model", "no:net"], "model 'no:net': importing 'no' from"),
        (["study", "--out", "notes.txt"], "the output folder 'notes.txt' is a file"),
        (["study", "--out", "."], "is not the folder of a run (it holds notes.txt)"),
        (["study", "--out", "notes.txt/run"], "the output folder 'notes.txt/run' cannot be made: 'notes.txt' is a file: choose another folder (--out"),
        (["study", "--out", "x" * 300], "xx' cannot be used (File name too long): choose another"),
        (["study", "--out", "/proc/run"], "the output folder '/proc/run' cannot be used ("),
        (["study", "--jobs", "4000"], "processes would wait for each other on the"),
        (["study", ""], "no study ''; possible: speed, learning_rate"),
        (["study", "--job", "2"], "No such option: --job (Possible options: --jobs, --out) See batchnorm study --help"),
        (["study", "--out"], "Option '--out' requires an argument"),
        (["studdy"], "No such command 'studdy'. Did you mean 'study'? See batchnorm --help"),
        (["report"], "Missing argument 'DIR'"),
        (["report", "nowhere"], "nowhere"),
    ],
)  # fmt: skip
def test_mistakes_get_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("mine")
    assert run(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("batchnorm: ")
    assert shown.err.count("\n") == 1
    assert said in shown.err
    assert [str(p) for p in Path().iterdir()] == ["notes.txt"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert run(["study", "--out", str(tmp_path / "run")]) == 2
    assert (
        f"folder '{tmp_path / 'run'}' cannot be used (Permission denied): choose"
        in capsys.readouterr().err
    )


def test_a_full_disk_is_one_line(monkeypatch, capsys):
    def study(names, **options):
        raise OSError(28, "No space left on device", "runs/study/trials.jsonl")

    monkeypatch.setattr(batchnorm.studies, "study", study)
    assert run(["study"]) == 2
    assert capsys.readouterr().err == (
        "batchnorm: runs/study/trials.jsonl: No space left on device; finished trials are kept: "
        "make room, and the same command goes on\n"
    )


def test_help_and_version(capsys):
    assert run(["--version"]) == 0
    assert re.fullmatch(r"batchnorm \d+\.\d+\.\d+\n", capsys.readouterr().out)
    assert run([]) == 0
    assert "batchnorm study" in capsys.readouterr().out
    for words in (["--help"], ["study", "-h"], ["report", "--help"]):
        assert run(words) == 0
    shown = capsys.readouterr().out
    assert "DIR" in shown
    assert "--seed" in shown


@pytest.mark.parametrize("words", [["--help"], ["study", "--help"], ["report", "--help"]])
def test_help_fills_its_lines(capsys, monkeypatch, words):
    monkeypatch.setenv("COLUMNS", "80")
    assert run(words) == 0
    told = capsys.readouterr().out.split("Usage: ")[1].split("\u256d")[0].splitlines()[1:]
    for line, after in pairwise(line.strip() for line in told):
        if line and after:  # a paragraph goes on: its next word had no room
            assert len(line) + len(" " + after.split()[0]) > 70, line


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--version"], 0, r"batchnorm \d+\.\d+\.\d+"),
        (
            ["study"],
            2,
            r"batchnorm: the command line needs typer: pip install '\.\[study\]' in the .*",
        ),
    ],
)
def test_without_its_libraries_the_way_to_get_them_is_one_that_there_is(
    monkeypatch, capsys, words, code, said
):
    from batchnorm.__main__ import main

    monkeypatch.setitem(sys.modules, "typer", None)
    monkeypatch.delitem(sys.modules, "batchnorm.cli")
    monkeypatch.setattr(sys, "argv", ["batchnorm", *words])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == code
    assert re.fullmatch(said, "".join(capsys.readouterr()).rstrip())


def module(*words, **options):
    command = [sys.executable, "-m", "batchnorm", *words]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def test_ctrl_c_then_the_same_command_to_the_end(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def net():\n    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))\n"
        "def data():\n"
        "    x = torch.rand(60, 4, generator=torch.Generator().manual_seed(0))\n"
        "    return x, (x.sum(1) > 2).long()\n"
    )
    words = ["study", "speed", "--model", "mine:net", "--data", "mine:data", "--out", "run dir"]
    trials = tmp_path / "run dir" / "trials.jsonl"
    process = module(*words, cwd=tmp_path, start_new_session=True)
    while not (trials.exists() and trials.read_bytes().count(b"\n") >= 3):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    (last,) = (line for line in errors.splitlines() if line.startswith("batchnorm: "))
    kept = trials.read_bytes().count(b"\n")
    assert re.fullmatch(
        rf"batchnorm: stopped, {kept} of \d+ trials are kept in run dir; go on with: "
        "batchnorm study speed --model mine:net --data mine:data --out 'run dir'",
        last,
    )
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == last
    process = module(*words, cwd=tmp_path)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert f"trials, {kept} finished earlier" in errors
    assert out.splitlines()[-1] == "The page: run dir/report.html"
    manifest = json.loads((trials.parent / "manifest.json").read_text())
    (entry,) = manifest["studies"]
    assert manifest["finished"]
    keys = [json.loads(line)["key"] for line in trials.read_text().splitlines()]
    assert sorted(keys) == sorted(entry["keys"])
    assert "report.html" in os.listdir(trials.parent)
