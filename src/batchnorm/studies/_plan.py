"""What a run will do, decided and checked before anything is written."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from typing import Any, Protocol, cast

from batchnorm.studies._asked import names_of
from batchnorm.studies._context import Context, Stamp
from batchnorm.studies._fits import check_fits
from batchnorm.studies._trial import Setup, Trial
from batchnorm.studies._verdict import Verdict
from batchnorm.studies._workers import reason


class Study(Protocol):
    """A claim's module: the words, the trials, and what is made of their rows."""

    NAME: str
    LECTURE: str
    TITLE: str
    CLAIM: str
    METHOD: str
    PUBLISHED: str
    trials: Callable[[Setup], list[Trial] | str]
    measure: Callable[[list[dict[str, Any]]], list[Verdict]]
    charts: Callable[[list[dict[str, Any]]], dict[str, Any]]
    timings: Callable[[Setup], list[Trial]]  # may be missing


@dataclass
class Part:
    """One study in a run: its trials by key, and what became of it.

    Args:
        study: the claim's module.
        trials: the trials that it needs.
        stamps: what the rows of its trials and timings stand for, by key.
        timings: the trials that are run alone, for their seconds.
        not_applicable: why this set-up has nothing to say about the claim.
        failed: why there are no verdicts.
        verdicts: what was found.
        charts: Vega-Lite by file name.
    """

    study: Study
    trials: dict[str, Trial] = field(default_factory=dict[str, Trial])
    timings: dict[str, Trial] = field(default_factory=dict[str, Trial])
    stamps: dict[str, Stamp] = field(default_factory=dict[str, Stamp])
    not_applicable: str | None = None
    failed: str | None = None
    verdicts: list[Verdict] = field(default_factory=list[Verdict])
    charts: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])

    @property
    def status(self) -> str:
        if self.not_applicable:
            return "not applicable"
        return "failed" if self.failed else "done"


def chosen(names: object) -> list[Study]:
    """The studies of these names, each once; all of them for None or no names.

    Raises:
        ValueError: a name that is no study's.
        TypeError: neither a name nor several.

    >>> [study.NAME for study in chosen("speed")]
    ['speed']
    """
    modules = [import_module(f"batchnorm.studies.{name}") for name in names_of(names)]
    return cast("list[Study]", modules)


def planned(studies: Iterable[Study], setup: Setup, context: Context) -> list[Part]:
    """Every study's trials under their keys; a study that cannot be planned is one that failed.

    Raises:
        ValueError: no such data set, a model that cannot be trained on the data, or no study that
            can be planned.
    """
    examples = context.examples(setup.data)
    if setup.model is not None:
        context.model(setup.model)
        check_fits(setup.model, setup.data, examples)
    parts = [_part(study, setup, context) for study in studies]
    for arm in (False, True) if setup.model is not None else ():
        mine = [part for part in parts if any(t.batch_norm == arm for t in part.trials.values())]
        try:
            if mine:
                check_fits(str(setup.model), setup.data, examples, batch_norm=arm)
        except ValueError as error:
            failed = [Part(part.study, failed=str(error)) for part in mine]
            parts = [failed[mine.index(part)] if part in mine else part for part in parts]
    if parts and all(part.failed for part in parts):
        raise ValueError(parts[0].failed)
    return parts


def _part(study: Study, setup: Setup, context: Context) -> Part:
    try:
        trials = study.trials(setup)
        if isinstance(trials, str):
            return Part(study, not_applicable=trials)
        timings = study.timings(setup) if hasattr(study, "timings") else []
        trials, timings = from_seed(setup.seed, trials), from_seed(setup.seed, timings)
        stamps = {trial: context.of(trial) for trial in [*trials, *timings]}
    except Exception as error:
        return Part(study, failed=str(error) if isinstance(error, ValueError) else reason(error))
    part = Part(study)
    part.trials = {trial.key(str(stamps[trial])): trial for trial in trials}
    part.timings = {trial.key(str(stamps[trial])): trial for trial in timings}
    part.stamps = {trial.key(str(stamp)): stamp for trial, stamp in stamps.items()}
    return part


def from_seed(first: int, trials: Iterable[Trial]) -> list[Trial]:
    """The trials with other seeds: as many, one after another, from the first."""
    return [replace(trial, seed=first + trial.seed) for trial in trials]


def rows_of(part: Part, finished: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """The rows of a study's trials, in the order of its trials: fields, options, key, values."""
    return [
        {**asdict(trial), **dict(trial.options), "key": key, **row}
        for key, trial in part.trials.items()
        for row in finished[key]
    ]
