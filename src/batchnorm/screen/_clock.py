"""Seconds as people read them."""


def clock(seconds: float) -> str:
    """A length of time, with its units.

    >>> clock(8), clock(75.2), clock(4000)
    ('8 s', '1 min 15 s', '1 h 6 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def about(seconds: float) -> str:
    """An estimate as a person tells it, no finer than it is known.

    >>> about(4), about(37), about(75), about(155), about(1100), about(4000), about(20_000)
    ('a few seconds', '40 seconds', '1 minute', '3 minutes', '20 minutes', '1 hour', '6 hours')
    """
    if seconds < 9:
        return "a few seconds"
    if seconds < 55:
        return f"{round(seconds, -1):.0f} seconds"
    minutes = round(seconds / 60)
    if minutes < 55:
        count, unit = (max(1, minutes) if minutes < 10 else 5 * round(seconds / 300)), "minute"
    else:
        count, unit = round(seconds / 3600), "hour"
    return f"{count} {unit}{'' if count == 1 else 's'}"
