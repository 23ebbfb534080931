"""What a run will do, decided and checked before anything is written."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from importlib import import_module
from typing import Any, Protocol, cast

import torch

from batchnorm.studies._context import Context
from batchnorm.studies._network import build, own
from batchnorm.studies._trial import Setup, Trial
from batchnorm.studies._verdict import Verdict

STUDIES = ("speed", "learning_rate")
SCALES = ("quick", "full")


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
        timings: the trials that are run alone, for their seconds.
        not_applicable: why this set-up has nothing to say about the claim.
        failed: why there are no verdicts.
        verdicts: what was found.
        charts: Vega-Lite by file name.
    """

    study: Study
    trials: dict[str, Trial] = field(default_factory=dict[str, Trial])
    timings: dict[str, Trial] = field(default_factory=dict[str, Trial])
    not_applicable: str | None = None
    failed: str | None = None
    verdicts: list[Verdict] = field(default_factory=list[Verdict])
    charts: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])

    @property
    def status(self) -> str:
        if self.not_applicable:
            return "not applicable"
        return "failed" if self.failed else "done"


def chosen(names: str | Iterable[str] | None) -> list[Study]:
    """The studies of these names, each once; all of them for None or no names.

    Raises:
        ValueError: a name that is no study's.

    >>> [study.NAME for study in chosen("speed")]
    ['speed']
    """
    wanted = [names] if isinstance(names, str) else list(names or STUDIES)
    for name in wanted:
        one_of("study", name, STUDIES)
    modules = [import_module(f"batchnorm.studies.{name}") for name in STUDIES if name in wanted]
    return cast("list[Study]", modules)


def one_of(what: str, value: object, possible: tuple[str, ...]) -> None:
    """Refuse a value that is not among the possible ones.

    Raises:
        ValueError: and which one may have been meant.

    >>> one_of("scale", "fulll", SCALES)
    Traceback (most recent call last):
    ValueError: no scale 'fulll': did you mean 'full'? possible: quick, full
    """
    if value in possible:
        return
    close = get_close_matches(str(value), possible, n=1)
    hint = f": did you mean {close[0]!r}?" if close else ";"
    raise ValueError(f"no {what} {value!r}{hint} possible: {', '.join(possible)}")


def processes(jobs: object) -> int:
    """How many processes; as many as there are cores for None.

    Raises:
        ValueError: less than one, or not a whole number.
    """
    from loky import cpu_count

    if jobs is None:
        return cpu_count()
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise ValueError(
            f"jobs is {jobs!r}: expected a whole number of processes, 1 or more; leave it out for "
            f"one on each core ({cpu_count()} here)"
        )
    return jobs


def planned(studies: Iterable[Study], setup: Setup, context: Context) -> list[Part]:
    """Every study's trials under their keys.

    Raises:
        ValueError: no such scale or data set, or a model that cannot be trained on the data.
    """
    one_of("scale", setup.scale, SCALES)
    context.examples(setup.data)
    if setup.model is not None:
        _fits(setup.model, setup.data, context)
    parts: list[Part] = []
    for study in studies:
        trials = study.trials(setup)
        if isinstance(trials, str):
            parts.append(Part(study, not_applicable=trials))
            continue
        timings = study.timings(setup) if hasattr(study, "timings") else []
        parts.append(Part(study, _by_key(trials, context), _by_key(timings, context)))
    return parts


def rows_of(part: Part, finished: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """The rows of a study's trials, in the order of its trials: the fields, the key, the values."""
    return [
        {**asdict(trial), "key": key, **row}
        for key, trial in part.trials.items()
        for row in finished[key]
    ]


def _by_key(trials: list[Trial], context: Context) -> dict[str, Trial]:
    return {trial.key(context.of(trial)): trial for trial in trials}


def _fits(model: str, data: str, context: Context) -> None:
    """Try the user's network once, with and without batch norm, before hundreds of trials do."""
    examples = context.examples(data)
    own(model)
    for batch_norm in (False, True):
        trial = Trial(network=model, data=data, batch_norm=batch_norm)
        network = build(trial, examples).eval()
        x = examples.train.x[:2]
        try:
            with torch.no_grad():
                y = network(x)
        except Exception as error:
            raise ValueError(
                f"model {model!r} does not take data {data!r}, mini-batches of shape "
                f"(m, {', '.join(map(str, examples.shape))}): {type(error).__name__}: {error}"
            ) from error
        shape = tuple(y.shape) if isinstance(y, torch.Tensor) else type(y).__name__
        if shape != (2, examples.classes):
            raise ValueError(
                f"model {model!r} gave {shape} for 2 examples of data {data!r}; expected logits "
                f"of shape (2, {examples.classes}), one for each class"
            )
