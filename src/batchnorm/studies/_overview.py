"""What a run would do and how long it would take, before it does anything."""

from batchnorm.studies._context import Context
from batchnorm.studies._estimate import DRAWING, STARTING, Estimate, together
from batchnorm.studies._network import EMBEDDED
from batchnorm.studies._plan import Part
from batchnorm.studies._presumed import Presumed
from batchnorm.studies._run import Plan
from batchnorm.studies._sitting import TIMES
from batchnorm.studies._trial import Trial


def plans(parts: list[Part], context: Context, jobs: int) -> tuple[list[Plan], float | None]:
    """Each study's trials and seconds, and the seconds of all of them together."""
    estimate = _estimate(
        [t for p in parts for t in (*p.trials.values(), *p.timings.values())], context
    )

    def seconds(
        trials: dict[str, Trial], timings: dict[str, Trial], studies: int = 1
    ) -> float | None:
        beside = estimate.seconds(trials.values())
        alone = estimate.seconds(timings.values())
        if beside is None or alone is None:
            return None
        around = STARTING + studies * DRAWING
        return around + together(beside, jobs) + TIMES * sum(alone)

    out = [
        Plan(
            part.study.NAME,
            part.study.LECTURE,
            part.study.TITLE,
            len(part.trials),
            seconds(part.trials, part.timings) if part.trials else None,
            part.not_applicable or part.failed or "",
        )
        for part in parts
    ]
    every = {k: t for part in parts for k, t in part.trials.items()}
    timed = {k: t for part in parts for k, t in part.timings.items()}
    return out, seconds(every, timed, sum(bool(part.trials) for part in parts))


def _estimate(trials: list[Trial], context: Context) -> Presumed | Estimate:
    """Of our own network it is known what it costs; any other is tried."""
    if all(trial.network == EMBEDDED[0] for trial in trials):
        return Presumed()
    estimate = Estimate(context.examples)
    estimate.prepare(trials)
    return estimate
