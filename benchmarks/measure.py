"""Timing that pairs contenders within one run: rounds in random order, ratios of the pairs."""

import random
import statistics
import time


class Elsewhere:
    """A step in another process, which takes the time itself, without the way there and back."""

    def __init__(self, ask):
        self._ask = ask

    def seconds(self, calls):
        """Of so many calls."""
        return self._ask(calls=calls)


def seconds_of(step, calls):
    """Of so many calls, wherever they run."""
    if isinstance(step, Elsewhere):
        return step.seconds(calls)
    start = time.perf_counter()
    for _ in range(calls):
        step()
    return time.perf_counter() - start


def repetitions(step, seconds=0.05):
    """How many calls of `step` take about that long."""
    seconds_of(step, 3)  # the second may load what the first has made known
    return max(1, int(seconds / max(seconds_of(step, 1), 1e-7)))


def interleaved(steps, rounds=9, seconds=0.05, seed=0):
    """Seconds a call, for each name in `steps` one number a round; the order changes every round."""
    shuffle = random.Random(seed).shuffle
    counts = {name: repetitions(step, seconds) for name, step in steps.items()}
    times = {name: [] for name in steps}
    for _ in range(rounds):
        names = list(steps)
        shuffle(names)
        for name in names:
            times[name].append(seconds_of(steps[name], counts[name]) / counts[name])
    return times


def ratio(theirs, ours, resamples=2000, seed=0):
    """Median of the rounds' ratios theirs / ours, and a bootstrap 95 % interval of it."""
    pairs = [t / o for t, o in zip(theirs, ours, strict=True)]
    draw = random.Random(seed)
    medians = sorted(statistics.median(draw.choices(pairs, k=len(pairs))) for _ in range(resamples))
    return (
        statistics.median(pairs),
        medians[int(0.025 * resamples)],
        medians[int(0.975 * resamples)],
    )


def resolved(interval):
    """Whether the interval decides who is faster."""
    _, low, high = interval
    return low > 1 or high < 1
