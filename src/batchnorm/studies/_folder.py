"""A run's folder: finished trials a line at a time, everything else whole or not at all."""

import errno
import json
import os
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from batchnorm.studies._kept import rounded
from batchnorm.train import Row

FORMAT = 1
MANIFEST, TRIALS, TIMING = "manifest.json", "trials.jsonl", "timing.json"
UNFINISHED = "unfinished.json"  # how far the run has come that has no page yet
VERDICTS, CHARTS, REPORT, LOCK = "verdicts.json", "charts", "report.html", ".lock"
TABLES = "tables"
PART = ".part"
WAY_OUT = "choose another folder (--out, or out=...)"


@dataclass
class Folder:
    """An open run's folder; :func:`opened` makes one.

    Args:
        path: the folder.
        finished: rows of every trial that was ever finished here, by key.
        fresh: what an earlier run finished here is forgotten.
    """

    path: Path
    finished: dict[str, list[Row]] = field(default_factory=dict[str, list[Row]])
    fresh: bool = False

    def look(self) -> None:
        """Know what is on the disk: an interruption may come when a line is there and not known."""
        self.finished.update(_finished(self.path / TRIALS))

    def add(self, key: str, trial: Mapping[str, Any], rows: list[Row]) -> None:
        """Append one finished trial; when this returns, it is on the disk.

        Raises:
            OSError: the disk is full or not writable. What was written of the line is dropped when
                the folder is opened again.
            ValueError: a number in ``rows`` that is not finite.
        """
        record = {"key": key, "trial": trial, "rows": rounded(rows)}
        line = json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n"
        with open(self.path / TRIALS, "ab", buffering=0) as file:
            _write(file, line.encode())
        # As the file gives them back, so that a resumed run sees the very same values.
        self.finished[key] = json.loads(line)["rows"]

    def write(self, name: str, value: Any) -> None:
        """Write ``value`` as JSON to the file ``name``: the old file or the new one, never half.

        Raises:
            OSError: the disk is full or not writable.
            ValueError: a number in ``value`` that is not finite.
        """
        text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        self.put(name, text.encode())

    def put(self, name: str, content: bytes) -> None:
        """Write the file ``name``: the old file or the new one, never half.

        Raises:
            OSError: the disk is full or not writable.
        """
        target = self.path / name
        target.parent.mkdir(exist_ok=True)
        draft = target.with_name(target.name + PART)
        try:
            with open(draft, "wb", buffering=0) as file:
                _write(file, content)
            os.replace(draft, target)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise

    def read(self, name: str) -> dict[str, Any]:
        """The JSON object in the file ``name``; empty where there is none that can be read."""
        return read(self.path / name)

    def remove_findings(self) -> None:
        """Remove what an earlier run made of its trials; the trials stay, and all that is not ours.

        The manifest stays until a new one takes its place: it names the charts that are ours and
        tells the next run, whatever happens to this one, whose folder this is.
        """
        charts = [c["name"] for s in self.read(MANIFEST).get("studies", []) for c in s["charts"]]
        for name in [REPORT, VERDICTS, *files_of(charts)]:
            (self.path / name).unlink(missing_ok=True)
        for folder in (CHARTS, TABLES):
            with suppress(OSError):  # not there, or not empty: it also holds someone else's files
                (self.path / folder).rmdir()


def files_of(charts: Iterable[str]) -> list[str]:
    """What charts of these names, and the verdicts, leave in the folder besides the page.

    >>> files_of(["steps"])[:3]
    ['tables/verdicts.csv', 'charts/steps.json', 'charts/steps.svg']
    """
    made = [f"{TABLES}/{VERDICTS.removesuffix('.json')}.csv"]
    for name in charts:
        made += [f"{CHARTS}/{name}.{kind}" for kind in ("json", "svg", "png")]
        made.append(f"{TABLES}/{name}.csv")
    return made


def check(path: Path) -> None:
    """Touch nothing, and refuse a folder that a run must not write to, or cannot.

    Raises:
        ValueError: a file, a folder with other people's files, or one of a later format.
        OSError: it cannot be looked into or written to.
    """
    with _explained(path):
        _check_place(path)
        names = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
        manifest = read(path / MANIFEST)
    others = [name for name in names if name != LOCK and not name.endswith(PART)]
    if others and not ("batchnorm" in manifest and "format" in manifest):
        shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        raise ValueError(
            f"the output folder {str(path)!r} is not empty and is not the folder of a run (it "
            f"holds {shown}); nothing was touched: {WAY_OUT}"
        )
    if manifest and manifest["format"] != FORMAT:
        raise ValueError(
            f"the output folder {str(path)!r} is of format {manifest['format']}, this batchnorm "
            f"writes format {FORMAT}: {WAY_OUT}, or use the version that wrote it "
            f"(batchnorm {manifest['batchnorm']})"
        )


def _check_place(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise ValueError(f"the output folder {str(path)!r} is a file: {WAY_OUT}")
    nearest = next(place for place in (path, *path.parents) if place.exists())
    if not nearest.is_dir():
        raise ValueError(
            f"the output folder {str(path)!r} cannot be made: {str(nearest)!r} is a file: {WAY_OUT}"
        )
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextmanager
def _explained(path: Path) -> Generator[None]:
    """Errors of the system with the folder's name and the way out."""
    try:
        yield
    except OSError as error:
        raise type(error)(
            f"the output folder {str(path)!r} cannot be used ({error.strerror}): {WAY_OUT}"
        ) from error


@contextmanager
def opened(path: Path, *, fresh: bool = False) -> Generator[Folder]:
    """The folder, made where it is missing, locked against other runs while the context lasts.

    The lock is the operating system's: it goes with the process, however that ends.

    Args:
        path: where.
        fresh: forget the trials that an earlier run finished here; its page stays until there is a
            new one.

    Raises:
        ValueError: as :func:`check`.
        OSError: another run has it open, or it cannot be written.
    """
    from filelock import FileLock, Timeout

    check(path)
    with _explained(path):
        path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / LOCK)
    try:
        with _explained(path):
            lock.acquire(timeout=0)
    except Timeout:
        raise BlockingIOError(
            f"the output folder {str(path)!r} is in use by another run: wait until it ends, stop "
            f"it, or {WAY_OUT}"
        ) from None
    try:
        check(path)
        folder = Folder(path, fresh=fresh)
        for name in (TRIALS, UNFINISHED) if fresh else ():
            (path / name).unlink(missing_ok=True)
        folder.look()
        yield folder
    finally:
        lock.release()


def read(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none that can be read."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _finished(path: Path) -> dict[str, list[Row]]:
    """Rows by key; a torn last line is cut off, so that the next starts on a line of its own."""
    if not path.exists():
        return {}
    with open(path, "r+b") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)
    finished: dict[str, list[Row]] = {}
    for line in content[:whole].splitlines():
        # A line that the disk has spoiled is a trial that is run again.
        with suppress(ValueError, KeyError, TypeError):
            record = json.loads(line)
            finished[record["key"]] = record["rows"]
    return finished


def _write(file: BinaryIO, content: bytes) -> None:
    try:
        while content:
            content = content[file.write(content) :]
        os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, file.name) from error
