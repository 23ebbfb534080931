"""A study run's folder -> docs/claims.md, the rows behind it, and README's table; nothing is run.

    python benchmarks/claims.py runs/full [runs/other ...]

The other folders are runs on other seeds, whose verdicts stand beside; of a measure that several of
them have, that of the same scale counts.
"""

import gzip
import json
import re
import sys
from collections import Counter
from pathlib import Path

from batchnorm.report._words import date, interval, tally, typeset, value, word
from batchnorm.studies._asked import STUDIES

ROOT = Path(__file__).parent.parent
PAGE, KEPT, README = ROOT / "docs/claims.md", ROOT / "docs/claims", ROOT / "README.md"
OTHERS = "other_*"  # runs on other seeds; several of the same scale are numbered
BEGIN, END = "<!-- claims -->\n", "<!-- /claims -->\n"
MOST = 2_000_000  # bytes of a run that are committed
RULE = "supported if all of it is"
KEY = 12  # digits of a trial's key that are kept: they tell trials apart, and do not pack
SCALES = (
    "It is of another scale, with fewer steps and examples, so that what differs may be the training's "
    "length as well as the seeds. "
)


def read(folder):
    """Manifest, whose studies hold their verdicts, and timing."""
    head, verdicts, timing = (
        json.loads((folder / f"{name}.json").read_text())
        for name in ("manifest", "verdicts", "timing")
    )
    for study in head["studies"]:
        study["verdicts"] = [one for one in verdicts if one["study"] == study["name"]]
    return head, timing


def row(*cells):
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def tallied(verdicts):
    return ", ".join(f"{count} {one}" for one, count in tally(verdicts))


def table(head):
    """One row a claim, by its headline."""
    lines = [row("", "what is taught", "what was tried first", "by how much", "interval", RULE, "verdict", "all measures"),
             row("---", "---", "---", "---:", "---:", "---", "---", "---")]  # fmt: skip
    for study in head["studies"]:
        first = study["verdicts"][0]  # every study of a run that is shown has some
        tried = typeset(first["claim"].rstrip("."))
        cells = study["lecture"], study["title"], tried, value(first), interval(first), rule(first)
        lines.append(row(*cells, f"**{word(study)}**", tallied(study["verdicts"])))
    return "\n".join(lines) + "\n"


def rule(one):
    """What its interval must be for "supported": it tells which way is good, too.

    >>> rule({"threshold": "supported: the whole interval at -2 points or above, not closer; contradicted: ..."})
    '−2 points or above'
    >>> rule({"threshold": "supported: the whole interval within 0.05 of -0.5; contradicted: ..."})
    'within 0.05 of −0.5'
    """
    return typeset(re.match(r"supported: the whole interval (?:at )?([^,;]+)", one["threshold"])[1])


def over_seeds(one, again):
    """A verdict, which is none where other seeds decided otherwise."""
    if again and stands(one, again) == "apart":
        return f"inconclusive ({one['verdict']} on these seeds)"
    return one["verdict"]


def section(study, other):
    """A claim: what was said, and every measure."""
    lines = [f"## {study['title']} ({study['lecture']}, `{study['name']}`)", "", study["claim"], ""]
    titles = ["measure", "value", "interval", RULE, "verdict", *["on other seeds"] * bool(other)]
    lines += [row(*titles), row("---", "---:", "---:", *["---"] * (len(titles) - 3))]
    for one in study["verdicts"]:
        again = other.get((one["study"], one["metric"]))
        cells = [one["metric"], value(one), interval(one), rule(one), over_seeds(one, again)]
        if other:
            cells.append(f"{again['verdict']}, {value(again)}" if again else "not measured")
        lines.append(row(*cells))
    cautions = list(dict.fromkeys(one["caution"] for one in study["verdicts"] if one["caution"]))
    lines += ["", *[f"- {caution}" for caution in cautions], ""] if cautions else [""]
    lines += [f"*Published.* {study['published']}", "", f"*What it means.* {study['meaning']}", ""]
    return "\n".join(lines)


def agreement(head, other):
    """How the verdicts of two runs compare, in words and, where opposed, one by one."""
    pairs = [
        (one, again)
        for study in head["studies"]
        for one in study["verdicts"]
        if (again := other.get((one["study"], one["metric"])))
    ]
    first = {(study["name"], study["verdicts"][0]["metric"]) for study in head["studies"]}
    headlines = [pair for pair in pairs if (pair[0]["study"], pair[0]["metric"]) in first]
    told = (
        f"Of {counted(pairs, 'measures in both')} Of {counted(headlines, 'that are judged first')}"
    )
    lines = [f"{told} The table above is of the first run alone.", ""]
    for title, scale in (("at the same scale", True), ("at another scale", False)):
        apart = [
            f"- {a['study']}, {a['metric']}: {a['verdict']} ({value(a)}); on other seeds {b['verdict']} ({value(b)})"
            for a, b in pairs
            if stands(a, b) == "apart" and (b["scale"] == head["scale"]) is scale
        ]
        if apart:
            lines += [f"Decided otherwise {title}, and so inconclusive:"]
            lines += ["", *apart, ""]
    return "\n".join(lines)


def stands(one, again):
    """How two verdicts on a measure compare."""
    words = one["verdict"], again["verdict"]
    if "inconclusive" in words:
        return "both" if words[0] == words[1] else "one"
    return "same" if words[0] == words[1] else "apart"


