"""A run's folder in, one self-contained HTML page out; reads the disk and nothing else of ours."""

import json
import os
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cache
from math import floor, log10
from pathlib import Path
from typing import Any, cast

FORMAT = 1
PAGE = "report.html"
MINUS, NO_BREAK = "\N{MINUS SIGN}", "\N{NO-BREAK SPACE}"
WORDS = ["supported", "not supported", "contradicted", "inconclusive"]
STATUSES = ["done", "failed", "not applicable"]

Json = dict[str, Any]

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


def render(folder: str | Path) -> Path:
    """Draw the page of a run from its folder alone; the old page or the new one, never half.

    Args:
        folder: what ``batchnorm study`` wrote: ``manifest.json``, ``verdicts.json``,
            ``timing.json`` and ``charts/``.

    Returns:
        The page, ``report.html`` in the folder: one file that needs no network.

    Raises:
        ValueError: the folder is not a whole run's that this version reads; it says which file.

    Example:
        >>> render("no/such/folder")
        Traceback (most recent call last):
        ValueError: no folder 'no/such/folder': give the folder of a run, such as runs/study
    """
    path = Path(folder)
    text, page, draft = _page(path), path / PAGE, path / f"{PAGE}.part"
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, page)
    finally:
        draft.unlink(missing_ok=True)
    return page


def _page(folder: Path) -> str:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    run = _manifest(folder)
    again = f"run `{run['command']}` again, it goes on where it stopped"
    verdicts = _objects(_json(folder / "verdicts.json", again), VERDICT, folder / "verdicts.json")
    timing = _json(folder / "timing.json", again)
    _check(timing, {"total_seconds": NUMBER}, folder / "timing.json", "the file")
    studies = [
        _study(study, [v for v in verdicts if v["study"] == study["name"]], folder, again)
        for study in run["studies"]
    ]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.policies["json.dumps_kwargs"] = {}  # unsorted: tables keep the rows' order
    ours = {"value": _value, "interval": _interval, "tally": _tally, "date": _date, "span": _span}
    environment.filters.update(cast(Json, ours))
    template = environment.from_string(Path(__file__).with_name(PAGE).read_text(encoding="utf-8"))
    keys = {key for study in studies for key in study.get("keys", ())}
    return template.render(
        run=run,
        studies=studies,
        trials=len(keys) or sum(study["trials"] for study in studies),
        seconds=timing["total_seconds"],
        vega=Markup(_vega()),
    )


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


def _study(study: Json, verdicts: list[Json], folder: Path, again: str) -> Json:
    """The study with its verdicts, its rules by letter, and its charts from their files."""
    rules = list(dict.fromkeys(v["threshold"] for v in verdicts))
    charts: list[Json] = []
    for chart in study["charts"]:
        name = chart.get("name") if isinstance(chart, dict) else None
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{folder / 'manifest.json'}: {name!r} cannot be the name of a chart")
        path = folder / "charts" / f"{name}.json"
        spec = _json(path, again)
        _check(spec, {}, path, "the file")
        charts.append(_chart(name, str(chart.get("title") or name), spec))
    letters = {rule: chr(ord("A") + i) for i, rule in enumerate(rules)}
    intervals = list(dict.fromkeys(v["interval"] for v in verdicts if v["interval"]))
    found = {"verdicts": verdicts, "rules": letters, "intervals": intervals, "charts": charts}
    return study | found


def _chart(name: str, title: str, spec: Json) -> Json:
    """The page shows the titles itself, in its own type."""
    # vega-embed takes orders from usermeta: where to load from, what to run.
    drawn = {k: v for k, v in spec.items() if k not in ("title", "usermeta", "$schema")}
    own = spec.get("title")
    note = own.get("subtitle", "") if isinstance(own, dict) else ""
    about = str(spec.get("description") or title)
    return {"name": name, "title": title, "note": note, "about": about, "spec": drawn}


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


def _value(verdict: Json) -> str:
    """The measured value with its unit; where only one end is known, that.

    >>> _value({"value": 9.5, "low": 9, "high": 10, "unit": "×"})
    '9.5×'
    >>> _value({"value": None, "low": None, "high": 0.5, "unit": "×"})
    'at most 0.500×'
    """
    value, low, high = _numbers(verdict)
    text = value or (f"at least {low}" if low else f"at most {high}" if high else "")
    unit = verdict["unit"]
    return text + (unit if unit in ("×", "") else NO_BREAK + unit) if text else "–"


def _interval(verdict: Json) -> str:
    """The interval in words, with the value's decimals; an end that is None is open.

    >>> _interval({"value": 2.0, "low": 2.0, "high": None, "unit": "×"})
    '2.00 or more'
    """
    _, low, high = _numbers(verdict)
    if not low and not high:
        return "–"
    if not low or not high:
        return f"{low} or more" if low else f"{high} or less"
    return f"{low} to {high}"


def _numbers(verdict: Json) -> list[str]:
    """Value, low and high with as many decimals as the largest needs for three digits."""
    numbers: list[float | None] = [verdict[name] for name in ("value", "low", "high")]
    largest = max((abs(n) for n in numbers if n), default=1.0)
    decimals = min(6, max(0, 2 - floor(log10(largest))))
    texts = ["" if n is None else f"{n:,.{decimals}f}" for n in numbers]
    return [text.replace("-", MINUS) for text in texts]


def _tally(verdicts: Sequence[Json]) -> Iterable[tuple[str, int]]:
    found = [v["verdict"] for v in verdicts]
    return [(word, found.count(word)) for word in WORDS if word in found]


def _date(moment: str) -> str:
    """A moment as people write it.

    >>> _date("2026-11-21T04:48:48+00:00")
    '21 November 2026, 04:48 UTC'
    """
    try:
        at = datetime.fromisoformat(moment)
    except ValueError:
        return moment
    return f"{at.day} {at:%B %Y, %H:%M} {at.tzname() or ''}".rstrip()


def _span(seconds: float) -> str:
    """A length of time.

    >>> _span(374.2)
    '6 min 14 s'
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


@cache
def _vega() -> str:
    from vl_convert import javascript_bundle

    # A script element ends at the first </script, wherever it stands.
    bundle = javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle.replace("</script", r"<\/script")
