"""Rows that a study of today cannot read, in words: what is missing, and the way out."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from batchnorm.studies._network import EMBEDDED
from batchnorm.studies._plan import Part, from_seed
from batchnorm.studies._sitting import described
from batchnorm.studies._trial import Setup, Trial, restored
from batchnorm.studies._workers import reason

Json = Mapping[str, Any]


def strange(error: Exception, part: Part, rows: int, entry: Json, head: Json) -> str:
    """Why a study cannot be measured from the rows of a run, and what to do instead.

    Args:
        error: what came of reading them.
        part: the study, and the trials that the run has for it.
        rows: how many there are.
        entry: what the run's manifest says of the study.
        head: the manifest.
    """
    name, ran = part.study.NAME, head.get("batchnorm")
    found = "; ".join(filter(None, [_sought(error, rows), _missing(part, head)]))
    again = f"run it again: {entry.get('command') or f'batchnorm study {name}'}"
    if ran and ran != version("batchnorm"):
        again = f"measure it with batchnorm {ran}, which ran it, or {again}"
    return f"its rows are not those that {name} reads today: {found}; {again}"


def _sought(error: Exception, rows: int) -> str:
    """What reading has come to."""
    if isinstance(error, KeyError) and error.args:
        return f"{error.args[0]!r} is looked for in vain in {rows} rows"
    if isinstance(error, StopIteration | IndexError):
        place = reason(error).rpartition(" (")[2].rstrip(")")
        return f"what {place} looks for is in none of {rows} rows"
    return f"{rows} rows gave {reason(error)}"


def _missing(part: Part, head: Json) -> str:
    """Which of the trials that the study has today the run does not, where that can be told."""
    if head.get("model") not in (None, *EMBEDDED):  # the user's own, which may not be here
        return ""
    wanted: list[Trial] | str = ""
    with suppress(Exception):  # a set-up of another version, or data that are not here
        wanted = part.study.trials(Setup(head["scale"], head["model"], head["data"]))
    if isinstance(wanted, str):
        return ""
    known = set(part.trials.values())
    today = [restored(asdict(trial)) for trial in from_seed(head.get("seed", 0), wanted)]
    lost = [trial for trial in today if trial not in known]
    if not lost:
        return ""
    options = "".join(f", {name} {value}" for name, value in lost[0].options)
    return (
        f"{len(lost)} of the {len(today)} trials that it has today are not in the run (the first "
        f"{described(lost[0])}{options})"
    )
