"""Timing that pairs contenders within one run: rounds in random order, ratios of the pairs."""

import random
import statistics
import time


def repetitions(step, seconds=0.05):
    """How many calls of `step` take about that long."""
    step()
    start = time.perf_counter()
    step()
    return max(1, int(seconds / max(time.perf_counter() - start, 1e-7)))


def interleaved(steps, rounds=9, seconds=0.05, seed=0):
    """Seconds a call, for each name in `steps` one number a round; the order changes every round."""
    shuffle = random.Random(seed).shuffle
    counts = {name: repetitions(step, seconds) for name, step in steps.items()}
    times = {name: [] for name in steps}
    for _ in range(rounds):
        names = list(steps)
        shuffle(names)
        for name in names:
            start = time.perf_counter()
            for _ in range(counts[name]):
                steps[name]()
            times[name].append((time.perf_counter() - start) / counts[name])
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
