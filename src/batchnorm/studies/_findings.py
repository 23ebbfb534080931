"""What a run found, put in the place of what an earlier one did: all of it or nothing."""

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from batchnorm.studies._folder import (
    CHARTS,
    MANIFEST,
    PART,
    REPORT,
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

    draft = Folder(folder.path / DRAFT)
    shutil.rmtree(draft.path, ignore_errors=True)
    try:
        draft.path.mkdir()
        draft.write(MANIFEST, manifest)
        draft.write(TIMING, timing)
        for name, chart in charts.items():
            draft.write(f"{CHARTS}/{name}.json", chart)
        draft.write(VERDICTS, [asdict(verdict) for verdict in verdicts])
        try:
            render(draft.path)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(folder.path / REPORT)) from error
        _change_places(draft.path, folder)
    finally:
        shutil.rmtree(draft.path, ignore_errors=True)


def _change_places(draft: Path, folder: Folder) -> None:
    folder.remove_findings()
    # The manifest first: it names the charts that are ours, whatever stops us after it.
    names = [MANIFEST, *(f"{CHARTS}/{path.name}" for path in draft.glob(f"{CHARTS}/*"))]
    for name in [*names, TIMING, VERDICTS, REPORT]:
        if (draft / name).exists():
            (folder.path / name).parent.mkdir(exist_ok=True)
            os.replace(draft / name, folder.path / name)
    (folder.path / UNFINISHED).unlink(missing_ok=True)
