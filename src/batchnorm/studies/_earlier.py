"""What earlier runs have left: of the same one its dates, seconds and timings; another's page."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from batchnorm.studies._folder import MANIFEST, REPORT, TIMING, UNFINISHED, Folder

Timings = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Earlier:
    """Of a run whose trials this one goes on from; empty where there is none.

    Args:
        started: when it began, as the manifest writes it.
        finished: when it ended, if it did.
        seconds: spent so far.
        machine: on which its timings were taken.
        timings: by key.
    """

    started: str | None = None
    finished: str | None = None
    seconds: float = 0.0
    machine: dict[str, Any] | None = None
    timings: Timings = field(default_factory=dict[str, dict[str, Any]])


def earlier(folder: Folder, keys: Collection[str]) -> Earlier:
    """What the folder knows of a run that these trials' keys belong to.

    Args:
        folder: open.
        keys: of the trials that it has rows of and that are wanted now.
    """
    unfinished, timing = folder.read(UNFINISHED), folder.read(TIMING)
    if _shared(unfinished.get("keys", ()), keys):
        return _earlier(unfinished, unfinished)
    if folder.fresh:
        return Earlier()
    manifest = folder.read(MANIFEST)
    theirs = [key for study in manifest.get("studies", []) for key in study["keys"]]
    # Of another run, the timings of equal trials are as good; its dates and seconds are its own.
    return _earlier(manifest if _shared(theirs, keys) else {}, timing)


def replaced(folder: Folder, head: Mapping[str, Any], names: list[str]) -> str:
    """The command of the finished run whose page is in the folder; "" where it is this run's own.

    Args:
        folder: open.
        head: this run's manifest.
        names: of its studies.
    """
    theirs = folder.read(MANIFEST)
    if not theirs.get("finished") or not (folder.path / REPORT).exists():
        return ""
    same = all(theirs.get(field) == head[field] for field in ("scale", "model", "data", "seed"))
    if same and [study.get("name") for study in theirs.get("studies", [])] == names:
        return ""
    return str(theirs.get("command", ""))


def _shared(theirs: Iterable[str], ours: Collection[str]) -> bool:
    return any(key in ours for key in theirs)


def _earlier(dates: dict[str, Any], timing: dict[str, Any]) -> Earlier:
    return Earlier(
        started=dates.get("started"),
        finished=dates.get("finished"),
        seconds=timing.get("total_seconds", 0.0) if dates else 0.0,
        machine=timing.get("machine"),
        timings={entry["key"]: entry for entry in timing.get("trials", [])},
    )
