"""What a run found, put in the place of what an earlier one did: all of it or nothing."""

import json
import os
import shutil
from collections.abc import Generator, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from batchnorm.studies._folder import (
    CHARTS,
    MANIFEST,
    PART,
    REPORT,
    TABLES,
    TIMING,
    UNFINISHED,
    VERDICTS,
    Folder,
)
from batchnorm.studies._verdict import Verdict

DRAFT = "findings" + PART


def publish(
    folder: Folder,
    manifest: Mapping[str, Any],
    timing: Mapping[str, Any],
    verdicts: Iterable[Verdict],
    charts: Mapping[str, Any],
) -> None:
    """Write it all beside the old findings, draw the page, and only then let them change places.

    Until then the old page stands, with everything it was made of. A kill while they change places
    leaves no page rather than one from two runs; the same command makes it again.

    Raises:
        OSError: the disk is full or not writable; the old findings are as they were.
    """
    from batchnorm.report import render

    found = [asdict(verdict) for verdict in verdicts]
    draft = Folder(folder.path / DRAFT)
    shutil.rmtree(draft.path, ignore_errors=True)
    try:
        draft.path.mkdir()
        draft.write(MANIFEST, manifest)
        draft.write(TIMING, timing)
        for name, content in _files(found, charts):
            draft.put(name, content)
        draft.write(VERDICTS, found)
        try:
            render(draft.path)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(folder.path / REPORT)) from error
        _change_places(draft.path, folder)
    finally:
        shutil.rmtree(draft.path, ignore_errors=True)


def _files(
    verdicts: list[dict[str, Any]], charts: Mapping[str, Any]
) -> Generator[tuple[str, bytes]]:
    """Every chart as JSON, pictures and a table, and the verdicts as a table."""
    from batchnorm.charts import pictures, rows_of, table

    yield f"{TABLES}/verdicts.csv", table(verdicts)
    for name, chart in charts.items():
        text = json.dumps(chart, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        yield f"{CHARTS}/{name}.json", text.encode()
        yield f"{TABLES}/{name}.csv", table(rows_of(chart))
        # One that cannot be drawn has no picture: the page says so in its place.
        with suppress(ValueError):
            for kind, content in pictures(chart).items():
                yield f"{CHARTS}/{name}.{kind}", content


def _change_places(draft: Path, folder: Folder) -> None:
    folder.remove_findings()
    # The manifest first: it names the charts that are ours, whatever stops us after it.
    made = sorted(str(path.relative_to(draft)) for path in draft.glob("*/*"))
    for name in [MANIFEST, *made, TIMING, VERDICTS, REPORT]:
        if (draft / name).exists():
            (folder.path / name).parent.mkdir(exist_ok=True)
            os.replace(draft / name, folder.path / name)
    (folder.path / UNFINISHED).unlink(missing_ok=True)
