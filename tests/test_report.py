"""The page of a run: drawn from the folder alone, whole or not at all, and safe to open."""

import ast
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

import batchnorm.report
from batchnorm.report import render
from batchnorm.report._words import brief

MADE_UP = Path(__file__).with_name("run_folder")


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(MADE_UP, tmp_path / "run"))


def change(folder, name, edit):
    """Edit the JSON file ``name`` of the run: ``edit`` gets the value and may give a new one."""
    path = folder / name
    value = json.loads(path.read_text())
    value = edit(value) or value
    path.write_text(json.dumps(value))


class Reader(HTMLParser):
    """What a page holds, without a browser: its text, tags with attributes, scripts, ids."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.scripts, self.words, self.inside = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.inside.append(tag)
            self.scripts += [""] * (tag == "script")

    def handle_endtag(self, tag):
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data):
        if not self.inside:
            self.words.append(data)
        elif self.inside[-1] == "script":
            self.scripts[-1] += data

    @property
    def text(self):
        return " ".join(" ".join(self.words).split()).replace("\N{NO-BREAK SPACE}", " ")


def page(folder):
    return Reader(render(folder).read_text(encoding="utf-8"))


def test_render_gives_the_page_and_leaves_nothing_else(folder):
    before = set(folder.rglob("*"))
    assert render(str(folder)) == folder / "report.html"
    assert set(folder.rglob("*")) - before == {folder / "report.html"}


def test_the_page_says_what_the_run_found(folder):
    text = page(folder).text
    assert "2.00× 1.50 to 2.60" in text, "the headline and its interval at a glance"
    measures = "5 measures: 1 supported, 1 not supported, 2 contradicted, 1 inconclusive"
    assert text.count(measures) == 2, "at a glance and over the table"
    assert "0.489× 0.395 to 0.965" in text
    assert "1.60 decades 1.20 or more" in text, "an open interval"
    assert "seldom reached Made up: seldom reached says nothing." in text
    assert "at most 0.840× 0.840 or less" in text, "a value that is only known to be less"
    assert "Never reached" not in text, "capitals are the style sheet's: names stay as written"
    assert "never reached" in text
    assert "What the lecture says (L11)" in text
    assert "made up: another rule" in text
    assert "made up: the model has no activation to put batch norm before" in text
    assert "1 min 5 s, started 1 January 2020, 10:00 UTC" in text
    assert "4, in 2 processes of one thread each" in text, "trials that studies share count once"


def test_what_an_interval_is_is_said_as_the_run_says_it(folder):
    text = page(folder).text
    assert "95 %" not in text, "unless the run says so"
    held = "made up: the range over 2 seeds"
    assert f"and under it its interval: {held}; or made up: one seed. A square" in text
    assert f"An interval is {held}." in text
    assert "Its interval is made up: one seed." in text, "where it is another"


def test_what_weakens_a_headline_stands_beside_it(folder):
    reader = page(folder)
    caution = "Made up: too few examples."
    claim = "Made up: steps says nothing."
    assert f"{claim} With a caution." in reader.text, "at a glance"
    assert reader.text.count(f"{claim} {caution}") == 2, "beside the number, and in the table"
    assert reader.text.count("With a caution.") == 1, "where there is one"


def test_the_network_is_named(folder):
    def ours(run):
        run.update(model=None, network="784-100-10, fully connected, with ReLU")

    assert "Network made_up:network Data" in page(folder).text
    change(folder, "manifest.json", ours)
    assert "Network 784-100-10, fully connected, with ReLU Data" in page(folder).text
    change(folder, "manifest.json", lambda run: run.update(network=""))
    assert "Network none was trained Data" in page(folder).text


def test_a_quick_look_says_so_and_how_to_run_in_full(folder):
    quick = page(folder).text
    assert "This is a quick look" in quick
    assert "batchnorm study --model made_up:network --scale full" in quick
    change(folder, "manifest.json", lambda run: run.update(scale="full"))
    full = page(folder).text
    assert "quick" not in full


def test_the_page_is_one_file_with_the_bundle_once(folder):
    reader = page(folder)
    loads = [
        (tag, name, value)
        for tag, attributes in reader.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "data", "action") and not (value or "").startswith("#")
    ]
    assert loads == []
    assert not [tag for tag, _ in reader.tags if tag in ("link", "img", "iframe", "base")]
    bundles = [script for script in reader.scripts if "window.vegaEmbed" in script]
    assert len(bundles) == 1
    assert (folder / "report.html").stat().st_size < 1_200_000


def test_every_link_leads_to_an_id_and_no_id_stands_twice(folder):
    reader = page(folder)
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    links = [a["href"][1:] for _, a in reader.tags if a.get("href", "").startswith("#")]
    assert len(ids) == len(set(ids))
    assert links
    assert set(links) <= set(ids)


EVIL = """<script>alert("1")</script><img src=x onerror=alert(2)>' " --> </script>"""


