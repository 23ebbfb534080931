"""Where an arm does best."""

from statistics import fmean

from batchnorm.studies._sweep import Sweep


def accuracies_at_best(arm: Sweep) -> tuple[float, dict[int, float]]:
    """The rate with the highest validation accuracy at the end, and the test accuracies there."""

    def end(rate: float, part: str) -> dict[int, float]:
        return {seed: run.end(part) for seed, run in arm[rate].items()}

    rate = max(arm, key=lambda rate: fmean(end(rate, "validation").values()))
    return rate, end(rate, "test")
