"""One call from names of studies to a folder with verdicts, charts and a page."""

import importlib.util
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from batchnorm.studies._context import Context
from batchnorm.studies._folder import (
    CHARTS,
    MANIFEST,
    VERDICTS,
    Folder,
    check,
    opened,
)
from batchnorm.studies._manifest import about, entry, now
from batchnorm.studies._plan import Part, chosen, planned, processes, rows_of
from batchnorm.studies._sitting import Progress, Sitting
from batchnorm.studies._trial import Setup
from batchnorm.studies._verdict import Verdict
from batchnorm.studies._workers import reason

NEEDED = ("altair", "filelock", "jinja2", "loky", "vl_convert")


@dataclass(frozen=True)
class Run:
    """What a run found.

    Args:
        folder: where everything is.
        verdicts: in the order of the studies; a study's headline first.
        failed: why a study has no verdict, by study.
        not_applicable: why a study has nothing to say on this set-up, by study.
        titles: every study's title, by study, in the order in which they were judged.
        trials: how many there were.
        resumed: how many of them an earlier run had finished.
    """

    folder: Path
    verdicts: list[Verdict]
    failed: dict[str, str] = field(default_factory=dict[str, str])
    not_applicable: dict[str, str] = field(default_factory=dict[str, str])
    titles: dict[str, str] = field(default_factory=dict[str, str])
    trials: int = 0
    resumed: int = 0

    @property
    def report(self) -> Path:
        """The page."""
        return self.folder / "report.html"

    def __repr__(self) -> str:
        headlines = {verdict.study: verdict for verdict in reversed(self.verdicts)}
        lines = [f"Run({str(self.folder)!r}, {self.trials} trials, {self.resumed} resumed)"]
        lines += [f"  {name}: {v.verdict}" for name, v in reversed(headlines.items())]
        lines += [f"  {name}: not applicable, {why}" for name, why in self.not_applicable.items()]
        lines += [f"  {name}: failed, {why}" for name, why in self.failed.items()]
        return "\n".join([*lines, f"  {self.report}"])


def study(
    names: str | Iterable[str] | None = None,
    *,
    model: str | None = None,
    data: str | None = None,
    scale: str = "quick",
    out: str | Path = "runs/study",
    jobs: int | None = None,
    executor: Executor | None = None,
    fresh: bool = False,
    on_progress: Callable[[Progress], object] | None = None,
) -> Run:
    """Measure what the lectures claim of batch norm, and draw a page of it.

    Finished trials are kept in the folder ``out`` one by one. The same call goes on where an
    earlier one stopped, however it stopped, and never takes over rows of other code, other data or
    other versions.

    Args:
        names: "speed", "learning_rate", or several of them; all for None.
        model: "module:function", a function of yours without arguments that returns a network;
            None for the embedded one.
        data: a name that :func:`batchnorm.data.load` knows; None for the embedded digits.
        scale: "quick", a look in about a minute, or "full", with more seeds and steps.
        out: the run's folder: a new one, an empty one, or an earlier run's.
        jobs: processes to run trials in, with one thread each; None for one on each core.
        executor: any ``concurrent.futures`` executor to run them in instead.
        fresh: forget what an earlier run finished in ``out``.
        on_progress: called with :class:`Progress` as trials end.

    Returns:
        The verdicts, and the studies that failed or do not apply, with the reason.

    Raises:
        ValueError: a wrong name, scale, number of jobs, data set, model or folder. Nothing has
            been written then.
        OSError: the folder is in use by another run, or cannot be written.
        ImportError: the libraries of ``batchnorm[study]`` are not installed.

    >>> study("sped")
    Traceback (most recent call last):
    ValueError: no study 'sped': did you mean 'speed'? Possible: speed, learning_rate
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"studies need {', '.join(missing)}, not installed here: pip install 'batchnorm[study]'"
        )
    studies, folder, context = chosen(names), Path(out), Context()
    workers = processes(jobs)
    check(folder)
    setup = Setup(scale=scale, model=model, data=Setup.data if data is None else data)
    parts = planned(studies, setup, context)
    head = about(parts, setup, context, folder, workers if executor is None else None)
    return carry_out(parts, head, folder, workers, executor, fresh, on_progress)


def carry_out(
    parts: list[Part],
    head: dict[str, Any],
    path: Path,
    jobs: int,
    executor: Executor | None = None,
    fresh: bool = False,
    on_progress: Callable[[Progress], object] | None = None,
) -> Run:
    """Run what is planned, and write down what comes of it."""
    with opened(path, fresh=fresh) as folder:
        sitting = Sitting(folder, parts, on_progress or (lambda progress: None))
        folder.clear(trials=False)
        folder.write(MANIFEST, {**head, "studies": [entry(part) for part in parts]})
        try:
            sitting.run_trials(jobs, executor)
            sitting.run_timings(executor)
        finally:
            sitting.write_timing()
        sitting.tell("page", 0, 1)
        for part in parts:
            _judge(part, folder, sitting.seconds(part))
        _write_findings(folder, head, parts)
    return Run(
        path,
        [verdict for part in parts for verdict in part.verdicts],
        {part.study.NAME: part.failed for part in parts if part.failed},
        {part.study.NAME: part.not_applicable for part in parts if part.not_applicable},
        {part.study.NAME: part.study.TITLE for part in parts},
        len(sitting.trials),
        sitting.resumed,
    )


def _judge(part: Part, folder: Folder, seconds: list[dict[str, Any]]) -> None:
    """Verdicts and charts from the rows; what goes wrong there costs this study only."""
    if part.failed or part.not_applicable:
        return
    rows = [*rows_of(part, folder.finished), *seconds]
    try:
        part.verdicts = part.study.measure(rows)
        charts = part.study.charts(rows)
        prefix = part.study.NAME + "-"
        part.charts = {
            prefix + name.removeprefix(prefix): chart.to_dict() for name, chart in charts.items()
        }
    except Exception as error:
        part.verdicts, part.charts = [], {}
        part.failed = f"{reason(error)}, in measuring {len(rows)} rows"


def _write_findings(folder: Folder, head: dict[str, Any], parts: list[Part]) -> None:
    from batchnorm.report import render

    manifest = {**head, "studies": [entry(part) for part in parts]}
    # Named in the manifest before they are there: whatever stops us, charts are known as ours.
    folder.write(MANIFEST, manifest)
    for part in parts:
        for name, chart in part.charts.items():
            folder.write(f"{CHARTS}/{name}.json", chart)
    folder.write(VERDICTS, [asdict(verdict) for part in parts for verdict in part.verdicts])
    folder.write(MANIFEST, {**manifest, "finished": now()})
    render(folder.path)