def test_names_of_the_users_are_text_and_nothing_else(folder):
    def poison(value):
        if isinstance(value, dict):
            return {k: poison(v) for k, v in value.items()}
        if isinstance(value, list):
            return [poison(v) for v in value]
        return EVIL if isinstance(value, str) else value

    innocent = page(folder)

    def names(run):
        kept = {"status": None, "name": None, "scale": None, "charts": None, "studies": None}
        for study in run["studies"]:
            study |= {k: EVIL for k, v in study.items() if isinstance(v, str) and k not in kept}
            for chart in study["charts"]:
                chart["title"] = EVIL
        return run | {k: poison(v) for k, v in run.items() if k not in kept}

    change(folder, "manifest.json", names)
    change(
        folder,
        "verdicts.json",
        lambda vs: [poison(v) | {"study": v["study"], "verdict": v["verdict"]} for v in vs],
    )
    for chart in (folder / "charts").iterdir():
        change(folder, f"charts/{chart.name}", lambda spec: spec.update(description=EVIL))
        change(folder, f"charts/{chart.name}", lambda spec: spec.update(name=EVIL))
    evil = page(folder)

    def shape(reader):
        return [tag for tag, _ in reader.tags if tag not in ("ol", "li", "p")]

    # Rules that became one and the same are listed differently; nothing else may change.
    assert [t for t in shape(evil) if t in ("script", "img")] == [
        t for t in shape(innocent) if t in ("script", "img")
    ]
    assert not [a for _, attributes in evil.tags for a in attributes if a.startswith("on")]
    assert " ".join(EVIL.split()) in evil.text
    for script in evil.scripts:
        assert 'alert("1")' not in script


def test_a_chart_cannot_give_the_page_orders(folder):
    def orders(spec):
        spec["usermeta"] = {"embedOptions": {"loader": {"baseURL": "https://example.com"}}}

    change(folder, "charts/made_up-curves.json", orders)
    assert "example.com" not in render(folder).read_text()


def test_numbers_that_json_does_not_have_do_not_stop_the_page(folder):
    path = folder / "charts" / "made_up-curves.json"
    path.write_text(re.sub(r'"y": [\d.]+', '"y": NaN', path.read_text(), count=1))
    specs = [s for s in page(folder).scripts if '"datasets"' in s]
    for spec in specs:
        json.loads(spec, parse_constant=lambda name: pytest.fail(f"{name} in the page"))
    assert len(specs) == 6


def test_a_run_may_have_no_verdict_and_no_study(folder):
    change(folder, "verdicts.json", lambda _: [{}][:0] or None)
    (folder / "verdicts.json").write_text("[]")
    assert "Inconclusive" in page(folder).text
    change(folder, "manifest.json", lambda run: run.update(studies=[]))
    assert "How this page was made" in page(folder).text


