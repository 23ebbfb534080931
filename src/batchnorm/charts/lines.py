"""Curves and sweeps: a line an arm."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Unpack

from batchnorm.charts._frame import Frame, Look, text, tip
from batchnorm.charts._rows import Row, points_of, spread

if TYPE_CHECKING:
    import altair as alt

# 3:1 or more on white and on near-black, and told apart by color-blind readers (after Okabe, Ito).
BLUE, ORANGE, GREEN, PURPLE, GRAY = "#1b7fc4", "#d55e00", "#0b9a70", "#b0629a", "#7d8590"
KNOWN = {
    "with batch norm": BLUE,
    "batch norm in hidden layers": BLUE,
    "without": ORANGE,
    "raw inputs": ORANGE,
}
OTHERS = (GREEN, PURPLE, GRAY, ORANGE, BLUE)
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [10, 4])
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down")
CROSS = "M-1,-1L1,1M1,-1L-1,1"
HEIGHT = 280


def curves(
    rows: Iterable[Row],
    x: str,
    y: str,
    *,
    color: str = "arm",
    band: tuple[str, str] | None = None,
    **look: Unpack[Look],
) -> "alt.LayerChart":
    """Learning curves: a line an arm, and a band around it.

    Rows that share ``x`` and ``color`` are runs (seeds): their median is drawn, and their range as
    the band. Rows that hold a band already name its two fields in ``band``. A line ends with a
    cross where more than half of its runs diverged.

    Raises:
        ValueError: there are no rows, or one lacks a named field.

    Example:
        >>> rows = [{"step": s, "loss": 2 / (s + 1), "arm": "without"} for s in range(3)]
        >>> print(curves(rows, "step", "loss", title="Loss").to_dict()["description"])
        Loss: loss against step. without: ends at 0.667.
    """
    frame = Frame(x, y, **look)
    points = points_of(rows, frame, color, band)
    crosses: list[Row] = []
    facts: list[str] = []
    for arm in _arms(points):
        mine = [p for p in points if p["arm"] == arm]
        last = next((p for p in reversed(mine) if p["y"] is not None), None)
        diverged = mine[-1]["y"] is None
        crosses += [last] if diverged and last else []
        end = f"ends at {text(last['y'])}" if last else "no run gave a number"
        facts.append(f"{arm}: {end}" + (", then most runs diverge" if diverged and last else ""))
    return _lines(points, crosses, frame, facts, "" if band else spread(points), dots=False)


def sweep(
    rows: Iterable[Row],
    x: str = "learning_rate",
    y: str = "test_accuracy",
    *,
    color: str = "arm",
    lost: str = "diverged",
    **look: Unpack[Look],
) -> "alt.LayerChart":
    """A result against a setting (log axis unless ``log_x=False``), one row a run.

    The median of the runs is drawn, and their range as a band. Where fewer than half of them gave
    a number, a cross at the foot of the chart stands for the point; ``lost`` says what became of
    such runs.

    Raises:
        ValueError: there are no rows, or one lacks a named field.

    Example:
        >>> rows = [{"learning_rate": 0.1, "test_accuracy": None, "arm": "without"}]
        >>> print(sweep(rows).to_dict()["description"])
        test accuracy against learning rate. without: no run gave a number.
    """
    look.setdefault("log_x", True)
    frame = Frame(x, y, **look)
    points = points_of(rows, frame, color, None)
    facts: list[str] = []
    for arm in _arms(points):
        mine = [p for p in points if p["arm"] == arm and p["y"] is not None]
        top = max(mine, key=lambda p: p["y"], default=None)
        best = f"highest {text(top['y'])} at {text(top['x'])}" if top else "no run gave a number"
        facts.append(f"{arm}: {best}")
    crosses = [p for p in points if p["y"] is None]
    return _lines(points, crosses, frame, facts, spread(points), lost=lost, dots=True)


def _lines(
    points: list[Row],
    crosses: list[Row],
    frame: Frame,
    facts: list[str],
    note: str,
    *,
    lost: str = "diverged",
    dots: bool,
) -> "alt.LayerChart":
    """Band, line, dots to point at, and crosses: at the foot of a sweep, at the end of a curve."""
    import altair as alt

    arms = _arms(points)
    others = iter(OTHERS * len(arms))
    inks = [KNOWN.get(arm) or next(others) for arm in arms]
    key = alt.Legend(symbolOpacity=1) if dots else alt.Legend(symbolOpacity=1, symbolType="stroke")
    marks: list[Any] = list(SHAPES if dots else DASHES) * len(arms)
    both: dict[str, Any] = {"title": None, "legend": key}
    ink: dict[str, Any] = both | {"scale": alt.Scale(domain=arms, range=inks)}
    mark: dict[str, Any] = both | {"scale": alt.Scale(domain=arms, range=marks[: len(arms)])}
    crossed = [arm for arm in arms if any(p["arm"] == arm for p in crosses)]
    x = frame.axis("x", [p["x"] for p in points], padding=12 if dots else 0)
    heights = [p[end] for p in points for end in ("low", "y", "high")]
    y = frame.axis("y", heights, padding=8 + 14 * len(crossed) if dots and crossed else 0)
    name, count = alt.Tooltip("arm:N", title=" "), alt.Tooltip("runs:N", title="runs with a number")
    at = tip("x", frame.named("x"))
    extent = [tip("y", frame.named("y")), tip("low", "lowest run"), tip("high", "highest run")]

    def layer(data: list[Row]) -> "alt.Chart":
        base = alt.Chart(alt.InlineData(values=data))
        return base.encode(x=alt.X("x:Q", **x), color=alt.Color("arm:N", **ink))

    # A sweep's line breaks where there is no number; a curve's cannot come back from there.
    drawn = layer(points if dots else [p for p in points if p["y"] is not None])
    band = drawn.mark_area(opacity=0.15, aria=False).encode(alt.Y("low:Q", **y), y2="high:Q")
    line = drawn.mark_line(strokeWidth=2, aria=False).encode(alt.Y("y:Q", **y))
    dot = drawn.mark_point(filled=True, size=60, opacity=1 if dots else 0, aria=False)
    dot = dot.encode(alt.Y("y:Q", **y), tooltip=[name, at, *extent, count])
    if dots:
        dot = dot.encode(shape=alt.Shape("arm:N", **mark))
    else:
        line = line.encode(strokeDash=alt.StrokeDash("arm:N", **mark))
    layers = [band, line, dot]
    for i, arm in enumerate(crossed):
        foot = alt.value(HEIGHT - 8 - 14 * i) if dots else alt.Y("y:Q", **y)
        cross = layer([p for p in crosses if p["arm"] == arm])
        cross = cross.mark_point(shape=CROSS, size=50, strokeWidth=2, opacity=1)
        layers.append(cross.encode(y=foot, tooltip=[name, at, count]))
    cross_note = f"× more than half of the runs {lost}" if crosses else ""
    return frame.chart(layers, HEIGHT, facts, "; ".join(filter(None, [note, cross_note])))


def _arms(points: Iterable[Row]) -> list[str]:
    """The arms in a fixed order: those every chart knows first, then as they come."""
    seen = dict.fromkeys(str(p["arm"]) for p in points)
    return [arm for arm in KNOWN if arm in seen] + [arm for arm in seen if arm not in KNOWN]
