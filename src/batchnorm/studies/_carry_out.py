"""A plan carried out: trials, verdicts, charts and the page, in a locked folder."""

from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from batchnorm.studies._context import Context
from batchnorm.studies._earlier import replaced
from batchnorm.studies._findings import publish
from batchnorm.studies._folder import MANIFEST, opened
from batchnorm.studies._manifest import entry
from batchnorm.studies._plan import Part, rows_of
from batchnorm.studies._run import Progress, Run
from batchnorm.studies._sitting import Sitting
from batchnorm.studies._trial import Setup
from batchnorm.studies._workers import reason
from batchnorm.train import Row


def carry_out(
    parts: list[Part],
    head: dict[str, Any],
    path: Path,
    context: Context,
    jobs: int,
    executor: Executor | None = None,
    fresh: bool = False,
    on_progress: Callable[[Progress], object] | None = None,
) -> Run:
    """Run what is planned, and write down what comes of it."""
    setup = Setup(head["scale"], head["model"], head["data"], head["seed"])
    with opened(path, fresh=fresh) as folder:
        lost = replaced(folder, head, [part.study.NAME for part in parts])
        told: Callable[[Progress], object] = on_progress or (lambda progress: None)
        sitting = Sitting(folder, parts, context, jobs, executor, told, lost)
        head = {**head, "started": sitting.started}
        # That of a finished run stays, with its page, until this one has a page too.
        if not folder.read(MANIFEST).get("finished"):
            folder.write(
                MANIFEST, {**head, "studies": [entry(part, setup, path) for part in parts]}
            )
        sitting.save()
        try:
            sitting.run_trials()
            sitting.run_timings()
        except KeyboardInterrupt:
            folder.look()
            sitting.tell_trials()
            raise
        finally:
            sitting.save()
        sitting.tell("page", 0, 1)
        for part in parts:
            judge(part, folder.finished, sitting.seconds(part))
        publish(
            folder,
            {
                **head,
                "finished": sitting.finished,
                "studies": [entry(part, setup, path) for part in parts],
            },
            sitting.timing,
            [verdict for part in parts for verdict in part.verdicts],
            {name: chart for part in parts for name, chart in part.charts.items()},
        )
    return Run(
        path,
        [verdict for part in parts for verdict in part.verdicts],
        {part.study.NAME: part.failed for part in parts if part.failed},
        {part.study.NAME: part.not_applicable for part in parts if part.not_applicable},
        {part.study.NAME: part.study.TITLE for part in parts},
        len(sitting.trials),
        sitting.resumed,
    )


def judge(
    part: Part, finished: dict[str, list[Row]], seconds: list[dict[str, Any]]
) -> Exception | None:
    """Verdicts and charts from the rows; what goes wrong there costs this study only.

    Returns:
        What went wrong.
    """
    if part.failed or part.not_applicable:
        return None
    rows = [*rows_of(part, finished), *seconds]
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
        return error
    return None
