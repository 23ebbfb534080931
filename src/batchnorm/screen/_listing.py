"""What studies there are, for a terminal."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from batchnorm.screen._clock import about
from batchnorm.studies import Plan


def listing(plans: list[Plan], seconds: float | None) -> RenderableType:
    """A study a line: its name, the lecture, the claim, its trials, and how long they would take.

    Args:
        plans: of each study.
        seconds: of all of them together; None where it is not known.
    """
    table = Table.grid(padding=(0, 2, 0, 0), expand=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="dim")
    table.add_column()
    table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True, justify="right")
    for plan in plans:
        trials = f"{plan.trials} trials" if plan.trials else ""
        took = "" if plan.seconds is None else about(plan.seconds)
        title = Text(plan.title)
        title.append(f"\n{plan.reason}" if plan.reason else "", "yellow")
        table.add_row(Text(plan.name, "bold"), plan.lecture, title, trials, took)
    told = "" if seconds is None else f": {about(seconds)} (studies share trials)"
    return Group(table, Text(f"\nAll of them: batchnorm study{told}", "dim"))