def test_a_run_that_trained_nothing_says_nothing_of_runs_seeds_and_numbers(folder):
    def nothing(run):
        mine = [study for study in run["studies"] if study["status"] == "not applicable"]
        run.update(studies=[study | {"trials": 0, "keys": []} for study in mine], seeds=[])

    change(folder, "manifest.json", nothing)
    (folder / "verdicts.json").write_text("[]")
    text = page(folder).text
    assert "Training runs none" in text
    for words in (
        "quick look",
        "Seeds",
        "The number is",
        "A square",
        "trials.jsonl",
        "of one thread",
    ):
        assert words not in text, words


def test_one_study_alone_is_not_counted_and_its_command_is_the_pages(folder):
    def one(run):
        run.update(studies=run["studies"][:1])

    change(folder, "manifest.json", one)
    text = page(folder).text
    assert "1 of 1" not in text
    assert "All verdicts" in text
    assert "This claim alone" not in text


def remove(name):
    return lambda folder: (folder / name).unlink()


def put(name, text):
    return lambda folder: (folder / name).write_text(text)


def edit(name, how):
    return lambda folder: change(folder, name, how)


AGAIN = "run `batchnorm study --model made_up:network` again, it goes on where it stopped"
ANEW = f"{AGAIN}; or `batchnorm report --measure {{}}` makes it from the rows"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "no folder '{}': give the folder of a run, such as runs/study"),
        (
            lambda folder: (shutil.rmtree(folder), folder.write_text("")),
            "'{}' is a file, not a folder: give the folder of a run, such as runs/study",
        ),
        (
            remove("manifest.json"),
            "{}/manifest.json is missing: give the folder of a run; `batchnorm study` writes "
            "runs/study",
        ),
        (
            put("manifest.json", '{"format": 1, "stu'),
            "{}/manifest.json is not whole JSON (Unterminated string starting at: line 1 column "
            "15 (char 14)): give the folder of a run; `batchnorm study` writes runs/study",
        ),
        (
            put("manifest.json", '{"name": "an npm package?"}'),
            "{}/manifest.json is not the manifest of a run: it has no format number",
        ),
        (
            put("manifest.json", "[]"),
            "{}/manifest.json is not the manifest of a run: it has no format number",
        ),
        (
            put("manifest.json", '{"format": 2, "batchnorm": "9.0"}'),
            "{}/manifest.json is of format 2, this batchnorm reads 1: draw it with the version "
            "that wrote it (batchnorm 9.0) or a later one",
        ),
        (
            edit("manifest.json", lambda run: run.pop("seeds") and None),
            "{}/manifest.json: the manifest has no 'seeds'; another batchnorm wrote it?",
        ),
        (
            edit("manifest.json", lambda run: run["studies"][1].update(title=3)),
            "{}/manifest.json: 'title' of entry 1 cannot be 3",
        ),
        (
            edit("manifest.json", lambda run: run["studies"].append("speed")),
            "{}/manifest.json: entry 7 is not an object but str",
        ),
        (
            edit("manifest.json", lambda run: run["studies"][0]["charts"][0].update(name="../x")),
            "{}/manifest.json: '../x' cannot be the name of a chart",
        ),
        (remove("verdicts.json"), "{}/verdicts.json is missing: " + ANEW),
        (put("verdicts.json", "{}"), "{}/verdicts.json: expected a list of objects, found dict"),
        (
            edit("verdicts.json", lambda verdicts: verdicts[2].update(value="two")),
            "{}/verdicts.json: 'value' of entry 2 cannot be 'two'",
        ),
        (
            edit("verdicts.json", lambda verdicts: verdicts[0].update(verdict="maybe")),
            "{}/verdicts.json: 'verdict' of entry 0 cannot be 'maybe': expected one of supported, "
            "not supported, contradicted, inconclusive",
        ),
        (remove("timing.json"), "{}/timing.json is missing: " + AGAIN),
        (
            put("timing.json", "{}"),
            "{}/timing.json: the file has no 'total_seconds'; another batchnorm wrote it?",
        ),
        (
            remove("charts/made_up-bars.json"),
            "{}/charts/made_up-bars.json is missing: " + ANEW,
        ),
        (
            put("charts/made_up-bars.json", ""),
            "{}/charts/made_up-bars.json is not whole JSON (Expecting value: line 1 column 1 "
            "(char 0)): " + ANEW,
        ),
        (
            put("charts/made_up-bars.json", "[]"),
            "{}/charts/made_up-bars.json: the file is not an object but list",
        ),
        (
            lambda folder: (folder / "timing.json").write_bytes(b"\xff\xfe\xfa"),
            "{}/timing.json is not whole JSON (",
        ),
    ],
)
def test_a_folder_that_is_no_whole_run_gets_one_line_and_the_old_page_stays(folder, spoil, message):
    old = render(folder).read_bytes()
    spoil(folder)
    with pytest.raises(ValueError, match=re.escape(message.format(folder, folder))) as error:
        render(folder)
    assert "\n" not in str(error.value)
    if not message.endswith("("):
        assert str(error.value) == message.format(folder, folder)
    if folder.is_dir():
        assert (folder / "report.html").read_bytes() == old
        assert not list(folder.glob("*.part"))


