"""What a run found, for a terminal."""

from dataclasses import asdict

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from batchnorm.report._words import NO_BREAK, UNKNOWN, interval, value
from batchnorm.studies import Run
from batchnorm.studies._verdict import Verdict

COLORS = {
    "supported": "green",
    "not supported": "yellow",
    "contradicted": "red",
    "inconclusive": "cyan",
}
QUICK = (
    "A quick look, of few seeds, short training and fewer measures: for numbers to rely on, "
    "--scale full"
)
DETAILED = 3  # of so many studies everything is shown; of more, a line each


def findings(run: Run, width: int, *, quick: bool = False) -> RenderableType:
    """What was found: of a few studies all of it, of many the headline of each.

    Args:
        run: what was found.
        width: of the terminal; a narrow one gets the numbers under the words.
        quick: it was a quick look, which is said.
    """
    found = _detailed(run, width) if len(run.titles) <= DETAILED else _headlines(run, width)
    return Group(found, Text(QUICK, "yellow")) if quick and run.verdicts else found


def _headlines(run: Run, width: int) -> RenderableType:
    rows: list[tuple[Text, Text, Text]] = []
    for name, title in run.titles.items():
        mine = [verdict for verdict in run.verdicts if verdict.study == name]
        if name in run.failed:
            rows.append((Text("failed", "bold red"), Text(title, "bold"), Text(run.failed[name])))
        elif name in run.not_applicable:
            why = Text(run.not_applicable[name], "dim")
            rows.append((Text("does not apply", "dim"), Text(title, "bold"), why))
        elif mine:
            first, more = mine[0], len(mine) - 1
            measured = Text(f"{first.metric}: {_measured(first)}")
            measured.append(f" and {more} more" if more else "", "dim")
            word = Text(first.verdict, f"bold {COLORS.get(first.verdict, '')}".strip())
            rows.append((word, Text(title, "bold"), measured))
    words = max(map(len, [*COLORS, "does not apply"]))
    titles = max((len(title) for _, title, _ in rows), default=0)
    measures = max((len(measured) for word, _, measured in rows if word.plain in COLORS), default=0)
    table = Table.grid(padding=(0, 2, 0, 0), expand=False)
    table.add_column(width=words)
    beside = width >= words + titles + measures + 4
    for word, title, said in rows:
        table.add_row(word, title, said) if beside else table.add_row(word, Group(title, said))
    weak = sum(1 for verdict in run.verdicts if verdict.caution)
    note = f"{len(run.verdicts)} measures are on the page" + (
        f", with what weakens {weak} of them." if weak else "."
    )
    return Group(table, Text("\n" + note, "dim"))


def _detailed(run: Run, width: int) -> RenderableType:
    """Study by study: the headline in bold, what else was measured, what weakens it.

    Args:
        run: what was found.
        width: of the terminal; a narrow one gets the numbers under the words.
    """
    measures = max((len(verdict.metric) for verdict in run.verdicts), default=0)
    values = max((len(_measured(verdict)) + len(" (1)") for verdict in run.verdicts), default=0)
    words = max(map(len, [*COLORS, "does not apply"]))
    stacked = width < 2 + words + 2 + measures + 2 + values
    lines: list[RenderableType] = []
    for name, title in run.titles.items():
        lines += [Text()] if lines else []
        lines += [Text.assemble((title, "bold"), (f"  {name}", "dim"))]
        table = Table.grid(padding=(0, 2, 0, 0), expand=False)
        table.add_column(width=words)
        # Even columns from one study to the next, as wide as the widest needs.
        table.add_column(width=None if stacked or not measures else measures)
        table.add_column()
        notes = _add(table, [v for v in run.verdicts if v.study == name], stacked)
        # Sentences, with commands to copy: not in a column as wide as names of measures.
        why = Table.grid(padding=(0, 2, 0, 0), expand=False)
        why.add_column(width=words)
        why.add_column(overflow="fold")
        if name in run.failed:
            why.add_row(Text("failed", "bold red"), Text(run.failed[name]))
        if name in run.not_applicable:
            why.add_row(Text("does not apply", "dim"), Text(run.not_applicable[name]))
        lines += [Padding(part, (0, 0, 0, 2)) for part in (table, why, notes)]
    held = "; or ".join(dict.fromkeys(v.interval for v in run.verdicts if v.interval))
    lines += [Text(f"\nIn brackets: {held}.", "dim")] if held else []
    return Group(*lines)


def _add(table: Table, verdicts: list[Verdict], stacked: bool) -> Table:
    """A row for each verdict; gives what weakens them, by number."""
    cautions = list(dict.fromkeys(v.caution for v in verdicts if v.caution))
    for verdict in verdicts:
        style = "" if table.rows else "bold"
        word = Text(verdict.verdict, f"{style} {COLORS.get(verdict.verdict, '')}".strip())
        metric, measured = Text(verdict.metric, style), Text(_measured(verdict), style)
        if verdict.caution:
            measured.append(f" ({1 + cautions.index(verdict.caution)})", "yellow")
        if stacked:
            table.add_row(word, Group(metric, measured))
        else:
            table.add_row(word, metric, measured)
    notes = Table.grid(padding=(0, 1, 0, 0))
    for i, caution in enumerate(cautions, start=1):
        notes.add_row(Text(f"({i})", "yellow"), Text(caution, "dim"))
    return notes


def _measured(verdict: Verdict) -> str:
    """Number and interval as the page has them."""
    told = asdict(verdict)
    measured, ends = value(told).replace(NO_BREAK, " "), interval(told)
    if verdict.value is None:
        return "not measured" if ends == UNKNOWN else measured
    return measured if ends == UNKNOWN else f"{measured} [{ends}]"
