"""What dropout costs in accuracy beside batch norm: verdicts of the study of dropout."""

from statistics import median
from typing import Any

from batchnorm.studies._dropped import LAST
from batchnorm.studies._judge import judge
from batchnorm.studies._orders import ALONE, BARE, ORDERS, PLAIN, Arms, Name
from batchnorm.studies._race import end_of
from batchnorm.studies._taught import weakened
from batchnorm.studies._verdict import Verdict

NAME = "dropout"
UNHARMED, HARMED = 1.0, 2.0  # points of accuracy: less decides nothing; what is told apart


def lost(arms: Arms, name: Name, network: str) -> Verdict:
    """Points of test accuracy that an order and rate loses."""
    order, rate = name
    alone, ours = arms[ALONE, 0.0], arms[name]
    return judge(
        NAME,
        f"accuracy lost, {order}, rate {rate:g}, {network}",
        f"Batch norm loses no test accuracy by {order} at rate {rate:g} ({network}).",
        [*_costs(arms, ALONE, name).values()],
        note=f"Medians: {ours.told()}; batch norm alone {alone.told()}{_without(arms, rate)}. "
        f"Batch norm alone ends at a loss of {alone.middle('loss')} in training and "
        f"{alone.middle('test_loss')} on the test set: dropout is against such a difference.",
        caution=" ".join(filter(None, [_anyway(arms, name), _limits(arms, (ALONE, 0.0), name)])),
        none=HARMED,
        claimed=UNHARMED,
        unit="points",
    )


def lost_anew(arms: Arms, name: Name, network: str) -> Verdict:
    """What is still lost against batch norm alone when statistics are measured without dropout."""
    order, rate = name
    alone, ours = arms[ALONE, 0.0], arms[name]

    def points(row: dict[str, Any]) -> float | None:
        untrained = ours.untrained[row["seed"]]
        test, anew = alone.test.get(row["seed"]), row.get("anew", untrained)
        return None if test is None or anew is None else 100 * (test - anew)

    return judge(
        NAME,
        f"accuracy lost, statistics anew, {order}, rate {rate:g}, {network}",
        f"With statistics measured anew without dropout nothing is lost by {order} at rate "
        f"{rate:g} ({network}).",
        ours.each(points),
        note="Measured over the training set, in evaluation mode.",
        caution=_limits(arms, (ALONE, 0.0), name),
        none=HARMED,
        claimed=UNHARMED,
        unit="points",
    )


def compared(arms: Arms, name: Name, network: str) -> Verdict:
    """What an order and rate costs beside batch norm, less what dropout costs without it."""
    order, rate = name
    with_it, without = _costs(arms, ALONE, name), _costs(arms, PLAIN, (BARE, rate))
    return judge(
        NAME,
        f"accuracy lost, less that without batch norm, {order}, rate {rate:g}, {network}",
        f"Dropout costs no more accuracy with batch norm than without it: {order} at rate "
        f"{rate:g} ({network}).",
        [with_it[seed] - without[seed] for seed in with_it if seed in without],
        note=f"Without batch norm it costs {median(without.values()):.1f} points, with it "
        f"{median(with_it.values()):.1f} (medians). {arms[name].told().capitalize()} with both; "
        f"batch norm alone {arms[ALONE, 0.0].told()}{_without(arms, rate)}.",
        caution=_limits(arms, (ALONE, 0.0), (PLAIN, 0.0), (BARE, rate), name),
        none=HARMED,
        claimed=UNHARMED,
        unit="points",
    )


def _costs(arms: Arms, without: str, name: Name) -> dict[int, float]:
    """Points of accuracy that an arm loses against the one without dropout, by seed."""
    start, end = arms[without, 0.0].test, arms[name].test
    return {seed: 100 * (start[seed] - end[seed]) for seed in start if seed in end}


def _anyway(arms: Arms, name: Name) -> str:
    """A caution where dropout at the same places costs enough to count without batch norm too."""
    order, rate = name
    if order == ORDERS[LAST]:
        return ""
    points = median(_costs(arms, PLAIN, (BARE, rate)).values())
    if points < UNHARMED:
        return ""
    return (
        f"Dropout at rate {rate:g} costs {points:.1f} points without batch norm too: "
        "what is lost here is not all for want of fitting together."
    )


def _limits(arms: Arms, *names: Name) -> str:
    """Whether there was accuracy to lose, and the arms whose best rate is the last one tried."""
    words = [
        weakened([*arms[name].last.values()], [*arms[name].test.values()], UNHARMED)
        for name in names
        if name[0] in (ALONE, PLAIN)
    ]
    grids = {arms[name].rates for name in names}
    if all(len(grid) == 1 for grid in grids):
        words.append(f"All arms at one learning rate, {arms[names[0]].learning_rate:g}.")
    else:
        words += [end_of(name[0], arms[name].learning_rate, arms[name].rates) for name in names]
    return " ".join(dict.fromkeys(filter(None, words)))


def _without(arms: Arms, rate: float) -> str:
    """The arms without batch norm, in words."""
    bare = [(BARE, arms.get((BARE, rate))), (PLAIN, arms.get((PLAIN, 0.0)))]
    return "".join(f"; {name} {one.told()}" for name, one in bare if one)
