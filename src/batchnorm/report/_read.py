"""A run's folder as the page needs it: read, checked, and what is wrong named."""

import json
from pathlib import Path
from typing import Any, cast

from batchnorm.report._words import WORDS

Json = dict[str, Any]

FORMAT = 1
STATUSES = ["done", "failed", "not applicable"]

# What the page needs of each file: a field's type, or the list of what it may say.
NUMBER = (int, float)
TEXT_OR_NONE, NUMBER_OR_NONE = (str, type(None)), (*NUMBER, type(None))
MANIFEST: Json = {
    **dict.fromkeys(("batchnorm", "torch", "numpy", "python", "started", "scale", "data"), str),
    **{"network": str, "command": str, "finished": TEXT_OR_NONE, "model": TEXT_OR_NONE},
    **{"machine": dict, "seeds": list, "studies": list},
}
MACHINE: Json = {"cpu": TEXT_OR_NONE, "cores": NUMBER_OR_NONE, "system": str}
STUDY: Json = {
    **dict.fromkeys(("name", "lecture", "title", "claim", "method", "published"), str),
    **{"trials": int, "status": STATUSES, "reason": TEXT_OR_NONE, "charts": list},
}
VERDICT: Json = {
    **dict.fromkeys(("study", "claim", "metric", "unit", "threshold"), str),
    **dict.fromkeys(("note", "interval", "caution"), str),
    **dict.fromkeys(("value", "low", "high"), NUMBER_OR_NONE),
    "verdict": WORDS,
}
PICTURES = ("png", "svg")


def read(folder: Path) -> tuple[Json, list[Json], float]:
    """What the run says of itself, its studies with verdicts and charts, and its seconds.

    Raises:
        ValueError: the folder is not a whole run's that this version reads; it says which file.
    """
    run = _manifest(folder)
    again = f"run `{run['command']}` again, it goes on where it stopped"
    from_rows = f"{again}; or `batchnorm report --measure {folder}` makes it from the rows"
    verdicts = _objects(
        _json(folder / "verdicts.json", from_rows), VERDICT, folder / "verdicts.json"
    )
    timing = _json(folder / "timing.json", again)
    _check(timing, {"total_seconds": NUMBER}, folder / "timing.json", "the file")
    studies = [
        _study(study, [v for v in verdicts if v["study"] == study["name"]], folder, from_rows)
        for study in run["studies"]
    ]
    return run, studies, timing["total_seconds"]


def _manifest(folder: Path) -> Json:
    if not folder.is_dir():
        name = repr(str(folder))
        what = f"{name} is a file, not a folder" if folder.exists() else f"no folder {name}"
        raise ValueError(f"{what}: give the folder of a run, such as runs/study")
    path = folder / "manifest.json"
    run = _json(path, "give the folder of a run; `batchnorm study` writes runs/study")
    version = run.get("format") if isinstance(run, dict) else None
    if not isinstance(version, int):
        raise ValueError(f"{path} is not the manifest of a run: it has no format number")
    if version > FORMAT:
        raise ValueError(
            f"{path} is of format {version}, this batchnorm reads {FORMAT}: draw it with the "
            f"version that wrote it (batchnorm {run.get('batchnorm', 'unknown')}) or a later one"
        )
    _check(run, MANIFEST, path, "the manifest")
    _check(run["machine"], MACHINE, path, "the machine")
    _objects(run["studies"], STUDY, path)
    return run


def _study(study: Json, verdicts: list[Json], folder: Path, way_out: str) -> Json:
    """The study with its verdicts, its rules by letter, and its charts from their files."""
    rules = list(dict.fromkeys(v["threshold"] for v in verdicts))
    charts: list[Json] = []
    for chart in study["charts"]:
        name = chart.get("name") if isinstance(chart, dict) else None
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{folder / 'manifest.json'}: {name!r} cannot be the name of a chart")
        path = folder / "charts" / f"{name}.json"
        spec = _json(path, way_out)
        _check(spec, {}, path, "the file")
        drawn = _chart(name, str(chart.get("title") or name), spec)
        charts.append(drawn | {"files": _files(folder, name)})
    letters = {rule: chr(ord("A") + i) for i, rule in enumerate(rules)}
    intervals = list(dict.fromkeys(v["interval"] for v in verdicts if v["interval"]))
    found = {"verdicts": verdicts, "rules": letters, "intervals": intervals, "charts": charts}
    return {"meaning": "", "command": "", **study, **found}


def _files(folder: Path, name: str) -> list[tuple[str, str]]:
    """The chart elsewhere than on the page: kind and address, of those that are there."""
    places = [(kind, f"charts/{name}.{kind}") for kind in PICTURES]
    places.append(("csv", f"tables/{name}.csv"))
    return [(kind.upper(), place) for kind, place in places if (folder / place).exists()]


def _chart(name: str, title: str, spec: Json) -> Json:
    """The page shows the titles itself, in its own type."""
    # vega-embed takes orders from usermeta: where to load from, what to run.
    drawn = {k: v for k, v in spec.items() if k not in ("title", "usermeta", "$schema")}
    own = spec.get("title")
    note = own.get("subtitle", "") if isinstance(own, dict) else ""
    about = str(spec.get("description") or title)
    asks = any("bind" in param for param in cast("list[Json]", spec.get("params", [])))
    return {
        **{"name": name, "title": title, "note": note, "about": about, "spec": drawn},
        "asks": asks,  # it has a slider or the like, which a reader moves
    }


def _json(path: Path, way_out: str) -> Any:
    try:
        # Not everyone's JSON: NaN and Infinity would stop the page's script.
        return json.loads(path.read_bytes(), parse_constant=lambda _: None)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: {way_out}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not whole JSON ({error}): {way_out}") from None


def _objects(values: Any, fields: Json, path: Path) -> list[Json]:
    if not isinstance(values, list):
        raise ValueError(f"{path}: expected a list of objects, found {type(values).__name__}")
    for i, value in enumerate(cast(list[Any], values)):
        _check(value, fields, path, f"entry {i}")
    return cast(list[Json], values)


def _check(value: Any, fields: Json, path: Path, what: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{path}: {what} is not an object but {type(value).__name__}")
    for name, kind in fields.items():
        if name not in value:
            raise ValueError(f"{path}: {what} has no {name!r}; another batchnorm wrote it?")
        fits = value[name] in kind if type(kind) is list else isinstance(value[name], kind)
        if not fits:
            expected = f": expected one of {', '.join(kind)}" if type(kind) is list else ""
            raise ValueError(f"{path}: {name!r} of {what} cannot be {value[name]!r}{expected}")