def test_the_page_sums_up_what_became_of_each_claim(folder):
    text = page(folder).text
    summed = text[text.index("What batch norm did to this network") :]
    counts = "1 supported , 1 contradicted , 1 inconclusive , 1 failed , 3 not applicable ."
    assert f"7 claims: {counts}" in summed
    assert "Made-up claim that batch norm speeds something up Made up: steps says" in summed
    assert "Contradicted 8 measures: 3 supported, 1 not supported, 2 contradicted, 2" in summed


def test_what_several_measures_say_is_told_once_under_them(folder):
    def alike(verdicts):
        for i, one in enumerate(v for v in verdicts if v["study"] == "many"):
            one["note"] = f"Own {i}. Of all, at 1e-05. In points." + " Of two." * (i > 5)
            one["caution"] = "Mind this." if i < 3 else ""
            one["interval"] = f"made up: {'usual' if i < 4 else 'another'}"

    change(folder, "verdicts.json", alike)
    text = page(folder).text
    assert text.count("Of all, at 10⁻⁵. In points.") == 1
    told = "Of several measures: Mind this. Of all, at 10⁻⁵. In points. Its interval is made up"
    assert told in text, "a caution first, and what the same rows say together"
    assert "Own 0. Note 2 below." in text
    assert "Own 7. Of two. Notes 2, 3 below." in text, "what two say stays with each"
    assert text.count("Caution 1 below.") == 3
    assert text.count("Mind this.") == 2, "under the table, and whole beside the number"


def test_why_several_studies_do_not_apply_is_said_once(folder):
    text = page(folder).text
    assert "2 claims do not apply here: made up: no place for batch norm in made_up:net" in text
    assert text.count("block.2: made up") == 1, "the whole of it, folded"
    assert text.count("Why not is said with all verdicts") == 2
    alone = "made up: the model has no activation to put batch norm before"
    assert text.count(alone) == 2, "at a glance and in its section: a reason of its own"


def test_a_failure_is_told_in_a_line_and_its_whole_message_is_folded(folder):
    reader = page(folder)
    line = (
        "ValueError: made up: the machine has changed since this run was planned, "
        "in the trial without batch norm, sgd, learning rate 0.01, seed 0"
    )
    assert reader.text.count(line) == 2, "at a glance and in its section"
    assert reader.text.count("planned with made_up 0.0.0") == 1
    assert "The whole message ValueError: made up: the machine" in reader.text


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        ("RuntimeError: short (a.py, line 3)", "RuntimeError: short (a.py, line 3)"),
        ("", ""),
        (f"Error: {'x' * 300}", f"Error: {'x' * 113}\N{HORIZONTAL ELLIPSIS}"),
        (
            f"Error: the first clause, with a comma; {'more ' * 30}(a.py, line 3), in the trial so",
            "Error: the first clause, with a comma, in the trial so",
        ),
    ],
)
def test_a_reason_is_cut_at_the_end_of_a_clause(reason, line):
    assert brief(reason) == line