def counted(pairs, what):
    """How many of the pairs agree, in a sentence."""
    found = Counter(stands(*pair) for pair in pairs)
    return (
        f"{len(pairs)} {what} {found['same'] + found['apart']} are decided in both, and of these "
        f"{found['same']} the same way; {found['both']} are inconclusive in both, {found['one']} in one of them."
    )


def asked(head):
    """What was run, in a sentence."""
    names, seeds = [study["name"] for study in head["studies"]], head["seeds"]
    words = ["batchnorm study", *names * (len(names) < len(STUDIES)), f"--scale {head['scale']}"]
    return (
        f"A run of `{' '.join(words)} --seed {seeds[0]}`, on seeds {seeds[0]} to {seeds[-1]}, "
        f"{date(head['finished'])}. "
    )


def page(head, others):
    """The whole of docs/claims.md."""
    seeds = head["seeds"]
    lines = [
        "# What was measured of each claim",
        "",
        f"From a run of `batchnorm study --scale {head['scale']}` on {date(head['finished'])}: {head['trials']} "
        f"training runs on seeds {seeds[0]} to {seeds[-1]}; torch {head['torch']}, "
        f"{head['machine']['cpu']}, {head['machine']['cores']} cores. Data: {head['data']}. "
        "A number is the median over paired seeds of what the sentence or the measure's name before it says: × times "
        "fewer, less, wider or deeper; points are per cent of accuracy, below zero where what is named as lost was "
        "won, or the other way round; a decade is a factor of ten; σ are standard deviations of the hidden unit. "
        "Which way is good differs from one measure to the next: "
        f'under *{RULE}* stands what the whole interval must be for "supported". These thresholds were fixed in '
        "code before the run; how each is measured stands in the page that a run leaves (`batchnorm report`).",
        "",
        table(head),
    ]
    other = {}
    if others:
        lines += ["## On other seeds", ""]
        for another, _ in sorted(others, key=lambda run: run[0]["scale"] == head["scale"]):
            lines += [
                asked(another) + SCALES.format("It is") * (another["scale"] != head["scale"]),
                "",
            ]
            for study in another["studies"]:
                for v in study["verdicts"]:
                    other[v["study"], v["metric"]] = v | {"scale": another["scale"]}
        lines += [agreement(head, other)]
    lines += [section(study, other) for study in head["studies"]]
    return "\n".join(lines)


def rows_of(folder):
    """The lines of a run's trials, as they are or packed."""
    plain = folder / "trials.jsonl"
    return (plain.read_bytes() if plain.exists() else gzip.decompress((folder / "trials.jsonl.gz").read_bytes())).decode()  # fmt: skip


def short(text):
    """The same with the keys of trials cut.

    >>> short('["' + "0123456789abcdef" * 4 + '"]')
    '["0123456789ab"]'
    """
    keys = set(re.findall(r'"([0-9a-f]{64})"', text))
    if len({key[:KEY] for key in keys}) < len(keys):
        raise ValueError(f"{KEY} digits do not tell the keys of these trials apart: raise KEY")
    return re.sub(r'"[0-9a-f]{64}"', lambda key: f'{key[0][: 1 + KEY]}"', text)


def keep(folder, place):
    """What the page is drawn from, without paths of the machine; rows where they are small."""
    head = (folder / "manifest.json").read_text()
    for path in (str(folder), str(folder.resolve())):
        head = head.replace(path, f"runs/{place.name}")
    shown = json.loads(short(head))
    shown["trials"] = len({key for study in shown["studies"] for key in study["keys"]})
    shown["machine"]["system"] = shown["machine"]["system"].split("-")[0]
    rows = gzip.compress(short(rows_of(folder)).encode(), mtime=0)
    texts = {
        "manifest.json": shown,
        "verdicts.json": json.loads((folder / "verdicts.json").read_text()),
        "timing.json": json.loads(short((folder / "timing.json").read_text())),
    }
    made = {name: written(what) for name, what in texts.items()}
    if (size := len(rows) + sum(map(len, made.values()))) < MOST:
        made["trials.jsonl.gz"] = rows  # as `batchnorm report --measure` reads them
    else:
        print(f"{folder}: rows are not kept, {size:,} bytes with them")
        for study in shown["studies"]:
            del study["keys"]
        made["manifest.json"] = written(shown)
    place.mkdir(parents=True, exist_ok=True)
    for name, content in made.items():
        (place / name).write_bytes(content)


def written(what):
    return (json.dumps(what, ensure_ascii=False, indent=1) + "\n").encode()


def with_table(text, head):
    """README with its table drawn anew."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + table(head) + END + rest.split(END)[1]


def draw():
    """The page and README's table, from what is kept."""
    head, _ = read(KEPT / "full")
    others = [read(folder) for folder in sorted(KEPT.glob(OTHERS))]
    return page(head, others), with_table(README.read_text(), head)


def main(folder, *others):
    keep(folder, KEPT / "full")
    times = Counter()
    for other in others:
        scale = json.loads((other / "manifest.json").read_text())["scale"]
        times[scale] += 1
        number = f"_{times[scale]}" if times[scale] > 1 else ""
        keep(other, KEPT / f"other_{scale}{number}")
    told, readme = draw()
    PAGE.write_text(told)
    README.write_text(readme)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
