"""Numbers, dates and verdicts as a reader wants them."""

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from math import floor, log10
from typing import Any

Json = dict[str, Any]

MINUS, NO_BREAK = "\N{MINUS SIGN}", "\N{NO-BREAK SPACE}"
UNKNOWN = "–"
MOST_DECIMALS, POINTS = 5, 2
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
BRIEF, ENOUGH = 120, 30  # characters of a reason: one line, and what a clause of it needs
TRIAL = ", in the trial "
WORDS = ["supported", "not supported", "contradicted", "inconclusive"]


def value(verdict: Json) -> str:
    """The measured value with its unit; where only one end is known, that.

    >>> value({"value": 9.5, "low": 9, "high": 10, "unit": "×"})
    '9.5×'
    >>> value({"value": None, "low": None, "high": 0.5, "unit": "×"})
    'at most 0.500×'
    >>> value({"value": 0.0, "low": 0.0, "high": 0.1, "unit": "×"})
    '0×'
    """
    value, low, high = _numbers(verdict)
    text = value or (f"at least {low}" if low else f"at most {high}" if high else "")
    unit = verdict["unit"]
    return text + (unit if unit in ("×", "") else NO_BREAK + unit) if text else UNKNOWN


def interval(verdict: Json) -> str:
    """The interval in words, with the value's decimals; an end that is None is open.

    >>> interval({"value": 2.0, "low": 2.0, "high": None, "unit": "×"})
    '2.00 or more'
    """
    _, low, high = _numbers(verdict)
    if not low and not high:
        return UNKNOWN
    if not low or not high:
        return f"{low} or more" if low else f"{high} or less"
    return f"{low} to {high}"


def _numbers(verdict: Json) -> list[str]:
    """Value, low and high with as many decimals as the largest needs for three digits."""
    numbers: list[float | None] = [verdict[name] for name in ("value", "low", "high")]
    largest = max((abs(n) for n in numbers if n), default=1.0)
    decimals = max(0, 2 - floor(log10(largest)))
    if verdict["unit"] == "points":  # of a hundred: the thousandth test example tells no more
        decimals = min(decimals, POINTS)
    if decimals > MOST_DECIMALS:
        return ["" if n is None else _powers(n) for n in numbers]
    texts = ["" if n is None else f"{n:,.{decimals}f}" if n else "0" for n in numbers]
    return [text.replace("-", MINUS) for text in texts]


def _powers(number: float) -> str:
    """A number too small for decimals.

    >>> _powers(3.14159e-7)
    '3.14 × 10⁻⁷'
    """
    digits, _, power = f"{number:.2e}".partition("e")
    if float(digits) == 0:
        return "0"
    return f"{digits} × 10{str(int(power)).translate(RAISED)}".replace("-", MINUS)


def typeset(text: str) -> str:
    """Numbers in a sentence as people write them, not as a program does.

    >>> typeset("at -2 points or above 1e-05 σ, 1.65e-5 at 1 points, 1.1 × or below")
    'at −2 points or above 10⁻⁵ σ, 1.65 × 10⁻⁵ at 1 point, 1.1× or below'
    """
    text = re.sub(r"\b(\d(?:\.\d+)?)e([+-]?\d+)\b", _power, text)
    text = re.sub(r"(?<![\w.)])-(?=\d)", MINUS, text)
    return re.sub(r"(?<=\d) ×(?! ?\d)", "×", re.sub(r"\b1 points\b", "1 point", text))


def _power(number: re.Match[str]) -> str:
    digits, power = number[1], f"10{str(int(number[2])).translate(RAISED)}"
    return power if float(digits) == 1 else f"{digits} × {power}"


def summary(studies: Sequence[Json]) -> list[tuple[str, list[Json]]]:
    """Studies by the word of their headline, or by why there is none; those words in order."""
    words = [*WORDS[:1], "contradicted", "not supported", "inconclusive", "failed"]
    by = {one: [s for s in studies if word(s) == one] for one in [*words, "not applicable"]}
    return [(one, found) for one, found in by.items() if found]


def shared(studies: Sequence[Json]) -> list[tuple[str, list[Json]]]:
    """Reasons why several studies do not apply, each with these studies: said once, not with each.

    >>> [why for why, _ in shared([{"status": "not applicable", "reason": "no place"}] * 2)]
    ['no place']
    """
    by: dict[str, list[Json]] = {}
    for study in studies:
        if study["status"] == "not applicable" and study["reason"]:
            by.setdefault(study["reason"], []).append(study)
    return [(why, found) for why, found in by.items() if len(found) > 1]


def brief(reason: str) -> str:
    """What and where in a line, of a message that may go on with versions and ways out.

    >>> brief("ValueError: the disk of the machine is full; " + "go on " * 15 + "(x.py, line 3)")
    'ValueError: the disk of the machine is full'
    """
    what, mark, trial = reason.partition(TRIAL)
    if len(reason) > BRIEF:
        what = re.sub(r" \(\w+\.py, line \d+\)$", "", what)
        ends = [match.start() for match in re.finditer(r"[;:.] | \(", what)]
        end = next((end for end in ends if ENOUGH < end <= BRIEF), None)
        what = what[:end] if end or len(what) <= BRIEF else what[:BRIEF] + ELLIPSIS
    return (what + mark + trial).rstrip(". ")


def word(study: Json) -> str:
    """What became of a study: its headline's verdict, or its status."""
    if study["status"] != "done":
        return study["status"]
    return study["verdicts"][0]["verdict"] if study["verdicts"] else "inconclusive"


def tally(verdicts: Sequence[Json]) -> Iterable[tuple[str, int]]:
    """How many measures came out as each word, for the words that occur."""
    found = [v["verdict"] for v in verdicts]
    return [(one, found.count(one)) for one in WORDS if one in found]


def date(moment: str) -> str:
    """A moment as people write it.

    >>> date("2026-11-21T04:48:48+00:00")
    '21 November 2026, 04:48 UTC'
    """
    try:
        at = datetime.fromisoformat(moment)
    except ValueError:
        return moment
    return f"{at.day} {at:%B %Y, %H:%M} {at.tzname() or ''}".rstrip()


def span(seconds: float) -> str:
    """A length of time.

    >>> span(374.2)
    '6 min 14 s'
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