def test_numbers_are_written_as_people_write_them(folder):
    text = page(folder).text
    assert "0 points 0 to 0.10" in text
    assert "12,346× 11,000 to 14,000" in text
    assert "at least 5.60× 5.60 or more" in text
    assert "1.19 × 10⁻⁶ σ" in text


def test_many_measures_are_folded_and_few_are_not(folder):
    folds = [a for tag, a in page(folder).tags if tag == "details" and a.get("class") == "fold"]
    assert ["open" in attributes for attributes in folds] == [True, False]


def test_a_study_that_does_not_apply_says_why_and_no_more(folder):
    text = page(folder).text
    assert text.count("How it was measured") == 3
    assert text.count("How it is measured") == 1, "of the one that failed"


def test_the_page_says_what_a_claim_means_and_how_to_try_it_alone(folder):
    text = page(folder).text
    assert "What it means for you Made-up advice for a test: nothing follows from it." in text
    assert "batchnorm study made_up --out runs/study-made_up" in text


def test_a_folder_of_an_older_version_has_neither(folder):
    def without(manifest):
        for study in manifest["studies"]:
            study.pop("meaning", None)
            study.pop("command", None)

    change(folder, "manifest.json", without)
    text = page(folder).text
    assert "What it means for you" not in text
    assert "This claim alone" not in text


def test_charts_link_to_the_files_that_are_there_and_to_no_others(folder):
    (folder / "charts" / "made_up-bars.png").write_bytes(b"")
    (folder / "tables").mkdir()
    (folder / "tables" / "made_up-bars.csv").write_bytes(b"")
    links = [attributes["href"] for tag, attributes in page(folder).tags if tag == "a"]
    assert [link for link in links if not link.startswith("#")] == [
        "charts/made_up-bars.png",
        "tables/made_up-bars.csv",
    ]


def test_a_chart_with_a_slider_stands_on_top_and_is_drawn_once(folder):
    places = [a.get("id") for tag, a in page(folder).tags if "id" in a]
    assert places.count("made_up-slider") == 1
    assert places.index("verdicts") < places.index("made_up-slider") < places.index("made_up")


def test_the_first_chart_with_a_slider_stands_on_top_and_others_in_their_sections(folder):
    charts = folder / "charts"
    (charts / "broken-slider.json").write_text((charts / "made_up-slider.json").read_text())
    entry = {"name": "broken-slider", "title": "Another"}

    def other(manifest):
        manifest["studies"].insert(0, manifest["studies"].pop(2))
        manifest["studies"][0]["charts"] = [entry]

    change(folder, "manifest.json", other)
    places = [a.get("id") for tag, a in page(folder).tags if "id" in a]
    assert places.index("broken-slider") < places.index("broken")
    assert places.index("made_up-slider") > places.index("made_up")


def test_report_imports_nothing_of_ours():
    files = list(Path(batchnorm.report.__file__).parent.glob("*.py"))
    trees = [ast.parse(file.read_text()) for file in files]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    modules = [n.module for n in nodes if isinstance(n, ast.ImportFrom)]
    modules += [a.name for n in nodes if isinstance(n, ast.Import) for a in n.names]
    assert "jinja2" in modules, "the search finds imports inside functions"
    ours = [m for m in modules if m and m.startswith("batchnorm")]
    assert [m for m in ours if not m.startswith("batchnorm.report")] == []


def test_the_template_lies_beside_the_module_for_the_wheel_to_ship():
    assert Path(batchnorm.report.__file__).with_name("page.html").is_file()
