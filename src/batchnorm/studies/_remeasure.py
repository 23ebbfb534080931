"""Verdicts and charts anew from a run's rows, by the studies of today; nothing is trained."""

import gzip
import json
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from batchnorm.studies._asked import STUDIES
from batchnorm.studies._carry_out import judge
from batchnorm.studies._findings import publish
from batchnorm.studies._folder import MANIFEST, TIMING, TRIALS, opened
from batchnorm.studies._manifest import found, now, words
from batchnorm.studies._plan import Part, chosen
from batchnorm.studies._run import Run
from batchnorm.studies._strange import strange
from batchnorm.studies._trial import restored

PACKED = TRIALS + ".gz"

Json = dict[str, Any]


def remeasure(path: Path) -> Run:
    """As :func:`batchnorm.studies.remeasure`, with the libraries that it needs."""
    if not (path / MANIFEST).is_file():
        raise ValueError(
            f"no run in the folder {str(path)!r}: give the folder of a run, such as runs/study"
        )
    with opened(path) as folder:
        head, timing = folder.read(MANIFEST), folder.read(TIMING)
        records = _records(path)
        if not timing:
            raise ValueError(f"{path / TIMING} is missing or is not whole: copy it from the run")
        parts = {
            entry["name"]: _part(entry, records, timing, head)
            for entry in head["studies"]
            if entry["name"] in STUDIES
        }
        studies = [
            _entry(entry, parts.get(entry["name"]), head["model"]) for entry in head["studies"]
        ]
        measured = {"at": now(), "batchnorm": version("batchnorm")}
        verdicts = [verdict for part in parts.values() for verdict in part.verdicts]
        publish(
            folder,
            {**head, "measured": measured, "studies": studies},
            timing,
            verdicts,
            {name: chart for part in parts.values() for name, chart in part.charts.items()},
        )
    why: dict[str, dict[str, str]] = {status: {} for status in ("done", "failed", "not applicable")}
    for entry in studies:
        why[entry["status"]][entry["name"]] = entry["reason"]
    titles = {entry["name"]: entry["title"] for entry in studies}
    count = len(records)
    return Run(path, verdicts, why["failed"], why["not applicable"], titles, count, count)


def _records(path: Path) -> dict[str, Json]:
    """Every finished trial by key, from ``trials.jsonl`` or, where that is missing, packed."""
    if (path / TRIALS).is_file():
        lines = (path / TRIALS).read_bytes().splitlines()
    elif (path / PACKED).is_file():
        try:
            lines = gzip.decompress((path / PACKED).read_bytes()).splitlines()
        except (OSError, EOFError) as error:
            raise ValueError(f"{path / PACKED} is not whole ({error}): copy it again") from error
    else:
        raise ValueError(
            f"{path / TRIALS} is missing, and {PACKED} too: without rows nothing can be measured; "
            "copy it from the run"
        )
    records: dict[str, Json] = {}
    for line in lines:
        with suppress(ValueError, KeyError, TypeError):  # a spoiled line is a trial that is missing
            record = json.loads(line)
            if isinstance(record["trial"], dict) and isinstance(record["rows"], list):
                records[record["key"]] = record
    return records


def _part(entry: Json, records: dict[str, Json], timing: Json, head: Json) -> Part:
    """One study, judged from its rows."""
    part = Part(chosen(entry["name"])[0])
    keys: list[str] = entry.get("keys", [])
    missing = sum(key not in records for key in keys)
    if entry["status"] == "not applicable":
        part.not_applicable = entry["reason"]
    elif missing or not keys:
        lost = f"{missing} of its {len(keys)} trials are not in the folder"
        unknown = "its manifest has no 'keys' of trials: copy manifest.json from the run"
        part.failed = entry["reason"] or (lost if keys else unknown)
    else:
        rows = {key: records[key]["rows"] for key in keys}
        try:
            part.trials = {key: restored(records[key]["trial"]) for key in keys}
            error = judge(part, rows, _seconds(entry, timing))
        except Exception as strange_fields:
            error = strange_fields
        if error is not None:
            part.failed = strange(error, part, sum(map(len, rows.values())), entry, head)
    return part


def _seconds(entry: Json, timing: Json) -> list[Json]:
    """The timed trials of a study, as :meth:`Sitting.seconds` gives them."""
    return [
        {**asdict(restored(took["trial"])), "key": took["key"], "seconds": took["seconds"]}
        | {"turns": took.get("each", [])}
        for took in timing.get("trials", [])
        if took["key"] in entry.get("timings", ())
    ]


def _entry(entry: Json, part: Part | None, model: str | None) -> Json:
    """What the manifest says of a study: how it was run stays, what is said and found is anew."""
    if part is None:
        why = "this batchnorm has no study of that name"
        return {**entry, "status": "failed", "reason": why, "charts": []}
    return {**entry, **words(part, model), **found(part)}
