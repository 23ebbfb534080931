"""Rows of trials that nobody ran."""

from dataclasses import asdict


def made(trial, accuracy, *, diverged=False, peak=1.0, start=0.1):
    """The first and the last row; a last one without numbers for a run that was lost."""
    base = {**asdict(trial), "key": trial.key("")}
    losses = {"loss": 1.0, "peak_loss": peak, "validation_loss": 1.0, "test_loss": 1.0}
    for step, value in ((0, start), (trial.steps, accuracy)):
        yield {**base, **losses, "step": step, "validation_accuracy": value, "test_accuracy": value}
    if diverged:
        nothing = dict.fromkeys([*losses, "validation_accuracy", "test_accuracy"])
        yield {**base, **nothing, "step": trial.steps, "diverged": True}
