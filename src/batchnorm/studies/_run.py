"""One call from names of studies to a folder with verdicts, charts and a page."""

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from batchnorm._extras import way

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from batchnorm.studies._trial import Trial
    from batchnorm.studies._verdict import Verdict

NEEDED = ("altair", "filelock", "jinja2", "loky", "vl_convert")


@dataclass(frozen=True)
class Share:
    """Where one study of a run stands.

    Args:
        study: its name.
        done: of its trials; some may be shared with other studies.
        total: its trials.
        state: "", or why no more of them are run: "failed", or "not applicable".
    """

    study: str
    done: int
    total: int
    state: str = ""


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Args:
        stage: "trials", "timing" (trials alone, for their seconds) or "page".
        done: trials of this stage that are finished, resumed ones included.
        total: trials of this stage.
        resumed: trials that an earlier run had finished.
        best: the highest validation accuracy so far, and the trial that reached it.
        seconds_left: until the page is drawn, as estimated: at first from a few steps of each
            network, later from the trials that have run; None where nothing is known yet.
        studies: where each study stands.
        replaces: the command that made the page which is in the folder, if that was another run:
            this run's will take its place.
    """

    stage: str
    done: int
    total: int
    resumed: int
    best: "tuple[float, Trial] | None" = None
    seconds_left: float | None = None
    studies: tuple[Share, ...] = ()
    replaces: str = ""


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
    verdicts: "list[Verdict]"
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
    seed: int = 0,
    out: str | Path = "runs/study",
    jobs: int | None = None,
    executor: "Executor | None" = None,
    fresh: bool = False,
    on_progress: Callable[[Progress], object] | None = None,
) -> Run:
    """Measure what the lectures claim of batch norm, and draw a page of it.

    Finished trials are kept in the folder ``out`` one by one. The same call goes on where an
    earlier one stopped, however it stopped, and never takes over rows of other code, other data or
    other versions.

    Args:
        names: "speed", "learning_rate", or another study, or several; all for None.
        model: "module:function", a function of yours without arguments that returns a network;
            None for the embedded one.
        data: a name that :func:`batchnorm.data.load` knows; None for the embedded digits.
        scale: "quick", a look in about a minute, or "full", with more seeds and steps.
        seed: the first of the seeds; with another one, the same studies on other initial weights,
            orders of examples and draws (the data stay divided as they are).
        out: the run's folder: a new one, an empty one, or an earlier run's.
        jobs: processes to run trials in, with one thread each; None for one on each core.
        executor: any ``concurrent.futures`` executor to run them in instead.
        fresh: forget what an earlier run finished in ``out``.
        on_progress: called with :class:`Progress` as trials end.

    Returns:
        The verdicts, and the studies that failed or do not apply, with the reason.

    Raises:
        ValueError: a wrong name, scale, seed, number of jobs, data set, model or folder. Nothing
            has been written then.
        TypeError: an object where a name is expected; likewise.
        OSError: the folder is in use by another run, or cannot be written.
        ImportError: the libraries of ``batchnorm[study]`` are not installed.

    >>> study("sped")
    Traceback (most recent call last):
    ValueError: no study 'sped': did you mean 'speed'? possible: speed, ...
    """
    _check_installed()
    # Here, so that importing the package stays cheap.
    from batchnorm.studies import _asked as asked
    from batchnorm.studies._carry_out import carry_out
    from batchnorm.studies._context import Context
    from batchnorm.studies._folder import check
    from batchnorm.studies._manifest import about
    from batchnorm.studies._plan import chosen, planned

    studies, setup = chosen(names), asked.setup_of(model, data, scale, seed)
    asked.check_calls(executor, on_progress, fresh)
    workers, folder = asked.processes(jobs), asked.folder_of(out)
    check(folder)
    context = Context()
    parts = planned(studies, setup, context)
    head = about(parts, setup, context, folder, workers if executor is None else None)
    return carry_out(parts, head, folder, context, workers, executor, fresh, on_progress)


@dataclass(frozen=True)
class Plan:
    """What one study would do.

    Args:
        name: to ask for it by.
        lecture: where the claim is made.
        title: the claim.
        trials: how many there are.
        seconds: on this machine, as estimated, were it the only one; None where none is known.
        reason: why there are no trials: it does not apply, or cannot be planned.
    """

    name: str
    lecture: str
    title: str
    trials: int = 0
    seconds: float | None = None
    reason: str = ""


def overview(
    names: str | Iterable[str] | None = None,
    *,
    model: str | None = None,
    data: str | None = None,
    scale: str = "quick",
    seed: int = 0,
    jobs: int | None = None,
) -> tuple[list[Plan], float | None]:
    """What :func:`study` would do with the same arguments, and how long all would take.

    Trials that studies share are in each study's seconds, and once in those of all.

    Raises:
        ValueError, TypeError, ImportError: as :func:`study`.
    """
    _check_installed()
    from batchnorm.studies import _asked as asked
    from batchnorm.studies._context import Context
    from batchnorm.studies._overview import plans
    from batchnorm.studies._plan import chosen, planned

    studies, setup = chosen(names), asked.setup_of(model, data, scale, seed)
    context = Context()
    return plans(planned(studies, setup, context), context, asked.processes(jobs))


def remeasure(folder: str | Path) -> Run:
    """Verdicts, charts, tables and page anew from the rows of a run; nothing is trained.

    The rows are taken as they are, whatever has changed since: it is today's studies that judge
    them, in today's words, and the page says so. Of the folder this needs ``manifest.json``,
    ``timing.json`` and ``trials.jsonl``, or that packed as ``trials.jsonl.gz``.

    Args:
        folder: the folder of a run.

    Returns:
        What the run found, as measured now; a study whose rows are not all there has failed.

    Raises:
        ValueError: no folder of a run, one without rows or timings, or one of a later format.
        OSError: the folder is in use by a run, or cannot be written.
        ImportError: the libraries of ``batchnorm[study]`` are not installed.

    >>> remeasure("no/such/folder")
    Traceback (most recent call last):
    ValueError: no run in the folder 'no/such/folder': give the folder of a run, such as runs/study
    """
    _check_installed()
    from batchnorm.studies._remeasure import remeasure as measured_anew

    return measured_anew(Path(folder))


def _check_installed() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"studies need {', '.join(missing)}, not installed here: {way('study')}")
