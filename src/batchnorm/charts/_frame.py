"""What every chart has: titles, axes, tooltips, a description for those who cannot see it."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, floor, log10
from textwrap import wrap
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    import altair as alt


MOST_TICKS = 8  # on a logarithmic axis
WIDEST = 46  # characters in a line: as many as the narrowest page has room for


class Look(TypedDict, total=False):
    """What every chart takes by keyword; a field's name stands in for a missing axis title."""

    title: str
    x_title: str
    y_title: str
    log_x: bool
    log_y: bool


@dataclass(frozen=True)
class Frame:
    """Two fields, and how their axes look."""

    x: str
    y: str
    title: str = ""
    x_title: str = ""
    y_title: str = ""
    log_x: bool = False
    log_y: bool = False

    def named(self, channel: str) -> str:
        """The title of an axis, "x" or "y"."""
        given, field = (self.x_title, self.x) if channel == "x" else (self.y_title, self.y)
        return given or field.replace("_", " ")

    def axis(
        self, channel: str, values: Iterable[float | None] = (), *, padding: int = 0
    ) -> dict[str, Any]:
        """Title, scale and axis of a channel that shows ``values``, as keywords of an encoding."""
        import altair as alt

        field, log = (self.x, self.log_x) if channel == "x" else (self.y, self.log_y)
        share = "accuracy" in field
        scale: dict[str, Any] = {"type": "log", "nice": False} if log else {"zero": share}
        scale |= {"padding": padding} if padding else {}
        style: dict[str, Any] = {"grid": channel == "y", "tickCount": 5 if channel == "y" else 6}
        style |= {"format": "~g"} if log else {"format": ".0%"} if share else {}
        known = [value for value in values if value is not None]
        if log and (ticks := _ticks(known)):
            style |= {"values": ticks}
        elif known and all(value.is_integer() for value in map(float, known)):
            style |= {"tickMinStep": 1}  # there is no layer 2.5
        return {
            "title": wrapped(self.named(channel)),
            "scale": alt.Scale(**scale),
            "axis": alt.Axis(**style),
        }

    def chart(
        self, layers: "list[alt.Chart]", height: Any, facts: list[str], note: str = ""
    ) -> "alt.LayerChart":
        """The layers as one chart, as wide as its place, told in words by its ``facts``."""
        import altair as alt

        titles = " against ".join(filter(None, [self.named("y"), self.named("x")]))
        about = ": ".join(filter(None, [self.title, titles]))
        title = alt.Title(self.title, subtitle=note) if note else self.title
        look: dict[str, Any] = {"width": "container", "height": height, "title": title}
        return alt.LayerChart(layer=layers, description=f"{about}. {'. '.join(facts)}.", **look)


def _ticks(values: list[float]) -> list[float]:
    """What a logarithmic axis is read by: powers of ten, or 1, 2 and 5 times them; none for few.

    >>> _ticks([0.01, 10.0]), _ticks([3.0, 60.0]), _ticks([4.0, 6.0])
    ([0.01, 0.1, 1.0, 10.0], [5.0, 10.0, 20.0, 50.0], [])
    """
    if not values:
        return []
    low, high = min(values) * 0.98, max(values) * 1.02
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    for digits in ((1,), (1, 2, 5)):
        ticks = [float(f"{digit}e{power}") for power in powers for digit in digits]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) >= (3 if digits == (1,) else 2):
            return inside[:: ceil(len(inside) / MOST_TICKS)]
    return []


def wrapped(words: str) -> str | list[str]:
    """Words that have room in a line, as they are; others in as few lines as they need, even ones.

    >>> wrapped("step"), wrapped("accuracy lost, statistics anew, dropout after each norm, ReLU")
    ('step', ['accuracy lost, statistics anew,', 'dropout after each norm, ReLU'])
    """
    count = ceil(len(words) / WIDEST)
    if count < 2:
        return words
    widths = range(ceil(len(words) / count), WIDEST)
    even = (lines for width in widths if len(lines := wrap(words, width)) == count)
    return next(even, wrap(words, WIDEST))


def tip(field: str, title: str) -> "alt.Tooltip":
    """A number of the mark pointed at, under a title."""
    import altair as alt

    return alt.Tooltip(f"{field}:Q", title=title, format=".4~g")


def text(value: float | None) -> str:
    """A number to three digits.

    >>> text(2 / 3)
    '0.667'
    """
    return "no value" if value is None else f"{value:.3g}"
